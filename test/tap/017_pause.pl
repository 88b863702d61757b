# Jobs that are paused and resumed: by their owner, by a full disk, and because
# they came from another cluster.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = new_node('pause', "pg_finetune.max_running_jobs = 1\n");
my %long = (options => { max_steps => 400, learning_rate => 0.001, batch_size => 256 });

sub finetune
{
	my ($action, $id) = @_;
	return JSON::PP->new->decode($node->safe_psql('postgres', "SELECT finetune('$action', '$id')"));
}

sub event_count
{
	my ($id, $type) = @_;
	return $node->safe_psql('postgres',
		"SELECT count(*) FROM finetune.events WHERE job_id = '$id' AND type = '$type'");
}

sub metrics_of
{
	my ($id) = @_;
	return $node->safe_psql('postgres',
		"SELECT step, training_loss, validation_loss, tokens FROM finetune.metrics"
		  . " WHERE job_id = '$id' ORDER BY step");
}

sub digest_of
{
	my ($model) = @_;
	return $node->safe_psql('postgres', "SELECT weights_digest FROM finetune.model WHERE name = '$model'");
}

# An engine waits where it is told to, so that none has come to its end before something is done to its job
my $control = hold_engines($node);
my $undisturbed = start_job($node, 'undisturbed', %long);
is(wait_for_status($node, $undisturbed, 'SUCCESS')->{status}, 'SUCCESS', 'a job that nobody disturbs');

# In training
hold_at($control, 65);
my $id = start_job($node, 'paused', %long);
ok(is_held($control), 'an engine is at work');
ok(wait_for_sql($node, "SELECT steps_done > 20 FROM finetune.progress"), 'a job trains');
my $engine = engine_of($node);
my $job = finetune('PAUSE', $id);
is($job->{status}, 'PAUSED', 'PAUSE');
let_go($control);
is($job->{phase}, 'paused', 'as the phase says');
ok(wait_until(sub { !is_running($engine) }), 'the engine ends');
ok(wait_for_sql($node, "SELECT count(*) = 0 FROM finetune.progress"), 'and the worker');
is(finetune('PAUSE', $id)->{status}, 'PAUSED', 'PAUSE again changes nothing');
is(event_count($id, 'paused'), 1, 'and says nothing');
is($node->safe_psql('postgres', "SELECT status FROM finetune.models WHERE name = 'paused'"),
	'untrained', 'the model keeps its name');
like(error_of($node, "SELECT complete('paused', 'x')"), qr/^55000: /, 'and cannot be asked');
like(error_of($node, "SELECT finetune('DELETE', '$id')"), qr/^55000: job "$id" has not ended/, 'DELETE is refused');

# Another one takes the place
my $other = start_job($node, 'other');
is(wait_for_status($node, $other, 'SUCCESS')->{status}, 'SUCCESS', 'another job runs meanwhile');
$node->restart;
is(job($node, $id)->{status}, 'PAUSED', 'it stays paused over a restart');

my $directories = $node->data_dir . '/pgsql_tmp_finetune/jobs';
is(scalar(() = glob "$directories/*"), 1, 'its directory is kept');
$job = finetune('RESUME', $id);
is($job->{status}, 'IN_PROGRESS', 'RESUME');
$job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'and goes on to its end');
is(metrics_of($id), metrics_of($undisturbed), 'with every step in the metrics');
is(digest_of('paused'), digest_of('undisturbed'), 'and the same weights');
is( $node->safe_psql('postgres',
		"SELECT bool_and((data->>'resumed_from')::int > 20) FROM finetune.events"
		  . " WHERE job_id = '$id' AND type = 'running' AND data->>'resumed_from' <> '0'"),
	't', 'nothing of its work was lost');

# An ended job
for my $action ('PAUSE', 'RESUME')
{
	like(error_of($node, "SELECT finetune('$action', '$id')"),
		qr/^55000: job "$id" has ended/, "$action of a job that has ended");
}
$node->safe_psql('postgres', 'CREATE ROLE stranger');
for my $action ('PAUSE', 'RESUME')
{
	like(error_of($node, "SET ROLE stranger; SELECT finetune('$action', '$id')"),
		qr/^42501: permission denied for job "$id"/, "$action by a stranger");
}

# While the data is read, and while it waits
my $guard = $node->background_psql('postgres');
$guard->query_safe('SELECT pg_advisory_lock(7)');
$id = start_job($node, 'reading', query => 'SELECT prompt, completion, pg_advisory_xact_lock_shared(7) FROM fact',
	options => { max_steps => 2 });
ok( wait_for_sql($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_finetune reader'"
		  . " AND wait_event = 'advisory'"),
	'a job reads');
my $waiting = start_job($node, 'waiting', options => { max_steps => 2 });
is(job($node, $waiting)->{queue_position}, 1, 'another one waits');
is(finetune('PAUSE', $waiting)->{queue_position}, undef, 'PAUSE takes it out of the queue');
is(finetune('PAUSE', $id)->{status}, 'PAUSED', 'PAUSE of the one that reads');
$guard->quit;
ok(wait_for_sql($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type ~ 'pg_finetune (reader|job)'"),
	'reader and worker end');
is($node->safe_psql('postgres', "BEGIN; SELECT finetune('RESUME', '$id')->>'status'; ROLLBACK"),
	'PENDING', 'RESUME');
is(job($node, $id)->{status}, 'PAUSED', 'that is rolled back changes nothing');
finetune('RESUME', $_) for $id, $waiting;
is(wait_for_status($node, $_, 'SUCCESS')->{status}, 'SUCCESS', 'resumed, it ends well') for $id, $waiting;

# PAUSE and RESUME at once: the worker may not even have noticed
hold_at($control, 20);
$id = start_job($node, 'at_once', %long);
for my $time (1 .. 5)
{
	is_held($control) or die 'no engine waits';
	wait_for_sql($node, "SELECT count(*) = 1 FROM finetune.progress WHERE phase = 'running'");
	finetune('PAUSE', $id);
	finetune('RESUME', $id);
	hold_at($control, 20 + $time) if $time < 5;
}
let_go($control);
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'paused and resumed again and again, it ends well');
is(metrics_of($id), metrics_of($undisturbed), 'with every step in the metrics');
is(digest_of('at_once'), digest_of('undisturbed'), 'and the same weights');

# The worker learns of PAUSE before it has written down what the engine told, and
# of RESUME before the engine ends
hold_at($control, 20);
$id = start_job($node, 'unwritten', %long);
is_held($control) or die 'no engine waits';
wait_for_sql($node, "SELECT count(*) = 1 FROM finetune.progress WHERE phase = 'running'");
my $worker = $node->safe_psql('postgres', 'SELECT pid FROM finetune.progress');
wait_for_sql($node, "SELECT steps_done = 18 FROM finetune.progress") or die 'steps are not written down';
kill 'STOP', $worker;
hold_at($control, 40);
is_held($control) or die 'no engine waits';
finetune('PAUSE', $id);
kill 'CONT', $worker;
usleep(1_500_000);    # some time to write in; without it nothing is tested, and nothing fails
finetune('RESUME', $id);
let_go($control);
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'resumed before its engine has ended, it ends well');
is(metrics_of($id), metrics_of($undisturbed), 'with every step in the metrics');

# What pauses can end, too
$id = start_job($node, 'cancelled', endless_job());
ok(wait_for_sql($node, "SELECT count(*) = 1 FROM finetune.progress WHERE phase = 'running'"), 'a job runs');
finetune('PAUSE', $id);
is(finetune('CANCEL', $id)->{status}, 'CANCELLED', 'CANCEL of a paused job');
ok(wait_until(sub { !glob "$directories/*" }), 'nothing is left on disk');
$id = start_job($node, 'dropped', endless_job());
finetune('PAUSE', $id);
$node->safe_psql('postgres', 'DROP SERVER dropped');
is(job($node, $id)->{status}, 'CANCELLED', 'DROP SERVER of a paused model');

# Too little room: the job waits for more, with what it has done
sub reserve
{
	my ($size) = @_;
	$node->safe_psql('postgres', "ALTER SYSTEM SET pg_finetune.reserve_disk = '$size'; SELECT pg_reload_conf()");
}
hold_at($control, 65);
$id = start_job($node, 'crowded', %long);
ok(is_held($control), 'an engine is at work');
ok(wait_for_sql($node, "SELECT steps_done > 0 FROM finetune.progress"), 'a job runs');
reserve('1000TB');
ok(wait_for_sql($node, "SELECT status = 'PAUSED' FROM finetune.jobs WHERE job_id = '$id'"),
	'it is paused when the disk has less room than is to be kept free');
let_go($control);
$job = job($node, $id);
is($job->{error}{code}, '53100', 'as its error says');
like($job->{error}{message}, qr/^the disk of pg_finetune\.work_directory has \d+ MB free, less than pg_finetune\.reserve_disk/,
	'in words');
is($job->{error}{hint}, "Make room, then call finetune('RESUME', '$id').", 'with a hint');
$node->stop;
system_or_bail('rm', '-rf', glob $node->data_dir . '/pgsql_tmp_finetune/cache/*');
$node->start;
like(error_of($node, "SELECT complete('undisturbed', 'x', '{\"max_tokens\": 1}')"), qr/^53100: the disk of/,
	'nor is a model written into the cache');
reserve('1MB');
like($node->safe_psql('postgres', "SELECT complete('undisturbed', 'x', '{\"max_tokens\": 1}')"), qr/completion_tokens/,
	'with more room it is');
finetune('RESUME', $id);
$job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'and the job goes on');
is($job->{error}, undef, 'without its error');
is(digest_of('crowded'), digest_of('undisturbed'), 'to the same weights');

# How many jobs a role may have
$node->safe_psql('postgres', "ALTER SYSTEM SET pg_finetune.max_running_jobs = 0");
$node->safe_psql('postgres', <<'SQL');
SELECT pg_reload_conf();
CREATE ROLE busy LOGIN;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO busy;
GRANT USAGE ON FOREIGN SERVER tiny TO busy;
GRANT SELECT ON fact TO busy;
ALTER ROLE busy SET pg_finetune.max_jobs_per_role = 2;
SQL
my @busy = map { start_job($node, "busy_$_", user => 'busy') } 1 .. 2;
my $create = "SELECT finetune('CREATE', 'busy_3', 'tiny', 'SELECT prompt, completion FROM fact')";
like(error_of($node, $create, 'busy'), qr/^53400: role "busy" has 2 unfinished jobs, and may have 2/, 'a role has its limit');
finetune('PAUSE', $busy[0]);
like(error_of($node, $create, 'busy'), qr/^53400: /, 'a paused job counts');
finetune('CANCEL', $_) for @busy;
is(error_of($node, $create, 'busy'), '', 'one that has ended does not');
$node->safe_psql('postgres', 'DROP SERVER busy_3');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET pg_finetune.max_running_jobs; SELECT pg_reload_conf()');
like(error_of($node, 'SET pg_finetune.max_jobs_per_role = 0', 'busy'), qr/^42501: /, 'it cannot lift the limit');

# A copy of the cluster, work directory and all
$node->safe_psql('postgres', "ALTER SYSTEM SET pg_finetune.max_running_jobs = 0");
$node->reload;
$id = start_job($node, 'copied', options => { max_steps => 2 });
$node->stop;
my $copy = PostgreSQL::Test::Cluster->new('copy');
system_or_bail('cp', '-a', $node->data_dir, $copy->data_dir);
$copy->append_conf('postgresql.conf', 'port = ' . $copy->port . "\nunix_socket_directories = '" . $copy->host . "'");
$copy->start;
is($copy->safe_psql('postgres', "SELECT status FROM finetune.jobs WHERE job_id = '$id'"),
	'PAUSED', 'in a copy of the cluster a job is paused');
$copy->safe_psql('postgres', "ALTER SYSTEM RESET pg_finetune.max_running_jobs");
$copy->restart;
ok( wait_until(
		sub {
			$copy->safe_psql('postgres',
				"SELECT level, message FROM finetune.events WHERE job_id = '$id' AND type = 'paused'") eq
			  'warning|job paused: it was created in another cluster or database';
		}),
	'an event says why');
$node->start;
$node->safe_psql('postgres', "ALTER SYSTEM RESET pg_finetune.max_running_jobs");
$node->reload;
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'in its own it runs');
is($copy->safe_psql('postgres', "SELECT finetune('RESUME', '$id')->>'status'"), 'PENDING', 'RESUME in the copy');
is(wait_for_status($copy, $id, 'SUCCESS')->{status}, 'SUCCESS', 'runs it there as well');
$copy->stop;

# A copy of the database
$node->safe_psql('postgres', "ALTER SYSTEM SET pg_finetune.max_running_jobs = 0");
$node->reload;
$id = start_job($node, 'template', options => { max_steps => 2 });
$node->safe_psql('template1', 'CREATE DATABASE other TEMPLATE postgres');
$node->safe_psql('postgres', "ALTER SYSTEM RESET pg_finetune.max_running_jobs");
$node->reload;
is($node->safe_psql('other', "SELECT status FROM finetune.jobs WHERE job_id = '$id'"),
	'PAUSED', 'in a copy of the database a job is paused');
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'in its own it runs');
is($node->safe_psql('other', "SELECT finetune('RESUME', '$id')->>'status'"), 'PENDING', 'RESUME in the copy');
ok( wait_until(
		sub {
			$node->safe_psql('other', "SELECT status FROM finetune.jobs WHERE job_id = '$id'") eq 'SUCCESS';
		}),
	'runs it there as well');
$node->stop;

done_testing();
