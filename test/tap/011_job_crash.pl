# Whatever dies while a job runs, the job goes on from its last checkpoint, ends
# with the bytes that it would have had anyway, and nobody else notices.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node    = new_node('job_crash', "restart_after_crash = on\n");
my $control = hold_engines($node);
my %long = (options => { max_steps => 200, learning_rate => 0.001, batch_size => 256 });

my $undisturbed;

sub digest_of
{
	my ($model) = @_;
	return $node->safe_psql('postgres',
		"SELECT weights_digest FROM finetune.model WHERE name = '$model'");
}

sub metrics_of
{
	my ($id) = @_;
	return $node->safe_psql('postgres',
		"SELECT step, training_loss, validation_loss, validation_token_accuracy, learning_rate,"
		  . " grad_norm, tokens FROM finetune.metrics WHERE job_id = '$id' ORDER BY step");
}

# The step of the newest checkpoint on disk, of the only job there is.
sub last_checkpoint
{
	my @steps = map { /checkpoint-(\d+)$/ } glob $node->data_dir . '/pgsql_tmp_finetune/jobs/*/checkpoint-*';
	return (sort { $b <=> $a } @steps)[0] // 0;
}

# Start a job, and return it and its engine once there is a checkpoint; the
# engine then waits, so that it has not come to its end before what is to happen.
sub start_and_wait
{
	my ($model) = @_;

	hold_at($control, 45);
	my $id = start_job($node, $model, %long);
	is_held($control) or die 'no engine waits';
	wait_for_sql($node,
		"SELECT count(*) > 0 FROM finetune.events WHERE job_id = '$id' AND type = 'checkpoint'");
	return ($id, engine_of($node));
}

# The job must end well, in its second attempt, with no step missing.
sub ends_well
{
	my ($id, $model, $what) = @_;
	my $job = wait_for_status($node, $id, 'SUCCESS');

	is($job->{status}, 'SUCCESS', "$what: the job ends well");
	is($job->{attempts}, 2, "$what: in its second attempt");
	ok( $node->safe_psql('postgres',
			"SELECT max((data->>'resumed_from')::int) > 0 FROM finetune.events"
			  . " WHERE job_id = '$id' AND type = 'running'") eq 't',
		"$what: from a checkpoint");
	is(metrics_of($id), metrics_of($undisturbed), "$what: with every step in the metrics");
	is(digest_of($model), digest_of('undisturbed'), "$what: with the same weights");
}

$undisturbed = start_job($node, 'undisturbed', %long);
is(wait_for_status($node, $undisturbed, 'SUCCESS')->{status}, 'SUCCESS', 'a job that nobody disturbs');
is( $node->safe_psql('postgres',
		"SELECT min(step), max(step), count(*) FROM finetune.metrics WHERE job_id = '$undisturbed'"),
	'0|200|201', 'has metrics of each step');

# The engine
my $before = start_time($node);
my ($id, $engine) = start_and_wait('engine');
kill 'KILL', $engine;
ends_well($id, 'engine', 'kill -9 of the engine');
is(start_time($node), $before, 'the server never noticed');
is( $node->safe_psql('postgres',
		"SELECT message ~ 'signal 9' FROM finetune.events WHERE job_id = '$id' AND type = 'attempt_failed'"),
	't', 'an event says what happened');

# The worker, by the administrator
($id, $engine) = start_and_wait('worker');
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(pid) FROM finetune.progress');
let_go($control);
ends_well($id, 'worker', 'termination of the worker');
ok(!is_running($engine), 'its first engine is gone');
is(start_time($node), $before, 'the server never noticed');

# The worker, from behind: the postmaster restarts everything
($id, $engine) = start_and_wait('worker_killed');
my $worker = $node->safe_psql('postgres', 'SELECT pid FROM finetune.progress');
my $log_end = log_end($node);
kill 'KILL', $worker;
ok(wait_until(sub { !is_running($engine) }), 'kill -9 of the worker ends the engine');
restarted($node, $log_end) or die 'no restart';
ends_well($id, 'worker_killed', 'kill -9 of the worker');

# The same, after it has slept through checkpoints: what it never read is told again
($id, $engine) = start_and_wait('worker_asleep');
$worker = $node->safe_psql('postgres', 'SELECT pid FROM finetune.progress');
kill 'STOP', $worker;
my $known = last_checkpoint();
let_go($control);
ok(wait_until(sub { last_checkpoint() > $known || !is_running($engine) }), 'the engine goes on without its worker');
$log_end = log_end($node);
kill 'KILL', $worker;
ok(wait_until(sub { !is_running($engine) }), 'until that is killed');
restarted($node, $log_end) or die 'no restart';
ends_well($id, 'worker_asleep', 'kill -9 of a worker that slept');

# The cluster
for my $mode ('fast', 'immediate')
{
	($id, $engine) = start_and_wait("restart_$mode");
	# the engine goes on when it has been asked to end
	kill($mode eq 'fast' ? 'INT' : 'QUIT', $node->{_pid});
	let_go($control);
	wait_until(sub { !-e $node->data_dir . '/postmaster.pid' }) or die 'the server does not stop';
	$node->stop($mode, fail_ok => 1);
	ok(wait_until(sub { !is_running($engine) }), "stop -m $mode ends the engine");
	$node->start;
	ends_well($id, "restart_$mode", "restart -m $mode");
}

# The postmaster
($id, $engine) = start_and_wait('postmaster');
kill_server($node);
ok(!is_running($engine), 'kill -9 of the postmaster ends the engine');
ok($node->start(fail_ok => 1), 'the server starts again');
ends_well($id, 'postmaster', 'kill -9 of the postmaster');

# The reader, in a query that takes its time: nothing to go on from, but no harm either
my $guard = $node->background_psql('postgres');
$guard->query_safe('SELECT pg_advisory_lock(7)');
$id = start_job($node, 'reading',
	query   => 'SELECT prompt, completion, pg_advisory_xact_lock_shared(7) FROM fact LIMIT 25',
	options => { max_steps => 2 });
ok( wait_for_sql($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_finetune reader'"
		  . " AND wait_event = 'advisory'"),
	'a reader runs');
$node->safe_psql('postgres',
	"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'pg_finetune reader'");
$guard->quit;
my $job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'a reader that was terminated is started again');
is($job->{attempts}, 2, 'as another attempt');
is($job->{rows}{read}, 25, 'with all rows');

$id = start_job($node, 'sleeping', query => "SELECT prompt, pg_sleep(1000)::text AS completion FROM fact");
ok(wait_for_sql($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_finetune reader'"),
	'another reader runs');
is(job($node, $id)->{phase}, 'pending', 'meanwhile the job is pending');
$node->restart('fast');
ok(wait_for_sql($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_finetune reader'"),
	'and runs again after a restart');
is($node->safe_psql('postgres', "SELECT finetune('CANCEL', '$id')->>'status'"), 'CANCELLED', 'cancel');
ok(wait_for_sql($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type ~ 'pg_finetune (reader|job)'"),
	'reader and worker end');

# An engine that always dies
chomp(my $library = qx(pg_config --pkglibdir));
my $dying = $node->basedir . '/dying_engine';
write_file($dying, <<"SH");
#!/bin/sh
if [ "\$1" = train ]; then echo 'these are the last words' >&2; kill -SEGV \$\$; fi
exec '$library/pg_finetune_engine' "\$@"
SH
chmod 0755, $dying or die "$dying: $!";
$node->append_conf('postgresql.conf', "pg_finetune.engine_path = '$dying'");
$node->restart;
$before = start_time($node);
$job = wait_for_status($node, start_job($node, 'hopeless'), 'ERROR');
is($job->{status}, 'ERROR', 'an engine that always dies fails the job');
is($job->{attempts}, 3, 'in the third attempt');
like($job->{error}{message}, qr/these are the last words/, 'with its last words');
is(start_time($node), $before, 'the server never noticed');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_foreign_server WHERE srvname = 'hopeless'"),
	0, 'the name is free again');
ok(wait_for_sql($node, "SELECT count(*) = 0 FROM pg_ls_dir('pgsql_tmp_finetune/jobs')"), 'nothing is left on disk');
$node->stop;

done_testing();
