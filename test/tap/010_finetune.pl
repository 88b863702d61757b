# A job from CREATE to an answer of the tuned model: what is seen of it, who may
# see it, and what becomes of it when its transaction is undone.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('finetune');

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN IN ROLE alice;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO alice;
GRANT USAGE ON FOREIGN SERVER tiny TO alice, bob;
GRANT SELECT ON fact TO alice;
INSERT INTO fact VALUES (1001, 'no completion', NULL);
SQL

sub as
{
	my ($user, $sql) = @_;
	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', $user ]);
}

# --- A whole life.  The session that types CREATE has disconnected when this returns.

stop_jobs($node);
my $id = start_job(
	$node, 'parity',
	user    => 'alice',
	query   => 'SELECT prompt, completion, id FROM fact',
	options => { max_steps => 60, learning_rate => 0.01, lora_r => 8, batch_size => 256 });
like($id, qr/^ft_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/, 'CREATE returns the id of a job');
like(error_of($node, "SELECT complete('parity', 'item 1')", 'alice'),
	qr/^55000: .*still being trained/, 'a model that is not ready says so');
like(error_of($node, "SELECT finetune('CREATE', 'parity', 'tiny', 'TABLE fact')", 'alice'),
	qr/^42710: model "parity" already exists/, 'its name is taken');
let_jobs_run($node);

my $job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'the job ends well');
is($job->{phase}, 'completed', 'so does its phase');
is($job->{progress}, 1, 'progress');
is($job->{model}, 'parity', 'model');
is($job->{base_model}, 'tiny', 'base model');
is($job->{owner}, 'alice', 'owner');
is($job->{attempts}, 1, 'attempts');
is($job->{device}, 'cpu', 'device');
is($job->{queue_position}, undef, 'a job that ran has no place in the queue');
is($job->{error}, undef, 'no error');
is($job->{training_data}, 'SELECT prompt, completion, id FROM fact', 'training data');
is($job->{validation_data}, undef, 'no validation query');
is($job->{rows}{read}, 101, 'rows read');
is($job->{rows}{skipped_null}, 1, 'the row with a NULL is skipped, and counted');
ok($job->{rows}{used} > 0 && $job->{rows}{used} <= 100, 'rows used');
ok($job->{trained_tokens} > 0, 'trained tokens');
ok($job->{tokens_per_second} > 0, 'tokens per second');
like($job->{data_hash}, qr/^[0-9a-f]{64}$/, 'hash of the data');
like($job->{$_}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d/, "$_ in ISO 8601") for qw(created_on finished_on);
is($job->{options}{lora_r}, 8, 'an option that was given');
is($job->{options}{lora_alpha}, 16, 'a default that follows it');
is($job->{options}{lr_scheduler}, 'cosine', 'a default');
ok($job->{options}{max_seq_length} > 0, 'an option that the engine chose');
ok(defined $job->{training_result}{$_}, "result: $_")
  for qw(training_loss validation_loss validation_token_accuracy);

is(as('alice', "SELECT finetune('SHOW')->0->>'id'"), $id, 'SHOW lists it');
is( as('alice', "SELECT string_agg(k, ',' ORDER BY k) FROM jsonb_object_keys(finetune('SHOW')->0) k"),
	'base_model,created_on,id,model,phase,progress,status',
	'what SHOW says of a job');
is(as('alice', "SELECT status FROM finetune.models WHERE name = 'parity'"), 'ready', 'the model is ready');
ok(wait_for_sql($node, 'SELECT count(*) = 0 FROM finetune.progress'), 'nothing runs');

# --- Metrics and events

is( as('alice', "SELECT min(step), max(step), count(*) FROM finetune.metrics WHERE job_id = '$id'"),
	'0|60|61', 'metrics have a row for each step, and for the untouched base');
is( as('alice', "SELECT training_loss IS NULL AND validation_loss > 0 AND validation_token_accuracy >= 0"
		  . " FROM finetune.metrics WHERE job_id = '$id' AND step = 0"),
	't', 'step 0 is an evaluation only');
is( as('alice', "SELECT bool_and(training_loss > 0 AND learning_rate >= 0 AND grad_norm > 0 AND tokens > 0"
		  . " AND elapsed > 0 AND epoch > 0) FROM finetune.metrics WHERE job_id = '$id' AND step > 0"),
	't', 'every other step has its figures');
is( as('alice', "SELECT count(*) BETWEEN 4 AND 12 FROM finetune.metrics"
		  . " WHERE job_id = '$id' AND validation_loss IS NOT NULL"),
	't', 'some are evaluations, too');
is( as('alice', "SELECT (SELECT validation_loss FROM finetune.metrics WHERE job_id = '$id' AND step = 60)"
		  . " < 0.7 * (SELECT validation_loss FROM finetune.metrics WHERE job_id = '$id' AND step = 0)"),
	't', 'the model has learned');
is( as('alice', "SELECT string_agg(type, ' ' ORDER BY at) FROM finetune.events"
		  . " WHERE job_id = '$id' AND type <> 'checkpoint'"),
	'created started queued running dataset plan uploading completed',
	'events tell the story');

# --- Rights

like(error_of($node, "SELECT complete('parity', 'item 1')", 'bob'),
	qr/^42501: permission denied for foreign server parity/, 'without USAGE no answer');
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER parity TO bob');
ok(length(as('bob', "SELECT complete('parity', 'item 1', '{\"max_tokens\": 4}')")) > 0,
	'with USAGE there is one');
$node->safe_psql('postgres', 'REVOKE USAGE ON FOREIGN SERVER parity FROM bob');
like(error_of($node, "SELECT complete('parity', 'item 1')", 'bob'), qr/^42501: /, 'and none after REVOKE');

is(as('bob', "SELECT finetune('SHOW')"), '[]', "a stranger's SHOW is empty");
is(as('bob', 'SELECT count(*) FROM finetune.jobs'), 0, 'a stranger sees no job');
is(as('bob', 'SELECT count(*) FROM finetune.metrics'), 0, 'no metrics');
is(as('bob', 'SELECT count(*) FROM finetune.events'), 0, 'no events');
like(error_of($node, "SELECT finetune('$_', '$id')", 'bob'), qr/^42501: /, "$_ by a stranger")
  for qw(DESCRIBE CANCEL DELETE);
like(error_of($node, "SELECT * FROM finetune.$_", 'alice'), qr/^42501: /, "the table $_ is nobody's")
  for qw(job metric event model weights job_detail);
is(as('carol', 'SELECT count(*) FROM finetune.jobs'), 1, 'a member of the owner sees the job');
is(as('carol', "SELECT finetune('DESCRIBE', '$id')->>'status'"), 'SUCCESS', 'and may describe it');
like(error_of($node, "SELECT finetune('CREATE', 'x', 'tiny', 'TABLE fact')", 'bob'),
	qr/^42501: permission denied for foreign-data wrapper/, 'CREATE needs USAGE on the wrapper');
$node->safe_psql('postgres', 'REVOKE USAGE ON FOREIGN SERVER tiny FROM alice');
like(error_of($node, "SELECT finetune('CREATE', 'x', 'tiny', 'TABLE fact')", 'alice'),
	qr/^42501: permission denied for foreign server tiny/, 'and on the base');
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER tiny TO alice');

# --- The queries run with the rights of the owner, and no more

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE private (owner name, prompt text, completion text);
INSERT INTO private VALUES ('alice', 'a', 'b'), ('alice', 'c', 'd'), ('bob', 'e', 'f');
ALTER TABLE private ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON private USING (owner = current_user);
GRANT SELECT ON private TO alice;
CREATE FUNCTION rise() RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN EXECUTE 'RESET ROLE'; EXECUTE 'SET SESSION AUTHORIZATION DEFAULT'; RETURN 'up'; END $$;
CREATE FUNCTION scribble() RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO fact VALUES (-1); RETURN 'written'; END $$;
GRANT INSERT ON fact TO alice;
SQL
$job = wait_for_status($node,
	start_job($node, 'rls', user => 'alice', query => 'SELECT prompt, completion FROM private',
		validation => 'SELECT prompt, completion FROM private', options => { max_steps => 2 }),
	'SUCCESS');
is($job->{rows}{read}, 2, "row security of the owner's holds");
is($job->{validation_data}, 'SELECT prompt, completion FROM private', 'validation query');
for my $trap ([ rise => '42501' ], [ scribble => '25006' ])
{
	$job = wait_for_status($node,
		start_job($node, "trap_$trap->[0]", user => 'alice',
			query => "SELECT 'x' AS prompt, $trap->[0]() AS completion"),
		'ERROR');
	is($job->{error}{code}, $trap->[1], "a query that calls $trap->[0]() fails");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM fact WHERE id < 0'), 0, 'nothing was written');

# --- Transactions

as('alice', "BEGIN; SELECT finetune('CREATE', 'gone', 'tiny', 'TABLE fact'); ROLLBACK");
as('alice', "BEGIN; SAVEPOINT s; SELECT finetune('CREATE', 'gone', 'tiny', 'TABLE fact');"
	  . ' ROLLBACK TO s; COMMIT');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_foreign_server WHERE srvname = 'gone'"),
	0, 'ROLLBACK leaves no server');
is($node->safe_psql('postgres', "SELECT count(*) FROM finetune.jobs WHERE model = 'gone'"),
	0, 'and no job');

as('alice', "BEGIN; SELECT finetune('CREATE', 'two_phase', 'tiny', 'TABLE fact', NULL, '{\"max_steps\": 2}');"
	  . " PREPARE TRANSACTION 'p'");
$node->restart('immediate');
is($node->safe_psql('postgres', "SELECT count(*) FROM finetune.jobs WHERE model = 'two_phase'"),
	0, 'a prepared CREATE is not there yet');
as('alice', "COMMIT PREPARED 'p'");
$id = $node->safe_psql('postgres', "SELECT job_id FROM finetune.jobs WHERE model = 'two_phase'");
start_job($node, 'nudge', options => { max_steps => 2 });
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'COMMIT PREPARED starts the job');

# --- What a database sets for its sessions does not keep workers from their work

$node->safe_psql('postgres', 'ALTER DATABASE postgres SET default_transaction_read_only = on;'
	  . " ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'");
{
	local $ENV{PGOPTIONS} = '-c default_transaction_read_only=off';
	is(wait_for_status($node, start_job($node, 'settings', options => { max_steps => 2 }), 'SUCCESS')->{status},
		'SUCCESS', 'a job in a database that is read only by default');
	$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET ALL');
}

# --- Notifications

my ($rc, $out, $err) = $node->psql(
	'postgres', join "\n",
	'LISTEN finetune;',
	"SELECT finetune('CREATE', 'told', 'tiny', 'TABLE fact', NULL, '{\"max_steps\": 2}') AS id \\gset",
	'\echo :id',
	map { "SELECT pg_sleep(0.2) WHERE (SELECT phase <> 'completed' FROM finetune.jobs WHERE job_id = :'id');" } 1 .. 300);
my ($told) = $out =~ /^(ft_\S+)$/m;
my $notified = () = $out =~ /notification "finetune" with payload "\Q$told\E"/g;
ok($notified >= 3, "listeners hear of the job's phases");

# --- CANCEL, DROP, DELETE

$id = start_job($node, 'long', endless_job(user => 'alice'));
is(wait_for_status($node, $id, 'running')->{phase}, 'running', 'a long job runs');
ok(wait_for_sql($node, 'SELECT steps_done > 3 AND steps_total > 3 FROM finetune.progress'),
	'progress shows its steps');
is(as('bob', 'SELECT count(*) FROM finetune.progress'), 0, 'but not to a stranger');
my $waiting = start_job($node, 'waiting', user => 'alice');
is(job($node, $waiting)->{queue_position}, 1, 'the next one waits at place 1');
is(job($node, $waiting)->{status}, 'PENDING', 'as PENDING');
is(as('alice', "SELECT finetune('cancel', '$waiting')->>'status'"), 'CANCELLED', 'cancelled before it ran');
my $engine = engine_of($node);
as('alice', "BEGIN; SELECT finetune('CANCEL', '$id'); ROLLBACK");
is(job($node, $id)->{phase}, 'running', 'a CANCEL that is rolled back changes nothing');
is(as('alice', "SELECT finetune('CANCEL', '$id')->>'status'"), 'CANCELLED', 'cancelled while it ran');
is(as('alice', "SELECT finetune('CANCEL', '$id')->>'status'"), 'CANCELLED', 'twice is once');
ok(wait_for_sql($node, 'SELECT count(*) = 0 FROM finetune.progress'), 'its worker ends');
ok(!is_running($engine), 'and the engine');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_foreign_server WHERE srvname IN ('long', 'waiting')"),
	0, 'the models are gone');

$id = start_job($node, 'long', endless_job());
wait_for_status($node, $id, 'running');
$node->safe_psql('postgres', 'BEGIN; DROP SERVER long; ROLLBACK');
is(job($node, $id)->{phase}, 'running', 'DROP SERVER that is rolled back changes nothing');
like(error_of($node, "SELECT finetune('DELETE', '$id')"), qr/^55000: /, 'a job that runs cannot be deleted');
$node->safe_psql('postgres', 'DROP SERVER long');
is(job($node, $id)->{status}, 'CANCELLED', 'DROP SERVER cancels the job');
ok(wait_for_sql($node, 'SELECT count(*) = 0 FROM finetune.progress'), 'its worker ends, too');
is($node->safe_psql('postgres', "SELECT finetune('DELETE', '$id')->>'id'"), $id, 'DELETE');
like(error_of($node, "SELECT finetune('DESCRIBE', '$id')"), qr/^42704: /, 'a deleted job is gone');

like(error_of($node, 'DROP SERVER tiny'), qr/^2BP01: /, 'a base that models are tuned from stays');

# --- Nothing is left behind

ok( wait_for_sql($node, "SELECT count(*) = 0 FROM finetune.job WHERE has_directory"),
	'no job has a directory');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_ls_dir('pgsql_tmp_finetune/jobs')"),
	0, 'and there is none on disk');
$node->stop;

ok(slurp_file($node->logfile) !~ /PANIC|TRAP|Segmentation|item 17/, 'nothing unseemly in the log');

done_testing();
