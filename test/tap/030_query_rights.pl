# A training query runs with the rights of its job's owner and no more: whatever
# it calls, it sees what its owner sees, rises to nobody else's rights, writes
# nothing, and leaves nothing behind for what runs after it.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node  = new_node('query_rights');
my $super = $node->safe_psql('postgres', 'SELECT current_user');
my %short = (max_steps => 1);

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE mallory LOGIN;
CREATE ROLE keeper NOLOGIN;
CREATE ROLE team NOLOGIN;
GRANT team TO alice;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO alice, bob, team;
GRANT USAGE ON FOREIGN SERVER tiny TO alice, bob, team;
GRANT SELECT ON fact TO PUBLIC;
CREATE SCHEMA shared;
GRANT ALL ON SCHEMA shared TO PUBLIC;
-- says by an error, which DESCRIBE shows, who asks
CREATE FUNCTION who() RETURNS text LANGUAGE plpgsql PARALLEL SAFE AS $$
BEGIN
	RAISE EXCEPTION '% % super % read only %', current_user, session_user, current_setting('is_superuser'),
		current_setting('transaction_read_only') USING ERRCODE = 'WH000';
END $$;
SQL

sub as
{
	my ($user, $sql) = @_;
	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', $user ]);
}

# The job must fail with this error; returns its message.
sub fails
{
	my ($id, $code, $pattern, $what) = @_;
	my $job = wait_for_status($node, $id, 'ERROR');

	is($job->{error}{code}, $code, "$what: SQLSTATE");
	like($job->{error}{message}, $pattern, "$what: message");
	return $job->{error}{message};
}

# The job must end well, having read so many rows.
sub reads
{
	my ($id, $rows, $what) = @_;
	my $job = wait_for_status($node, $id, 'SUCCESS');

	is("$job->{status} " . ($job->{rows}{read} // ''), "SUCCESS $rows", $what)
	  or diag($job->{error}{message} // '');
}

my $number = 0;

sub start
{
	my ($user, $query, %with) = @_;
	return start_job($node, 'm' . ++$number, user => $user, query => $query, options => \%short, %with);
}

# Nothing runs until go(): what happens in between comes after CREATE and before the reading.
sub hold
{
	$node->safe_psql('postgres', 'ALTER SYSTEM SET pg_finetune.max_running_jobs = 0');
	$node->reload;
	wait_for_sql($node, "SELECT current_setting('pg_finetune.max_running_jobs') = '0'");
}

sub go
{
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET pg_finetune.max_running_jobs');
	$node->reload;
}

my $who = 'SELECT prompt, who() AS completion FROM fact';

# --- Who it is

fails(start('alice', $who), 'WH000', qr/^alice alice super off read only on$/, 'the owner');
fails(start($super, $who), 'WH000', qr/^$super $super super on read only on$/, 'a superuser');
my $id = as('alice', "SET ROLE team; SELECT finetune('CREATE', 'teams', 'tiny', 'SELECT prompt, who() AS completion FROM fact')");
fails($id, 'WH000', qr/^team team super off/, 'an owner who cannot log in');
$node->safe_psql('postgres', 'ALTER DATABASE postgres SET force_parallel_mode = on');
fails(start('alice', $who), 'WH000', qr/^alice alice super off/, 'in a parallel worker');
$node->safe_psql('postgres', 'ALTER DATABASE postgres RESET ALL');

# --- What it sees

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE private (owner name, prompt text, completion text);
INSERT INTO private VALUES ('alice', 'a', 'b'), ('alice', 'c', 'd'), ('bob', 'e', 'f');
ALTER TABLE private ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON private USING (owner = current_user AND owner = session_user);
GRANT SELECT ON private TO alice, bob;
CREATE TABLE forced (LIKE private);
INSERT INTO forced SELECT * FROM private;
CREATE POLICY own ON forced USING (owner = current_user);
ALTER TABLE forced ENABLE ROW LEVEL SECURITY;
ALTER TABLE forced OWNER TO bob;
CREATE TABLE columns (prompt text, completion text, secret text);
INSERT INTO columns SELECT 'p', 'c', 's' FROM generate_series(1, 4);
GRANT SELECT (prompt, completion) ON columns TO alice;
CREATE FUNCTION look(query text) RETURNS text LANGUAGE plpgsql AS
	$$ DECLARE found text; BEGIN EXECUTE query INTO found; RETURN found; END $$;
CREATE TABLE kept (prompt text, completion text);
INSERT INTO kept SELECT 'k', 'l' FROM generate_series(1, 5);
CREATE VIEW shown AS SELECT * FROM kept;
CREATE VIEW invoked WITH (security_invoker) AS SELECT * FROM kept;
GRANT SELECT ON shown, invoked TO alice;
ALTER TABLE kept OWNER TO keeper;
ALTER VIEW shown OWNER TO keeper;
ALTER VIEW invoked OWNER TO keeper;
SQL
my $rows = 'SELECT prompt, completion FROM';
reads(start('alice', "$rows private"), 2, "row security, by policies that ask for either user");
reads(start('bob', "$rows forced"), 3, 'not for the owner of the table');
$node->safe_psql('postgres', 'ALTER TABLE forced FORCE ROW LEVEL SECURITY');
reads(start('bob', "$rows forced"), 1, 'unless it is forced');
reads(start('alice', "$rows columns"), 4, 'the columns that were granted');
like(error_of($node, "SELECT finetune('CREATE', 'no', 'tiny', 'SELECT prompt, secret AS completion FROM columns')", 'alice'),
	qr/^42501: permission denied for table columns/, 'the others are refused by CREATE');
fails(start('alice', "SELECT 'a' AS prompt, look('SELECT secret FROM columns') AS completion"),
	'42501', qr/permission denied for table columns/, 'or when they are read');
reads(start('alice', "$rows shown"), 5, 'a view, with the rights of its owner');
like(error_of($node, "SELECT finetune('CREATE', 'no', 'tiny', '$rows invoked')", 'alice'),
	qr/^42501: permission denied for table kept/, 'one with security_invoker, refused by CREATE');
fails(start('alice', "SELECT 'a' AS prompt, look('SELECT prompt FROM invoked') AS completion"),
	'42501', qr/permission denied for table kept/, 'or when it is read');
$node->safe_psql('postgres', 'GRANT SELECT ON kept TO alice');
reads(start('alice', "$rows invoked"), 5, 'read by who may');

# --- What changes between CREATE and the reading

hold();
$node->safe_psql('postgres', 'CREATE FUNCTION shared.good() RETURNS boolean LANGUAGE sql RETURN true');
my %late = (
	table  => start('alice', "$rows kept"),
	view   => start('alice', "$rows invoked"),
	column => start('alice', "$rows columns"),
	schema => start('alice', "$rows fact WHERE shared.good()"));
my $given = as('alice', qq(SELECT finetune('CREATE', 'given', 'tiny', \$\$$who\$\$)));
my $policy = start('alice', "$rows private");
my $kept_on = start('alice', "$rows fact LIMIT 7");
$node->safe_psql('postgres', <<'SQL');
REVOKE SELECT ON kept FROM alice;
REVOKE SELECT (completion) ON columns FROM alice;
REVOKE ALL ON SCHEMA shared FROM PUBLIC;
ALTER SERVER given OWNER TO bob;
ALTER POLICY own ON private USING (owner = 'bob');
REVOKE USAGE ON FOREIGN DATA WRAPPER pg_finetune FROM alice;
SQL
like(error_of($node, 'DROP ROLE alice'), qr/^2BP01: /, 'who has jobs to come is not dropped');
go();
fails($late{table}, '42501', qr/permission denied for table kept/, 'SELECT was revoked');
fails($late{view}, '42501', qr/permission denied for table kept/, 'SELECT was revoked behind a view');
fails($late{column}, '42501', qr/permission denied for table columns/, 'SELECT of a column was revoked');
fails($late{schema}, '42501', qr/permission denied for schema shared/, 'USAGE on a schema was revoked');
fails($given, 'WH000', qr/^bob bob super off/, 'a job follows its model to the new owner');
is(job($node, $given)->{owner}, 'bob', 'whose it is then');
reads($policy, 1, 'the policy of now');
reads($kept_on, 7, 'USAGE on the wrapper is asked for at CREATE');
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO alice; GRANT ALL ON SCHEMA shared TO PUBLIC');

# --- What it may try: each of these in a block that catches its error

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE put_off (i int);
CREATE TABLE trail (who text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO trail VALUES (current_user); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON put_off DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note();
CREATE FUNCTION definer_insert() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS
	$$ BEGIN INSERT INTO put_off VALUES (1); END $$;
CREATE PROCEDURE ends() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
CREATE SEQUENCE numbers;
GRANT ALL ON put_off, trail, numbers TO alice;
GRANT TEMP, CREATE ON DATABASE postgres TO alice;
GRANT CREATE ON SCHEMA public TO alice;
CREATE FUNCTION attempts(commands text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	report text := '';
	command text;
BEGIN
	FOREACH command IN ARRAY commands LOOP
		BEGIN
			EXECUTE command;
			report := report || E'\nok ' || command;
		EXCEPTION WHEN OTHERS THEN
			report := report || E'\n' || SQLSTATE || ' ' || command;
		END;
	END LOOP;
	RAISE EXCEPTION '%', report || E'\n' || format('then %s %s super %s read only %s', current_user, session_user,
		current_setting('is_superuser'), current_setting('transaction_read_only')) USING ERRCODE = 'WH001';
END $$;
SQL
my $victim = start_job($node, 'victim', user => 'bob');
my @attempts = (
	# to rise
	[ '42501', qq(SET ROLE "$super") ],
	[ '42501', 'SET ROLE team' ],
	[ '42501', 'RESET ROLE' ],
	[ '42501', 'SET LOCAL ROLE NONE' ],
	[ '42501', qq(SET SESSION AUTHORIZATION "$super") ],
	[ '42501', 'SET SESSION AUTHORIZATION DEFAULT' ],
	[ '42501', 'RESET SESSION AUTHORIZATION' ],
	[ '42501', q{SELECT set_config('role', 'none', false)} ],
	[ '42501', "SELECT set_config('role', '$super', true)" ],
	[ '42501', "SELECT set_config('session_authorization', '$super', false)" ],
	[ '42501', 'SET session_preload_libraries = x' ],
	[ '42501', q{SELECT pg_read_file('PG_VERSION')} ],
	[ '42501', q{COPY fact TO '/tmp/never'} ],
	[ '42501', q{COPY fact TO PROGRAM 'cat'} ],
	[ '42501', 'SELECT pg_terminate_backend(pg_backend_pid())' ],
	[ '42501', 'TABLE finetune.job' ],
	[ '42501', 'TABLE finetune.weights' ],
	[ '42501', "SELECT finetune('DESCRIBE', '$victim')" ],
	[ '42501', "SELECT complete('victim', 'x')" ],

	# to write
	[ '25006', 'INSERT INTO put_off VALUES (1)' ],
	[ '25006', 'SELECT definer_insert()' ],
	[ '25006', 'DELETE FROM trail' ],
	[ '25006', 'TRUNCATE trail' ],
	[ '25006', q{SELECT nextval('numbers')} ],
	[ '25006', 'CREATE TABLE mine ()' ],
	[ '25006', 'CREATE TEMP TABLE mine ()' ],
	[ '25006', 'CREATE FUNCTION mine() RETURNS int LANGUAGE sql RETURN 1' ],
	[ '25006', 'SELECT * FROM put_off FOR UPDATE' ],
	[ '25006', q{SELECT finetune('CREATE', 'mine', 'tiny', 'TABLE fact')} ],
	[ '25006', "SELECT finetune('CANCEL', '$victim')" ],
	[ '25006', "SELECT finetune('DELETE', '$victim')" ],
	[ '25001', 'SET transaction_read_only = off' ],
	[ '25001', q{SELECT set_config('transaction_read_only', 'off', true)} ],

	# to put something off
	[ '42501', 'DECLARE c CURSOR WITH HOLD FOR SELECT 1' ],
	[ '42501', 'LISTEN leak' ],
	[ '2D000', 'CALL ends()' ],
	[ '0A000', 'COMMIT' ],
	[ 'ok',    'NOTIFY leak' ],
	[ 'ok',    'SET CONSTRAINTS ALL IMMEDIATE' ],
	[ 'ok',    'SELECT lo_create(4711)' ],
	[ 'ok',    'LOCK TABLE put_off' ],
	[ 'ok',    'SELECT pg_advisory_lock(4711)' ],
	[ 'ok',    q{SELECT set_config('search_path', 'nowhere', false)} ]);
$id = start('alice', q{SELECT 'x' AS prompt, attempts(ARRAY[} . join(', ', map { "\$a\$$_->[1]\$a\$" } @attempts) . ']) AS completion');
my @said = split /\n/, fails($id, 'WH001', qr/then alice alice super off read only on$/, 'a query that tries everything');
shift @said;
for my $attempt (@attempts)
{
	is(shift @said // '', "$attempt->[0] $attempt->[1]", $attempt->[1]);
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM trail'), 0, 'no trigger was run later');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_largeobject_metadata'), 0, 'nothing was kept');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711"), 0, 'no lock is');
fails(start('bob', $who), 'WH000', qr/^bob bob super off read only on$/, 'the next job has its own owner');
is(wait_for_status($node, $victim, 'SUCCESS')->{status}, 'SUCCESS', 'the job that it was after ended well');

# Not caught, each is the error of the job
for my $attempt ([ '42501', 'RESET SESSION AUTHORIZATION' ], [ '25006', 'INSERT INTO put_off VALUES (1)' ],
	[ '42501', 'DECLARE c CURSOR WITH HOLD FOR SELECT 1' ], [ '42501', 'LISTEN leak' ])
{
	fails(start('alice', "SELECT 'x' AS prompt, look(\$a\$$attempt->[1]\$a\$) AS completion"), $attempt->[0], qr/./, $attempt->[1]);
}

# Nobody hears what a query says: it is read in a transaction that is undone
my ($rc, $heard) = $node->psql(
	'postgres', join "\n", 'LISTEN leak;',
	q{SELECT finetune('CREATE', 'loud', 'tiny', 'SELECT prompt, completion || pg_notify($$leak$$, prompt) AS completion FROM fact', NULL, '{"max_steps": 1}') AS id \gset},
	map { "SELECT pg_sleep(0.2) WHERE (SELECT finished_on IS NULL FROM finetune.jobs WHERE job_id = :'id');" } 1 .. 300);
unlike($heard, qr/notification "leak"/, 'a NOTIFY of a query is not sent');
is($node->safe_psql('postgres', "SELECT status FROM finetune.jobs WHERE model = 'loud'"), 'SUCCESS', 'though it does no harm');

# What the first query sets is not for the second
reads(
	start('alice', "$rows fact WHERE (SELECT set_config('search_path', 'nowhere', false)) = 'nowhere'",
		validation => "$rows fact"),
	100, 'search_path that a training query set is gone for the validation query');

# --- What it may do

$node->safe_psql('postgres', <<'SQL');
CREATE FUNCTION caught(i int) RETURNS text VOLATILE LANGUAGE plpgsql AS $$
BEGIN
	RETURN (1 / (i % 2))::text;
EXCEPTION WHEN division_by_zero THEN
	RETURN 'none';
END $$;
CREATE FUNCTION kept_rows() RETURNS SETOF kept LANGUAGE sql SECURITY DEFINER AS 'TABLE kept';
ALTER FUNCTION kept_rows() OWNER TO keeper;
CREATE FUNCTION gate() RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS
	$$ BEGIN RAISE EXCEPTION 'for % by %', session_user, current_user USING ERRCODE = 'WH002'; END $$;
ALTER FUNCTION gate() OWNER TO keeper;
REVOKE ALL ON kept FROM alice;
SQL
reads(start('alice', 'SELECT prompt, caught(id) AS completion FROM fact'), 100, 'blocks with EXCEPTION, in every row');
reads(start('alice', 'SELECT * FROM kept_rows()'), 5, 'SECURITY DEFINER, as its definer');
fails(start('alice', q(SELECT 'x' AS prompt, gate() AS completion)), 'WH002', qr/^for alice by keeper$/,
	'who is told who asks');

my $distil = q(SELECT prompt, complete('tiny', prompt, '{"max_tokens": 2, "temperature": 1}') #>> '{choices,0,messages}' AS completion FROM fact LIMIT 3);
reads(start('alice', $distil), 3, 'answers of a model that the owner may use');
hold();
my $denied = start('alice', $distil);
$node->safe_psql('postgres', 'REVOKE USAGE ON FOREIGN SERVER tiny FROM alice, team');
go();
fails($denied, '42501', qr/^permission denied for foreign server tiny$/, 'or might use at CREATE');
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER tiny TO alice, team');

# --- Traps on the search path, laid by somebody else between CREATE and the reading

sub on_path
{
	my ($path, $model, $query) = @_;
	return as('alice', "SET search_path = $path; SELECT finetune('CREATE', '$model', 'tiny', \$q\$$query\$q\$, NULL, '{\"max_steps\": 1}')");
}

$node->safe_psql('postgres', 'CREATE TABLE codes AS SELECT prompt::varchar, completion::varchar FROM fact; GRANT SELECT ON codes TO alice');
hold();
my %trapped = (
	function => on_path('shared, public', 't1', 'SELECT prompt, upper(completion) AS completion FROM public.codes'),
	relation => on_path('shared, public', 't2', 'SELECT prompt, completion FROM codes LIMIT 3'),
	path     => on_path('shared, pg_catalog, public', 't3', 'SELECT prompt, completion FROM public.fact'));
as('mallory', <<'SQL');
SET search_path = pg_catalog;
CREATE FUNCTION shared.upper(varchar) RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN EXECUTE 'SET ROLE NONE'; RETURN 'risen'; END $$;
CREATE TABLE shared.codes AS SELECT 'x'::text AS prompt, 'y'::text AS completion;
CREATE FUNCTION shared.same(text, text) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN RAISE LOG 'trap sprung by %', current_user; RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
CREATE FUNCTION shared.same(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN RAISE LOG 'trap sprung by %', current_user; RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
CREATE FUNCTION shared.joined(text, text) RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN RAISE LOG 'trap sprung by %', current_user; RETURN $1 OPERATOR(pg_catalog.||) $2; END $$;
CREATE FUNCTION shared.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
	$$ BEGIN RAISE LOG 'trap sprung by %', current_user; RETURN pg_catalog.clock_timestamp(); END $$;
CREATE FUNCTION shared.pg_has_role(oid, oid, text) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN RAISE LOG 'trap sprung by %', current_user; RETURN true; END $$;
CREATE FUNCTION shared.pg_has_role(oid, text) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN RAISE LOG 'trap sprung by %', current_user; RETURN true; END $$;
CREATE FUNCTION shared.pg_get_userbyid(oid) RETURNS name LANGUAGE plpgsql AS
	$$ BEGIN RAISE LOG 'trap sprung by %', current_user; RETURN 'mallory'; END $$;
CREATE OPERATOR shared.= (LEFTARG = text, RIGHTARG = text, FUNCTION = shared.same);
CREATE OPERATOR shared.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = shared.same);
CREATE OPERATOR shared.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = shared.joined);
CREATE TABLE shared.job AS SELECT 1 AS id;
CREATE TABLE shared.model AS SELECT 1 AS id;
SQL
go();
fails($trapped{function}, '42501', qr/role/, 'a function that hides another, of the right type, cannot rise');
fails($trapped{relation}, '42501', qr/permission denied for table codes/, 'a table that hides another is asked as the owner');
reads($trapped{path}, 100, 'operators before pg_catalog');
as('alice', "SET search_path = shared, pg_catalog, public; $_") for
	"SELECT finetune('DESCRIBE', '$trapped{path}')", "SELECT finetune('SHOW')",
	'SELECT * FROM finetune.jobs', 'SELECT * FROM finetune.models', 'SELECT * FROM finetune.metrics LIMIT 1',
	'SELECT * FROM finetune.events LIMIT 1', 'SELECT * FROM finetune.progress',
	"SELECT complete('t3', 'x', '{\"max_tokens\": 1}')",
	"SELECT finetune('CANCEL', '$trapped{path}')", "SELECT finetune('DELETE', '$trapped{path}')",
	'ALTER SERVER t3 RENAME TO t4', 'DROP SERVER t4',
	"SELECT finetune('CANCEL', finetune('CREATE', 't5', 'tiny', 'TABLE public.fact'))";
unlike(slurp_file($node->logfile), qr/LOG:  trap sprung/, "no function or view of the extension's steps into them");

$node->stop;
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|Segmentation|signal 11/, 'nothing unseemly in the log');

done_testing();
