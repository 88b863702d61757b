# 028_memory.pl: what training holds in memory does not grow with its rows, which
# are on disk, but for a few bytes a row; how it grows with a batch; and what a
# batch of 2,048 tokens of a real model takes.
use strict;
use warnings;

use Cwd qw(abs_path);
use JobTest;
use JSON::PP qw(decode_json);
use Test::More;

# The most that a process has had in memory so far, in bytes.
sub peak_of
{
	my ($pid) = @_;
	my ($kilobytes) = (slurp("/proc/$pid/status") // '') =~ /^VmHWM:\s*(\d+)/m;
	return ($kilobytes // 0) * 1024;
}

# Train on that many short rows for a few steps: (tokens of the rows, peak).
sub train
{
	my ($rows, %options) = @_;
	my $job = new_job(
		train => jsonl(map { { prompt => "row $_", completion => 'the ' . ($_ % 1000) } } 1 .. $rows),
		job => { threads => 1, options => { max_steps => 3, batch_size => 256, validation_fraction => 0.1, n_evals => 1, %options } });
	my ($pid, $events) = start_engine('train', $job);
	my ($tokens, $peak) = (0, 0);

	while (my $line = <$events>)
	{
		my $event = decode_json($line);
		$tokens = $event->{tokens} if $event->{event} eq 'dataset';
		$peak = peak_of($pid) if $event->{event} eq 'step';
	}
	waitpid $pid, 0;
	is($?, 0, "$rows rows are trained on");
	return ($tokens, $peak);
}

my ($few_tokens, $few) = train(200);
my ($many_tokens, $many) = train(20000);
cmp_ok($few, '>', 1e6, 'the process says what it has');
cmp_ok($many_tokens, '>', 90 * $few_tokens, 'a hundred times the rows');
cmp_ok(($many - $few) / ($many_tokens - $few_tokens), '<', 16, 'take less than 16 bytes a token');
note(sprintf '%d bytes for %d tokens, %d for %d', $few, $few_tokens, $many, $many_tokens);

# A step is computed in batches of a bounded size.
my (undef, $large) = train(4000, batch_size => 100000, max_steps => 1);
cmp_ok($large, '<', 3 * $few, 'a step of a hundred thousand tokens takes little more than one of 256');

# The most that training SmolLM2 with 2,048 tokens in a batch has in memory: a single row of them takes more than
# short ones, which are computed a part at a time.
my $model = 'cache/SmolLM2-135M-Instruct.Q4_1.gguf';
my %gigabytes = (lora => 1.5, full => 3);
SKIP:
{
	skip "$model is not there", 2 * keys %gigabytes if !-e $model;
	for my $method (sort keys %gigabytes)
	{
		my $job = new_job(
			train => jsonl({ input_ids => [ map { 1000 + $_ % 7000 } 1 .. 2048 ], labels => [ (-100) x 2038, 1 .. 10 ] }),
			job   => {
				base     => { path => abs_path($model), name => 'smollm2' },
				numerics => 'fast',
				options  => { method => $method, max_steps => 1, max_seq_length => 2048, validation_fraction => 0 }
			});
		my ($pid, $events) = start_engine('train', $job);
		my $peak = 0;
		while (my $line = <$events>)
		{
			next if decode_json($line)->{event} ne 'step';
			$peak = peak_of($pid);
			kill 'KILL', $pid;
		}
		waitpid $pid, 0;
		cmp_ok($peak / 1e9, '<', $gigabytes{$method}, "$method, a row of 2,048 tokens: below $gigabytes{$method} GB");
		cmp_ok($peak, '>', 3e8, '... and it is a model of some size');
		note(sprintf '%s, a row of 2,048 tokens: %.0f MB', $method, $peak / 1e6);
	}
}

done_testing();
