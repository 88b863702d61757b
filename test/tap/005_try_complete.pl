# try_complete() is complete() with NULL for every error of the request, and for
# none of the statement; what was held for a request that failed is given back.
use strict;
use warnings;

use FinetuneCluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($node, $models) = new_echo_cluster('try_complete');

sub answer { return $node->safe_psql('postgres', $_[0]); }

sub is_null
{
	my ($call, $name) = @_;

	is(answer("SELECT $call IS NULL"), 't', $name);
}

# What complete() answers, it answers too
is(answer(q(SELECT try_complete('one', 'hello world'))), 'echo: hello world', 'an answer as text');
is( answer(q(SELECT try_complete('one', 'hello big world', '{"max_tokens": 2}') - 'created' = complete('one', 'hello big world', '{"max_tokens": 2}') - 'created')),
	't', 'an answer with options');
is( answer(q(SELECT try_complete('one', messages => '[{"role": "user", "content": "hi"}]') #>> '{choices,0,messages}')),
	'echo: hi', 'an answer to messages');
is_null(q(try_complete('one', NULL)), 'NULL in, NULL out');

# Whatever is wrong with the request is NULL, silently
write_file("$models/bad.gguf", 'bad');
answer(q(SET client_min_messages = error;
	CREATE SERVER bad TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'bad.gguf');
	CREATE SERVER gone TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'gone.gguf');
	CREATE SERVER bare TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune;
	CREATE EXTENSION postgres_fdw; CREATE SERVER foreign_one FOREIGN DATA WRAPPER postgres_fdw;
	CREATE ROLE stranger LOGIN));
for my $case (
	[ q('two', 'x') => 'a model that does not exist' ],
	[ q('foreign_one', 'x') => 'a server of another wrapper' ],
	[ q('gone', 'x') => 'a missing file' ],
	[ q('bad', 'x') => 'a damaged file' ],
	[ q('bare', 'x') => 'a model without weights' ],
	[ q('one', 'x', '{"temp": 1}') => 'an unknown option' ],
	[ q('one', 'x', '{"temperature": 5}') => 'an option out of range' ],
	[ q('one', 'x', '{"n": 200}') => 'an option that is not supported' ],
	[ q('one', 'x', '[]') => 'options that are none' ],
	[ q('one', messages => '[]') => 'no messages' ],
	[ q('one', messages => '[{"role": "tool", "content": "x"}]') => 'an unknown role' ],
	map { [ "'one', 'fail $_'" => "the engine's $_" ] }
	  qw(invalid no_space no_memory busy corrupt unsupported device cancelled internal))
{
	is_null("try_complete($case->[0])", $case->[1]);
}
for my $kind (qw(garbage no_length cut_body html no_json no_choices zero not_utf8))
{
	is_null("try_complete('one', 'broken $kind')", "a broken reply: $kind");
}
my ($rc, $out, $err) = $node->psql('postgres', q(SELECT try_complete('two', 'x')));
is("$rc $out $err", '0  ', 'nothing is said of it');
($rc, $out, $err) = $node->psql('postgres',
	q(SET client_min_messages = debug1; SELECT try_complete('one', reverse('yranac'), '{"temp": 1}')));
like($err, qr/DEBUG:  try_complete\(\) returns null: unrecognized option "temp"/, 'unless one asks');
unlike($err, qr/canary/, 'and then without the prompt');
is($node->safe_psql('postgres', q(SELECT try_complete('one', 'x') IS NULL), extra_params => [ '-U', 'stranger' ]),
	't', 'no right to use the model');

# Weights that are damaged, and a base that has changed
store_adapter($node, 'tuned', { a => 'a' x 3000, prefix => 'tuned ' });
is(answer(q(SELECT try_complete('tuned', 'x'))), 'tuned echo: x', 'an answer by an adapter');
for my $case (
	[ changed => q(UPDATE finetune.weights SET data = 'other' WHERE part = 1) ],
	[ missing => q(DELETE FROM finetune.weights WHERE part = 1) ],
	[ swapped => q(UPDATE finetune.weights SET file = 'z' WHERE part = 2) ],
	[ renamed => q(UPDATE finetune.weights SET file = '../z' WHERE part = 0) ])
{
	my ($name, $damage) = @$case;

	store_adapter($node, $name, { a => "$name a", b => 'b', prefix => $name });
	answer("$damage AND model_id = (SELECT id FROM finetune.model WHERE name = '$name')");
	($rc, $out, $err) = $node->psql('postgres',
		"BEGIN; SELECT try_complete('$name', 'x') IS NULL; SELECT current_user = session_user, current_setting('search_path'), try_complete('one', 'y'); COMMIT");
	is($out, qq(t\nt|"\$user", public|echo: y), "weights $name: the transaction goes on as it was");
	is($err, '', 'without a warning');
}
store_adapter($node, 'older', { prefix => 'older ' }, base_digest => 'zero');
is_null(q(try_complete('older', 'x')), 'a changed base');
is(scalar(() = glob($node->data_dir . '/pgsql_tmp_finetune/cache/*tmp*')),
	0, 'nothing is left in the cache');

# What the cache cannot be written to
my $cache = $node->data_dir . '/pgsql_tmp_finetune/cache';
store_adapter($node, 'unstored', { prefix => 'unstored ' });
chmod 0500, $cache or die;
is_null(q(try_complete('unstored', 'x')), 'a cache that cannot be written');
chmod 0700, $cache or die;
is(answer(q(SELECT try_complete('unstored', 'x'))), 'unstored echo: x', 'and can again');

# One row's error costs the others nothing
is( answer(q(SELECT string_agg(coalesce(try_complete('one', p), '-'), ', ' ORDER BY i)
	FROM (VALUES (1, 'a'), (2, 'fail busy'), (3, 'b'), (4, 'broken no_json'), (5, 'c')) t (i, p))),
	'echo: a, -, echo: b, -, echo: c', 'rows go on after an error');

# Beside parallel workers, where there are no subtransactions, and inside of one
is( answer(q(SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
		CREATE TABLE big AS SELECT i FROM generate_series(1, 20000) i; ANALYZE big;
		SELECT string_agg(coalesce(try_complete('one', CASE WHEN i = 10000 THEN 'fail busy' ELSE i::text END), '-'), ',' ORDER BY i)
		FROM big WHERE i % 5000 = 0)),
	'echo: 5000,-,echo: 15000,echo: 20000', 'beside parallel workers');
is( answer(q(BEGIN; SAVEPOINT s; SELECT try_complete('two', 'x') IS NULL; RELEASE s; SELECT try_complete('one', 'x'); COMMIT)),
	"t\necho: x", 'in a subtransaction');

# Nothing piles up: memory, connections, contexts of requests
my $session = $node->background_psql('postgres');
my $pid = $session->query(q(SELECT pg_backend_pid()));
my $many = q(SELECT count(try_complete('one', CASE i % 4 WHEN 0 THEN 'fail busy' WHEN 1 THEN 'broken cut_body' WHEN 2 THEN 'broken no_json' ELSE 'x' END))
	FROM generate_series(1, 400) i);
my $used = q(SELECT sum(used_bytes) FROM pg_backend_memory_contexts);
is($session->query($many), 100, 'many errors in one statement');
my $bytes = $session->query($used);
my $files = () = glob("/proc/$pid/fd/*");
$session->query($many) for 1 .. 5;
cmp_ok($session->query($used), '<', $bytes + 256 * 1024, 'no memory is left behind');
my $files_later = () = glob("/proc/$pid/fd/*");
cmp_ok($files_later, '<=', $files + 8, 'nor connections, but those kept for later');
is($session->query(q(SELECT count(*) FROM pg_backend_memory_contexts WHERE name LIKE 'pg_finetune %')),
	0, 'nor requests');
$session->quit;

# The end of the statement is no error of the request
my $offset = -s $node->logfile;
my ($state, $words) = sqlstate_of($node,
	q(SELECT try_complete('one', 'x'); SET statement_timeout = '3s'; SELECT try_complete('one', 'sleep')));
is($state, '57014', 'statement_timeout');
like($words, qr/canceling statement due to statement timeout/, 'is said');
ok(wait_until(sub { log_count($node, qr/a request was dropped/, $offset) == 1 }), 'the engine was told of it');
is_null_after_timeout();
($state, $words) = sqlstate_of($node,
	q(DO $$BEGIN PERFORM pg_cancel_backend(pg_backend_pid()); PERFORM try_complete('one', 'sleep'); END$$));
is($state, '57014', 'a cancelled query');
$session = $node->background_psql('postgres', on_error_stop => 0);
$pid = $session->query(q(SELECT pg_backend_pid()));
$session->query_until(qr/asleep/, "\\echo asleep\nSELECT try_complete('one', 'sleep');\n");
ok(wait_until(
	sub { answer("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND wait_event_type = 'Extension'") eq '1' }),
	'a request waits');
answer("SELECT pg_terminate_backend($pid)");
ok(wait_until(sub { answer("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid") eq '0' }),
	'pg_terminate_backend ends the session');
$session->{run}->finish;

# But the limit of a request is the request's
sub is_null_after_timeout
{
	is(answer(q(SET pg_finetune.request_timeout = '300ms'; SELECT try_complete('one', 'sleep') IS NULL)),
		't', 'request_timeout');
	ok(wait_until(sub { log_count($node, qr/a request was dropped/, $offset) == 2 }),
		'the engine was told of that');
}

# An engine that dies, or is turned off
is_null(q(try_complete('one', 'die')), 'an engine that dies');
is(answer(q(SELECT try_complete('one', 'x'))), 'echo: x', 'and is back');
$node->append_conf('postgresql.conf', 'pg_finetune.serve = off');
$node->reload;
ok(wait_until(sub { answer(q(SELECT try_complete('one', 'x') IS NULL)) eq 't' }), 'an engine that is turned off');
unlike(slurp_file($node->logfile), qr/leaked|leak:|not closed|not released/, 'no resource was leaked');

$node->stop;
done_testing();
