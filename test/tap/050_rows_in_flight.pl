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

my $plan = answer(q(EXPLAIN (ANALYZE, FORMAT JSON) SELECT complete(m, p) FROM (SELECT m, CASE WHEN i % 2 = 0 THEN 'cached 1 x' ELSE 'x' END AS p FROM t) s LIMIT 10));
like( $plan,
	qr/"Batch Rows": 32,\s*"Requests": \d+,\s*"Prompt Tokens": 20,\s*"Cached Tokens": 5,\s*"Completion Tokens": 30,\s*"Most Rows in Flight": \d+,\s*"Time Waited": [\d.]+,/,
	'EXPLAIN ANALYZE shows what it took');

# Answers come in any order, rows in theirs
my ($asked, $most, $out) = asked_for(q(SELECT string_agg(c, ',')
	FROM (SELECT complete(m, 'later ' || (i * 37 % 50) || ' ' || i) AS c FROM t) s));
is($out, join(',', map { 'echo: later ' . ($_ * 37 % 50) . " $_" } 1 .. 100), 'rows come in order');
is("$asked $most", '100 32', 'one request a row, 32 at a time');
($asked, $most) = asked_for(q(SET pg_finetune.batch_rows = 5; SELECT count(*) FROM (SELECT complete(m, 'gather 5') FROM t) s));
is("$asked $most", '100 5', 'batch_rows bounds them');
($asked, $most, $out) = asked_for(q(SELECT md5(string_agg(c || d::text, ',')) FROM
	(SELECT complete(m, 'later 50 ' || i) AS c, try_complete(m, 'later 60 ' || i, '{"max_tokens": 3}')->'choices' AS d FROM t) s));
is($asked, 200, 'two calls a row');
cmp_ok($most, '>', 32, 'are under way together');
is( $out,
	answer(q(SET pg_finetune.batch_rows = 0; SELECT md5(string_agg(c || d::text, ',')) FROM
		(SELECT complete(m, 'later 50 ' || i) AS c, try_complete(m, 'later 60 ' || i, '{"max_tokens": 3}')->'choices' AS d FROM t) s)),
	'with the same answers');

# All kinds of statements.  Answers come when 32 are waited for, so fewer would hang.
answer(q(CREATE TABLE g AS SELECT * FROM t WHERE i <= 96;
	CREATE TABLE part (i int, m text, p text) PARTITION BY RANGE (i);
	CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (40);
	CREATE TABLE part2 PARTITION OF part FOR VALUES FROM (40) TO (1000);
	INSERT INTO part SELECT * FROM g;
	ANALYZE g;
	CREATE VIEW v AS SELECT m, complete(m, 'gather 32') AS c FROM g;
	CREATE TABLE sink (c text);
	CREATE FUNCTION answers() RETURNS SETOF text LANGUAGE sql VOLATILE AS $$ SELECT complete(m, 'gather 32') FROM g $$;
	CREATE FUNCTION returned() RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY SELECT complete(m, 'gather 32') FROM g; END $$));
my $file = $node->basedir . '/t.csv';
answer(sprintf(q(COPY g TO '%1$s' WITH (FORMAT csv);
	CREATE EXTENSION file_fdw;
	CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
	CREATE FOREIGN TABLE written (i int, m text, p text) SERVER files OPTIONS (filename '%1$s', format 'csv');
	CREATE EXTENSION postgres_fdw;
	CREATE SERVER here FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '%2$s', port '%3$s', dbname 'postgres', async_capable 'true');
	CREATE USER MAPPING FOR CURRENT_USER SERVER here;
	CREATE FOREIGN TABLE far (i int, m text, p text) SERVER here OPTIONS (table_name 'g');
	CREATE TABLE parted (i int, m text, p text) PARTITION BY RANGE (i);
	CREATE FOREIGN TABLE parted1 PARTITION OF parted FOR VALUES FROM (0) TO (40) SERVER here OPTIONS (table_name 'part1');
	CREATE FOREIGN TABLE parted2 PARTITION OF parted FOR VALUES FROM (40) TO (1000) SERVER here OPTIONS (table_name 'part2')),
	$file, $node->host, $node->port));
my $call = q(complete(m, 'gather 32'));
my $parallel = 'SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0';
for my $case (
	[ "INSERT INTO sink SELECT $call FROM g" => 'INSERT … SELECT' ],
	[ "CREATE TABLE made AS SELECT $call FROM g" => 'CREATE TABLE AS' ],
	[ "CREATE MATERIALIZED VIEW kept AS SELECT $call FROM g" => 'CREATE MATERIALIZED VIEW' ],
	[ 'REFRESH MATERIALIZED VIEW kept' => 'REFRESH MATERIALIZED VIEW' ],
	[ "COPY (SELECT $call FROM g) TO '/dev/null'" => 'COPY' ],
	[ "BEGIN; DECLARE c CURSOR FOR SELECT $call FROM g; FETCH ALL FROM c; COMMIT" => 'a cursor' ],
	[ 'SELECT count(*) FROM returned()' => 'RETURN QUERY in PL/pgSQL' ],
	[ 'SELECT count(*) FROM answers()' => 'a function in SQL' ],
	[ "SET plan_cache_mode = force_generic_plan; PREPARE q(text) AS SELECT complete(m, \$1) FROM g; EXECUTE q('gather 32')" => 'a generic plan' ],
	[ "WITH w AS (SELECT $call FROM g) TABLE w" => 'a CTE' ],
	[ "WITH w AS (SELECT i, complete(m, 'gather 32 ' || i / 1) FROM g) SELECT count(*) FROM w" => 'a CTE, arguments that might fail' ],
	[ "SELECT count(c) FROM (SELECT $call AS c FROM g) s" => 'a subquery' ],
	[ 'SELECT upper(c) FROM v' => 'a view' ],
	[ "SELECT $call FROM g WHERE i <= 64 UNION ALL SELECT $call FROM g WHERE i > 64" => 'UNION ALL' ],
	[ 'SELECT complete(g.m, \'gather 32\') FROM g JOIN part USING (i)' => 'a join' ],
	[ 'SET enable_hashjoin = off; SET enable_mergejoin = off; SELECT complete(g.m, \'gather 32\') FROM g JOIN part USING (i)' => 'a nested loop' ],
	[ "SELECT $call FROM part" => 'partitions' ],
	[ "SELECT $call FROM written" => 'file_fdw' ],
	[ "SELECT $call FROM far" => 'postgres_fdw' ],
	[ "SELECT $call FROM parted" => 'foreign partitions' ],
	[ "SELECT $call FROM g ORDER BY p" => 'ORDER BY' ],
	[ "$parallel; SELECT $call FROM g" => 'a parallel plan below' ],
	[ "SET force_parallel_mode = on; SELECT $call FROM g" => 'force_parallel_mode' ])
{
	my ($sql, $name) = @$case;

	($asked, $most) = asked_for("SET statement_timeout = '120s'; $sql");
	is("$asked $most", '96 32', "$name: one request a row, 32 at a time");
}
like(answer("$parallel; EXPLAIN (COSTS OFF) SELECT $call FROM g"), qr/Rows in Flight\)\n.*\n\s+->  Gather\n/, 'the parallel plan is one');
like(answer("EXPLAIN (COSTS OFF) SELECT complete(m, p) FROM far ORDER BY p LIMIT 3"), qr/Rows in Flight\)\n.*\n\s+->  Foreign Scan/,
	'a foreign server sorts and limits');
is_asked_for('SELECT complete(m, p) FROM far ORDER BY p LIMIT 3', 3, 'and gives what is asked for');

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
($asked, $most) = asked_for(q(DO $$ DECLARE r record; BEGIN FOR r IN SELECT complete(m, CASE WHEN i > 36 THEN 'gather 32' ELSE p END) FROM t LOOP END LOOP; END $$));
is("$asked $most", '100 32', 'one that goes on: soon as many as there may be');
($asked, $most) = asked_for(q(WITH w AS (SELECT complete(m, CASE WHEN i > 36 THEN 'gather 32' ELSE p END) FROM t) SELECT count(*) FROM w x, w y));
is("$asked $most", '100 32', 'a CTE that is read twice: the same');
($asked) = asked_for(q(WITH w AS (SELECT complete(m, p) FROM t) SELECT * FROM w LIMIT 3));
cmp_ok($asked, '<=', 3 + 4, 'a CTE and LIMIT: a few more');
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

# Many sessions leave room in the engine for those that ask one at a time
my @crowd = map { $node->background_psql('postgres', on_error_stop => 0) } 1 .. 3;
my @pids = map { scalar $_->query('SET pg_finetune.batch_rows = 256; SELECT pg_backend_pid()') } @crowd;
sub waiting { return (answer(q(SELECT complete('one', 'tally'))) =~ /echo: \d+ (\d+)/)[0]; }
waiting();
$offset = log_end($node);
$_->query_until(qr/under way/, "\\echo under way\nSELECT complete('one', 'sleep') FROM generate_series(1, 300);\n") for @crowd;
wait_until(sub { ($most = waiting()) >= 512 + 3 });
is($most, 512 + 3, 'sessions share 512 places for rows ahead');
is(answer(q(SELECT complete('one', 'x'))), 'echo: x', 'and another one is answered');
answer("SELECT pg_terminate_backend($pids[0]), pg_cancel_backend($pids[1]), pg_cancel_backend($pids[2])");
all_dropped(512 + 3, 'one session is ended, two are cancelled', $offset);
waiting();
$crowd[1]->query(q(SELECT count(*) FROM (SELECT complete('one', 'gather 256') FROM generate_series(1, 256)) s));
is(waiting(), 256, 'the places are free again');
$_->quit for @crowd[ 1, 2 ];
$crowd[0]->{run}->finish;

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
