# What a job needs and does not get: a device, or a background worker.  It waits, says so once, loses no
# attempt, and runs when it gets it.  And the order in which jobs wait.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('scarce', "pg_finetune.max_running_jobs = 0\n");

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub setting
{
	my ($name, $value) = @_;
	sql("ALTER SYSTEM SET $name = '$value'");
	$node->reload;
}

sub ends_well
{
	my ($id, $what) = @_;
	my $job = wait_for_status($node, $id, 'SUCCESS');

	is($job->{status},   'SUCCESS', "$what: the job ends well");
	is($job->{attempts}, 1,         "$what: in its first attempt");
}

# No such device
my $id = start_job($node, 'no_device', options => { max_steps => 2 });
setting('pg_finetune.device', 'cuda:99');
setting('pg_finetune.max_running_jobs', 1);
ok(wait_for_sql($node, "SELECT count(*) = 1 FROM finetune.events WHERE job_id = '$id' AND type = 'waiting' AND level = 'warning'"),
	'no device: an event says that the job waits');
my $job = job($node, $id);
is($job->{phase},    'queued', 'no device: it is queued');
is($job->{attempts}, 1,        'no device: no attempt is lost');
is($job->{error},    undef,    'no device: that is no error');

# Asked again, it is told the same, and says nothing
ok(wait_until(sub { log_count($node, 'training engine: error: .*CUDA') > 1 }), 'no device: it is tried again');
is(job($node, $id)->{attempts}, 1, 'no device: which counts for nothing');
setting('pg_finetune.device', 'cpu');
ends_well($id, 'no device');
is(log_count($node, "WARNING:  job $id waits: "), 1, 'no device: one WARNING');
is(sql("SELECT count(*) FROM finetune.events WHERE job_id = '$id' AND type = 'waiting'"), 1, 'no device: one event');

# Nor for the serving engine, which then cannot start: a job can be created all the same
setting('pg_finetune.device', 'cuda:99');
$node->restart;
$id = start_job($node, 'no_server', options => { max_steps => 2 });
is((sqlstate_of($node, "SET pg_finetune.request_timeout = '1s'; SELECT complete('tiny', 'x')"))[0],
	'57P03', 'no device: there is nobody to answer');
setting('pg_finetune.device', 'cpu');
ends_well($id, 'no device to serve');

# No worker for the reader: launcher, server and PostgreSQL's launcher of replication take three, jobs the other two
sql("ALTER SYSTEM SET max_worker_processes = 5");
setting('pg_finetune.max_running_jobs', 2);
$node->restart;
my $first = start_job($node, 'first', endless_job());
wait_for_status($node, $first, 'running');
my $second = start_job($node, 'second', options => { max_steps => 2 });
ok(wait_for_sql($node, "SELECT count(*) = 1 FROM finetune.events WHERE job_id = '$second' AND type = 'waiting'"),
	'no worker to read: an event says that the job waits');
is(job($node, $second)->{phase}, 'pending', 'no worker to read: it is pending');
like(slurp_file($node->logfile),
	qr/WARNING:  job $second waits: no background worker is free to read its data\n.*HINT:  Increase max_worker_processes\./,
	'no worker to read: a WARNING with a hint');
sql("SELECT finetune('CANCEL', '$first')");
ends_well($second, 'no worker to read');
is(log_count($node, "WARNING:  job $second waits: "), 1, 'no worker to read: one WARNING');

# No worker for the job
sql('ALTER SYSTEM SET max_worker_processes = 3');
$node->stop;
my $offset = -s $node->logfile;
$node->start;
$id = start_job($node, 'no_worker', options => { max_steps => 2 });
my $pattern = 'WARNING:  could not start a worker for a fine-tuning job\n.*HINT:  Increase max_worker_processes\.';
ok(wait_until(sub { log_count($node, $pattern, $offset) == 1 }), 'no worker: a WARNING with a hint');
my $more = start_job($node, 'no_worker_either', options => { max_steps => 2 });
is(job($node, $id)->{phase},             'pending', 'no worker: it is pending');
is(job($node, $id)->{attempts},          0,         'no worker: there was no attempt');
is(job($node, $more)->{queue_position},  2,         'no worker: the next one waits behind it');
is(log_count($node, $pattern, $offset), 1, 'no worker: one WARNING');
sql('ALTER SYSTEM SET max_worker_processes = 16');
$node->restart;
ends_well($_, 'no worker') for $id, $more;

# Two hundred wait, in the order of their priority and then of their creation
setting('pg_finetune.max_running_jobs', 0);
sql(<<'SQL');
SELECT finetune('CREATE', 'queued_' || i, 'tiny', 'SELECT prompt, completion FROM fact', NULL,
		jsonb_build_object('max_steps', 1, 'priority', i * 7 % 5))
FROM generate_series(1, 200) i;
SQL
is(sql("SELECT count(*), min(queue_position), max(queue_position), count(DISTINCT queue_position)"
	  . " FROM finetune.jobs WHERE status = 'PENDING'"), '200|1|200|200', '200 jobs wait, each at a place of its own');
my $in_order = sql("SELECT string_agg(job_id, ' ' ORDER BY substr(model, 8)::int * 7 % 5 DESC, created_on, job_id)"
	  . " FROM finetune.jobs WHERE status = 'PENDING'");
is(sql("SELECT string_agg(job_id, ' ' ORDER BY queue_position) FROM finetune.jobs WHERE status = 'PENDING'"),
	$in_order, 'by priority');
my @queue = split / /, $in_order;
sql("SELECT finetune('CANCEL', job_id) FROM finetune.jobs WHERE status = 'PENDING' AND queue_position > 6");
is(sql("SELECT max(queue_position) FROM finetune.jobs WHERE status = 'PENDING'"), 6, 'those that are cancelled leave it');
setting('pg_finetune.max_running_jobs', 1);
ok(wait_for_sql($node, "SELECT count(*) = 0 FROM finetune.jobs WHERE status IN ('PENDING', 'IN_PROGRESS')"), 'all others run');
is( sql("SELECT string_agg(job_id, ' ' ORDER BY started_on) FROM finetune.jobs WHERE model ~ '^queued_' AND status = 'SUCCESS'"),
	join(' ', @queue[ 0 .. 5 ]), 'in that order');
$node->stop;

done_testing();
