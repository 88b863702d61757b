# 028_memory.pl: what training holds in memory does not grow with its rows, which
# are on disk, but for a few bytes a row; and how it grows with a batch.
use strict;
use warnings;

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

done_testing();
