# Models and jobs on a streaming standby, after its promotion, after a recovery
# to a point in time, and through logical replication.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneCopy;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = new_node('primary', "pg_finetune.max_running_jobs = 2\n",
	allows_streaming => 'logical', has_archiving => 1);
$primary->backup('before');

# All of it comes by WAL
make_models($primary);
my $wanted = state_of($primary, 'postgres');
$primary->safe_psql('postgres', q(SELECT pg_create_restore_point('trained')));
my $endless = start_endless($primary);
$primary->safe_psql('postgres', 'SELECT pg_switch_wal()');

# --- To a point in time

my $past = PostgreSQL::Test::Cluster->new('past');
$past->init_from_backup($primary, 'before', has_restoring => 1);
$past->append_conf('postgresql.conf', "recovery_target_name = 'trained'\nrecovery_target_action = promote\n");
$past->start;
ok($past->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()'), 'recovered to a point in time');
is_same($past, 'postgres', $wanted, 'point in time');
is_whole($past, 'postgres', 'point in time');
is($past->safe_psql('postgres', q(SELECT count(*) FROM finetune.jobs WHERE model = 'endless')),
	0, 'point in time: a job of later times is not there');

# --- A standby

my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'before', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup($standby);
is_same($standby, 'postgres', $wanted, 'standby');
is($standby->safe_psql('postgres', "SELECT status FROM finetune.jobs WHERE job_id = '$endless'"),
	'IN_PROGRESS', 'standby: a job of the primary is shown');
is($standby->safe_psql('postgres', "SELECT finetune('DESCRIBE', '$endless')->>'id'"), $endless, 'standby: DESCRIBE');
is($standby->safe_psql('postgres', "SELECT jsonb_array_length(finetune('SHOW'))"), 5, 'standby: SHOW');
for my $call (
	[ CREATE => q('CREATE', 'x', 'tiny', 'TABLE fact') ],
	[ CANCEL => "'CANCEL', '$endless'" ],
	[ DELETE => "'DELETE', '$endless'" ])
{
	my ($state, $words) = sqlstate_of($standby, "SELECT finetune($call->[1])");

	is($state, '25006', "standby: $call->[0]: SQLSTATE");
	like($words, qr/cannot execute finetune\('$call->[0]'\) in a read-only transaction/, "standby: $call->[0]: message");
}
is((sqlstate_of($standby, 'DROP SERVER parity'))[0], '25006', 'standby: DROP SERVER');
is( $standby->safe_psql('postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'pg_finetune (job|reader)')),
	0, 'standby: no job runs');

# --- Logical replication: rows come by it, servers are created by hand

$primary->safe_psql('postgres', <<'SQL');
CREATE PUBLICATION models FOR TABLE finetune.model, finetune.weights;
CREATE PUBLICATION everything FOR TABLE finetune.model, finetune.weights, finetune.job, finetune.metric, finetune.event;
SQL
my %server = (
	tiny    => q(TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf')),
	parity  => q(TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune),
	endless => q(TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune),
	later   => q(TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune),
	again   => q(TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune),
	whole   => q(TYPE 'full' FOREIGN DATA WRAPPER pg_finetune),
	qq("$FinetuneCopy::odd") => q(TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune));

sub create_servers
{
	my ($db, @names) = @_;

	$past->safe_psql($db, join '', map { "CREATE SERVER $_ $server{$_};" } @names);
	return;
}

sub subscribe
{
	my ($db, $publication) = @_;
	my $connection = $primary->connstr . ' dbname=postgres';

	$past->safe_psql($db, "CREATE SUBSCRIPTION $db CONNECTION '$connection' PUBLICATION $publication");
	$past->wait_for_subscription_sync($primary, $db, $db);
	return;
}

my $odd = qq("$FinetuneCopy::odd");
for my $db ('rows_first', 'servers_first')
{
	$past->safe_psql('postgres', "CREATE DATABASE $db");
	$past->safe_psql($db, 'CREATE EXTENSION pg_finetune; CREATE TABLE fact AS'
		  . " SELECT 'item ' || i AS prompt, 'odd' AS completion FROM generate_series(1, 20) i;"
		  . ' GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO alice');
}

subscribe('rows_first', 'everything');
for my $name ('parity', 'tiny')
{
	my ($state, $words) =
	  sqlstate_of($past, "CREATE SERVER $name $server{$name}", db => 'rows_first', user => 'alice');

	is($state, '42501', "the server of a replicated row by an ordinary role: SQLSTATE ($name)");
	like($words, qr/permission denied to give model "$name" its server.*DETAIL.*HINT/s,
		"the server of a replicated row by an ordinary role: message ($name)");
}
create_servers('rows_first', 'parity', $odd, 'endless', 'tiny');
create_servers('servers_first', $odd, 'tiny', 'parity', 'endless');
subscribe('servers_first', 'models');
for my $db ('rows_first', 'servers_first')
{
	is(state_of($past, $db)->{completions}, $wanted->{completions}, "$db: models answer as the publisher's");
	is_whole($past, $db, $db);
}
like((sqlstate_of($past, q(SELECT complete('endless', 'x')), db => 'servers_first'))[1],
	qr/55000: model "endless" is still being trained/, 'a model that is being trained on the publisher');
is($past->safe_psql('rows_first', 'SELECT status FROM finetune.jobs WHERE finished_on IS NULL'),
	'PAUSED', 'its job, where that is replicated, too, is paused');

# Does the server of this model depend on its base's?
sub depends_on_base
{
	my ($db, $name) = @_;

	is( $past->safe_psql($db, <<"SQL"), 't', "$db: $name depends on its base");
SELECT count(*) = 1 FROM pg_depend JOIN pg_foreign_server s ON objid = s.oid JOIN pg_foreign_server b ON refobjid = b.oid
WHERE classid = 'pg_foreign_server'::regclass AND refclassid = classid AND s.srvname = '$name' AND b.srvname = 'tiny'
SQL
	return;
}

# What happens later
my $later = start_job($primary, 'later', options => { max_steps => 2 });
is(wait_for_status($primary, $later, 'SUCCESS')->{status}, 'SUCCESS', 'another model on the publisher');
$primary->safe_psql('postgres', 'ALTER SERVER later RENAME TO latest');
for my $db ('rows_first', 'servers_first')
{
	$primary->wait_for_catchup($db);
	create_servers($db, 'later');
	like((sqlstate_of($past, q(SELECT complete('later', 'x')), db => $db))[1],
		qr/55000: model "later" has no weights/, "$db: a server by another name than the row's has no weights");
	$past->safe_psql($db, 'GRANT CREATE ON DATABASE ' . $db . ' TO alice; ALTER SERVER later OWNER TO alice');
	is( (sqlstate_of($past, 'ALTER SERVER later RENAME TO latest', db => $db, user => 'alice'))[0],
		'42501', "$db: an ordinary role cannot rename it to the row's");
	$past->safe_psql($db, 'ALTER SERVER later RENAME TO latest');
	is( $past->safe_psql($db, q(SELECT complete('latest', 'item 5', '{"max_tokens": 8}')->>'choices')),
		$primary->safe_psql('postgres', q(SELECT complete('latest', 'item 5', '{"max_tokens": 8}')->>'choices')),
		"$db: a superuser can");
	depends_on_base($db, 'latest');
	create_servers($db, 'again');
}
$primary->safe_psql('postgres', 'ALTER SERVER latest RENAME TO again');
for my $db ('rows_first', 'servers_first')
{
	$primary->wait_for_catchup($db);
	$past->safe_psql($db, 'DROP SERVER latest');
	depends_on_base($db, 'again');
}
$primary->safe_psql('postgres', "DROP SERVER again; SELECT finetune('DELETE', '$later')");
for my $db ('rows_first', 'servers_first')
{
	$primary->wait_for_catchup($db);
	like((sqlstate_of($past, q(SELECT complete('again', 'x')), db => $db))[1],
		qr/55000: model "again" has no weights/, "$db: a model dropped on the publisher has none");
	$past->safe_psql($db, 'DROP SERVER again');
	is($past->safe_psql($db, 'SELECT count(DISTINCT model_id) FROM finetune.weights'), 2, "$db: nothing is left of it");
}

# A full model needs its base until it is trained, wherever it is
stop_jobs($primary);
my $full = start_job($primary, 'whole', options => { method => 'full', max_steps => 2 });
for my $db ('rows_first', 'servers_first')
{
	$primary->wait_for_catchup($db);
	create_servers($db, 'whole');
	depends_on_base($db, 'whole');
}
let_jobs_run($primary);
is(wait_for_status($primary, $full, 'SUCCESS')->{status}, 'SUCCESS', 'a full model on the publisher');
for my $db ('rows_first', 'servers_first')
{
	$primary->wait_for_catchup($db);
	is($past->safe_psql($db, q(SELECT count(*) FROM pg_depend JOIN pg_foreign_server s ON objid = s.oid
		WHERE classid = 'pg_foreign_server'::regclass AND refclassid = classid AND s.srvname = 'whole')),
		0, "$db: trained, it depends on no base");
	is( $past->safe_psql($db, q(SELECT complete('whole', 'item 5', '{"max_tokens": 8}')->>'choices')),
		$primary->safe_psql('postgres', q(SELECT complete('whole', 'item 5', '{"max_tokens": 8}')->>'choices')),
		"$db: it answers as the publisher's");
	$past->safe_psql($db, 'DROP SERVER whole');
}
$primary->safe_psql('postgres', "DROP SERVER whole; SELECT finetune('DELETE', '$full')");

$past->safe_psql($_, "DROP SUBSCRIPTION $_") for 'rows_first', 'servers_first';
is_paused($past, 'rows_first', $endless, 'replicated');
$past->stop;

# --- Promotion

$primary->wait_for_catchup($standby);
$primary->stop('immediate');
$standby->promote;
is_same($standby, 'postgres', $wanted, 'promoted');
is_whole($standby, 'postgres', 'promoted');
my $new = start_job($standby, 'new', options => { max_steps => 2 });
is(wait_for_status($standby, $new, 'SUCCESS')->{status}, 'SUCCESS', 'promoted: a new job is run');
ok(wait_for_sql($standby, 'SELECT steps_done > 3 FROM finetune.progress'), 'promoted: the unfinished job is run');
is(job($standby, $endless)->{attempts}, 2, 'promoted: as another attempt');
ok( wait_for_sql($standby, 'SELECT max(step) > 3 AND min(step) <= 1 AND max(step) - min(step) + 1 = count(*)'
		  . " FROM finetune.metrics WHERE job_id = '$endless'"),
	'promoted: with every step in the metrics');
like(
	$standby->safe_psql('postgres', "SELECT string_agg(message, ', ' ORDER BY at) FROM finetune.events"
		  . " WHERE job_id = '$endless' AND type IN ('started', 'pending', 'running')"),
	qr/^attempt 1 started, training on cpu, attempt 2 started, reading the data again, training on cpu/,
	'promoted: events say that it begins again');
$standby->safe_psql('postgres', "SELECT finetune('CANCEL', '$endless')");
$standby->stop;

done_testing();
