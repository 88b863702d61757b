# complete_stream(): pieces as they are made, the end of who reads no further, errors,
# and that pieces are complete()'s answer.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($node) = new_echo_cluster('stream');

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE alice LOGIN;
GRANT USAGE ON FOREIGN SERVER one TO alice;
SQL

sub answer { return $node->safe_psql('postgres', $_[0]); }

my $dropped = 0;

# The engine has dropped one more request.
sub is_dropped
{
	my ($what) = @_;

	$dropped++;
	is(logged_times($node, qr/a request was dropped/, $dropped), $dropped, "$what: the request is dropped");
}

sub fails_with
{
	my ($sql, $state, $message, $what) = @_;
	my ($got, $words) = sqlstate_of($node, $sql, user => 'alice');

	is($got, $state, "$what: $state");
	like($words, $message, "$what: says so");
	return $words;
}

# --- Pieces

is(answer(q(SELECT complete_stream('one', 'x y'))), "echo: \nx \ny", 'pieces');
is(answer(q(SELECT string_agg(p, '|') FROM complete_stream('one', 'x y') p)), 'echo: |x |y', 'in FROM');
is(answer(q(SELECT string_agg(p, '|') FROM complete_stream('one', 'x y z', '{"max_tokens": 2, "temperature": 0.5}') p)), 'echo: |x',
	'with options');
is(answer(q(SELECT string_agg(p, '|') FROM complete_stream('one', 'é 漢字 😀') p)), 'echo: |é |漢字 |😀', 'characters of several bytes');
is(answer(q(SELECT count(*), min(p) FROM complete_stream('one', 'nothing') p)), '1|', 'an answer without text is one piece without text');
is(answer(q(SELECT count(*) FROM complete_stream('one', NULL))), 0, 'null has no pieces');
is(answer(q(SELECT string_agg(p, '' ORDER BY i, n) FROM (VALUES (1, 'a b'), (2, 'c')) t (i, x), complete_stream('one', x) WITH ORDINALITY s (p, n))),
	'echo: a becho: c', 'for each row of a table');
is(answer(q(SELECT complete_stream('one', 'a'), complete_stream('one', 'b'))), "echo: |echo: \na|b", 'two side by side');
is(length answer(q(SELECT string_agg(p, '') FROM complete_stream('one', repeat('word ', 20000), '{"max_tokens": 30000}') p)),
	length('echo: ') + 5 * 20000, 'a long answer');
$node->safe_psql('postgres', q(CREATE SERVER two TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf', context_length '99')));
is(answer(q(SELECT string_agg(p, '|') FROM complete_stream('two', 'x') p)), 'echo: |x', 'a model that the engine has to be taught');

# a cursor gets them as they come: the engine never makes the third
is(answer(q(BEGIN; DECLARE c CURSOR FOR SELECT complete_stream('one', 'stall 2 x y'); FETCH 2 FROM c; CLOSE c; COMMIT)), "echo: \nstall ",
	'a cursor gets pieces as they come');
is_dropped('CLOSE');
is(answer(q(BEGIN; DECLARE c CURSOR FOR SELECT complete_stream('one', 'stall 1 x y'); FETCH FROM c; ROLLBACK)), 'echo: ', 'rolled back');
is_dropped('ROLLBACK');
is(answer(q(SELECT complete_stream('one', 'stall 2 x y') LIMIT 2)), "echo: \nstall ", 'LIMIT');
is_dropped('LIMIT');
is(answer(q(DO $$ BEGIN PERFORM * FROM (SELECT complete_stream('one', 'stall 1 x') LIMIT 1) s; END $$; SELECT 'went on')), 'went on', 'in PL/pgSQL');
is_dropped('LIMIT in PL/pgSQL');
is( answer(q(DO $$ DECLARE p text; BEGIN FOR p IN SELECT complete_stream('one', 'drip 20 x y z ' || repeat('w ', 500)) LOOP EXIT WHEN p = 'x '; END LOOP; END $$; SELECT 1)),
	1, 'a loop that is left');
is_dropped('a loop that is left');

# psql with FETCH_COUNT shows what has come
my $psql = $node->background_psql('postgres', on_error_stop => 0);
$psql->query_until(qr/^stall $/m, "\\set FETCH_COUNT 1\nSELECT complete_stream('one', 'stall 2 x y');\n");
pass('psql with FETCH_COUNT shows pieces as they come');
kill 'KILL', $psql->{run}{KIDS}[0]{PID};
eval { $psql->quit };
is_dropped('kill -9 of psql');

# without a cursor rows that are complete are sent, too, while the next one is made
my $sent = IPC::Run::start(
	[ 'stdbuf', '-oL', 'psql', '-XAtq', '-h', $node->host, '-p', $node->port, '-c', q(COPY (SELECT complete_stream('one', 'stall 2 x y')) TO STDOUT), 'postgres' ],
	'>', \my $out, '2>', \my $err);
ok(wait_until(sub { $sent->pump_nb; ($out // '') =~ /stall \n/ }), 'COPY sends rows while it waits for more');
$node->safe_psql('postgres', q(SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND state = 'active'));
$sent->finish;
like($err, qr/canceling statement/, 'until it is cancelled');
is_dropped('a cancel');

# --- Errors

fails_with(q(SELECT complete_stream('two', 'x')), '42501', qr/permission denied for foreign server two/, 'a model that is not granted');
fails_with(q(SELECT complete_stream('none', 'x')), '42704', qr/model "none" does not exist/, 'a model that is none');
for my $case (
	[ '{"n": 2}', qr/option "n" must be 1 for complete_stream\(\), not 2/ ],
	[ '{"logprobs": true}', qr/option "logprobs" must be false for complete_stream\(\)/ ],
	[ '{"logprobs": true, "top_logprobs": 3}', qr/option "logprobs" must be false for complete_stream\(\)/ ],
	[ '{"top_logprobs": 3}', qr/option "top_logprobs" needs option "logprobs"/ ],
	[ '{"temperature": 9}', qr/option "temperature" must be between 0 and 2, not 9/ ],
	[ '{"stream": true}', qr/unrecognized option "stream"/ ],
	[ '[]', qr/options must be a JSON object, not an array/ ])
{
	fails_with("SELECT complete_stream('one', 'x', '$case->[0]')", '22023', $case->[1], "options $case->[0]");
}
is(answer(q(SELECT string_agg(p, '') FROM complete_stream('one', 'x', '{"n": 1, "logprobs": false, "top_logprobs": null}') p)), 'echo: x', 'what is off is no error');
for my $case ([ 'invalid', '22023' ], [ 'busy', '53000' ], [ 'no_memory', '53200' ], [ 'internal', 'XX000' ])
{
	my ($code, $state) = @$case;

	fails_with("SELECT complete_stream('one', 'fail $code')", $state, qr/as asked for/, "$code at the start");
	my $words = fails_with("BEGIN; DECLARE c CURSOR FOR SELECT complete_stream('one', 'halt 2 $code'); FETCH 2 FROM c; FETCH FROM c",
		$state, qr/as asked for/, "$code after two pieces");
}
fails_with(q(SELECT complete_stream('one', 'cut 2 x y')), '57P03', qr/the engine ended while it worked on a request/, 'a connection that breaks');
fails_with(q(SELECT complete_stream('one', 'die')), '57P03', qr/the engine ended while it worked on a request/, 'an engine that dies');
is(answer(q(SELECT string_agg(p, '') FROM complete_stream('one', 'x') p)), 'echo: x', 'the next one answers');
my $reply = qr/the engine's reply is/;
fails_with(q(SELECT complete_stream('one', 'odd field x')), 'XX000', qr/$reply malformed or too long/, 'a field that is none');
fails_with(q(SELECT complete_stream('one', 'odd no_json x')), 'XX000', qr/$reply not valid JSON that this database can hold/, 'an event that is no JSON');
fails_with(q(SELECT complete_stream('one', 'odd no_end x')), 'XX000', qr/the engine's reply is not a whole answer in pieces/, 'a stream without an end');
like((sqlstate_of($node, q(SELECT complete_stream('one', 'odd zero x'))))[0], qr/^(XX000|22P05)$/, 'a piece that no text can hold');
for my $kind (qw(no_json garbage html cut_body no_length))
{
	like((sqlstate_of($node, "SELECT complete_stream('one', 'broken $kind')"))[0], qr/^(XX000|57P03)$/, "a reply that is broken: $kind");
}
is(answer(q(SELECT string_agg(p, '') FROM complete_stream('one', 'x') p)), 'echo: x', 'and the session and engine go on');
fails_with(q(SET statement_timeout = 200; SELECT complete_stream('one', 'stall 1 x')), '57014', qr/canceling statement due to statement timeout/, 'a timeout');
$dropped = log_count($node, qr/a request was dropped/);

# the timeout of requests is for each piece
is(answer(q(SET pg_finetune.request_timeout = 1500; SELECT count(*) FROM complete_stream('one', 'drip 150 a b c d e f g h i j'))), 13, 'pieces that come in time');
fails_with(q(SET pg_finetune.request_timeout = 200; SELECT complete_stream('one', 'stall 3 a b c')), '57P03', qr/the engine did not answer in time/, 'a piece that does not come');
is_dropped('a piece too late');
is(answer(q(SET pg_finetune.request_timeout = 1000; BEGIN; DECLARE c CURSOR FOR SELECT complete_stream('one', 'x y'); FETCH FROM c; SELECT pg_sleep(1.5); FETCH 5 FROM c; COMMIT)),
	"echo: \n\nx \ny", 'the time that a cursor waits to be read does not count');

# rights act at each call, and an error in the middle is one that can be caught
is(answer(q(DO $$ BEGIN PERFORM complete_stream('one', 'halt 1 internal'); EXCEPTION WHEN internal_error THEN RAISE NOTICE 'caught'; END $$; SELECT complete('one', 'x'))),
	'echo: x', 'an error that is caught');

# --- What it took

answer('SELECT finetune.usage_reset()');
my $counters = q(SELECT requests, failed, cancelled, prompt_tokens, completion_tokens FROM finetune.usage);
answer(q(SELECT complete_stream('one', 'x y z')));
is(answer($counters), '1|0|0|3|4', 'an answer that was read to its end is counted');
answer(q(SELECT complete_stream('one', 'stall 2 x y') LIMIT 2));
is(answer($counters), '2|0|1|7|6', 'one that was given up as far as it came');
sqlstate_of($node, q(SELECT complete_stream('one', 'halt 2 internal')));
is(answer($counters), '3|1|1|10|8', 'so is one that failed');
$node->stop;

# --- The real engine: the pieces are the answer

$node = new_node('stream_real');
my @cases = map { my $prompt = $_; map { [ $prompt, $_ ] } '{"max_tokens": 60}', '{"max_tokens": 60, "temperature": 1.5, "seed": 7}',
	'{"max_tokens": 40, "stop": ["e", "qu"], "temperature": 1, "seed": 3}',
	'{"max_tokens": 80, "seed": 1, "temperature": 1, "response_format": {"type": "json", "schema": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}}}' }
  'item 4', 'hello', 'Ünïcödé 漢字';
for my $case (@cases)
{
	my ($prompt, $options) = @$case;

	is( answer("SELECT string_agg(p, '' ORDER BY n) = complete('tiny', '$prompt', '$options') #>> '{choices,0,messages}' FROM complete_stream('tiny', '$prompt', '$options') WITH ORDINALITY s (p, n)"),
		't', "$prompt, $options");
}
cmp_ok(answer(q(SELECT count(*) FROM complete_stream('tiny', 'item 4', '{"max_tokens": 60}'))), '>', 5, 'in several pieces');
answer('SELECT finetune.usage_reset()');
answer(q(SELECT complete('tiny', 'item 4', '{"max_tokens": 30}')));
my $one = answer('SELECT prompt_tokens, completion_tokens FROM finetune.usage');
answer('SELECT finetune.usage_reset()');
answer(q(SELECT complete_stream('tiny', 'item 4', '{"max_tokens": 30}')));
is(answer('SELECT prompt_tokens, completion_tokens FROM finetune.usage'), $one, 'tokens are counted as those of complete()');
answer(q(SELECT complete_stream('tiny', 'item 4', '{"max_tokens": 2000}') LIMIT 3));
is(answer("SELECT cancelled, prompt_tokens, completion_tokens BETWEEN $2 + 3 AND $2 + 1000 FROM finetune.usage"), '1|' . 2 * $1 . '|t', 'of a part as far as it came')
  if $one =~ /^(\d+)\|(\d+)$/;
$node->stop;

done_testing();
