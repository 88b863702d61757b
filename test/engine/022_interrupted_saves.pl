# 022_interrupted_saves.pl: training is interrupted at each call that changes a
# file: killed before it, killed in the middle of a write, out of space, or with
# an error of the disk.  Whatever was there before is there afterwards, and a
# resume ends with the bytes of a run that nobody interrupted.
use strict;
use warnings;

use Errno qw(EIO ENOSPC);
use FaultShim;
use File::Path qw(remove_tree);
use JSON::PP qw(decode_json);
use JobTest;
use Test::More;

my $control = "$JobTest::scratch/control";
my %job = (job => {
		threads => 1,
		options => { max_steps => 3, batch_size => 200, learning_rate => 0.01, lora_r => 2, n_evals => 3,
			lora_target_modules => ['q_proj'] } });

# The directory and all below it.
sub pattern { return "* $_[0]*"; }

# Run with the shim: status as waitpid gives it, and the events.
sub run_shimmed
{
	my ($directory) = @_;
	local $ENV{LD_PRELOAD} = $FaultShim::library;
	local $ENV{FAULT_CONTROL} = $control;
	my ($pid, $events) = start_engine('train', $directory);
	my @events = map { decode_json($_) } grep { /\n\z/ } <$events>;
	waitpid $pid, 0;
	return ($?, @events);
}

# The log of metrics without its times; undef when a line is no JSON.
sub metrics_of
{
	my ($directory) = @_;
	my $metrics = '';
	for my $line (split /^/, slurp("$directory/metrics.jsonl") // '')
	{
		my $event = eval { decode_json($line) } or return undef;
		delete @$event{qw(tokens_per_second elapsed)};
		$metrics .= JSON::PP->new->canonical->encode($event) . "\n";
	}
	return $metrics;
}

# Every file below a directory.
sub files_in
{
	my ($directory) = @_;
	return map { -d $_ && !-l $_ ? files_in($_) : $_ } glob "$directory/*";
}

sub temporary { return grep { /\.tmp/ } glob("$_[0]/* $_[0]/*/*"), files_in($_[0]); }

my $unbroken = new_job(%job);
arm($control, 'LOG', pattern($unbroken), 1, 0);
my ($status, @events) = run_shimmed($unbroken);
my @calls = logged($control);
my $adapter = slurp("$unbroken/adapter/adapter_model.safetensors");
my $config = slurp("$unbroken/adapter/adapter_config.json");
my $metrics = metrics_of($unbroken);
s{\Q$unbroken\E}{} for grep { defined } @calls;
is($status, 0, 'a run that is watched ends well');
is(scalar(named('checkpoint', @events)), 3, 'with three checkpoints');
is(counted($control), $#calls, 'every call is in the log');
for my $name ('open /dataset.bin.tmp', 'rename /dataset.bin', 'unlink /train.jsonl', 'rename /plan.json',
	'write /metrics.jsonl', 'fdatasync /metrics.jsonl', 'mkdir /checkpoint-1.tmp',
	'write /checkpoint-1.tmp/adapter.tmp/adapter_model.safetensors', 'rename /checkpoint-1.tmp/adapter',
	'fsync /checkpoint-1.tmp/optimizer.safetensors', 'rename /checkpoint-1.tmp/state.json',
	'rename /checkpoint-1', 'rename /checkpoint-1.tmp', 'rmdir /checkpoint-1.tmp', 'rename /adapter')
{
	is(scalar(grep { defined && $_ eq $name } @calls) > 0, 1, "among the calls: $name");
}

# The newest checkpoint that has a name of its own.
sub newest
{
	my ($directory) = @_;
	return (sort { $b <=> $a } map { /checkpoint-(\d+)$/ } glob "$directory/checkpoint-*")[0] // 0;
}

# Resume without the shim; what is wrong then, '' when nothing is.
sub resumes
{
	my ($directory, $least) = @_;
	my $there = newest($directory);
	my ($code, @told) = run_engine('train', $directory);
	my ($started) = named('started', @told);

	return "exit code $code: " . ($told[-1]{message} // '') if $code != 0;
	return "resumed from $started->{resumed_from}, checkpoint $there is there" if $started->{resumed_from} != $there;
	return "resumed from $started->{resumed_from}, checkpoint $least was said to be there" if $there < $least;
	return 'another adapter' if slurp("$directory/adapter/adapter_model.safetensors") ne $adapter;
	return 'another configuration' if slurp("$directory/adapter/adapter_config.json") ne $config;
	return 'other metrics' if (metrics_of($directory) // '') ne $metrics;
	return 'more checkpoints than two' if (() = glob "$directory/checkpoint-*") > 2;
	return 'the rows are still there' if -e "$directory/train.jsonl";
	return 'left: ' . join ' ', temporary($directory) if temporary($directory);
	return '';
}

# What must hold as soon as a run has failed, '' when it does.
sub has_failed
{
	my ($directory, $exit, $code, @told) = @_;

	return "status $exit" if $exit != 1 << 8;
	return "last event $told[-1]{event}" if $told[-1]{event} ne 'failed';
	return "code $told[-1]{code}: $told[-1]{message}" if $told[-1]{code} ne $code;
	return '';
}

# Interrupt run after run, each at another call, and resume each of them.
sub interrupt
{
	my ($name, $action, $last, $judge, @numbers) = @_;
	my $met = 0;
	my @wrong;

	for my $n (@numbers)
	{
		my $directory = new_job(%job);
		arm($control, $action, pattern($directory), $n, $last // $n);
		my ($exit, @told) = run_shimmed($directory);
		my $wrong = $judge->($directory, $exit, @told);
		my ($saved) = reverse named('checkpoint', @told);
		$met++ if counted($control) >= $n;
		$wrong = resumes($directory, $saved ? $saved->{step} : 0) if $wrong eq '';
		push @wrong, "call $n ($calls[$n]): $wrong" if $wrong ne '';
		remove_tree($directory);
	}
	is($met, scalar @numbers, "$name: each of the calls was met");
	is(scalar @wrong, 0, "$name: a resume ends with the same bytes") or diag(map { "$_\n" } @wrong);
}

my @all = (1 .. $#calls);
my @writes = grep { $calls[$_] =~ /^write / } @all;
my $killed = sub { return $_[1] == 9 ? '' : "status $_[1]"; };

note(scalar(@all), ' calls, ', scalar(@writes), ' of them writes');
interrupt('killed', 'KILL', undef, $killed, @all);
interrupt('killed in a write', 'TEAR', undef, $killed, @writes);
interrupt('an error of the disk', EIO, undef, sub { return has_failed(@_[ 0, 1 ], 'io', @_[ 2 .. $#_ ]); }, @all);
interrupt('a full disk', ENOSPC, 0, sub { return has_failed(@_[ 0, 1 ], 'no_space', @_[ 2 .. $#_ ]); }, @all);

done_testing();
