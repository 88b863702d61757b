# CREATE, CANCEL, DROP SERVER and RENAME within transactions: undone in whole or in
# part, prepared, kept over a crash; and with roles, replicas and the extension
# itself, while a job runs.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('transactions');
my $super = answer('SELECT current_user');

answer(<<'SQL');
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO alice, bob;
GRANT USAGE ON FOREIGN SERVER tiny TO alice, bob;
GRANT SELECT ON fact TO PUBLIC;
CREATE TABLE many AS SELECT prompt, completion FROM fact, generate_series(1, 200);
GRANT SELECT ON many TO PUBLIC;
SQL

sub answer { return $node->safe_psql('postgres', $_[0]); }

sub as
{
	my ($user, $sql) = @_;
	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', $user ]);
}

sub create
{
	my ($model, $options) = @_;
	return qq(SELECT finetune('CREATE', '$model', 'tiny', 'SELECT prompt, completion FROM fact', NULL, '$options'));
}

# What there is of models and jobs with this name
sub seen
{
	my ($model) = @_;
	return answer("SELECT (SELECT count(*) FROM pg_foreign_server WHERE srvname = '$model'),"
		  . " (SELECT count(*) FROM finetune.model WHERE name = '$model'),"
		  . " (SELECT count(*) FROM finetune.jobs WHERE model = '$model')");
}

my $short = '{"max_steps": 1}';
my $endless = '{"max_epochs": 50, "max_steps": 100000}';

# A job that runs, and does not end by itself
sub running
{
	my ($model, %with) = @_;
	my $id = start_job($node, $model, query => 'TABLE many',
		options => { max_epochs => 50, batch_size => 64, validation_fraction => 0 }, %with);

	is(wait_for_status($node, $id, 'running')->{phase}, 'running', "$model runs");
	return $id;
}

sub goes_on
{
	my ($id, $what) = @_;
	my $steps = answer("SELECT max(step) FROM finetune.metrics WHERE job_id = '$id'") || 0;

	ok(wait_for_sql($node, "SELECT max(step) > $steps FROM finetune.metrics WHERE job_id = '$id'"), "$what: the job goes on");
	is(job($node, $id)->{phase}, 'running', "$what: as it was");
}

# Cancelled, its worker and engine gone, nothing on disk
sub has_ended
{
	my ($id, $model, $what) = @_;

	is(job($node, $id)->{status}, 'CANCELLED', "$what: the job is cancelled");
	is(seen($model), '0|0|1', "$what: the model is gone");
	ok(wait_for_sql($node, 'SELECT count(*) = 0 FROM finetune.progress'), "$what: its worker ends");
	ok(wait_for_sql($node, "SELECT count(*) = 0 FROM finetune.job WHERE has_directory"), "$what: its directory is removed");
}

sub completes
{
	my ($model, $what) = @_;
	ok(length(answer("SELECT complete('$model', 'item 1', '{\"max_tokens\": 4}')")), "$what: it answers");
}

# --- Savepoints

answer('BEGIN; SAVEPOINT a; ' . create('m', $endless) . '; ROLLBACK TO a; ' . create('m', $short) . '; RELEASE a; COMMIT');
is(seen('m'), '1|1|1', 'CREATE, undone, and again');
is(wait_for_status($node, answer("SELECT job_id FROM finetune.jobs WHERE model = 'm'"), 'SUCCESS')->{status},
	'SUCCESS', 'the second is run');
answer('BEGIN; SAVEPOINT a; SAVEPOINT b; ' . create('n', $short) . '; RELEASE b; ROLLBACK TO a; COMMIT');
is(seen('n'), '0|0|0', 'a savepoint that was released goes with the one around it');
answer('BEGIN; SAVEPOINT a; DROP SERVER m; ROLLBACK TO a; COMMIT');
completes('m', 'DROP SERVER, undone');
answer('BEGIN; DROP SERVER m; ' . create('m', $short) . '; ROLLBACK');
completes('m', 'replaced, undone');
answer('BEGIN; DROP SERVER m; ' . create('m', $short) . '; COMMIT');
is(answer("SELECT count(*) FROM finetune.jobs WHERE model = 'm'"), 2, 'replaced');
wait_for_sql($node, "SELECT status = 'ready' FROM finetune.models WHERE name = 'm'");
completes('m', 'replaced');

my $id = running('long');
answer("BEGIN; SAVEPOINT a; SELECT finetune('CANCEL', '$id'); ROLLBACK TO a; COMMIT");
goes_on($id, 'CANCEL, undone');
answer("BEGIN; SAVEPOINT a; DROP SERVER long; ROLLBACK TO a; COMMIT");
goes_on($id, 'DROP SERVER, undone');
answer("BEGIN; SAVEPOINT a; SELECT finetune('CANCEL', '$id'); RELEASE a; SAVEPOINT b; SELECT 1; ROLLBACK TO b; COMMIT");
has_ended($id, 'long', 'CANCEL in a savepoint that was released');

# --- Prepared transactions

sub prepared { return "BEGIN; $_[0]; PREPARE TRANSACTION 'p'"; }

answer(prepared(create('p1', $short)));
is(seen('p1'), '0|0|0', 'a prepared CREATE is not there');
answer("ROLLBACK PREPARED 'p'");
is(seen('p1'), '0|0|0', 'and never was when it is rolled back');

$id = running('p2');
for my $case ([ CANCEL => "SELECT finetune('CANCEL', '$id')" ], [ 'DROP SERVER' => 'DROP SERVER p2' ])
{
	answer(prepared($case->[1]));
	isnt(job($node, $id)->{status}, 'CANCELLED', "a prepared $case->[0] has not happened");
	answer("ROLLBACK PREPARED 'p'");
	goes_on($id, "$case->[0], rolled back");
}
answer(prepared("SELECT finetune('CANCEL', '$id')"));
answer("COMMIT PREPARED 'p'");
has_ended($id, 'p2', 'CANCEL, committed');
$id = running('p3');
answer(prepared('DROP SERVER p3'));
answer("COMMIT PREPARED 'p'");
has_ended($id, 'p3', 'DROP SERVER, committed');

# what the server does with one that it finds after a crash
$id = running('p4');
answer(prepared('DROP SERVER p4'));
kill_server($node);
ok($node->start(fail_ok => 1), 'kill -9, and a start');
is(answer('SELECT count(*) FROM pg_prepared_xacts'), 1, 'a prepared DROP SERVER is still there');
answer("ROLLBACK PREPARED 'p'; " . create('nudge', $short));
ok(wait_for_sql($node, "SELECT phase = 'running' FROM finetune.jobs WHERE job_id = '$id'"), 'rolled back, the job goes on');
answer(prepared("SELECT finetune('CANCEL', '$id')"));
kill_server($node);
ok($node->start(fail_ok => 1), 'kill -9, and a start');
ok(wait_for_sql($node, "SELECT status = 'ready' FROM finetune.models WHERE name = 'nudge'"), 'the next job is run meanwhile');
is(job($node, $id)->{phase}, 'running', 'the job of a prepared CANCEL is nobody\'s to end');
answer("COMMIT PREPARED 'p'; " . create('nudge2', $short));
has_ended($id, 'p4', 'a CANCEL committed after a crash');

# with weights
answer(prepared('DROP SERVER m'));
completes('m', 'a prepared DROP SERVER of a model that is ready');
answer("ROLLBACK PREPARED 'p'");
completes('m', 'rolled back');
answer(prepared('ALTER SERVER m RENAME TO m2; ALTER SERVER nudge RENAME TO m; ALTER SERVER m2 RENAME TO nudge'));
my $names = "SELECT string_agg(id || name, ' ' ORDER BY id) FROM finetune.model WHERE name IN ('m', 'nudge')";
my $before = answer($names);
answer("COMMIT PREPARED 'p'");
isnt(answer($names), $before, 'a prepared swap of names');
completes($_, 'after a swap') for qw(m nudge);

# what cannot be prepared says so
like(error_of($node, prepared('LISTEN finetune; ' . create('no', $short))), qr/^0A000: cannot PREPARE a transaction that has executed LISTEN, UNLISTEN, or NOTIFY/,
	'with LISTEN');
like(error_of($node, prepared('CREATE TEMP TABLE t (); ' . create('no', $short))), qr/^0A000: cannot PREPARE a transaction that has operated on temporary objects/,
	'with temporary tables');
is(error_of($node, prepared("SELECT complete('m', 'x', '{\"max_tokens\": 1}'), finetune('SHOW')") . "; ROLLBACK PREPARED 'p'"), '',
	'questions are no hindrance');
is(seen('no'), '0|0|0', 'nothing is left of those');
like(error_of($node, 'SET default_transaction_read_only = on; ' . create('no', $short)), qr/^25006: cannot execute finetune\('CREATE'\) in a read-only transaction/,
	'CREATE in a transaction that is READ ONLY');
like(error_of($node, "SET default_transaction_read_only = on; SELECT finetune('CANCEL', '$id')"), qr/^25006: /, 'CANCEL');
like(error_of($node, "SET default_transaction_read_only = on; SELECT finetune('DELETE', '$id')"), qr/^25006: /, 'DELETE');

# --- A transaction that keeps an older snapshot: DDL sees what is there now, and so does what follows it

my $session = $node->background_psql('postgres');
answer('ALTER SYSTEM SET pg_finetune.max_running_jobs = 0');
$node->reload;
wait_for_sql($node, "SELECT current_setting('pg_finetune.max_running_jobs') = '0'");
for my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	$session->query_safe("BEGIN ISOLATION LEVEL $level; SELECT 1");
	answer(create('s1', $endless) . '; ' . create('s2', $endless));
	$session->query_safe('DROP SERVER s1; ALTER SERVER s2 RENAME TO s3; COMMIT');
	is(answer("SELECT string_agg(name, ' ') FROM finetune.model WHERE name ~ '^s.\$'"), 's3', "$level: rows follow");
	is(answer("SELECT string_agg(status, ' ') FROM finetune.jobs WHERE model = 's1'"), 'CANCELLED', "$level: and jobs");
	answer("DROP SERVER s3; SELECT finetune('DELETE', job_id) FROM finetune.jobs WHERE model ~ '^s.\$'");
}

answer('ALTER SYSTEM RESET pg_finetune.max_running_jobs');
$node->reload;

# A right that is taken away in the middle of another session's transaction
$session->quit;
answer('GRANT USAGE ON FOREIGN SERVER m TO bob');
$session = $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'bob' ]);
$session->query_safe(q(PREPARE ask AS SELECT length(complete('m', 'x', '{"max_tokens": 1}')::text)));
$session->query_safe('BEGIN');
like($session->query_safe('EXECUTE ask'), qr/^\d+$/, 'USAGE');
answer('REVOKE USAGE ON FOREIGN SERVER m FROM bob');
$session->query('EXECUTE ask');
like($session->{stderr}, qr/permission denied for foreign server m/, 'REVOKE acts on the next call of a running transaction');
$session->quit;

# --- Names change while a job runs

$id = start_job($node, 'young', options => { max_steps => 300, batch_size => 64 });
wait_for_status($node, $id, 'running');
answer('ALTER SERVER tiny RENAME TO small; ALTER SERVER young RENAME TO grown');
is(job($node, $id)->{model} . ' ' . job($node, $id)->{base_model}, 'grown small', 'a job goes by the names of now');
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'renames do not matter to it');
completes('grown', 'renamed in training, as its base was');
like(error_of($node, "SELECT complete('young', 'x')"), qr/^42704: model "young" does not exist/, 'the old name is free');
answer('BEGIN; ALTER SERVER m RENAME TO old; ALTER SERVER grown RENAME TO m; COMMIT');
is(answer("SELECT job_id FROM finetune.models WHERE name = 'm'"), $id, 'a new version goes live');
answer('ALTER SERVER small RENAME TO tiny');

# --- As a replica does

answer("SET session_replication_role = replica; " . create('r1', $short));
ok(wait_for_sql($node, "SELECT status = 'ready' FROM finetune.models WHERE name = 'r1'"), 'CREATE by a replica');
my $orphans = <<'SQL';
SELECT (SELECT count(*) FROM finetune.weights w WHERE NOT EXISTS (SELECT FROM finetune.model WHERE id = w.model_id))
	+ (SELECT count(*) FROM finetune.metric t WHERE NOT EXISTS (SELECT FROM finetune.job WHERE id = t.job_id))
	+ (SELECT count(*) FROM finetune.event e WHERE NOT EXISTS (SELECT FROM finetune.job WHERE id = e.job_id))
	+ (SELECT count(*) FROM finetune.model m WHERE NOT EXISTS (SELECT FROM pg_foreign_server WHERE srvname = m.name))
	+ (SELECT count(*) FROM pg_foreign_server s WHERE NOT EXISTS (SELECT FROM finetune.model WHERE name = s.srvname))
SQL
answer('SET session_replication_role = replica; ALTER SERVER r1 RENAME TO r2');
completes('r2', 'RENAME by a replica');
like(error_of($node, 'SET session_replication_role = replica; DROP SERVER tiny'), qr/^2BP01: /, 'its base is still needed there');
answer("SET session_replication_role = replica; DROP SERVER r2; SELECT finetune('DELETE', job_id) FROM finetune.jobs WHERE model = 'r1'");
is(answer("SELECT count(*) FROM finetune.jobs WHERE model IN ('r1', 'r2')"), 0, 'DELETE by a replica');
$id = running('r3');
answer("SET session_replication_role = replica; SELECT finetune('CANCEL', '$id')");
has_ended($id, 'r3', 'CANCEL by a replica');
is(answer($orphans), 0, 'nothing is out of step');

# IF NOT EXISTS of what exists does nothing, whoever says so

for my $server ('tiny', 'm')
{
	is( error_of($node, "CREATE SERVER IF NOT EXISTS $server TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf')", 'bob'),
		'', "CREATE SERVER IF NOT EXISTS $server");
}
is(answer("SELECT string_agg(kind, ' ' ORDER BY kind) FROM finetune.model WHERE name IN ('tiny', 'm')"), 'base lora', 'nothing has changed');

# --- A server of another wrapper that has a model's name, while the model has no server

answer(<<'SQL');
CREATE FOREIGN DATA WRAPPER other;
GRANT USAGE ON FOREIGN DATA WRAPPER other TO alice;
INSERT INTO finetune.model (id, name, kind) VALUES (gen_random_uuid(), 'replicated', 'base');
SQL
like(error_of($node, q(CREATE SERVER replicated TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf')), 'alice'),
	qr/^42501: permission denied to give model "replicated" its server/, 'whose server joins a row is a superuser');
like(error_of($node, create('replicated', $short), 'alice'), qr/^42710: model "replicated" already exists/, 'nor is its name free');
for my $taking ('CREATE SERVER replicated FOREIGN DATA WRAPPER other',
	'CREATE SERVER elsewhere FOREIGN DATA WRAPPER other; ALTER SERVER elsewhere RENAME TO replicated; DROP SERVER elsewhere')
{
	like(error_of($node, "BEGIN; $taking; COMMIT", 'alice'), qr/^42710: model "replicated" already exists/, "no server of another wrapper takes the name: $taking");
}
like(error_of($node, 'ALTER SERVER m RENAME TO replicated'), qr/^42710: model "replicated" already exists/, 'nor does another model');
as('alice', 'CREATE SERVER foreseen FOREIGN DATA WRAPPER other');
answer(<<'SQL');
INSERT INTO finetune.model (id, name, kind, base_id) SELECT gen_random_uuid(), 'foreseen', 'lora', id FROM finetune.model WHERE name = 'tiny';
INSERT INTO finetune.job (id, model_id, model_name, base_id, base_name, owner, search_path, training_query, options, phase, finished_at)
	SELECT gen_random_uuid(), id, name, base_id, 'tiny', 'bob', 'public', 'SELECT 1', '{}', 'failed', now() FROM finetune.model WHERE name = 'foreseen';
SQL
$id = answer("SELECT 'ft_' || id FROM finetune.job WHERE model_name = 'foreseen'");
like(error_of($node, "SELECT finetune('DESCRIBE', '$id')", 'alice'), qr/^42501: /, 'who has such a server already has no right to the job');
is(as('alice', "SELECT count(*) FROM jsonb_array_elements(finetune('SHOW')) j WHERE j->>'id' = '$id'"), 0, 'nor sees it');
like(error_of($node, "SELECT complete('foreseen', 'x')", 'alice'), qr/^42704: /, 'nor has the model');
as('alice', 'DROP SERVER foreseen');
is(answer("SELECT count(*) FROM finetune.model WHERE name = 'foreseen'"), 1, 'whose row does not go with the server');
answer("DELETE FROM finetune.job WHERE model_name = 'foreseen'; DELETE FROM finetune.model WHERE name = 'foreseen'");

# as a subscription does that brings a new name
answer(q(CREATE SERVER before TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf')));
answer(q(ALTER SERVER before OWNER TO alice; DELETE FROM finetune.model WHERE name = 'before'));
like(error_of($node, 'ALTER SERVER before RENAME TO replicated', 'alice'),
	qr/^42501: permission denied to give model "replicated" its server/, 'nor does RENAME join a row');
answer('ALTER SERVER before RENAME TO replicated');
completes('replicated', 'but by a superuser');
answer('ALTER SERVER replicated RENAME TO before; DROP SERVER before; INSERT INTO finetune.model (id, name, kind) VALUES (gen_random_uuid(), $$replicated$$, $$base$$)');
answer(q(CREATE SERVER replicated TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf'); DROP SERVER replicated));
is(seen('replicated'), '0|0|0', 'its own does');

# --- Roles, while a job runs

$id = running('roles', user => 'alice');
like(error_of($node, 'DROP ROLE alice'), qr/^2BP01: role "alice" cannot be dropped/, 'DROP ROLE of who has a job');
answer('REASSIGN OWNED BY alice TO bob');
is(job($node, $id)->{owner}, 'bob', 'REASSIGN OWNED takes the job along');
is(as('bob', "SELECT count(*) FROM finetune.progress WHERE job_id = '$id'"), 1, 'who sees its progress');
is(as('alice', 'SELECT count(*) FROM finetune.progress'), 0, 'and nobody else');
goes_on($id, 'REASSIGN OWNED');
like(error_of($node, "SELECT finetune('CANCEL', '$id')", 'alice'), qr/^42501: permission denied for job/, 'it is not the first owner\'s any more');
answer('DROP OWNED BY bob');
has_ended($id, 'roles', 'DROP OWNED');
is(job($node, $id)->{owner}, 'bob', 'the history is the last owner\'s');
answer('DROP OWNED BY alice; DROP ROLE alice');

# History of a role that is gone is for superusers; a dump leaves it out
answer('CREATE ROLE gone LOGIN; GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO gone; GRANT USAGE ON FOREIGN SERVER tiny TO gone');
$id = start_job($node, 'gones', user => 'gone', endless_job());
as('gone', 'DROP SERVER gones');
answer('DROP OWNED BY gone; DROP ROLE gone');
is(job($node, $id)->{status}, 'CANCELLED', 'the history of a role that is gone');
my ($dump) = run_command([ 'pg_dump', '-a', '-d', $node->connstr('postgres') ]);
(my $uuid = $id) =~ s/^ft_//;
unlike($dump, qr/$uuid/, 'is in no dump');
like($dump, qr/COPY finetune\.job .*\n[0-9a-f-]{36}/, 'as that of others is');
answer('GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO bob');
answer('GRANT USAGE ON FOREIGN SERVER tiny TO bob');

# --- The base

my ($first, $second) = (running('b1'), start_job($node, 'b2'));
my $error = error_of($node, "\\set VERBOSITY default\nDROP SERVER tiny");
like((sqlstate_of($node, 'DROP SERVER tiny'))[1], qr/server b1 depends on server tiny/, 'DROP SERVER of a base names what needs it');
answer('BEGIN; DROP SERVER tiny CASCADE; ROLLBACK');
goes_on($first, 'DROP SERVER ... CASCADE of its base, undone');
answer('DROP SERVER tiny CASCADE');
has_ended($first, 'b1', 'DROP SERVER ... CASCADE of its base');
is(job($node, $second)->{status}, 'CANCELLED', 'and of one that waited');
is(answer('SELECT count(*) FROM finetune.models'), 0, 'with it all that were tuned from it');
is(answer('SELECT count(*) FROM finetune.weights'), 0, 'and their weights');

# --- The extension

answer(q(CREATE SERVER tiny TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf')));
$id = running('last');
my $engine = engine_of($node);
like(error_of($node, 'DROP EXTENSION pg_finetune'), qr/^2BP01: /, 'DROP EXTENSION while there are models');
answer('BEGIN; DROP EXTENSION pg_finetune CASCADE; ROLLBACK');
goes_on($id, 'DROP EXTENSION ... CASCADE, undone');
my $started = start_time($node);
answer('DROP EXTENSION pg_finetune CASCADE');
ok(wait_until(sub { !is_running($engine) }), 'DROP EXTENSION ... CASCADE ends the engine');
ok(wait_for_sql($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type ~ 'pg_finetune (job|reader)'"), 'and its worker');
ok(wait_for_sql($node, "SELECT count(*) = 0 FROM pg_ls_dir('pgsql_tmp_finetune/jobs')"), 'nothing is left on disk');
is(start_time($node), $started, 'nothing else happened');
$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|Segmentation|signal 11/, 'nothing unseemly in the log');

done_testing();
