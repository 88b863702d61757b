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

	# counted in looks, which are as slow as all else: less than what is left of the launcher's minute
	local $FinetuneJob::patience = 20;
	ok(wait_for_sql($node, "SELECT attempts > $attempts FROM finetune.jobs WHERE job_id = '$id'"),
		"the $time time that its worker is terminated, another one takes it");
}

# The same where both end before the launcher hears of either
my $launcher = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_finetune launcher');
my $workers  = q(FROM pg_stat_activity WHERE backend_type = 'pg_finetune job');
my $guard    = $node->background_psql('postgres');
my $old      = $node->safe_psql('postgres', $launcher);
$guard->query_safe('BEGIN; LOCK TABLE finetune.job');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($old)");
ok(wait_for_sql($node, "SELECT count(*) = 1 $workers AND wait_event_type = 'Lock'"), 'a second worker is about to look');
my $stopped = $node->safe_psql('postgres', $launcher);
kill 'STOP', $stopped;
$guard->query_safe('COMMIT');
ok(wait_for_sql($node, "SELECT count(*) = 1 $workers"), 'it has found nothing');
my $attempts = job($node, $id)->{attempts};
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(pid) FROM finetune.progress');
ok(wait_for_sql($node, "SELECT count(*) = 0 $workers"), 'and the first has ended');
kill 'CONT', $stopped;
{
	local $FinetuneJob::patience = 20;
	ok(wait_for_sql($node, "SELECT attempts > $attempts FROM finetune.jobs WHERE job_id = '$id'"), 'another one takes the job');
}
$node->safe_psql('postgres', "SELECT finetune('CANCEL', '$id')");

# A worker that looks while the places are taken away finds a job, and leaves it
my $no_worker = q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type ~ 'pg_finetune (reader|job)');
ok(wait_for_sql($node, $no_worker), 'no worker is left');
$guard->query_safe('BEGIN; LOCK TABLE finetune.job');
$node->safe_psql('postgres', q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_finetune launcher'));
ok( wait_for_sql($node, q(SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_finetune job' AND wait_event_type = 'Lock')),
	'a worker is about to look');
stop_jobs($node);
$id = $guard->query_safe(q(SELECT finetune('CREATE', 'two', 'tiny', 'TABLE fact', NULL, '{"max_steps": 2}')));
$guard->query_safe('COMMIT');
$guard->quit;
ok(wait_for_sql($node, $no_worker), 'it leaves');
is(job($node, $id)->{phase} . ' ' . job($node, $id)->{attempts}, 'pending 0', 'without the job');
let_jobs_run($node);
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'which is run when there are places again');
$node->stop;

done_testing();
