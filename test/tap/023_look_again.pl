# A job is looked for when the worker that held it is gone, also where another
# worker has looked meanwhile and found nothing; not only when the launcher
# comes round again, after a minute.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('look_again', "pg_finetune.max_running_jobs = 2\n");

# The launcher's minute begins anew; a second worker looks, and finds nothing.
sub begin_minute
{
	my $launcher = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_finetune launcher');
	my $old = $node->safe_psql('postgres', $launcher);

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($old)");
	ok(wait_for_sql($node, "SELECT count(*) = 1 FROM ($launcher AND pid <> $old) l"), 'another launcher');
	ok( wait_until(
			sub {
				$node->safe_psql('postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_finetune job')) eq '1';
			}),
		'one worker');
	# time for the second worker, which is gone before it can be seen
	sleep 2;
	return;
}

my $id = start_job($node, 'one',
	query   => q(SELECT prompt, completion, CASE WHEN id = 1 THEN pg_sleep(1000) END FROM fact),
	options => { max_steps => 5 });
ok(wait_for_sql($node, 'SELECT count(*) = 1 FROM finetune.progress'), 'a job runs');
for my $time ('first', 'second', 'third')
{
	begin_minute();
	my $attempts = job($node, $id)->{attempts};
	$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid) FROM finetune.progress");

	local $FinetuneJob::patience = 20;
	ok(wait_for_sql($node, "SELECT attempts > $attempts FROM finetune.jobs WHERE job_id = '$id'"),
		"the $time time that its worker is terminated, another one takes it");
}
$node->safe_psql('postgres', "SELECT finetune('CANCEL', '$id')");
$node->stop;

done_testing();
