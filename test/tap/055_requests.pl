# Many sessions ask the real engine at the same time, are refused when there are too many, and
# give up at any moment: no answer reaches another caller, nothing hangs or leaks, and nothing of
# a prompt is logged at any level.  `make soak-requests` has it make more calls (CLIENTS, CALLS).
use strict;
use warnings;

use Cwd;
use FinetuneCluster;
use FinetuneJob;
use IO::Socket::UNIX;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = $ENV{CLIENTS} // 20;
my $calls = $ENV{CALLS} // 600;
my $each = int($calls / $clients) || 1;
my $prompts = 100;
my $canary = 'kanarie' . 'nvogel';

# Statements are the server's to log, and hold no canary.
my $node = new_node('requests', <<'CONF');
max_connections = 250
log_statement = none
log_min_error_statement = panic
CONF
$node->safe_psql('postgres', <<"SQL");
CREATE TABLE known (i int PRIMARY KEY, prompt text, options jsonb, answer text);
INSERT INTO known SELECT i, 'item ' || i || ' kanarie' || 'nvogel', jsonb_build_object('max_tokens', 8 + i % 24, 'temperature', 1.5, 'seed', i)
	FROM generate_series(1, $prompts) i;
CREATE FUNCTION answer(i int) RETURNS text LANGUAGE sql AS
	\$\$ SELECT complete('tiny', prompt, options) #>> '{choices,0,messages}' FROM known k WHERE k.i = answer.i \$\$;
SET pg_finetune.batch_rows = 0;
UPDATE known SET answer = answer(i);
CREATE TABLE outcome (what text);

-- An answer of the model that is not the one to this prompt ends the client
CREATE FUNCTION ask(i int) RETURNS void LANGUAGE plpgsql AS \$\$
DECLARE
	got text;
	hint text;
BEGIN
	SELECT answer(ask.i) INTO got;
	IF got IS DISTINCT FROM (SELECT answer FROM known k WHERE k.i = ask.i) THEN
		RAISE 'another answer';
	END IF;
EXCEPTION
	WHEN insufficient_resources THEN
		GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
		INSERT INTO outcome VALUES (CASE WHEN hint LIKE 'Try again later%' THEN 'busy' ELSE 'no hint' END);
	WHEN query_canceled THEN
		INSERT INTO outcome VALUES ('cancelled');
END \$\$;

-- Pieces, and not all of them
CREATE FUNCTION ask_for_some(i int, pieces int) RETURNS void LANGUAGE plpgsql AS \$\$
DECLARE
	got text;
BEGIN
	SELECT string_agg(p, '') INTO got FROM
		(SELECT complete_stream('tiny', prompt, options) AS p FROM known k WHERE k.i = ask_for_some.i LIMIT pieces) s;
	IF NOT starts_with((SELECT answer FROM known k WHERE k.i = ask_for_some.i), got) THEN
		RAISE 'another answer';
	END IF;
EXCEPTION
	WHEN query_canceled THEN
		INSERT INTO outcome VALUES ('cancelled');
END \$\$;
SQL
cmp_ok($node->safe_psql('postgres', 'SELECT count(DISTINCT answer) FROM known'), '>', $prompts * 0.9, 'answers differ');

# Run a script of pgbench in so many clients; it ends with an error when one of its calls does.
sub run_clients
{
	my ($what, $script, %option) = @_;
	my $times = $option{each} // $each;
	my $file = $node->basedir . '/calls.sql';

	write_file($file, $script);
	my ($out, $err) = run_command([ 'pgbench', '-n', '-h', $node->host, '-p', $node->port, '-M', 'simple',
		'-c', $clients, '-j', 2, '-t', $times, '-f', $file, 'postgres' ]);
	my $expected = $clients * $times;
	like($out, qr{number of transactions actually processed: $expected/$expected\n}, "$what: $expected calls in $clients sessions") or diag($err);
	return;
}

# What the engine says of itself.
sub stats
{
	my $home = getcwd();

	chdir $node->data_dir or die $!;    # a socket's path is short
	my $s = IO::Socket::UNIX->new(Peer => 'pgsql_tmp_finetune/engine.sock') or die "engine: $!";
	chdir $home or die $!;
	print $s "GET /stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
	my $text = do { local $/; <$s> };
	return decode_json($text =~ s/.*?\r\n\r\n//sr);
}

sub is_idle
{
	my ($what) = @_;
	my $is_idle = sub { my $s = stats(); return $s->{running} + $s->{waiting} == 0 && !grep { $_->{used} > 0 } values %{ $s->{cache} }; };

	ok(wait_until($is_idle), "$what: no request and no block is held") or diag(explain(stats()));
	return;
}

sub outcomes { return $node->safe_psql('postgres', q(SELECT what, count(*) > 0 FROM outcome GROUP BY what ORDER BY what)); }

sub resident
{
	my ($kilobytes) = slurp_file('/proc/' . engine_pid($node) . '/status') =~ /VmRSS:\s+(\d+)/;
	return $kilobytes;
}

# --- Each gets its own answer

$node->safe_psql('postgres', 'SELECT finetune.usage_reset()');
my $any = "\\set i random(1, $prompts)\n";
my $engine = engine_pid($node);
run_clients('all at once', "${any}SELECT ask(:i);\n");
is(outcomes(), '', 'every one is answered');
is_idle('all at once');
is($node->safe_psql('postgres', 'SELECT sum(requests), sum(failed), sum(cancelled) FROM finetune.usage'), $clients * $each . '|0|0', 'all are counted');

# --- Too many

$node->safe_psql('postgres', 'ALTER SYSTEM SET pg_finetune.max_concurrent_requests = 2');
$node->reload;
ok(wait_until(sub { engine_pid($node) != $engine }), 'an engine that takes two requests at a time');
run_clients('too many', "${any}SELECT ask(:i);\n");
is(outcomes(), 'busy|t', 'are refused with 53000 and a hint, or answered rightly');
my ($asked, $failed, $refused) = split /\|/, $node->safe_psql('postgres', q(SELECT sum(requests), sum(failed), (SELECT count(*) FROM outcome) FROM finetune.usage));
is($asked, 2 * $clients * $each, 'all of them are counted');
is($failed, $refused, 'those that were refused as failed');
cmp_ok($refused, '<', $clients * $each, 'some were answered');
is_idle('too many');
$engine = engine_pid($node);
$node->safe_psql('postgres', 'ALTER SYSTEM RESET pg_finetune.max_concurrent_requests; TRUNCATE outcome');
$node->reload;
ok(wait_until(sub { engine_pid($node) != $engine }), 'an engine for all');

# --- Cancels: by a timeout at any moment, by LIMIT, by the end of a session

$engine = engine_pid($node);
run_clients('warming up', "${any}SELECT ask(:i);\nSELECT ask_for_some(:i, 3);\n", each => int($each / 4) || 1);
my $before = resident();
my $askers = $clients < 8 ? $clients : 8;
my @askers = map { start_asker($_) } 1 .. $askers;

# one of them is killed, and another one's server process ended
kill 'KILL', $askers[0]{run}{KIDS}[0]{PID};
$node->safe_psql('postgres',
	q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%ask%' AND pid <> pg_backend_pid() LIMIT 1));
my $said = '';
for my $asker (@askers)
{
	eval { $asker->{run}->finish };
	$said .= $asker->{err};
}
my %states = map { $_ => 1 } $said =~ /(?:ERROR|FATAL|PANIC):  (\w{5}):/g;
delete @states{qw(57014 57P01)};
is(join(' ', sort keys %states), '', 'calls that are given up at any moment: no other error, and no other answer') or diag($said);
is_idle('cancels');
my $grown = resident() - $before;
note("resident: $before kB, then $grown kB more");
cmp_ok($grown, '<', 16 * 1024, 'the engine is as large as before');
is(engine_pid($node), $engine, 'and the same');
is(outcomes(), 'cancelled|t', 'some were cancelled');

# A session with its share of the calls, each with a timeout that may come at any moment of it.
sub start_asker
{
	my ($number) = @_;
	my $file = $node->basedir . "/asker.$number.sql";
	my %asker = (err => '');
	my $sql = '';

	srand $number;
	for (1 .. int($calls / $askers) || 1)
	{
		my ($i, $timeout) = (1 + int rand $prompts, 1 + int rand 25);
		my $call = rand(3) < 1 ? "ask_for_some($i, " . (1 + int rand 12) . ')' : "ask($i)";

		$sql .= "SET statement_timeout = $timeout;\nSELECT $call;\nSET statement_timeout = 0;\n";
	}
	write_file($file, $sql);
	$asker{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-h', $node->host, '-p', $node->port, '-f', $file, 'postgres' ],
		'>', '/dev/null', '2>', \$asker{err});
	return \%asker;
}

# --- Nothing of a prompt in the log, at any level

is(log_count($node, $canary), 0, 'nothing of a prompt is in the log');
$node->safe_psql('postgres', 'ALTER SYSTEM SET log_min_messages = debug5');
$node->reload;
my $from = log_end($node);
my $quietly = sub { return ($node->psql('postgres', $_[0]))[2]; };
for my $call (
	q(complete('tiny', prompt, options)), q(try_complete('tiny', prompt, options)), q(count_tokens('tiny', prompt)), q(tokenize('tiny', prompt)),
	q(complete('tiny', messages => jsonb_build_array(jsonb_build_object('role', 'user', 'content', prompt)), options => options)),
	q(complete('tiny', prompt, options || '{"logprobs": true, "top_logprobs": 2, "n": 2}')))
{
	is($quietly->("SELECT count($call) FROM known WHERE i <= 2"), '', $call);
}
is($quietly->(q(SELECT count(p) FROM known, complete_stream('tiny', prompt, options) p WHERE i <= 2)), '', 'complete_stream() in FROM');
for my $call (
	q(complete('tiny', repeat(prompt, 10000))), q(complete('tiny', prompt, jsonb_build_object('stop', repeat(prompt, 1000)))),
	q(complete('tiny', prompt, jsonb_build_object('temperature', prompt))), q(complete_stream('tiny', repeat(prompt, 10000))),
	q(complete('tiny', prompt, jsonb_build_object('response_format', jsonb_build_object('type', prompt)))),
	q(complete('tiny', prompt, jsonb_build_object('response_format', jsonb_build_object('type', 'json', 'schema', jsonb_build_object('type', prompt))))),
	q(complete('tiny', jsonb_build_array(prompt))), q(try_complete('tiny', repeat(prompt, 10000)) IS NOT NULL AND 1 / 0 > 0))
{
	my $words = $quietly->("SELECT $call FROM known WHERE i = 1");

	unlike($words, qr/$canary/, "$call: an error says nothing of it");
}
$quietly->(q(SET statement_timeout = 50; SELECT count(complete('tiny', prompt || n)) FROM known, generate_series(1, 1000) n));
$engine = engine_pid($node);
kill 'SEGV', $engine;
ok(wait_until(sub { engine_pid($node) != $engine }), 'an engine that died is started again');
is($node->safe_psql('postgres', q(SELECT count(complete('tiny', prompt, options)) FROM known WHERE i <= 3)), 3, 'and answers');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET log_min_messages');
$node->reload;
cmp_ok(log_end($node) - $from, '>', 10000, 'much is logged');
is(log_count($node, $canary, $from), 0, 'and nothing of a prompt');
is_idle('at the end');
$node->stop;
is(log_count($node, $canary), 0, 'nothing of a prompt is in the log at the end');

done_testing();
