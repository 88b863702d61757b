# SELECT complete(m, p) FROM t keeps many requests under way: in order, as many as
# are wanted and no more, each row with its own error, and none is left behind.
use strict;
use warnings;

use FinetuneCluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($node) = new_echo_cluster('rows', "pg_finetune.batch_rows = 32\n");

# Runs SQL that must succeed; its last row
sub answer { return $node->safe_psql('postgres', $_[0]); }

# How many chats the engine was asked for while this SQL ran, and how many waited at once
sub asked_for
{
	my ($sql) = @_;
	my ($before) = answer("SELECT complete('one', 'tally')") =~ /echo: (\d+) /;
	my $out = answer($sql);
	my ($after, $most) = answer("SELECT complete('one', 'tally')") =~ /echo: (\d+) (\d+)/;

	return ($after - $before, $most, $out);
}

sub is_asked_for
{
	my ($sql, $expected, $name) = @_;
	my ($asked) = asked_for($sql);

	is($asked, $expected, "$name: requests");
}

answer(q(CREATE TABLE t AS SELECT i, 'one'::text AS m, 'p' || i AS p FROM generate_series(1, 100) i;
	ALTER TABLE t ADD PRIMARY KEY (i);
	CREATE TABLE bad AS SELECT i, m, CASE i WHEN 10 THEN 'fail corrupt' ELSE p END AS p FROM t;
	CREATE TABLE slow AS SELECT i, m, 'sleep ' || i AS p FROM t;
	ANALYZE));

# The plan
like(answer('EXPLAIN SELECT complete(m, p) FROM t'), qr/Custom Scan \(Rows in Flight\)/, 'EXPLAIN shows the node');
for my $rows (0, 1)
{
	unlike(answer("SET pg_finetune.batch_rows = $rows; EXPLAIN SELECT complete(m, p) FROM t"),
		qr/Rows in Flight/, "batch_rows $rows turns it off");
}

like( answer(q(EXPLAIN (ANALYZE, FORMAT JSON) SELECT complete(m, p) FROM t LIMIT 10)),
	qr/"Batch Rows": 32,\s*"Requests": \d+,\s*"Prompt Tokens": 10,\s*"Completion Tokens": 20,\s*"Most Rows in Flight": \d+,\s*"Time Waited": [\d.]+,/,
	'EXPLAIN ANALYZE shows what it took');

# Answers come in any order, rows in theirs
my ($asked, $most, $out) = asked_for(q(SELECT string_agg(c, ',')
	FROM (SELECT complete(m, 'later ' || (i * 37 % 50) || ' ' || i) AS c FROM t) s));
is($out, join(',', map { 'echo: later ' . ($_ * 37 % 50) . " $_" } 1 .. 100), 'rows come in order');
is("$asked $most", '100 32', 'one request a row, 32 at a time');
($asked, $most) = asked_for(q(SET pg_finetune.batch_rows = 5; SELECT count(*) FROM (SELECT complete(m, 'later 5') FROM t) s));
is("$asked $most", '100 5', 'batch_rows bounds them');
($asked, $most, $out) = asked_for(q(SELECT md5(string_agg(c || d::text, ',')) FROM
	(SELECT complete(m, 'later 50 ' || i) AS c, try_complete(m, 'later 60 ' || i, '{"max_tokens": 3}')->'choices' AS d FROM t) s));
is($asked, 200, 'two calls a row');
cmp_ok($most, '>', 32, 'are under way together');
is( $out,
	answer(q(SET pg_finetune.batch_rows = 0; SELECT md5(string_agg(c || d::text, ',')) FROM
		(SELECT complete(m, 'later 50 ' || i) AS c, try_complete(m, 'later 60 ' || i, '{"max_tokens": 3}')->'choices' AS d FROM t) s)),
	'with the same answers');

# Only what is wanted
is_asked_for('SELECT complete(m, p) FROM t LIMIT 3', 3, 'LIMIT');
is_asked_for('SELECT complete(m, p) FROM t OFFSET 5 LIMIT 3', 8, 'OFFSET and LIMIT');
is_asked_for('PREPARE q(int) AS SELECT complete(m, p) FROM t LIMIT $1; EXECUTE q(3)', 3, 'LIMIT with a parameter');
is_asked_for('SET plan_cache_mode = force_generic_plan; PREPARE q(int) AS SELECT complete(m, p) FROM t LIMIT $1; EXECUTE q(3)',
	3, 'LIMIT in a generic plan');
is_asked_for('SELECT complete(m, p) FROM t ORDER BY p LIMIT 3', 3, 'ORDER BY and LIMIT');
is_asked_for('SELECT * FROM (SELECT complete(m, p) FROM t UNION ALL SELECT complete(m, p) FROM t) s LIMIT 3', 3, 'UNION ALL and LIMIT');
is_asked_for('SELECT complete(m, p) FROM t WHERE false', 0, 'no rows');
is_asked_for('SELECT EXISTS (SELECT complete(m, p) FROM t)', 0, 'EXISTS');
is_asked_for('SELECT (SELECT complete(m, p) FROM t WHERE i = 1)', 1, 'a scalar subquery');
is_asked_for('BEGIN; DECLARE c CURSOR FOR SELECT complete(m, p) FROM t LIMIT 5; FETCH 3 FROM c; FETCH 3 FROM c; COMMIT', 5, 'FETCH and LIMIT');
is_asked_for(q(BEGIN; DECLARE c CURSOR FOR SELECT complete(m, i / 1 || 'x') FROM t; FETCH 3 FROM c; FETCH 10 FROM c; COMMIT), 13,
	'FETCH, and arguments that might fail');
is_asked_for(q(BEGIN; DECLARE c CURSOR FOR SELECT complete(m, p), random() FROM t; FETCH 3 FROM c; COMMIT), 3, 'FETCH, and something volatile');
($asked) = asked_for('BEGIN; DECLARE c CURSOR FOR SELECT complete(m, p) FROM t; FETCH 3 FROM c; COMMIT');
cmp_ok($asked, '<=', 3 + 4, 'FETCH: a few more');
is_asked_for(q(SELECT complete('one', 'x')), 1, 'a call alone');
($asked) = asked_for(q(DO $$ DECLARE r record; BEGIN FOR r IN SELECT complete(m, p) FROM t LOOP EXIT; END LOOP; END $$));
cmp_ok($asked, '<=', 1 + 4, 'a loop in PL/pgSQL that ends at once: a few more');
($asked, $most) = asked_for(q(DO $$ DECLARE r record; BEGIN FOR r IN SELECT complete(m, 'later 9') FROM t LOOP END LOOP; END $$));
is("$asked $most", '100 32', 'one that goes on: soon as many as there may be');
is_asked_for(q(CREATE FUNCTION f() RETURNS SETOF text LANGUAGE plpgsql AS
	$$ DECLARE r record; BEGIN FOR r IN SELECT complete(m, i / 1 || 'x') AS c FROM t LOOP RETURN NEXT r.c; EXIT; END LOOP; END $$; SELECT f()), 10,
	'one in a function, which fetches ten');
($asked) = asked_for(q(SET enable_hashjoin = off; SET enable_nestloop = off;
	SELECT * FROM (SELECT i, complete(m, p) FROM t ORDER BY i) a JOIN (VALUES (1), (2)) b (i) USING (i)));
cmp_ok($asked, '<=', 2 + 1 + 4 + 3, 'a merge join that ends early: little more');
($asked) = asked_for('SELECT 1 FROM t WHERE 1 IN (SELECT i FROM (SELECT i, complete(m, p) AS c FROM t) s WHERE c IS NOT NULL AND s.i = t.i) LIMIT 1');
cmp_ok($asked, '<=', 1 + 4 + 1, 'a correlated IN: little more');

# An error belongs to its row
is_asked_for('SELECT complete(m, p) FROM bad LIMIT 3', 3, 'an error in row 10 and LIMIT 3');
for my $case (
	[ 'SELECT complete(m, p) FROM bad LIMIT 10' => 'in the tenth row' ],
	[ 'SELECT complete(m, p) FROM bad' => 'in the middle' ],
	[ q(SELECT complete(m, p, '{"temp": 1}') FROM t) => 'an unknown option' ],
	[ q(SELECT complete(CASE i WHEN 20 THEN 'nobody' ELSE m END, p) FROM t) => 'an unknown model' ],
	[ q(SELECT complete(m, 'x' || 1 / (i - 20)) FROM t) => 'in an argument' ],
	[ q(SELECT complete(m, 'x' || 1 / (i - 20)) FROM bad WHERE i <> 10) => 'in an argument behind others' ],
	[ q(SELECT complete(m, CASE i WHEN 12 THEN (1 / (i - 12))::text ELSE p END) FROM bad) => 'of a row before that of an argument' ],
	[ q(SELECT 1 / (i - 10), complete(m, p) FROM bad) => 'of what stands before, in the same row' ],
	[ q(SELECT complete(m, p), 1 / (i - 10) FROM bad) => 'before what stands behind, in the same row' ],
	[ q(SELECT complete(m, 'broken no_json') FROM t) => 'a broken reply' ],
	[ q(SELECT upper(complete(m, p))::int FROM t) => 'in what takes the answer' ])
{
	my ($sql, $name) = @$case;
	my ($state, $words) = sqlstate_of($node, $sql);
	my ($serial_state, $serial_words) = sqlstate_of($node, "SET pg_finetune.batch_rows = 0; $sql");

	isnt($state, '', "an error $name");
	$words =~ s/^LOCATION:.*//m;
	$serial_words =~ s/^LOCATION:.*//m;
	is("$state $words", "$serial_state $serial_words", "an error $name: as without rows in flight");
}
is(answer('SELECT count(try_complete(m, p)), count(*) FROM (SELECT * FROM bad) s'), '99|100', 'try_complete() in an aggregate');
is(answer('SELECT count(c), count(*) FROM (SELECT try_complete(m, p) AS c FROM bad) s'), '99|100', 'try_complete() gives null');
answer(q(CREATE ROLE stranger LOGIN; GRANT SELECT ON t TO stranger));
my ($state, $words) = sqlstate_of($node, 'SELECT complete(m, p) FROM t', user => 'stranger');
is($state, '42501', 'no right to the model');
answer('REVOKE EXECUTE ON FUNCTION complete(text, text) FROM PUBLIC; GRANT USAGE ON FOREIGN SERVER one TO stranger');
($state, $words) = sqlstate_of($node, 'EXPLAIN SELECT complete(m, p) FROM t', user => 'stranger');
like("$state $words", qr/^42501 .*permission denied for function complete/s, 'no right to the function');
answer('GRANT EXECUTE ON FUNCTION complete(text, text) TO PUBLIC');

# A full engine is asked again
is(answer(q(SELECT count(*), count(DISTINCT c) FROM (SELECT complete(m, 'full 10 ' || i) AS c FROM t) s)), '100|100',
	'no row fails because of the others');
($state, $words) = sqlstate_of($node, q(SELECT complete(m, CASE WHEN i = 50 THEN 'fail busy' ELSE p END) FROM t));
like("$state $words", qr/^53000 .*as asked for/s, 'one that is full for good fails');

# A model that the engine does not know is taught once
my $offset = log_end($node);
kill 'KILL', engine_pid($node);
is(answer('SELECT count(*) FROM (SELECT complete(m, p) FROM t) s'), 100, 'a new engine');
is(logged_times($node, qr/loaded a base/, 1, $offset), 1, 'is taught the model once');
($state, $words) = sqlstate_of($node, q(SELECT complete(m, CASE WHEN i = 50 THEN 'die' ELSE 'later 20' END) FROM t));
like("$state $words", qr/^57P03 .*the engine ended while it worked on a request/s, 'an engine that dies');
is(answer('SELECT count(*) FROM (SELECT complete(m, p) FROM t) s'), 100, 'and is back');

# Whatever ends the statement ends all requests
sub all_dropped
{
	my ($number, $name, $from) = @_;

	is(logged_times($node, qr/a request was dropped/, $number, $from), $number, "$name: all requests are dropped");
}
$offset = log_end($node);
($state, $words) = sqlstate_of($node, q(SET pg_finetune.batch_rows = 64; SET statement_timeout = '2s'; SELECT complete(m, p) FROM slow));
is($state, '57014', 'statement_timeout');
all_dropped(64, 'statement_timeout', $offset);

my $session = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $session->query('SELECT pg_backend_pid()');
sub in_flight
{
	my ($sql, $number) = @_;

	$offset = log_end($node);
	answer(q(SELECT complete('one', 'tally')));
	$session->query_until(qr/under way/, "\\echo under way\n$sql;\n");
	return wait_until(sub { answer(q(SELECT complete('one', 'tally'))) =~ / $number$/ || answer_is_waiting() });
}
sub answer_is_waiting
{
	return answer("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND wait_event_type = 'Extension'") eq '1';
}
$session->query('SET pg_finetune.batch_rows = 64');
ok(in_flight('BEGIN; SELECT complete(m, p) FROM slow', 64), '64 in flight');
answer("SELECT pg_cancel_backend($pid)");
all_dropped(64, 'a cancel in a transaction that goes on', $offset);
$session->query('ROLLBACK');
ok(in_flight(q(BEGIN; SELECT 1 / (SELECT count(*) - 1 FROM (SELECT complete(m, p) FROM slow LIMIT 10) s)), 10), '10 in flight');
answer("SELECT pg_cancel_backend($pid)");
all_dropped(10, 'a cancel under a LIMIT', $offset);
$session->query('ROLLBACK');

# Savepoints and cursors
is( $session->query(q(BEGIN; DECLARE c CURSOR FOR SELECT i, complete(m, p) FROM t; FETCH 2 FROM c; SAVEPOINT s;
		FETCH 2 FROM c; ROLLBACK TO s; FETCH 2 FROM c; CLOSE c; COMMIT)),
	join("\n", map { "$_|echo: p$_" } 1 .. 6), 'a cursor beyond a savepoint that is rolled back');
is( $session->query(q(DO $$ DECLARE n int := 0; BEGIN
		FOR k IN 1..3 LOOP
			BEGIN PERFORM complete(m, p) FROM bad; EXCEPTION WHEN data_corrupted THEN n := n + 1; END;
		END LOOP;
		PERFORM set_config('test.n', n::text, false);
	END $$; SELECT current_setting('test.n'))), 3, 'errors that are caught');
$offset = log_end($node);
$session->query(q(BEGIN; DECLARE c CURSOR FOR SELECT * FROM (SELECT i, complete(m, CASE WHEN i > 1 THEN 'sleep' ELSE p END) AS c FROM t) s
	WHERE length(c) > 0; FETCH 1 FROM c));
$session->query('CLOSE c; COMMIT');
all_dropped(3, 'rows ahead of a cursor that is closed', $offset);
is($session->query(q(BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT complete(m, p) FROM t WHERE i < 50; COMMIT; FETCH 1 FROM c; CLOSE c)),
	'echo: p1', 'a cursor that is held');
is($session->query(q(BEGIN; DECLARE c SCROLL CURSOR FOR SELECT complete(m, p) FROM t; MOVE 3 FROM c; FETCH PRIOR FROM c; COMMIT)),
	'echo: p2', 'a cursor that goes back');

# Rescans
is( $session->query(q(SELECT count(*), count(DISTINCT c) FROM generate_series(1, 5) g,
		LATERAL (SELECT complete(m, p || g) AS c FROM t WHERE i <= 10 OFFSET 0) s)),
	'50|50', 'a subquery for each row');

# Nothing piles up
my $used = q(SELECT sum(used_bytes) FROM pg_backend_memory_contexts);
sub resident
{
	my ($kilobytes) = slurp_file("/proc/$pid/status") =~ /RssAnon:\s+(\d+)/;
	return $kilobytes;
}
my $many = q(SELECT count(*) FROM (SELECT complete('one', repeat('x', 2000) || i) FROM generate_series(1, %d) i) s);
$session->query('SET pg_finetune.batch_rows = 32; SET jit = off');
$session->query(sprintf($many, 1000));
$session->query(sprintf($many, 3000));
my $bytes = $session->query($used);
my $resident = resident();
$session->query(sprintf($many, 12000));
cmp_ok($session->query($used), '<', $bytes + 256 * 1024, 'no memory is left behind');
cmp_ok(resident(), '<', $resident + 12000, 'many rows take no more memory than a batch of them');
my $sockets = () = grep { (readlink($_) // '') =~ /^socket/ } glob("/proc/$pid/fd/*");
cmp_ok($sockets, '<=', 8 + 4, 'nor connections, but those kept for later');
is($session->query(q(SELECT count(*) FROM pg_backend_memory_contexts WHERE name LIKE 'pg_finetune %')), 0, 'no request is left');
$session->quit;

unlike(slurp_file($node->logfile), qr/leaked|leak:|not closed|not released|PANIC/, 'no resource was leaked');
$node->stop;
done_testing();
