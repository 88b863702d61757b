# 020_train.pl: `train JOBDIR` as a program: events, results, and what happens
# when it is killed, ended, doubled, misled or out of space.
use strict;
use warnings;

use File::Path qw(make_path remove_tree);
use JSON::PP qw(decode_json encode_json);
use FaultShim;
use Fcntl;
use JobTest;
use POSIX qw(ceil);
use Test::More;

my $engine = $JobTest::engine;
my $base = $JobTest::base;
my $scratch = $JobTest::scratch;
my @rows = @JobTest::rows;

# Start an engine that trains: (pid, handle of its events).
sub start { return start_engine('train', @_) }

# Run to the end: exit code and events.
sub run { return run_engine('train', @_) }

sub last_checkpoint
{
	my ($directory) = @_;
	return (sort { $b <=> $a } map { /checkpoint-(\d+)$/ ? $1 : () } glob "$directory/checkpoint-*")[0] // 0;
}

# --- a whole run ---------------------------------------------------------------------------------

my $unbroken = new_job();
my ($code, @events) = run($unbroken);
is($code, 0, 'a job ends with exit code 0');
my @undisturbed = @events;
my @steps = named('step', @events);
my ($started) = named('started', @events);
my ($dataset) = named('dataset', @events);
my ($plan) = named('plan', @events);
my ($completed) = named('completed', @events);
is($started->{architecture}, 'llama', 'started: architecture');
is($started->{resumed_from}, 0, 'started: nothing to resume');
like($started->{base_digest}, qr/^[0-9a-f]{64}$/, 'started: digest of the base');
is_deeply($dataset->{rows}, { read => 24, used => 24, skipped_null => 0, truncated => 0 }, 'dataset: rows');
is($dataset->{validation_rows}, 2, 'dataset: a tenth of the rows validates');
is($plan->{total_steps}, scalar @steps, 'as many steps as planned');
is($plan->{options}{lora_alpha}, 8, 'plan: alpha is twice the rank');
is($plan->{options}{seed}, 42, 'plan: options are filled in');
is($steps[-1]{epoch}, 3, 'three epochs');
is($steps[-1]{tokens}, 3 * $dataset->{tokens}, 'every token of every epoch');
is($steps[-1]{trained_tokens}, 3 * $dataset->{trained_tokens}, 'every trained token of every epoch');
ok($steps[-1]{training_loss} < $steps[0]{training_loss}, 'the loss falls');
is((named('evaluation', @events))[0]{step}, 0, 'the untouched base is evaluated');
is(scalar named('evaluation', @events), 5, 'and the model four times');
is($completed->{steps}, scalar @steps, 'completed: steps');
is($completed->{adapter}, 'adapter', 'completed: the adapter');
my $expected = slurp("$unbroken/adapter/adapter_model.safetensors");
is_deeply([ map { $_->{step} } named('checkpoint', @events) ], [ map { $_->{step} } grep { $_->{step} > 0 } named('evaluation', @events) ],
	'a checkpoint after every evaluation');
my (undef, @saved) = run(new_job(job => { options => { max_epochs => 3, batch_size => 200, n_evals => 1, n_checkpoints => 5 } }));
my $total = @steps;
is_deeply([ map { $_->{step} } named('checkpoint', @saved) ], [ map { ceil($total * $_ / 5) } 1 .. 5 ], 'n_checkpoints: five, evenly');
ok(defined $expected, 'the adapter is there');
my $config = decode_json(slurp("$unbroken/adapter/adapter_config.json"));
is($config->{peft_type}, 'LORA', 'its configuration is PEFT\'s');
is($config->{r}, 4, 'with the rank');
ok(!-e "$unbroken/train.jsonl", 'the rows\' text is gone');
is(scalar(() = glob "$unbroken/checkpoint-*"), 2, 'two checkpoints are kept');
is(scalar(() = glob "$unbroken/*.tmp"), 0, 'nothing temporary is left');

# --- killed ------------------------------------------------------------------------------------------

# Kill an engine after the given event and return how far it had come.
sub kill_after
{
	my ($directory, $signal, $event, $step) = @_;
	my ($pid, $events) = start($directory);
	my $from;
	while (my $line = <$events>)
	{
		my $e = decode_json($line);
		$from = $e->{resumed_from} if $e->{event} eq 'started';
		last if $e->{event} eq $event && ($e->{step} // 0) >= $step;
	}
	kill $signal, $pid;
	my @rest = map { decode_json($_) } grep { /\n\z/ } <$events>;
	waitpid $pid, 0;
	return ($?, $from, @rest);
}

# What is told of steps and evaluations, without its times.
sub metrics_of
{
	my $metrics = '';
	for my $event (grep { $_->{event} =~ /^(step|evaluation)$/ } @_)
	{
		my %told = %$event;
		delete @told{qw(tokens_per_second elapsed)};
		$metrics .= JSON::PP->new->canonical->encode(\%told) . "\n";
	}
	return $metrics;
}

my $differing = 0;
my $wrong_counts = 0;
for my $at (1 .. @steps - 1)
{
	my $job = new_job();
	kill_after($job, 'KILL', 'step', $at);
	my $saved = last_checkpoint($job);
	($code, @events) = run($job);
	my ($again) = named('started', @events);
	($completed) = named('completed', @events);
	$differing++ if slurp("$job/adapter/adapter_model.safetensors") ne $expected || $again->{resumed_from} != $saved;
	# an engine that was not killed before its last checkpoint has no step left to tell of
	$wrong_counts++ if ($completed->{trained_tokens} // 0) != 3 * $dataset->{trained_tokens};
	remove_tree($job);
}
is($differing, 0, 'a job killed after any step ends with the same bytes');
is($wrong_counts, 0, 'and has counted each token once');

# Exactly in each of 50 steps, when it has been done but is not in the log yet; a checkpoint follows
# every third or fourth, so that kills fall before, at and after them.
my $fifty = 50;
my %fifty = (job => { threads => 1,
		options => { max_steps => $fifty, batch_size => 64, learning_rate => 0.01, lora_r => 2, n_evals => 15 } });
my $whole = new_job(%fifty);
my $control = "$scratch/control";
($code, my @whole) = run($whole);
my $whole_adapter = slurp("$whole/adapter/adapter_model.safetensors");
my @lines = map { decode_json($_) } split /\n/, slurp("$whole/metrics.jsonl");
my @step_lines = grep { $lines[ $_ - 1 ]{event} eq 'step' } 1 .. @lines;
my %wrong = map { $_ => 0 } qw(kill end resume bytes metrics tokens);
my $resumed = 0;
is(scalar @step_lines, $fifty, 'a job of 50 steps');
for my $line (@step_lines)
{
	my $job = new_job(%fifty);
	arm($control, 'KILL', "write $job/metrics.jsonl", $line, $line);
	{
		local $ENV{LD_PRELOAD} = $FaultShim::library;
		local $ENV{FAULT_CONTROL} = $control;
		my ($pid, $events) = start($job);
		@events = <$events>;
		waitpid $pid, 0;
		$wrong{kill}++ if $? != 9 || (() = slurp("$job/metrics.jsonl") =~ /\n/g) != $line - 1;
	}
	my $saved = last_checkpoint($job);
	($code, @events) = run($job);
	my ($again) = named('started', @events);
	($completed) = named('completed', @events);
	$resumed++ if $again->{resumed_from} > 0;
	$wrong{end}++ if $code != 0;
	$wrong{resume}++ if $again->{resumed_from} != $saved;
	$wrong{bytes}++ if slurp("$job/adapter/adapter_model.safetensors") ne $whole_adapter;
	$wrong{metrics}++
	  if metrics_of(map { decode_json($_) } split /\n/, slurp("$job/metrics.jsonl")) ne metrics_of(@whole);
	$wrong{tokens}++ if ($completed->{trained_tokens} // 0) != (named('completed', @whole))[0]{trained_tokens};
	remove_tree($job);
}
is_deeply(\%wrong, { map { $_ => 0 } keys %wrong },
	'is killed in each of them, and ends with the same bytes, metrics and counts');
is($resumed, $fifty - 4, 'with a checkpoint, where there was one');

my $often = new_job();
kill_after($often, 'KILL', $_, 0) for qw(started dataset plan evaluation checkpoint step);
($code) = run($often);
is($code, 0, 'a job killed again and again ends');
is(slurp("$often/adapter/adapter_model.safetensors"), $expected, 'with the same bytes');

# A reader that dies takes what it had not read with it; a resume says it again.
sub replay_from
{
	my ($directory, $step) = @_;
	my $job = decode_json(slurp("$directory/job.json"));
	$job->{replay_from} = $step;
	spew("$directory/job.json", encode_json($job));
}

sub from_step
{
	my ($step, @from) = @_;
	return grep { ($_->{step} // 0) >= $step } @from;
}

for my $known (0, 2, 5)
{
	my $job = new_job();
	kill_after($job, 'KILL', 'checkpoint', 6);
	replay_from($job, $known);
	($code, @events) = run($job);
	is(metrics_of(@events), metrics_of(from_step($known, @undisturbed)), "metrics from step $known on are told again");
}
{
	my $job = new_job();
	kill_after($job, 'KILL', 'evaluation', 0);
	replay_from($job, 0);
	($code, @events) = run($job);
	is(metrics_of(@events), metrics_of(@undisturbed), 'without a checkpoint nothing is told twice');
}
{
	my $job = new_job();
	kill_after($job, 'KILL', 'checkpoint', 6);
	my $log = slurp("$job/metrics.jsonl");
	spew("$job/metrics.jsonl", $log . '{"event":"step","st');
	replay_from($job, 0);
	($code, @events) = run($job);
	is(metrics_of(@events), metrics_of(@undisturbed), 'a line that was not finished is dropped');
	is(scalar(grep { !eval { decode_json($_); 1 } } split /\n/, slurp("$job/metrics.jsonl")), 0, 'and not left in the log');
}
my $damaged = new_job();
kill_after($damaged, 'KILL', 'checkpoint', 6);
my $newest = last_checkpoint($damaged);
my $path = "$damaged/checkpoint-$newest/optimizer.safetensors";
my $bytes = slurp($path);
substr($bytes, -5, 1) = chr(ord(substr($bytes, -5, 1)) ^ 1);
spew($path, $bytes);
make_path("$damaged/checkpoint-999.tmp/adapter");
($code, @events) = run($damaged);
ok((named('started', @events))[0]{resumed_from} < $newest, 'a damaged checkpoint is passed over');
is(slurp("$damaged/adapter/adapter_model.safetensors"), $expected, 'and the one before it leads to the same bytes');
is( metrics_of(map { decode_json($_) } split /\n/, slurp("$damaged/metrics.jsonl")),
	metrics_of(@undisturbed), 'and the log has every step once');
ok(!-e "$damaged/checkpoint-999.tmp", 'what a killed run left is removed');

# --- ended ---------------------------------------------------------------------------------------------

# with an evaluation at the end only, so that the signal does not meet one
my $ended = new_job(job => { options => { max_epochs => 3, batch_size => 200, learning_rate => 0.01, lora_r => 4, n_evals => 1 } });
my $held = "$JobTest::scratch/held";
arm($held, 'HOLD', 'write */metrics.jsonl', 6, 6);    # so that it has not come to its end before
my ($pid, $events) = do { local @ENV{qw(LD_PRELOAD FAULT_CONTROL)} = ($FaultShim::library, $held); start($ended) };
select(undef, undef, undef, 0.01) until held($held);
kill 'TERM', $pid;
disarm($held);
my @rest = map { decode_json($_) } <$events>;
waitpid $pid, 0;
is($? >> 8, 3, 'SIGTERM: exit code 3');
my ($saved) = named('checkpoint', @rest);
ok($saved->{step} >= 4, 'after a checkpoint of the last step');
($code, @events) = run($ended);
is($code, 0, 'and the job goes on');
is((named('started', @events))[0]{resumed_from}, $saved->{step}, 'from there');
is(slurp("$ended/adapter/adapter_model.safetensors"), $expected, 'to the same bytes');

my $interrupted = new_job();
($pid, $events) = start($interrupted);
while (my $line = <$events>)
{
	kill 'INT', $pid if decode_json($line)->{event} eq 'step';
}
waitpid $pid, 0;
is($?, 0, 'SIGINT is ignored');

{
	my $job = new_job(job => { options => { max_epochs => 50, batch_size => 64, n_evals => 1 } });
	pipe my $read, my $write or die $!;
	my $flags = fcntl($read, Fcntl::F_GETFD(), 0);
	fcntl($read, Fcntl::F_SETFD(), 0);
	($pid, $events) = start($job, '--control-fd', fileno $read);
	close $read;
	<$events>;
	close $write;
	my @rest = <$events>;
	waitpid $pid, 0;
	is($? >> 8, 1, 'the parent\'s end of the pipe closes: the engine ends');
	is(scalar(grep { /completed|failed/ } @rest), 0, 'at once');
}

{
	my $job = new_job(job => { options => { max_epochs => 50, batch_size => 64, n_evals => 1 } });
	($pid, $events) = start($job);
	<$events>;
	($code, @events) = run($job);
	is($code, 1, 'a second engine in the same directory fails');
	is($events[-1]{code}, 'busy', 'with code busy');
	kill 'KILL', $pid;
	waitpid $pid, 0;
}

# --- misled ----------------------------------------------------------------------------------------------

sub fails
{
	my ($name, $job, $expected_code, $message) = @_;
	my ($exit, @told) = run($job);
	is($exit, 1, "$name: exit code 1");
	is($told[-1]{event}, 'failed', "$name: failed");
	is($told[-1]{code}, $expected_code, "$name: code $expected_code");
	like($told[-1]{message}, $message, "$name: message");
	is(scalar named('started', @told), 0, "$name: before a device is taken");
	return $told[-1];
}

sub with_options
{
	my (%options) = @_;
	return new_job(job => { options => \%options });
}

fails('no job.json', do { my $d = new_job(); unlink "$d/job.json"; $d }, 'not_found', qr/job\.json/);
fails('broken job.json', new_job(json => '{"version": 1,'), 'invalid', qr/job\.json: not valid JSON at line 1/);
fails('another version', new_job(job => { version => 2 }), 'unsupported', qr/"version" is 2/);
fails('unknown key', new_job(job => { colour => 'red' }), 'invalid', qr/unknown key "colour"/);
fails('no path', new_job(job => { base => { name => 'x' } }), 'invalid', qr/"base\.path"/);
fails('unknown option', with_options(lora_rank => 4), 'invalid', qr/unknown option "lora_rank"/);
fails('option out of range', with_options(max_epochs => 51), 'invalid', qr/"max_epochs".*1 to 50/);
fails('option of another type', with_options(learning_rate => 'fast'), 'invalid', qr/"learning_rate"/);
fails('unknown module', with_options(lora_target_modules => ['q_proj', 'head']), 'invalid', qr/unknown module at 2/);
fails('another method', with_options(method => 'prefix'), 'unsupported', qr/method "prefix"/);
fails('dropout', with_options(lora_dropout => 1), 'invalid', qr/option "lora_dropout" is 1, which leaves nothing/);
fails('prompt template', with_options(prompt_template => 'none'), 'invalid', qr/prompt template has \{prompt\} 0 times, not once/);
fails('missing base', new_job(job => { base => { path => "$scratch/none.gguf" } }), 'not_found', qr/none\.gguf/);
fails('another base', new_job(job => { base => { path => $base, digest => '0' x 64 } }), 'mismatch', qr/digest/);
my $told = fails('no rows', new_job(train => ''), 'invalid', qr/no usable rows: 0 read/);
like($told->{hint}, qr/query/, 'no rows: a hint');
fails('only nulls', new_job(train => jsonl({ prompt => undef, completion => 'x' })), 'invalid', qr/1 with a null/);
fails('a bad row', new_job(train => jsonl($rows[0], { prompt => 'CANARY', completion => ['CANARY'] })),
	'invalid', qr/row 2 of train\.jsonl: column "completion" is no string/);
fails('no JSON', new_job(train => "{\"prompt\": \"CANARY"), 'invalid', qr/row 1 of train\.jsonl: not valid JSON/);
unlike(slurp("$scratch/stderr"), qr/CANARY/, 'no text of a row is logged');
is(system("$engine train --what 2>/dev/null") >> 8, 2, 'wrong usage: exit code 2');

# --- out of space ---------------------------------------------------------------------------------------

SKIP:
{
	my $disk = "$scratch/disk";
	make_path($disk);
	my $try = system("unshare -rm sh -c 'mount -t tmpfs -o size=1m none $disk' 2>/dev/null");
	skip 'no file system can be mounted here', 5 if $try != 0;
	my $job = new_job();
	spew("$scratch/full.sh", <<"END");
set -e
mount -t tmpfs -o size=4m none $disk
head -c 4063232 /dev/zero >$disk/filler
cp $job/* $disk/
set +e
$engine train $disk >$scratch/full.events
echo exit \$? >>$scratch/full.result
ls $disk >>$scratch/full.result
rm $disk/filler
$engine train $disk >>$scratch/full.events
echo again \$? >>$scratch/full.result
cp $disk/adapter/adapter_model.safetensors $scratch/full.safetensors
END
	system("unshare -rm sh $scratch/full.sh 2>/dev/null");
	my $result = slurp("$scratch/full.result");
	my @full = map { decode_json($_) } split /\n/, slurp("$scratch/full.events");
	my ($failed) = named('failed', @full);
	is($failed->{code}, 'no_space', 'disk full: failed with code no_space');
	unlike($result, qr/\.tmp/, 'nothing temporary is left');
	like($result, qr/^checkpoint-\d+$/m, 'the last good checkpoint is');
	like($result, qr/again 0/, 'with more room the job goes on');
	is(slurp("$scratch/full.safetensors"), $expected, 'to the same bytes');
}

done_testing();
