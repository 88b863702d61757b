# complete() on a standby: models come by replication, weights out of the
# catalog, and no job runs there.
use strict;
use warnings;

use FinetuneCluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($primary) = new_echo_cluster('primary');
my $backup = 'backup';

store_adapter($primary, 'tuned', { prefix => 'tuned ' });
$primary->safe_psql('postgres', 'CREATE ROLE analyst LOGIN; GRANT USAGE ON FOREIGN SERVER tuned TO analyst');
is($primary->safe_psql('postgres', q(SELECT complete('tuned', 'x'))), 'tuned echo: x', 'on the primary');
ok(-d $primary->data_dir . '/pgsql_tmp_finetune/cache', 'the primary has a work directory');

$primary->backup($backup);
ok(!-e $primary->backup_dir . "/$backup/pgsql_tmp_finetune", 'which is no part of a base backup');

my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, $backup, has_streaming => 1);
$standby->start;
is( $standby->safe_psql('postgres', q(SELECT complete('tuned', 'x')), extra_params => [ '-U', 'analyst' ]),
	'tuned echo: x', 'on the standby');
is((sqlstate_of($standby, q(SELECT complete('one', 'x')), user => 'analyst'))[0],
	'42501', 'rights are those of the primary');
is($standby->safe_psql('postgres', q(SELECT complete('one', 'x'))), 'echo: x', 'a base on the standby');

is($standby->safe_psql('postgres', q(SELECT try_complete('tuned', 'x'), try_complete('two', 'x') IS NULL)),
	'tuned echo: x|t', 'try_complete() on the standby');

# What happens on the primary is seen
store_adapter($primary, 'later', { prefix => 'later ' });
$primary->wait_for_catchup($standby);
is($standby->safe_psql('postgres', q(SELECT complete('later', 'x'))), 'later echo: x',
	'a model that came after the backup');
$primary->safe_psql('postgres', 'DROP SERVER later');
$primary->wait_for_catchup($standby);
is((sqlstate_of($standby, q(SELECT complete('later', 'x'))))[0], '42704', 'and went again');

# The engine's death matters as little there
my $engine = engine_pid($standby);
my $start_time = $standby->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
kill 'KILL', $engine;
ok(wait_until(sub { engine_pid($standby) != $engine }), 'its engine is started again');
is($standby->safe_psql('postgres', q(SELECT complete('tuned', 'x'))), 'tuned echo: x', 'and answers');
is($standby->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'),
	$start_time, 'the standby has not restarted');

# Promotion
is((sqlstate_of($standby, q(CREATE SERVER more TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf'))))[0],
	'25006', 'nothing can be created on a standby');
$primary->stop;
$standby->promote;
is($standby->safe_psql('postgres', q(SELECT complete('tuned', 'x'))), 'tuned echo: x', 'after promotion');
$standby->safe_psql('postgres',
	q(CREATE SERVER more TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf')));
is($standby->safe_psql('postgres', q(SELECT complete('more', 'x'))), 'echo: x', 'a model created there');
$standby->stop;

done_testing();
