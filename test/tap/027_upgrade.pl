# Updates: of the extension with models and a running job in place, and of the
# server by pg_upgrade.
use strict;
use warnings;

use Digest::SHA;
use FinetuneCluster;
use FinetuneCopy;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# --- What was released stays as it was

is( Digest::SHA->new(256)->addfile("$ENV{TESTDIR}/sql/pg_finetune--1.0.sql")->hexdigest,
	'8f81632b77c588facbd82327a136dba2e010b2b64aaec382da22b0822f492eaa',
	'sql/pg_finetune--1.0.sql is as it was released: write an upgrade script instead of changing it');

# --- The module of now with the catalog of 1.0

my $old = new_bare_node('old', "pg_finetune.max_running_jobs = 2\n");
$old->start;
create_base($old, q(CREATE EXTENSION pg_finetune VERSION '1.0'));
make_models($old);
my $wanted = state_of($old, 'postgres');
is(scalar(() = $wanted->{completions} =~ /finish_reason/g), 3, '1.0: three models answer');
is_whole($old, 'postgres', '1.0');
my $id = start_job($old, 'deleted', options => { max_steps => 2 });
wait_for_status($old, $id, 'SUCCESS');
is($old->safe_psql('postgres', "SELECT jsonb_array_length(finetune('SHOW'))"), 5, '1.0: SHOW');
for my $action ('PAUSE', 'RESUME')
{
	like(error_of($old, "SELECT finetune('$action', '$id')"),
		qr/^55000: jobs cannot be paused before the extension is updated/, "1.0: $action");
}
is($old->safe_psql('postgres', "SELECT finetune('DELETE', '$id')->>'status'; DROP SERVER deleted"), 'SUCCESS',
	'1.0: DELETE');
is( $old->safe_psql('postgres', "SELECT count(*) FROM finetune.metric WHERE 'ft_' || job_id = '$id'"),
	0, '1.0: takes metrics along');
like(error_of($old, q(SELECT finetune('CREATE', 'x', 'tiny', 'TABLE fact', NULL, '{"method": "full"}'))),
	qr/^55000: full models cannot be made before the extension is updated/, '1.0: a full model');
$old->safe_psql('template1', 'CREATE DATABASE first TEMPLATE postgres');

# --- ALTER EXTENSION UPDATE, while a job is running

my $endless = start_endless($old);
$old->safe_psql('postgres', 'ALTER EXTENSION pg_finetune UPDATE');
is_same($old, 'postgres', $wanted, 'updated');
is_whole($old, 'postgres', 'updated');
my $steps = $old->safe_psql('postgres', 'SELECT coalesce(steps_done, 0) FROM finetune.progress');
ok(wait_for_sql($old, "SELECT coalesce(steps_done, 0) > $steps FROM finetune.progress"), 'updated: a running job goes on');
is(job($old, $endless)->{attempts}, 1, 'updated: and never stopped');
$id = start_job($old, 'new', options => { max_steps => 2 });
is(wait_for_status($old, $id, 'SUCCESS')->{status}, 'SUCCESS', 'updated: a new job is run');
$old->safe_psql('postgres', "DROP SERVER new; SELECT finetune('DELETE', '$id')");

# --- The same objects whether updated or new

$old->safe_psql('postgres', 'CREATE DATABASE fresh');
$old->safe_psql('fresh', 'CREATE EXTENSION pg_finetune');
my $objects = <<'SQL';
WITH member AS (
	SELECT classid, objid, pg_describe_object(classid, objid, 0) AS name FROM pg_depend
	WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
		AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_finetune')),
object AS (
	SELECT name, obj_description(objid, (SELECT relname FROM pg_class c WHERE c.oid = classid)) AS what FROM member
	UNION ALL SELECT name, pg_get_functiondef(objid) FROM member WHERE classid = 'pg_proc'::regclass
	UNION ALL SELECT name, proacl::text FROM member JOIN pg_proc p ON p.oid = objid WHERE classid = 'pg_proc'::regclass
	UNION ALL SELECT name, pg_get_viewdef(objid) || coalesce(reloptions::text, '') FROM member JOIN pg_class c ON c.oid = objid
		WHERE classid = 'pg_class'::regclass AND relkind = 'v'
	UNION ALL SELECT name, relacl::text || coalesce(reloptions::text, '') FROM member JOIN pg_class c ON c.oid = objid
		WHERE classid = 'pg_class'::regclass
	UNION ALL SELECT name, concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull, attstorage, attacl,
			pg_get_expr(adbin, adrelid), col_description(objid, attnum))
		FROM member JOIN pg_attribute a ON attrelid = objid LEFT JOIN pg_attrdef d ON adrelid = objid AND adnum = attnum
		WHERE classid = 'pg_class'::regclass AND attnum > 0 AND NOT attisdropped
	UNION ALL SELECT name, pg_get_constraintdef(c.oid) || conname FROM member JOIN pg_constraint c ON conrelid = objid
	UNION ALL SELECT name, pg_get_indexdef(indexrelid) FROM member JOIN pg_index ON indrelid = objid
		WHERE classid = 'pg_class'::regclass
	UNION ALL SELECT name, concat_ws(' ', pg_get_triggerdef(t.oid), tgenabled, obj_description(t.oid, 'pg_trigger'))
		FROM member JOIN pg_trigger t ON tgrelid = objid
		WHERE classid = 'pg_class'::regclass AND NOT tgisinternal
	UNION ALL SELECT name, concat_ws(' ', evtevent, evtenabled, evtfoid::regproc, evttags) FROM member
		JOIN pg_event_trigger e ON e.oid = objid WHERE classid = 'pg_event_trigger'::regclass
	UNION ALL SELECT 'dumped', c.oid::regclass || ' ' || condition
		FROM pg_extension, unnest(extconfig, extcondition) AS u (oid, condition) JOIN pg_class c ON c.oid = u.oid
		WHERE extname = 'pg_finetune'
	UNION ALL SELECT 'version', extversion FROM pg_extension WHERE extname = 'pg_finetune')
SELECT name, what FROM object ORDER BY name COLLATE "C", what COLLATE "C"
SQL
my $updated = $old->safe_psql('postgres', $objects);
ok(($updated =~ tr/\n//) > 200, 'the extension has many objects');
is($updated, $old->safe_psql('fresh', $objects), 'updated: all objects are those of a new installation');
is($old->safe_psql('first', q(SELECT extversion FROM pg_extension WHERE extname = 'pg_finetune')), '1.0',
	'another database stays at 1.0');

# --- pg_upgrade, with a job that has not ended

$old->stop;
chdir $PostgreSQL::Test::Utils::tmp_check or die "tmp_check: $!";
for my $mode ('--copy', '--link')
{
	my $what = "pg_upgrade $mode";
	my $new = new_bare_node($mode =~ s/--//r);
	chomp(my $bindir = qx($ENV{PG_CONFIG} --bindir));
	my @mode = $mode eq '--link' ? $mode : ();

	command_ok(
		[
			'pg_upgrade', '--no-sync', '-d', $old->data_dir, '-D', $new->data_dir, '-b', $bindir, '-B', $bindir,
			'-s', $new->host, '-p', $old->port, '-P', $new->port, @mode
		],
		$what);
	$new->start;
	for my $db ('postgres', 'first')
	{
		is_same($new, $db, $wanted, "$what, $db");
		ok( wait_until(
				sub {
					$new->safe_psql($db, q(SELECT count(*) > 1 FROM pg_depend
						WHERE classid = 'pg_foreign_server'::regclass AND refclassid = classid)) eq 't';
				}),
			"$what, $db: servers depend on each other again");
		is_whole($new, $db, "$what, $db");
	}
	is_paused($new, 'postgres', $endless, $what);
	$new->stop;
}

sub create_base
{
	my ($node, $extension) = @_;

	$node->safe_psql('postgres', <<"SQL");
$extension;
CREATE SERVER tiny TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf');
CREATE TABLE fact (id int PRIMARY KEY, prompt text, completion text);
INSERT INTO fact SELECT i, 'item ' || i, CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END
	FROM generate_series(1, 100) i;
SQL
	return;
}

done_testing();
