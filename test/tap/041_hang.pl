# An engine that says nothing any more is ended, and its work goes on in another one.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('hang');
my %long = (options => { max_steps => 200, learning_rate => 0.001, batch_size => 256 });

# How long an engine may be silent; undef: as ever.
sub silence
{
	my ($time) = @_;
	my $change = defined $time ? "SET pg_finetune.engine_silence = '$time'" : 'RESET pg_finetune.engine_silence';

	$node->safe_psql('postgres', "ALTER SYSTEM $change");
	$node->reload;
}

sub digest_of
{
	my ($model) = @_;
	return $node->safe_psql('postgres', "SELECT weights_digest FROM finetune.model WHERE name = '$model'");
}

is($node->safe_psql('postgres', "SHOW pg_finetune.engine_silence"), '1min', 'an engine has a minute');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name ~ 'engine_silence'"),
	0, 'which is no setting for everybody');
my $undisturbed = start_job($node, 'undisturbed', %long);
is(wait_for_status($node, $undisturbed, 'SUCCESS')->{status}, 'SUCCESS', 'a job that nobody disturbs');

# From here on an engine waits where it is told to, so that none has come to its end before it is to hang
my $control = hold_engines($node);
my $before  = start_time($node);

hold_at($control, 45);
my $id = start_job($node, 'hanging', %long);
ok(is_held($control), 'a job is trained');
ok(wait_for_sql($node, "SELECT count(*) > 0 FROM finetune.events WHERE job_id = '$id' AND type = 'checkpoint'"),
	'and has a checkpoint');
my $engine = engine_of($node);
kill 'STOP', $engine;

# Only what is silent already is held to the shorter time, which a busy machine must not use up
silence('8s');
ok(wait_until(sub { !is_running($engine) }), 'its engine hangs, and is ended');
silence(undef);
my $job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'the job ends well');
is($job->{attempts}, 2, 'in its second attempt');
is( $node->safe_psql('postgres',
		"SELECT max((data->>'resumed_from')::int) > 0 FROM finetune.events WHERE job_id = '$id' AND type = 'running'"),
	't', 'from a checkpoint');
is(digest_of('hanging'), digest_of('undisturbed'), 'with the same weights');
is( $node->safe_psql('postgres',
		"SELECT message ~ 'signal 9' FROM finetune.events WHERE job_id = '$id' AND type = 'attempt_failed'"),
	't', 'an event says how the engine ended');
is(log_count($node, "training engine of job $id has said nothing for 8 s, ending it"), 1, 'the log says why, once');
is(start_time($node), $before, 'the server never noticed');

# A worker that hangs does not keep its job from being cancelled
hold_at($control, 10);
$id = start_job($node, 'asleep', endless_job());
ok(is_held($control), 'a job is trained');
$engine = engine_of($node);
my $worker = $node->safe_psql('postgres', 'SELECT pid FROM finetune.progress');

# Not while it has a transaction, and so the job's row: what the engine has told is written down
ok(wait_for_sql($node, "SELECT max(step) = 10 - 1 FROM finetune.metrics WHERE job_id = '$id'"), 'it is known how far');
ok( wait_for_sql($node,
		"SELECT xact_start IS NULL AND wait_event = 'Extension' FROM pg_stat_activity WHERE pid = $worker"),
	'and its worker waits for more');
kill 'STOP', $worker;
let_go($control);
is($node->safe_psql('postgres', "SELECT finetune('CANCEL', '$id')->>'status'"), 'CANCELLED',
	'a job whose worker hangs is cancelled');
kill 'CONT', $worker;
ok(wait_until(sub { !is_running($engine) }), 'its engine ends with the worker');
is(job($node, $id)->{status}, 'CANCELLED', 'and it stays cancelled');

# What hangs does not keep the server from stopping
for my $mode ('fast', 'immediate')
{
	hold_at($control, 45);
	$id = start_job($node, "stopped_$mode", %long);
	ok(is_held($control), 'another job is trained');
	ok(wait_for_sql($node, "SELECT count(*) > 0 FROM finetune.events WHERE job_id = '$id' AND type = 'checkpoint'"),
		'and has a checkpoint');
	$engine = engine_of($node);
	kill 'STOP', $engine;
	$node->stop($mode);
	ok(wait_until(sub { !is_running($engine) }), "stop -m $mode ends an engine that hangs");
	$node->start;
	is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'its job goes on');
	is(digest_of("stopped_$mode"), digest_of('undisturbed'), 'to the same weights');
}
$node->stop;

done_testing();
