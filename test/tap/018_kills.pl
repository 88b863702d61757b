# The engine is killed at each step of jobs of 50 steps, the worker and the
# postmaster at ten of them, one after another in the same job: it goes on each
# time, and ends with the weights and the metrics that it would have had anyway.
#
# So that a kill falls in the step that is meant, the engine is made to wait
# there, before it tells of the step.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $every = 5;    # steps from one evaluation, and checkpoint, to the next
my @steps = (2, 8, 15, 16, 23, 26, 34, 37, 45, 50);

my $node    = new_node('kills', "restart_after_crash = on\n");
my $jobs    = $node->data_dir . '/pgsql_tmp_finetune/jobs';
my $control = hold_engines($node);
my %fifty   = (options => { max_steps => 50, learning_rate => 0.001, batch_size => 256, n_evals => 50 / $every });

# What a job leaves: weights, and every metric but the times.
sub result_of
{
	my ($model, $id) = @_;
	return $node->safe_psql('postgres', <<"SQL");
SELECT m.weights_digest, count(part), count(DISTINCT part)
	FROM finetune.model m JOIN finetune.weights w ON w.model_id = m.id WHERE m.name = '$model' GROUP BY 1;
SELECT step, training_loss, validation_loss, validation_token_accuracy, learning_rate, grad_norm, tokens
	FROM finetune.metrics WHERE job_id = '$id' ORDER BY step;
SQL
}

# The step of the newest checkpoint on disk, of the only job there is.
sub last_checkpoint
{
	my @steps = map { /checkpoint-(\d+)$/ } glob "$jobs/*/checkpoint-*";
	return (sort { $b <=> $a } @steps)[0] // 0;
}

# The last step that the engine has told of.
sub last_step
{
	my ($log) = glob "$jobs/*/metrics.jsonl";
	my @told = slurp_file($log) =~ /"event": ?"step".*?"step": ?(\d+)/g;
	return $told[-1] // 0;
}

# Have the next engine wait in a step.  It writes a line for each step, and for
# each evaluation on the way.
sub arm_at
{
	my ($step) = @_;
	my $from = last_checkpoint();
	my $evaluations = int(($step - 1) / $every) - int($from / $every) + ($from == 0 ? 1 : 0);
	hold_at($control, $step - $from + $evaluations);
}

sub comes_to
{
	my ($what, $step) = @_;
	ok(is_held($control) && last_step() == $step - 1, "$what: a job comes to step $step")
	  or diag('last step: ' . last_step());
}

# Kill something at each of the steps of a new job; $kill is given the engine.
sub kill_at
{
	my ($what, $kill, @at) = @_;
	my $id;

	for my $step (@at)
	{
		my $engine;

		if (defined $id)
		{
			comes_to($what, $step);
		}
		else
		{
			# what the job before leaves goes after its end, and has checkpoints of its own
			wait_until(sub { !(() = glob "$jobs/*") }) or die 'a job has left its directory';
			arm_at($step);
			$id = start_job($node, $what, %fifty);
			comes_to($what, $step);
		}
		$engine = engine_of($node);
		# the next engine finds the next step to wait at
		my $next = (grep { $_ > $step } @at)[0];
		$kill->($engine, sub { defined $next ? arm_at($next) : let_go($control) });
	}
	my $job = wait_for_status($node, $id, 'SUCCESS');
	is($job->{status}, 'SUCCESS', "$what: the job ends well");
	is($job->{attempts}, @at + 1, "$what: after as many attempts");
	return $id;
}

my $undisturbed = start_job($node, 'undisturbed', %fifty);
is(wait_for_status($node, $undisturbed, 'SUCCESS')->{status}, 'SUCCESS', 'a job that nobody disturbs');
my $expected = result_of('undisturbed', $undisturbed);
is(scalar(() = $expected =~ /\n/g), 51, 'has metrics of 50 steps, and of the base');

# The engine, at every step: each of as many jobs as there are steps between two
# checkpoints is killed once after each checkpoint
my $before = start_time($node);
my $id;
for my $first (1 .. $every)
{
	$id = kill_at("engine_$first", sub {
			my ($engine, $arm) = @_;
			kill 'STOP', $engine;    # so that it does not go on before it dies
			$arm->();
			kill 'KILL', $engine;
		},
		grep { $_ % $every == $first % $every } 1 .. 50);
	is(result_of("engine_$first", $id), $expected, "engine_$first: with the same weights and metrics");
}
is(start_time($node), $before, 'the server never noticed');

# The worker: the postmaster restarts everything
$id = kill_at('worker', sub {
		my ($engine, $arm) = @_;
		my $worker = $node->safe_psql('postgres', 'SELECT pid FROM finetune.progress');
		my $log_end = log_end($node);
		kill 'STOP', $engine;
		$arm->();
		kill 'KILL', $worker;
		wait_until(sub { !is_running($engine) }) or die 'the engine outlives its worker';
		restarted($node, $log_end) or die 'no restart';
	},
	@steps);
is(result_of('worker', $id), $expected, 'worker: with the same weights and metrics');

# The postmaster
$id = kill_at('postmaster', sub {
		my ($engine, $arm) = @_;
		kill 'STOP', $engine;
		$arm->();
		kill_server($node);
		$node->start;
	},
	@steps);
is(result_of('postmaster', $id), $expected, 'postmaster: with the same weights and metrics');

ok(wait_for_sql($node, "SELECT count(*) = 0 FROM pg_ls_dir('pgsql_tmp_finetune/jobs')"), 'nothing is left on disk');
$node->stop;

done_testing();
