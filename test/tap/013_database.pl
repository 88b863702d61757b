# A database with a running job can be dropped, renamed and copied as one
# without; a job in one that stays goes on.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('database');

# A database with a job that would take for ever; returns the job
sub with_job
{
	my ($name) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name, <<'SQL');
CREATE EXTENSION pg_finetune;
CREATE SERVER tiny TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf');
CREATE TABLE fact AS SELECT 'item ' || i AS prompt, CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END AS completion
	FROM generate_series(1, 20000) i;
SQL
	my $job = $node->safe_psql($name,
		q(SELECT finetune('CREATE', 'tuned', 'tiny', 'SELECT prompt, completion FROM fact', NULL,
			'{"max_epochs": 50, "batch_size": 64, "validation_fraction": 0}')));
	runs($name, 'a job runs');
	return $job;
}

sub runs
{
	my ($name, $what) = @_;

	ok(wait_until(sub { $node->safe_psql($name, 'SELECT steps_done > 0 FROM finetune.progress') eq 't' }), $what);
}

with_job('dropped');
$node->safe_psql('postgres', 'DROP DATABASE dropped');
is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_database WHERE datname = 'dropped')), 0,
	'DROP DATABASE');

my $job = with_job('renamed');
$node->safe_psql('postgres', 'ALTER DATABASE renamed RENAME TO other');
is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_database WHERE datname = 'other')), 1,
	'ALTER DATABASE ... RENAME');
runs('other', 'the job goes on');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE other');
is($node->safe_psql('copy', 'SELECT count(*) FROM fact'), 20000, 'CREATE DATABASE ... TEMPLATE');
runs('other', 'the job goes on');

# A stranger does not disturb it
$node->safe_psql('postgres', 'CREATE ROLE stranger LOGIN CREATEDB');
my $attempts = "SELECT finetune('DESCRIBE', '$job')->>'attempts'";
my $before = $node->safe_psql('other', $attempts);
is((sqlstate_of($node, 'DROP DATABASE other', user => 'stranger'))[0], '42501', 'a stranger may not');
is((sqlstate_of($node, 'BEGIN; DROP DATABASE other'))[0], '25001', 'nor may a transaction');
is($node->safe_psql('other', $attempts), $before, 'the job has not been disturbed');

$node->safe_psql('other', "SELECT finetune('CANCEL', '$job')");
$node->safe_psql('postgres', 'DROP DATABASE other');
$node->safe_psql('postgres', 'DROP DATABASE copy WITH (FORCE)');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_database'), 3, 'all are gone');
$node->stop;

done_testing();
