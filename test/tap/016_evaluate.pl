# finetune_estimate() and finetune_evaluate(): their figures are those of a job,
# they have their caller's rights and no more, and whatever ends them, neither a
# process nor a file of theirs is left.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

chomp(my $real = `pg_config --pkglibdir`);
my $scratch = PostgreSQL::Test::Utils::tempdir();

# An engine that can be told to misbehave, by a word in a file.
write_file("$scratch/engine", <<"SH");
#!/bin/sh
case "\$1" in
estimate|evaluate)
	# no process of its own, which would be taken for an engine
	how=; [ ! -e '$scratch/how' ] || read -r how <'$scratch/how'
	case "\$how" in
	slow) echo '{"event": "started"}'; exec sleep 1000 ;;
	die) kill -SEGV \$\$ ;;
	words) echo "last words about \$2/train.jsonl" >&2; exit 5 ;;
	silent) exit 0 ;;
	garbage) echo 'CANARY, not JSON'; exec sleep 1000 ;;
	failed) echo '{"event": "failed", "code": "no_space", "message": "could not write '"\$2"'/dataset.bin", "hint": "Make room."}'; exit 1 ;;
	esac ;;
esac
exec '$real/pg_finetune_engine' "\$@"
SH
chmod 0755, "$scratch/engine";

sub misbehave { write_file("$scratch/how", $_[0]); }

my $node = new_node('evaluate', <<"CONF");
pg_finetune.engine_path = '$scratch/engine'
pg_finetune.numerics = reference
restart_after_crash = on
wal_level = replica
max_wal_senders = 4
max_standby_streaming_delay = -1
max_standby_archive_delay = -1
CONF

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO alice;
GRANT USAGE ON FOREIGN SERVER tiny TO alice;
GRANT SELECT ON fact TO alice;
CREATE VIEW unseen AS SELECT 'item ' || i AS prompt,
	CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END AS completion FROM generate_series(201, 230) i;
GRANT SELECT ON unseen TO alice, bob;
CREATE TABLE odd (id int, messages jsonb);
INSERT INTO odd SELECT 1, jsonb_build_array(jsonb_build_object('role', upper('canary')))
	UNION ALL SELECT 2, to_jsonb(upper('canary'));
SQL

sub as
{
	my ($user, $sql) = @_;
	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', $user ]);
}

# What a function returns, as a hash.
sub result_of
{
	my ($sql, $user) = @_;
	return JSON::PP->new->decode(as($user // 'alice', "SELECT $sql"));
}

# Processes of engines that estimate or evaluate: the real ones by their
# arguments, the one that never ends by where it was started.
# Those of a kind only, where one is given.
sub engines_running
{
	my ($where, $kind) = @_;
	my $data = ($where // $node)->data_dir;
	my @found;

	for my $process (grep { /\d$/ } glob '/proc/[0-9]*')
	{
		open(my $file, '<', "$process/cmdline") or next;
		my $line = <$file> // next;
		push @found, $process
		  if (!defined $kind || $line =~ $kind)
		  && ($line =~ /\Q$data\E.*sessions/ || ($line =~ /^sleep\0/ && (readlink("$process/cwd") // '') eq $data));
	}
	return @found;
}

# Is anything left of an estimate or an evaluation?
sub left_behind
{
	my @files = glob($node->data_dir . '/pgsql_tmp_finetune/sessions/*');

	return scalar(@files) . ' files, ' . scalar(engines_running()) . ' processes';
}

# A session that evaluates with an engine that never ends; waits until that runs.
my $started = 0;

sub start_slow
{
	my ($sql, $on) = @_;
	my $where = $on // $node;
	# has a name of its own: sessions before it may not have gone yet
	my $session = { out => '', err => '', name => 'slow' . ++$started };

	misbehave('slow');
	$session->{handle} = IPC::Run::start(
		[ 'psql', '-X', '-U', 'alice', '-d', $where->connstr('postgres') . " application_name=$session->{name}",
			'-v', 'VERBOSITY=verbose', '-c', $sql // "SELECT finetune_evaluate('tiny', 'TABLE unseen')" ],
		'>', \$session->{out}, '2>', \$session->{err});
	# which has then read how to behave
	ok(wait_until(sub { scalar engines_running($where, qr/^sleep\0/) }), 'an engine is at work');
	return $session;
}

my $nothing = '0 files, 0 processes';

# --- Figures are a job's

my $options = { max_epochs => 12, max_steps => 70, learning_rate => 0.01, lora_r => 8, batch_size => 512, n_evals => 2 };
my $given   = encode_json($options);
my $estimate = result_of("finetune_estimate('tiny', 'SELECT prompt, completion FROM fact', 'TABLE unseen', '$given')");
stop_jobs($node);
my $id = start_job($node, 'parity', user => 'alice', validation => 'TABLE unseen', options => $options);

like(error_of($node, "SELECT finetune_evaluate('parity', 'TABLE unseen')", 'alice'),
	qr/^55000: model "parity" is still being trained/, 'a model that is not ready says so');
let_jobs_run($node);
my $job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'the job ends well');

is_deeply($estimate->{rows}, $job->{rows}, 'estimate: rows');
is($estimate->{validation_rows}, 30, 'estimate: validation rows');
is($estimate->{trained_tokens}, $job->{trained_tokens}, 'estimate: trained tokens of the whole job');
is_deeply($estimate->{options}, $job->{options}, 'estimate: options as DESCRIBE shows them');
is($estimate->{base_model}, 'tiny', 'estimate: base model');
is($estimate->{device}, 'cpu', 'estimate: device');
is("$estimate->{total_steps}|$estimate->{total_tokens}",
	as('alice', "SELECT max(step), max(tokens) FROM finetune.metrics WHERE job_id = '$id'"),
	'estimate: steps, and tokens of the whole job');
is($estimate->{evaluations},
	as('alice', "SELECT count(validation_loss) FROM finetune.metrics WHERE job_id = '$id'"),
	'estimate: evaluations');
cmp_ok($estimate->{tokens}, '>', $estimate->{rows}{used}, 'estimate: tokens of an epoch');
cmp_ok($estimate->{max_tokens_per_row}, '>', 10, 'estimate: the longest row');
cmp_ok($estimate->{seconds}, '>', 0, 'estimate: seconds');
cmp_ok($estimate->{tokens_per_second}, '>', 0, 'estimate: tokens per second');
cmp_ok($estimate->{memory}{host}, '>', 1 << 20, 'estimate: memory of the host');
is($estimate->{memory}{device}, 0, 'estimate: none of a device');
is( join(' ', sort keys %$estimate),
	'base_model device epochs evaluations max_tokens_per_row memory options parameters rows seconds tokens'
	  . ' tokens_per_second total_steps total_tokens trainable_parameters trained_tokens validation_rows',
	'estimate: what it says');

# Loss and token accuracy of the job at a step, to compare with.
sub metrics
{
	my ($step) = @_;
	return split /\|/, as('alice',
		"SELECT validation_loss, validation_token_accuracy FROM finetune.metrics WHERE job_id = '$id' AND step = $step");
}

for my $case ([ tiny => 0 ], [ parity => $estimate->{total_steps} ])
{
	my ($model, $step) = @$case;
	my ($loss, $accuracy) = metrics($step);
	my $found = result_of("finetune_evaluate('$model', 'TABLE unseen')");

	is($found->{model}, $model, "$model: its name");
	cmp_ok(abs($found->{loss} - $loss), '<', 1e-4, "$model: the job's loss at step $step");
	cmp_ok(abs($found->{token_accuracy} - $accuracy), '<', 1e-6, "$model: its token accuracy");
	cmp_ok(abs($found->{perplexity} / exp($loss) - 1), '<', 1e-3, "$model: perplexity");
	is_deeply($found->{rows}, { read => 30, used => 30, skipped_null => 0, truncated => 0 }, "$model: rows");
	cmp_ok($found->{tokens}, '>', $found->{trained_tokens}, "$model: tokens");
	is($found->{device}, 'cpu', "$model: device");
	is( join(' ', sort keys %$found),
		'device exact_match loss model perplexity rows token_accuracy tokens trained_tokens',
		"$model: what is said");
}
cmp_ok(result_of("finetune_evaluate('parity', 'TABLE unseen')")->{loss},
	'<', result_of("finetune_evaluate('tiny', 'TABLE unseen')")->{loss}, 'the tuned model is better');

# An exact match is an answer that complete() would give.
my $rows = 'SELECT prompt, completion FROM fact ORDER BY id LIMIT 20';
is( result_of("finetune_evaluate('$_', '$rows')")->{exact_match},
	as('alice', "SELECT avg((complete('$_', prompt) = completion)::int)::float8 FROM ($rows) r"),
	"$_: exact matches are complete()'s") for qw(tiny parity);
cmp_ok(result_of("finetune_evaluate('parity', '$rows')")->{exact_match}, '>', 0.2, 'and the tuned model has some');
is( result_of(q{finetune_evaluate('parity', $q$SELECT prompt, complete('parity', prompt) AS completion
		FROM unseen LIMIT 5$q$)})->{exact_match}, 1, 'a model agrees with itself');

is( result_of(q{finetune_evaluate('tiny', $q$SELECT 'plain ' || i AS text FROM generate_series(1, 3) i$q$)})->{exact_match},
	undef, 'plain text has no answer that could match');
my $tokens = 'SELECT ARRAY[65, 66, 67, 68] AS input_ids';
is(result_of("finetune_evaluate('tiny', '$tokens')")->{exact_match}, undef, 'nor have tokens');
ok(defined result_of("finetune_evaluate('tiny', '$tokens, ARRAY[-100, -100, 67, 68] AS labels')")->{exact_match},
	'unless some are labelled');
my ($heavy, $light) = map { result_of("finetune_evaluate('parity', 'SELECT *, $_ AS weight FROM unseen')")->{loss} }
  (3, q{CASE completion WHEN $q$odd$q$ THEN 1 ELSE 0 END});
cmp_ok(abs($heavy - (metrics($estimate->{total_steps}))[0]), '<', 1e-4, 'a weight that all rows have changes nothing');
cmp_ok(abs($light - result_of(q{finetune_evaluate('parity', $q$SELECT * FROM unseen WHERE completion = 'odd'$q$)})->{loss}),
	'<', 1e-4, 'rows of weight 0 do not count');
my $chat = result_of(q{finetune_evaluate('parity', $q$SELECT jsonb_build_array(
	jsonb_build_object('role', 'user', 'content', prompt),
	jsonb_build_object('role', 'assistant', 'content', completion)) AS messages FROM unseen$q$)});
my $pairs = result_of("finetune_evaluate('parity', 'TABLE unseen')");
is_deeply($chat, $pairs, 'messages are judged like the pairs they are');
my $mixed = result_of(q{finetune_evaluate('tiny', $q$SELECT prompt, completion FROM unseen
	UNION ALL VALUES ('x', NULL), (repeat('long ', 200), 'yes')$q$)});
is_deeply($mixed->{rows}, { read => 32, used => 31, skipped_null => 1, truncated => 1 }, 'NULLs and cut rows are counted');
is(left_behind(), $nothing, 'nothing is left');

# --- In the caller's session

is( as('alice', "BEGIN; CREATE TEMP TABLE mine AS TABLE unseen;"
		  . " SELECT finetune_evaluate('tiny', 'TABLE pg_temp.mine')->'rows'->'used';"
		  . " CREATE TEMP TABLE more (a int); INSERT INTO more VALUES (1); SELECT * FROM more; COMMIT"),
	"30\n1", 'temporary tables can be read, and the transaction can write afterwards');
is( as('alice', "BEGIN READ ONLY; SELECT finetune_evaluate('tiny', 'TABLE unseen')->'rows'->'used'"),
	30, 'a transaction that is read only will do');
is( as('alice', "SELECT count(finetune_evaluate(name, 'TABLE unseen')->'loss') FROM finetune.models"),
	2, 'all models in one statement');
is( as('alice', q{SELECT finetune_evaluate('tiny', $q$SELECT prompt,
		finetune_evaluate('tiny', 'TABLE unseen')->>'model' AS completion FROM unseen LIMIT 2$q$)->'rows'->'used'}),
	2, 'a query may evaluate, too');
is( as('alice', "SET default_transaction_isolation = 'serializable'; SELECT finetune_evaluate('tiny', 'TABLE unseen')->'rows'->'used'"),
	30, 'in a serializable transaction');
$node->safe_psql('postgres', 'CREATE SCHEMA other; CREATE TABLE other.fact AS SELECT * FROM fact LIMIT 3;'
	  . ' GRANT USAGE ON SCHEMA other TO alice; GRANT SELECT ON other.fact TO alice');
is( as('alice', "SET search_path = other, public; SELECT finetune_evaluate('tiny', 'TABLE fact')->'rows'->'used'"),
	3, "names mean what they mean to the caller");

# --- On a standby

$node->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('evaluate_standby');
$standby->init_from_backup($node, 'copy', has_streaming => 1);
$standby->start;
is( $standby->safe_psql('postgres', "SELECT finetune_evaluate('parity', 'TABLE unseen')->>'loss'"),
	$node->safe_psql('postgres', "SELECT finetune_evaluate('parity', 'TABLE unseen')->>'loss'"),
	'a standby evaluates as its primary does');
is( $standby->safe_psql('postgres', "SELECT finetune_estimate('tiny', 'TABLE unseen')->'rows'->'used'"),
	30, 'and estimates what it could not create');
is(scalar(() = glob($standby->data_dir . '/pgsql_tmp_finetune/sessions/*')), 0, 'nothing is left there');

# An engine that says nothing is given a minute; what becomes of it is looked at in the end.
my $hanging = start_slow("SELECT finetune_evaluate('tiny', 'TABLE unseen')", $standby);
misbehave('');

# --- Rights

like(error_of($node, "SELECT finetune_estimate('tiny', 'TABLE unseen')", 'bob'),
	qr/^42501: permission denied for foreign-data wrapper pg_finetune/, 'an estimate needs USAGE on the wrapper');
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO bob');
like(error_of($node, "SELECT finetune_estimate('tiny', 'TABLE unseen')", 'bob'),
	qr/^42501: permission denied for foreign server tiny/, 'and on the base');
$node->safe_psql('postgres', 'REVOKE USAGE ON FOREIGN DATA WRAPPER pg_finetune FROM bob');
for my $model (qw(tiny parity))
{
	like(error_of($node, "SELECT finetune_evaluate('$model', 'TABLE unseen')", 'bob'),
		qr/^42501: permission denied for foreign server $model/, "an evaluation needs USAGE on $model");
}
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER parity TO bob');
is(result_of("finetune_evaluate('parity', 'TABLE unseen')", 'bob')->{rows}{used}, 30, 'and on nothing else');
like(error_of($node, "SELECT finetune_evaluate('parity', 'SELECT prompt, completion FROM fact')", 'bob'),
	qr/^42501: permission denied for table fact/, 'the query has its caller\'s rights');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE private (owner name, prompt text, completion text);
INSERT INTO private VALUES ('alice', 'a', 'b'), ('alice', 'c', 'd'), ('bob', 'e', 'f');
ALTER TABLE private ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON private USING (owner = current_user);
GRANT SELECT ON private TO alice, bob;
GRANT INSERT ON fact TO alice;
CREATE FUNCTION scribble() RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO fact VALUES (-1); RETURN 'written'; END $$;
CREATE FUNCTION rise() RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN SET transaction_read_only = off; INSERT INTO fact VALUES (-1); RETURN 'up'; END $$;
SQL
is(result_of("finetune_evaluate('parity', 'SELECT prompt, completion FROM private')", 'bob')->{rows}{used},
	1, 'and sees the rows that he may see');
like(error_of($node, q{SELECT finetune_evaluate('tiny', $q$SELECT 'x' AS prompt, scribble() AS completion$q$)}, 'alice'),
	qr/^25006: cannot execute INSERT in a read-only transaction/, 'it cannot write');
like(error_of($node, q{SELECT finetune_evaluate('tiny', $q$SELECT 'x' AS prompt, rise() AS completion$q$)}, 'alice'),
	qr/^25001: transaction read-write mode must be set before any query/, 'nor change that');
is( as('alice', <<'SQL'), "25006\n22012\n1", 'the transaction is what it was before, once the error is caught');
CREATE FUNCTION pg_temp.code(query text) RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN PERFORM finetune_evaluate('tiny', query); RETURN 'none';
	   EXCEPTION WHEN OTHERS THEN RETURN sqlstate; END $$;
BEGIN;
SELECT pg_temp.code($q$SELECT 'x' AS prompt, scribble() AS completion$q$);
SELECT pg_temp.code($q$SELECT (1/(1-i))::text AS text FROM generate_series(0, 1) i$q$);
INSERT INTO fact VALUES (-2) RETURNING 1;
ROLLBACK;
SQL
is($node->safe_psql('postgres', 'SELECT count(*) FROM fact WHERE id < 0'), 0, 'nothing was written');

# --- What is wrong is said, before and after

for my $case (
	[ "finetune_evaluate(NULL, 'TABLE unseen')", '22004', 'argument "model" of finetune_evaluate must not be null' ],
	[ "finetune_evaluate('tiny', NULL)", '22004', 'argument "query" of finetune_evaluate must not be null' ],
	[ "finetune_estimate(NULL, 'TABLE unseen')", '22004', 'argument "base_model" of finetune_estimate must not be null' ],
	[ "finetune_estimate('tiny', NULL)", '22004', 'argument "training_query" of finetune_estimate must not be null' ],
	[ "finetune_evaluate('nobody', 'TABLE unseen')", '42704', 'model "nobody" does not exist' ],
	[ "finetune_estimate('nobody', 'TABLE unseen')", '42704', 'model "nobody" does not exist' ],
	[ "finetune_estimate('parity', 'TABLE unseen')", '42809', 'model "parity" is not a base model' ],
	[ "finetune_estimate('tiny', 'TABLE unseen', NULL, '{\"lora_rank\": 4}')", '22023', 'unknown option "lora_rank"' ],
	[ "finetune_estimate('tiny', 'TABLE unseen', NULL, '{\"max_epochs\": 51}')", '22023', 'option "max_epochs"' ],
	[ "finetune_estimate('tiny', 'TABLE unseen', NULL, '[]')", '22023', 'options must be a JSON object' ],
	[ "finetune_evaluate('tiny', 'SELECT 1; SELECT 2')", '22023', 'query must be a single SELECT, not 2 statements' ],
	[ "finetune_evaluate('tiny', 'DELETE FROM fact')", '22023', 'query must be a SELECT, VALUES or TABLE, not DELETE' ],
	[ "finetune_evaluate('tiny', 'SELECT prompt FROM')", '42601', 'syntax error at end of input' ],
	[ "finetune_evaluate('tiny', 'TABLE nothing')", '42P01', 'relation "nothing" does not exist' ],
	[ "finetune_evaluate('tiny', 'SELECT 1 AS one')", '42703', 'query yields no column ' ],
	[ "finetune_estimate('tiny', 'SELECT 1 AS one')", '42703', 'training query yields no column' ],
	[ "finetune_estimate('tiny', 'TABLE unseen', 'SELECT 1 AS one')", '42703', 'validation query yields no column' ],
	[ "finetune_evaluate('tiny', 'SELECT 1 AS text')", '42804', 'column "text" of the query is of type integer' ],
	[ "finetune_evaluate('tiny', 'TABLE unseen LIMIT 0')", '22023', 'no usable rows: 0 read, 0 with a null' ],
	[ "finetune_estimate('tiny', 'TABLE unseen LIMIT 0')", '22023', 'no usable rows: 0 read, 0 with a null' ],
	[ "finetune_evaluate('tiny', \$q\$SELECT NULL AS text\$q\$)", '22023', 'no usable rows: 1 read, 1 with a null' ],
	[ "finetune_evaluate('tiny', \$q\$SELECT 'a' AS text UNION ALL SELECT (1/(1-i))::text FROM generate_series(1,1) i\$q\$)", '22012', 'division by zero' ],
	[ "finetune_evaluate('tiny', 'SELECT messages FROM odd WHERE id = 1')", '22023', 'row 1 of the query: message 1 has no role and content that are strings' ],
	[ "finetune_estimate('tiny', 'TABLE unseen', 'SELECT messages FROM odd WHERE id = 1')", '22023', 'row 1 of the validation query: message 1 has no role' ],
	[ "finetune_estimate('tiny', 'SELECT messages FROM odd WHERE id = 2')", '22023', 'row 1 of the training query: "messages" is no list of messages' ])
{
	my ($call, $code, $message) = @$case;
	my $error = error_of($node, "SELECT $call");

	like($error, qr/^$code: \Q$message\E/, "$call: $code");
	unlike($error, qr/CANARY/, "$call: no text of a row");
}
like(error_of($node, "CREATE TEMP TABLE mine AS TABLE unseen; SELECT finetune_estimate('tiny', 'TABLE mine')"),
	qr/^22023: training query must not read temporary table "mine"/, 'what CREATE could not read is not estimated');
is(left_behind(), $nothing, 'nothing is left');

# --- The engine's misfortunes

for my $case (
	[ die => '58000', qr/evaluating engine died: terminated by signal 11|evaluating engine died: .*signal 11/ ],
	[ words => '58000', qr/evaluating engine died: .*exit code 5: last words about the query/ ],
	[ silent => 'XX000', qr/evaluating engine did not tell its "dataset"/ ],
	[ garbage => 'XX000', qr/event of the engine is not valid JSON/ ],
	[ failed => '53100', qr/could not write dataset\.bin/ ])
{
	my ($how, $code, $message) = @$case;

	misbehave($how);
	my $error = error_of($node, "SELECT finetune_evaluate('tiny', 'TABLE unseen')", 'alice');
	like($error, qr/^$code: $message/, "$how: $code");
	unlike($error, qr/CANARY|sessions/, "$how: neither its words nor its paths");
	is(left_behind(), $nothing, "$how: nothing is left");
}
misbehave('die');
like(error_of($node, "SELECT finetune_estimate('tiny', 'TABLE unseen')", 'alice'),
	qr/^58000: estimating engine died/, 'an estimating engine that dies');

# An error that is caught is over: the same session goes on.
is( as('alice', <<'SQL'), "58000\n58000\nt", 'an error that is caught leaves a session that works');
CREATE FUNCTION pg_temp.code() RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN PERFORM finetune_evaluate('tiny', 'TABLE unseen'); RETURN 'none';
	   EXCEPTION WHEN OTHERS THEN RETURN sqlstate; END $$;
SELECT pg_temp.code();
SELECT pg_temp.code();
SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid();
SQL
is(left_behind(), $nothing, 'and nothing else');
misbehave('');

# --- Ended in the middle

sub pid_of { return "SELECT pid FROM pg_stat_activity WHERE application_name = '$_[0]{name}'"; }

for my $case ([ pg_cancel_backend => '57014' ], [ pg_terminate_backend => '57P01' ])
{
	my ($function, $code) = @$case;
	my $session = start_slow();

	$node->safe_psql('postgres', "SELECT $function((@{[pid_of($session)]}))");
	$session->{handle}->finish;
	like($session->{err}, qr/(ERROR|FATAL):  $code: /, "$function: $code");
	ok(wait_until(sub { left_behind() eq $nothing }), "$function: nothing is left");
}
{
	my $session = start_slow("SELECT finetune_estimate('tiny', 'TABLE unseen')");

	$session->{handle}->signal('INT');
	$session->{handle}->finish;
	like($session->{err}, qr/ERROR:  57014: canceling statement due to user request/, 'Ctrl-C: 57014');
	ok(wait_until(sub { left_behind() eq $nothing }), 'Ctrl-C: nothing is left');
}
{
	my $session = start_slow();

	$session->{handle}->signal('KILL');
	$session->{handle}->finish;
	ok(wait_until(sub { left_behind() eq $nothing }), 'a client that is gone: nothing is left');
}
misbehave('slow');
like(error_of($node, "SET statement_timeout = 500; SELECT finetune_evaluate('tiny', 'TABLE unseen')", 'alice'),
	qr/^57014: canceling statement due to statement timeout/, 'statement_timeout');
is(left_behind(), $nothing, 'statement_timeout: nothing is left');
like( error_of($node, q{SET statement_timeout = 500;
		SELECT finetune_evaluate('tiny', $q$SELECT prompt, completion || pg_sleep(10) AS completion FROM unseen$q$)}, 'alice'),
	qr/^57014: canceling statement due to statement timeout/, 'statement_timeout while rows are read');
is(left_behind(), $nothing, 'and nothing is left');

# --- One at a time, as max_running_jobs says

{
	my $session = start_slow();

	like(error_of($node, "SET statement_timeout = 1000; SELECT finetune_estimate('tiny', 'TABLE unseen')"),
		qr/^57014: /, 'a second one waits');
	is(scalar engines_running(), 1, 'and has no engine meanwhile');
	$node->append_conf('postgresql.conf', "pg_finetune.max_running_jobs = 2\n");
	$node->reload;
	misbehave('');
	ok(wait_until(sub { $node->safe_psql('postgres', 'SHOW pg_finetune.max_running_jobs') eq '2' }), 'there is a second place');
	is(result_of("finetune_evaluate('tiny', 'TABLE unseen')", 'alice')->{rows}{used}, 30, 'which it takes');

	# --- Killed: what is left is removed when the server starts again

	my $backend = $node->safe_psql('postgres', pid_of($session));
	my $log_end = log_end($node);
	cmp_ok((left_behind() =~ /^(\d+)/)[0], '==', 1, 'the first one has its directory');
	kill 'KILL', $backend;
	$session->{handle}->finish;
	ok(restarted($node, $log_end), 'the server is back');
	ok(wait_until(sub { left_behind() eq $nothing }), 'nothing is left');
}

# --- A server without the library

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$node->restart;
like(error_of($node, "SELECT $_"), qr/^55000: pg_finetune must be loaded via shared_preload_libraries/, "$_ without preload")
  for "finetune_evaluate('tiny', 'TABLE unseen')", "finetune_estimate('tiny', 'TABLE unseen')";
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_finetune'\n");
$node->restart;

# --- A base that has changed

my $base = $node->basedir . '/models/tiny.gguf';
write_file($base, slurp_file($base) . "\0" x 32);
like(error_of($node, "SELECT finetune_evaluate('parity', 'TABLE unseen')", 'alice'),
	qr/^55000: "tiny\.gguf" has digest [0-9a-f]{64}, expected [0-9a-f]{64}/, 'a base that has changed is refused');
write_file($base, 'no model');
like(error_of($node, "SELECT finetune_evaluate('tiny', 'TABLE unseen')", 'alice'),
	qr/^XX001: .*tiny\.gguf/, 'so is a file that is no model');
unlink $base;
like(error_of($node, "SELECT finetune_evaluate('tiny', 'TABLE unseen')", 'alice'),
	qr/^58P01: could not find model file "tiny\.gguf"/, 'and one that is missing');
is(left_behind(), $nothing, 'nothing is left');

# --- The engine that says nothing

$hanging->{handle}->finish;
like($hanging->{err}, qr/ERROR:  57P03: evaluating engine has said nothing for 60 s/, 'an engine that hangs is given up');
is(scalar engines_running($standby), 0, 'and ended');
is(scalar(() = glob($standby->data_dir . '/pgsql_tmp_finetune/sessions/*')), 0, 'and nothing of it is left');
$standby->stop;

$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|CANARY|item 21\d/, 'nothing unseemly in the log');

done_testing();
