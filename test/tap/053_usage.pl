# finetune.usage: what answers have taken, by role and model: who is counted, what,
# what becomes of it when names change, and after a restart, a crash, on a standby.
use strict;
use warnings;

use FinetuneCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($node) = new_echo_cluster('usage', "max_connections = 40\n");

store_adapter($node, 'tuned', { prefix => 'tuned ' });
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE lead LOGIN IN ROLE alice;
CREATE ROLE auditor LOGIN IN ROLE pg_read_all_stats;
CREATE ROLE admin LOGIN SUPERUSER;
GRANT USAGE ON FOREIGN SERVER one, tuned TO alice, bob;
CREATE TABLE prompts AS SELECT i AS id, 'later 20 row ' || i AS p FROM generate_series(1, 20) i;
GRANT SELECT ON prompts TO PUBLIC;
SQL

sub as
{
	my ($user, $sql) = @_;

	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', $user ]);
}

# A role's counters of a model: requests|failed|cancelled|prompt|cached|completion
sub counters
{
	my ($role, $model, %option) = @_;

	return ($option{node} // $node)->safe_psql('postgres',
		"SELECT requests, failed, cancelled, prompt_tokens, cached_tokens, completion_tokens FROM finetune.usage WHERE role = '$role' AND model = '$model'");
}

sub error_of_alice
{
	my ($sql) = @_;

	return (sqlstate_of($node, $sql, user => 'alice'))[0];
}

# --- What is counted

is($node->safe_psql('postgres', 'SELECT count(*) FROM finetune.usage'), 0, 'nobody has asked yet');
as('alice', q(SELECT complete('one', 'x y z')));    # echo: x y z
is(counters('alice', 'one'), '1|0|0|3|0|4', 'an answer');
as('alice', q(BEGIN READ ONLY; SELECT complete('one', 'cached 2 x', '{}'); COMMIT));
is(counters('alice', 'one'), '2|0|0|6|2|8', 'another, in a transaction that may not write');
as('alice', q(SELECT complete('tuned', messages => '[{"role": "user", "content": "x"}]')));
is(counters('alice', 'tuned'), '1|0|0|1|0|2', 'of another model');
as('alice', 'SELECT count(c) FROM (SELECT complete(\'one\', p) AS c FROM prompts) s');
is(counters('alice', 'one'), '22|0|0|86|2|108', 'of many rows at once');
as('alice', q(BEGIN; SELECT complete('one', 'x'); ROLLBACK));
is(counters('alice', 'one'), '23|0|0|87|2|110', 'a transaction that is rolled back was answered');

is(error_of_alice(q(SELECT complete('one', 'fail invalid'))), '22023', 'an error of the engine');
is(error_of_alice(q(SELECT complete('one', 'x', '{"nosuch": 1}'))), '22023', 'an option that is none');
as('alice', q(SELECT try_complete('one', 'fail invalid')));
is(counters('alice', 'one'), '26|3|0|87|2|110', 'failures are counted');
is(error_of_alice(q(SELECT complete('no such model', 'x'))), '42704', 'a model that is none');
$node->safe_psql('postgres', 'REVOKE USAGE ON FOREIGN SERVER tuned FROM bob');
is((sqlstate_of($node, q(SELECT complete('tuned', 'x')), user => 'bob'))[0], '42501', 'a model that is not granted');
is($node->safe_psql('postgres', q(SELECT count(*) FROM finetune.usage WHERE role <> 'alice')), 0, 'these are not');

is(error_of_alice(q(SET statement_timeout = 200; SELECT complete('one', 'sleep'))), '57014', 'a statement that is cancelled');
is(counters('alice', 'one'), '27|3|1|87|2|110', 'is counted');
my $session = $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'alice' ]);
$session->query_until(qr/asked/, "\\echo asked\nSELECT complete('one', 'sleep');\n");
$node->poll_query_until('postgres',
	q(SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'alice' AND wait_event_type = 'Extension'));
$node->safe_psql('postgres', q(SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = 'alice'));
eval { $session->quit };
is(counters('alice', 'one'), '28|3|2|87|2|110', 'so is a session that ends');
as('alice', q(DO $$ BEGIN PERFORM complete('one', 'fail internal'); EXCEPTION WHEN OTHERS THEN NULL; END $$));
is(counters('alice', 'one'), '29|4|2|87|2|110', 'and an error that is caught');
as('alice', 'SELECT complete(\'one\', p) FROM prompts LIMIT 1');
is(counters('alice', 'one'), '30|4|2|91|2|115', 'what LIMIT keeps from being asked is not');

cmp_ok($node->safe_psql('postgres', q(SELECT total_time FROM finetune.usage WHERE role = 'alice' AND model = 'one')), '>=',
	21 * 20 + 200, 'time is in milliseconds');
is( $node->safe_psql('postgres', q(SELECT since <= last_request AND last_request <= clock_timestamp() FROM finetune.usage WHERE role = 'alice' AND model = 'one')),
	't', 'since when, and when last');

# --- Who sees what

as('bob', q(SELECT complete('one', 'x')));
my $seen = q(SELECT string_agg(DISTINCT role, ' ' ORDER BY role) FROM finetune.usage);
is(as('alice', $seen), 'alice', 'a role sees its own');
is(as('bob', $seen), 'bob', 'and no other');
is(as('lead', $seen), 'alice', 'a member sees its role\'s');
is(as('auditor', $seen), 'alice bob', 'pg_read_all_stats sees all');
is(as('admin', $seen), 'alice bob', 'so does a superuser');
is(as('bob', q(SELECT count(*) FROM finetune.usage_counters() WHERE role_id <> 'bob'::regrole)), 0, 'the function shows no more');
for my $user (qw(alice auditor))
{
	is((sqlstate_of($node, 'SELECT finetune.usage_reset()', user => $user))[0], '42501', "$user cannot reset");
}

# a function runs as its owner, and is counted so
$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION ask() RETURNS text LANGUAGE sql SECURITY DEFINER RETURN complete('one', 'x');
ALTER FUNCTION ask() OWNER TO bob;
SQL
as('alice', 'SELECT ask()');
is(counters('bob', 'one'), '2|0|0|2|0|4', 'a SECURITY DEFINER function counts for its owner');

# --- Names

$node->safe_psql('postgres', 'ALTER SERVER tuned RENAME TO renamed; ALTER ROLE bob RENAME TO robert');
is(counters('alice', 'renamed'), '1|0|0|1|0|2', 'a model that was renamed');
is(counters('robert', 'one'), '2|0|0|2|0|4', 'a role that was renamed');
as('alice', q(SELECT complete('renamed', 'x')));
is(counters('alice', 'renamed'), '2|0|0|2|0|4', 'goes on counting');
$node->safe_psql('postgres', 'DROP SERVER renamed; DROP FUNCTION ask(); DROP OWNED BY robert; DROP ROLE robert');
is(counters('alice', 'renamed'), '2|0|0|2|0|4', 'a model that was dropped keeps its last name');
is($node->safe_psql('postgres', q(SELECT requests FROM finetune.usage WHERE role LIKE 'unknown (OID=%)')), 2, 'a role that was dropped has none');
is(as('alice', $seen), 'alice', 'and is seen by nobody else');
store_adapter($node, 'renamed', { prefix => 'other ' });
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER renamed TO alice');
as('alice', q(SELECT complete('renamed', 'x')));
is(counters('alice', 'renamed'), "1|0|0|1|0|2\n2|0|0|2|0|4", 'another model of that name is another row');

# --- Another database, restarts, a crash

$node->safe_psql('postgres', 'CREATE DATABASE second');
$node->safe_psql('second', 'CREATE EXTENSION pg_finetune');
is($node->safe_psql('second', 'SELECT count(*) FROM finetune.usage'), 0, 'another database has its own');

my $everything = 'SELECT * FROM finetune.usage ORDER BY role, model_id';
my $before = $node->safe_psql('postgres', $everything);
$node->restart;
is($node->safe_psql('postgres', $everything), $before, 'a restart loses nothing');
$session = $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'alice' ]);
$session->query_until(qr/asked/, "\\echo asked\nSELECT complete('one', 'sleep');\n");
$node->poll_query_until('postgres',
	q(SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'alice' AND wait_event_type = 'Extension'));
$node->restart;
eval { $session->quit };
is(counters('alice', 'one'), '31|4|3|91|2|115', 'what is cancelled by a shutdown is not lost either');
$before = $node->safe_psql('postgres', $everything);
as('alice', q(SELECT complete('one', 'x')));
kill_server($node);
$node->start;
is($node->safe_psql('postgres', $everything), $before, 'a crash loses what was not saved yet');

# a file that cannot be used
my $file = $node->data_dir . '/pgsql_tmp_finetune/usage';
for my $case ([ 'damaged', sub { substr($_[0], 100, 1) ^= "\1"; $_[0] }, qr/ignoring file .*: it is damaged/ ],
	[ 'too short', sub { substr($_[0], 0, -1) }, qr/ignoring file .*: it is damaged/ ],
	[ 'of another version', sub { "x$_[0]" }, qr/ignoring file .*: it was not written by this version/ ],
	[ 'empty', sub { '' }, qr/ignoring file .*: it was not written by this version/ ])
{
	my ($what, $change, $logged) = @$case;

	as('alice', q(SELECT complete('one', 'x')));
	$node->stop;
	my $contents = slurp_file($file);
	cmp_ok(length $contents, '>', 100, 'there is a file');
	write_file($file, $change->($contents));
	my $offset = log_end($node);
	$node->start;
	is(log_count($node, $logged, $offset), 1, "a file that is $what is not used");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM finetune.usage'), 0, 'and nothing else goes wrong');
}
as('alice', q(SELECT complete('one', 'x')));
is(counters('alice', 'one'), '1|0|0|1|0|2', 'counting goes on');

# --- A standby counts its own, from nothing

$node->backup('backup');
ok(!-e $node->backup_dir . '/backup/pgsql_tmp_finetune', 'counters are in no base backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
is($standby->safe_psql('postgres', 'SELECT count(*) FROM finetune.usage'), 0, 'a standby begins with none');
$standby->safe_psql('postgres', q(SELECT complete('one', 'x')), extra_params => [ '-U', 'alice' ]);
is(counters('alice', 'one', node => $standby), '1|0|0|1|0|2', 'and counts');
$standby->safe_psql('postgres', 'SELECT finetune.usage_reset()');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM finetune.usage'), 0, 'and can be reset');
$standby->stop;

# --- Reset: at once, also for a crash

as('admin', 'SELECT finetune.usage_reset()');
is($node->safe_psql('postgres', 'SELECT count(*) FROM finetune.usage'), 0, 'nothing is left after a reset');
kill_server($node);
$node->start;
is($node->safe_psql('postgres', 'SELECT count(*) FROM finetune.usage'), 0, 'and does not come back');

# --- More pairs than there is room for: those longest unused are one row

$node->safe_psql('postgres', <<'SQL');
DO $$ BEGIN FOR i IN 1 .. 1100 LOOP EXECUTE format('CREATE ROLE r%s', i); END LOOP; END $$;
GRANT USAGE ON FOREIGN SERVER one TO PUBLIC;
DO $$ BEGIN FOR i IN 1 .. 3 LOOP
	EXECUTE format('CREATE SERVER %I TYPE ''base'' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file ''one.gguf'')', 'base' || i);
	EXECUTE format('GRANT USAGE ON FOREIGN SERVER %I TO PUBLIC', 'base' || i);
END LOOP; END $$;
DO $$ BEGIN
	FOR i IN 1 .. 1100 LOOP
		EXECUTE format('SET LOCAL ROLE r%s', i);
		PERFORM try_complete(m, 'x', '{"nosuch": 1}') FROM unnest('{one,base1,base2,base3}'::text[]) m;
		PERFORM try_complete('one', 'x', '{"nosuch": 1}') WHERE i = 1;
	END LOOP;
END $$;
SQL
is($node->safe_psql('postgres', 'SELECT count(*), sum(requests), sum(failed) FROM finetune.usage'), '4096|4401|4401', 'sums stay right');
is($node->safe_psql('postgres', 'SELECT requests, model FROM finetune.usage WHERE role IS NULL'), '306|', 'in a row without role and model');
is($node->safe_psql('postgres', q(SELECT count(*) FROM finetune.usage WHERE role = 'r1')), 0, 'for those longest unused');
is(as('alice', 'SELECT count(*) FROM finetune.usage'), 0, 'which not everybody sees');
$node->restart;
is($node->safe_psql('postgres', 'SELECT count(*), sum(requests) FROM finetune.usage'), '4096|4401', 'and a restart keeps all');

# --- Memory

my $all_memory = 'SELECT sum(allocated_size) FROM pg_shmem_allocations';
my $with = $node->safe_psql('postgres', $all_memory);
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
my $taken = $with - $node->safe_psql('postgres', $all_memory);
cmp_ok($taken, '<', 1_000_000, "shared memory is below 1 MB: $taken");
cmp_ok($taken, '>', 0, 'and above none');
is($node->safe_psql('postgres', 'SELECT count(*) FROM finetune.usage'), 0, 'the view is empty without the library preloaded');
$node->safe_psql('postgres', 'SELECT finetune.usage_reset()');
$node->stop;

done_testing();
