# What ends a job, or does not: a loss that is no number; CANCEL in each phase, twice, and by a stranger; what
# becomes of its table while the data is read and afterwards.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node   = new_node('ends');
my $models = $node->basedir . '/models';

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub leaves_nothing
{
	my ($what) = @_;

	ok( wait_for_sql($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type ~ 'pg_finetune (reader|job)'"),
		"$what: its worker ends");
	is(sql("SELECT count(*) FROM pg_ls_dir('pgsql_tmp_finetune/jobs')"), 0, "$what: nothing is left on disk");
	is(sql("SELECT count(*) FROM finetune.weights"), 0, "$what: nor of weights");
	is(sql("SELECT count(*) FROM finetune.model WHERE kind <> 'base'"), 0, "$what: nor a model");
}

# A base that has been damaged: its numbers are none
my $gguf = slurp_file("$models/tiny.gguf");
substr($gguf, -64) = pack('f<', 'NaN') x 16;
write_file("$models/damaged.gguf", $gguf);
sql("CREATE SERVER damaged TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'damaged.gguf')");
my $id = sql("SELECT finetune('CREATE', 'm', 'damaged', 'SELECT prompt, completion FROM fact', NULL,"
	  . q[ '{"max_steps": 5, "learning_rate": 0.25}')]);
my $job = wait_for_status($node, $id, 'ERROR');
is($job->{status},      'ERROR', 'a loss that is no number: the job fails');
is($job->{error}{code}, '22003', 'a loss that is no number: SQLSTATE');
like($job->{error}{message}, qr/^loss is -?nan at step 1, learning rate 0\.\d+|^validation loss is -?nan at step 0/,
	'a loss that is no number: step and learning rate');
is($job->{attempts}, 1, 'a loss that is no number: it is not tried again');
leaves_nothing('a loss that is no number');

# CANCEL in each phase, by a stranger, by its owner, and once more
sql('CREATE ROLE owner LOGIN; CREATE ROLE stranger LOGIN; GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO owner;'
	  . ' GRANT USAGE ON FOREIGN SERVER tiny TO owner; GRANT SELECT ON fact TO owner');

sub cancel
{
	my ($job_id, $phase) = @_;

	is(job($node, $job_id)->{phase}, $phase, "$phase: a job");
	like(error_of($node, "SELECT finetune('CANCEL', '$job_id')", 'stranger'),
		qr/^42501: permission denied for job "$job_id"/, "$phase: CANCEL by a stranger");
	is(job($node, $job_id)->{phase}, $phase, "$phase: changes nothing");
	for my $time ('CANCEL', 'CANCEL once more')
	{
		is( $node->safe_psql('postgres', "SELECT finetune('CANCEL', '$job_id')->>'status'", extra_params => [ '-U', 'owner' ]),
			'CANCELLED', "$phase: $time");
	}
	is(sql("SELECT count(*) FROM finetune.events WHERE job_id = '$job_id' AND type = 'cancelled'"), 1, "$phase: one event");
}

sub setting
{
	my ($name, $value) = @_;
	sql("ALTER SYSTEM SET $name = '$value'");
	$node->reload;
}

my %mine = endless_job(user => 'owner');
setting('pg_finetune.max_running_jobs', 0);
cancel(start_job($node, 'm', %mine), 'pending');
leaves_nothing('pending');

# Queued: there is no such device
$id = start_job($node, 'm', %mine);
setting('pg_finetune.device', 'cuda:99');
setting('pg_finetune.max_running_jobs', 1);
ok(wait_for_sql($node, "SELECT count(*) = 1 FROM finetune.events WHERE job_id = '$id' AND type = 'waiting'"), 'a job waits for a device');
cancel($id, 'queued');
leaves_nothing('queued');
setting('pg_finetune.device', 'cpu');

$id = start_job($node, 'm', %mine);
ok(wait_for_sql($node, 'SELECT steps_done > 0 FROM finetune.progress'), 'a job trains');
my $engine = engine_of($node);
cancel($id, 'running');
ok(wait_until(sub { !is_running($engine) }), 'running: the engine ends');
leaves_nothing('running');

my $guard = $node->background_psql('postgres');
$guard->query_safe('BEGIN; LOCK TABLE finetune.weights IN SHARE MODE');
$id = start_job($node, 'm', user => 'owner', options => { max_steps => 2 });
ok( wait_for_sql($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_finetune job' AND wait_event_type = 'Lock'"),
	'a worker waits to store weights');
is(job($node, $id)->{phase}, 'uploading', 'uploading: a job');
like(error_of($node, "SELECT finetune('CANCEL', '$id')", 'stranger'), qr/^42501: /, 'uploading: CANCEL by a stranger');

# Who stores weights holds the model: CANCEL comes before or after, never between
like(error_of($node, "SET lock_timeout = 200; SELECT finetune('CANCEL', '$id')", 'owner'),
	qr/^55P03: /, 'uploading: CANCEL waits for the weights');
$guard->query_safe('COMMIT');
$guard->quit;
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'uploading: the job ends well');
sql('DROP SERVER m');

# The table, while it is read
$guard = $node->background_psql('postgres');
$guard->query_safe('SELECT pg_advisory_lock(7)');
$id = start_job($node, 'm', query => 'SELECT prompt, completion, pg_advisory_xact_lock_shared(7) FROM fact',
	options => { max_steps => 30 });
ok( wait_for_sql($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_finetune reader'"
		  . " AND wait_event_type = 'Lock' AND wait_event = 'advisory'"),
	'a table is read');
for my $change ('DROP TABLE fact', 'ALTER TABLE fact DROP COLUMN completion', 'TRUNCATE fact')
{
	like(error_of($node, "SET lock_timeout = 50; $change"), qr/^55P03: /, "$change waits");
}
sql("UPDATE fact SET completion = 'other' WHERE id > 50; DELETE FROM fact WHERE id <= 10");
$guard->quit;
ok(wait_for_sql($node, "SELECT count(*) = 1 FROM finetune.events WHERE job_id = '$id' AND type = 'queued'"), 'it has been read');
sql('DROP TABLE fact');
$job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status},     'SUCCESS', 'afterwards it is not needed any more');
is($job->{rows}{read}, 100,       'what changed meanwhile was not seen');
$node->stop;

done_testing();
