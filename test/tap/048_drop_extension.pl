# DROP EXTENSION waits for transactions that use its tables, in whatever order, and ends in no deadlock.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_bare_node('drop', "deadlock_timeout = 100ms\n");
$node->start;
my @tables = qw(job model weights metric event);
for my $first (@tables)
{
	$node->safe_psql('postgres', 'CREATE EXTENSION pg_finetune');
	my $user = $node->background_psql('postgres');
	$user->query_safe("BEGIN; LOCK TABLE finetune.$first IN ROW EXCLUSIVE MODE");
	my ($out, $err) = ('', '');
	my $drop = IPC::Run::start([ 'psql', '-Xq', '-d', $node->connstr('postgres'), '-c', 'DROP EXTENSION pg_finetune' ],
		'>', \$out, '2>', \$err);
	ok(wait_for_sql($node, q(SELECT count(*) = 1 FROM pg_stat_activity WHERE query ~ '^DROP' AND wait_event_type = 'Lock')),
		"$first is used: DROP EXTENSION waits");
	is($user->query_safe("SELECT count(*) FROM finetune.$_"), 0, "... while finetune.$_ can be read") for @tables, 'jobs';
	$user->query_safe('COMMIT');
	$drop->finish;
	is($err, '', '... and then it is done');
	is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_extension WHERE extname = 'pg_finetune')), 0, '... indeed');
	$user->quit;
}
$node->stop;

done_testing();
