# Whatever the query: rows in flight give what calls one after the other give.
# Queries are made of parts, at random but always the same; each is run in both
# ways, and rows, errors and what sequences say afterwards have to be equal.
use strict;
use warnings;

use File::Copy qw(copy);
use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Utils;
use Test::More;

my $number = 2000;    # queries of the echoing engine, and a twentieth as many of the real model

# A generator of our own: always the same numbers, whatever Perl it is
my $seed = 20240229;

sub pick
{
	$seed = ($seed * 1103515245 + 12345) % 2147483648;
	return $_[ ($seed >> 12) % @_ ];
}

# What may stand in a target list; each is text.  An error of the engine is that
# of row 4, one of an argument that of row 5, one beside a call that of row 6.
my @calls = (
	'complete(m, p)',
	'try_complete(m, p)',
	'complete(m, p || i)',
	q(complete(m, p, '{"max_tokens": 2}')->>'model'),
	q(try_complete(m, p, o)::text),
	q((complete(m, p, o))['choices']::text),
	q(complete(m, messages => jsonb_build_array(jsonb_build_object('role', 'user', 'content', p)))::text),
	q(try_complete(m, '[]'::jsonb)::text),
	'upper(complete(m, p)) || i',
	q(complete('one', 'always')),
	q(complete(m, p || nextval('s'))),
	q(complete(m, 'a ' || (10 / (i - 5)))),
	'complete(m, complete(m, p))',
	'complete(m, p) || try_complete(m, p)',
	'(complete(m, p) IS NULL)::text',
	'(NOT (try_complete(m, p) IS NULL))::text',
	'(length(complete(m, p)) > 3 AND try_complete(m, p) IS NOT NULL)::text',
	'greatest(complete(m, p), p)',
	'row(i, complete(m, p))::text',
	'ARRAY[complete(m, p), p]::text',
	'(complete(m, p) = ANY (ARRAY[p, m]))::text',
	'(complete(m, p) IS DISTINCT FROM p)::text',
	'CASE WHEN i > 3 THEN complete(m, p) END',
	q(coalesce(try_complete(m, p), complete(m, 'other'))),
	q(nullif(complete(m, p), 'echo: a')),
	'bump(complete(m, p))',
	'(SELECT complete(t.m, t.p))',
	'(SELECT max(complete(u.m, u.p)) FROM u WHERE u.i = t.i)',
	q(complete(m, (SELECT q FROM (SELECT u.p AS q FROM u WHERE u.i = t.i OFFSET 0) x))),
	'(SELECT string_agg(c, chr(44)) FROM (SELECT complete(t.m, u.p) AS c FROM u WHERE u.i < 3) x)');
my @others = (
	'i::text', 'p', 'm', q(nextval('s')::text), 'random()::text', '(10 / (i - 6))::text', 'bump(p)',
	'(SELECT count(*) FROM u WHERE u.i = t.i)::text', q('x'::text), 'CASE WHEN i > 3 THEN p END');
my @from = (
	't', 't', 't', 'part t', '(SELECT * FROM t OFFSET 0) t', '(SELECT * FROM t ORDER BY p OFFSET 1) t',
	't JOIN u k USING (i, m, p, o)', 't LEFT JOIN (SELECT i AS j FROM u) k ON j = t.i + 3 AND t.i < 4', 't CROSS JOIN (VALUES (1), (2)) v (n)',
	'(SELECT * FROM t UNION ALL SELECT * FROM u) t', '(SELECT i AS j FROM u) x, LATERAL (SELECT * FROM t WHERE t.i >= x.j LIMIT 2) t',
	'(SELECT i, o, m, complete(m, p) AS p FROM t WHERE i < 4) t', 'v t', 'part x JOIN t USING (i, m, p, o)',
	'far t', 'written t', '(SELECT * FROM far ORDER BY i LIMIT 5) t', 'far x JOIN t USING (i, m, p, o)');
my @where = ('', '', '', 'WHERE i <> 4', 'WHERE i < 4', 'WHERE i > 4', 'WHERE p IS NOT NULL AND i NOT IN (4, 5, 6)',
	q(WHERE nextval('s') > 0), 'WHERE i IN (SELECT i FROM u)', 'WHERE false', 'WHERE i NOT IN (4, 5, 6)');
my @order = ('', '', '', 'ORDER BY i DESC', 'ORDER BY p NULLS FIRST, i', 'ORDER BY i', 'ORDER BY 1 NULLS FIRST');
my @limit = ('', '', '', 'LIMIT 3', 'OFFSET 1 LIMIT 2', 'LIMIT 0', 'LIMIT NULL OFFSET 2', 'LIMIT (SELECT 2)');
my @wrappers = (
	('%s') x 6,
	'SELECT * FROM (%s) w WHERE true',
	'SELECT * FROM (%s) w LIMIT 2',
	q(SELECT * FROM (%s) w WHERE c1 LIKE '%%:%%'),
	'SELECT count(*), min(c1) FROM (%s) w',
	'SELECT DISTINCT * FROM (%s) w ORDER BY 1',
	'WITH w AS (%s) SELECT * FROM w LIMIT 2',
	'WITH w AS MATERIALIZED (%s) SELECT * FROM w x, w y',
	'SELECT * FROM (%1$s) w UNION ALL (%1$s)',
	'(%1$s) UNION ALL (%1$s) LIMIT 4',
	'(%1$s) EXCEPT (%1$s)',
	'SELECT EXISTS (%s)',
	q(SELECT 1 WHERE 'echo: a' IN (SELECT c1 FROM (%s) w)),
	'SELECT ARRAY(SELECT c1 FROM (%s) w)',
	'SELECT x.i, w.* FROM u x, LATERAL (%s) w WHERE x.i < 3',
	'SELECT x.i, w.c1 FROM u x LEFT JOIN (%s) w ON x.i = length(w.c1) ORDER BY 1, 2',
	'SELECT c1, row_number() OVER () FROM (%s) w',
	'TRUNCATE sink; INSERT INTO sink SELECT c1 FROM (%s) w; TABLE sink',
	'INSERT INTO sink SELECT c1 FROM (%s) w RETURNING c',
	'CREATE TEMP TABLE made AS %s; TABLE made',
	q(SET plan_cache_mode = force_generic_plan; PREPARE q(int) AS SELECT * FROM (%s) w LIMIT $1; EXECUTE q(2); EXECUTE q(NULL)),
	'DECLARE c CURSOR FOR %s; FETCH 2 FROM c; FETCH 3 FROM c; SAVEPOINT a; FETCH 1 FROM c; ROLLBACK TO a; FETCH ALL FROM c',
	'DECLARE c NO SCROLL CURSOR FOR %s; FETCH 3 FROM c; MOVE 1 FROM c; FETCH ALL FROM c',
	q(SELECT * FROM run($q$%s$q$)),
	q(SELECT * FROM run_two($q$%s$q$)),
	q(UPDATE u SET p = w.c1 FROM (%s) w WHERE u.i = 1 RETURNING u.p),
	q(COPY (%s) TO '/dev/null'),
	q(EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) CREATE TEMP TABLE made AS %s; TABLE made));

sub make_query
{
	my @targets = (pick(@calls));

	push @targets, pick(@calls) if pick(0, 1);
	push @targets, pick(@others) for 1 .. pick(0, 0, 1, 2);
	@targets = reverse @targets if pick(0, 1);
	my $list = join ', ', map { "$targets[$_ - 1] AS c$_" } 1 .. @targets;
	my $query = join ' ', "SELECT $list FROM", pick(@from), pick(@where), pick(@order), pick(@limit);

	# sprintf() reads nothing of the query itself
	return sprintf(pick(@wrappers), $query);
}

my $tables = <<'SQL';
CREATE TABLE t AS SELECT i, '{"max_tokens": 3}'::jsonb AS o, CASE i WHEN 7 THEN NULL ELSE 'one' END AS m, p
	FROM (VALUES (1, 'a'), (2, NULL), (3, 'b b b'), (4, 'fail corrupt'), (5, 'c'), (6, 'd'), (7, 'e'), (8, 'a')) t (i, p);
CREATE TABLE u AS SELECT i, o, m, p FROM t WHERE i <> 4;
CREATE TABLE part (i int, o jsonb, m text, p text) PARTITION BY RANGE (i);
CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (4);
CREATE TABLE part2 (p text, i int, m text, gone int, o jsonb);
ALTER TABLE part2 DROP COLUMN gone;
ALTER TABLE part ATTACH PARTITION part2 FOR VALUES FROM (4) TO (1000);
INSERT INTO part SELECT * FROM t;
CREATE VIEW v AS SELECT i, o, m, p || '' AS p FROM t;
CREATE TABLE sink (c text);
CREATE SEQUENCE s;
CREATE FUNCTION bump(text) RETURNS text LANGUAGE sql VOLATILE AS $$ SELECT $1 || nextval('s') $$;
CREATE FUNCTION run(query text) RETURNS SETOF text LANGUAGE plpgsql AS
	$$ DECLARE r record; BEGIN FOR r IN EXECUTE query LOOP RETURN NEXT r::text; END LOOP; END $$;
CREATE FUNCTION run_two(query text) RETURNS SETOF text LANGUAGE plpgsql AS
	$$ DECLARE r record; n int := 0; BEGIN
		FOR r IN EXECUTE query LOOP n := n + 1; RETURN NEXT r::text; EXIT WHEN n = 2; END LOOP;
	EXCEPTION WHEN OTHERS THEN PERFORM setval('s', 1), setseed(0.5); RETURN NEXT SQLERRM; END $$;
ANALYZE;
SQL

# The same rows as tables of two foreign data wrappers
sub add_foreign_tables
{
	my ($node) = @_;
	my $file = $node->basedir . '/t.csv';
	my ($host, $port) = ($node->host, $node->port);
	my $columns = 'i int, o jsonb, m text, p text';

	$node->safe_psql('postgres', <<"SQL");
COPY t TO '$file' WITH (FORMAT csv);
CREATE EXTENSION file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE written ($columns) SERVER files OPTIONS (filename '$file', format 'csv');
CREATE EXTENSION postgres_fdw;
CREATE SERVER here FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$host', port '$port', dbname 'postgres');
CREATE USER MAPPING FOR CURRENT_USER SERVER here;
CREATE FOREIGN TABLE far ($columns) SERVER here OPTIONS (table_name 't');
SQL
}

# Run a query in a transaction of its own; afterwards what became of it
sub script
{
	my ($query, $rows, $where) = @_;

	return <<"SQL";
\\echo === $where
DISCARD PLANS;
DEALLOCATE ALL;
SET pg_finetune.batch_rows = $rows;
BEGIN;
SELECT setval('s', 1), setseed(0.5);
\\echo --- $where
$query;
\\if :ERROR
\\echo error :SQLSTATE :LAST_ERROR_MESSAGE
\\endif
SELECT currval('s'), random();
ROLLBACK;
SQL
}

# What psql prints for such scripts: a list of texts
sub run_scripts
{
	my ($node, $script) = @_;
	my $file = $node->basedir . '/script.sql';

	write_file($file, $script);
	my ($out) = run_command([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', $file ]);
	my @results;
	for my $part (split /^=== .*\n/m, $out)
	{
		push @results, $1 if $part =~ /^--- [^\n]*\n(.*)\z/ms;
	}
	return @results;
}

# The same number of queries each way; those that are not alike are shown.
sub compare
{
	my ($node, $name, $count, $settings, $model) = @_;
	my @queries = map { make_query() =~ s/'one'/'$model'/gr } 1 .. $count;
	my %result;

	for my $rows (0, 3, 32)
	{
		next if $rows == 3 && $name ne 'force_parallel_mode';
		my $i = 0;
		$result{$rows} = [ run_scripts($node, $settings . join '', map { script($_, $rows, ++$i) } @queries) ];
		is(scalar @{ $result{$rows} }, $count, "$name: all queries with batch_rows $rows were run");
	}
	my $failed = grep { /^error /m } @{ $result{0} };
	cmp_ok($failed, '<', $count * 0.5, "$name: $failed end with an error");
	for my $rows (grep { $_ } sort keys %result)
	{
		my $unequal = 0;
		for my $i (0 .. $count - 1)
		{
			my ($serial, $ahead) = ($result{0}[$i], $result{$rows}[$i]);

			# How EXPLAIN draws the plan is not the same; there is none of it after an error
			s/^(?:Custom Scan|\s+Batch|\s*->|Seq|Result|Append|Limit|Sort|Foreign|[ ]+\w[^|\n]*:|.*\(actual).*\n//mg
			  for grep { $queries[$i] =~ /^EXPLAIN/ } $serial, $ahead;
			# Nor is what the engine has seen before
			s/^ *SubPlan.*\n//mg, s/created\\*": \d+//g, s/, \\*"prompt_tokens_details\\*": \{\\*"cached_tokens\\*": \d+\}//g
			  for $serial, $ahead;
			next if $serial eq $ahead;
			diag("$name, batch_rows $rows: $queries[$i]\n-- serial:\n$serial\n-- ahead:\n$ahead") if $unequal++ < 5;
		}
		is($unequal, 0, "$name: $count queries give the same with batch_rows $rows");
	}
}

my ($node) = new_echo_cluster('queries', "jit = off\n");
$node->safe_psql('postgres', $tables);
add_foreign_tables($node);
my $offset = log_end($node);
compare($node, 'echo', $number * 0.8, '', 'one');
compare($node, 'force_parallel_mode', $number * 0.1, "SET force_parallel_mode = on;\n", 'one');

# One worker alone: of several, LIMIT without an order takes those rows that come first
compare($node, 'parallel plans', $number * 0.1,
	"SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;\n"
	  . "SET max_parallel_workers_per_gather = 1; SET parallel_leader_participation = off;\n", 'one');
is(log_count($node, qr/PANIC|leak|WARNING|terminated by signal|XX000/, $offset), 0, 'the log has nothing unusual');
$node->stop;

# The real model; its context leaves a few tokens for an answer, and none for the longest prompts
SKIP:
{
	my $real = 'cache/SmolLM2-135M-Instruct.Q4_1.gguf';
	skip "$real is not there", 1 if !-e $real;
	$node = new_bare_node('queries_real', "jit = off\n");
	my $file = $node->basedir . '/models/real.gguf';
	link($real, $file) or copy($real, $file) or die "$real: $!";
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION pg_finetune');
	$node->safe_psql('postgres', q(CREATE SERVER real TYPE 'base' FOREIGN DATA WRAPPER pg_finetune
		OPTIONS (file 'real.gguf', context_length '38')));
	$node->safe_psql('postgres', $tables =~ s/'one'/'real'/gr);
	add_foreign_tables($node);
	compare($node, 'the real model', $number * 0.05, '', 'real');
	$node->stop;
}

done_testing();
