# 024_continue.pl: training that continues from an adapter.
use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use File::Path qw(remove_tree);
use JobTest;
use JSON::PP qw(decode_json);
use Test::More;

my %options = (max_epochs => 3, batch_size => 200, learning_rate => 0.01, n_evals => 4);

sub adapter { return sha256_hex(slurp("$_[0]/adapter/adapter_model.safetensors") // ''); }

sub run_from
{
	my ($program, $adapter, %more) = @_;
	my $directory = new_job(job => { options => { %options, %more }, adapter => $adapter });
	my ($code, @events) = run_engine($program, $directory);
	return ($directory, $code, @events);
}

my ($first, $code, @events) = (new_job(job =>
	{ options => { %options, lora_r => 4, lora_alpha => 6, lora_target_modules => [ 'q_proj', 'down_proj' ], use_rslora => JSON::PP::true } }));
($code, @events) = run_engine('train', $first);
is($code, 0, 'a first run');
my ($before) = named('completed', @events);

# Without a word about its shape
(my $second, $code, @events) = run_from('train', "$first/adapter");
is($code, 0, 'a second run goes on from its adapter');
my ($plan) = named('plan', @events);
is_deeply([ @{ $plan->{options} }{qw(lora_r lora_alpha lora_target_modules use_rslora)} ],
	[ 4, 6, [ 'q_proj', 'down_proj' ], JSON::PP::true ], 'whose shape is that of the options');
my ($untouched) = named('evaluation', @events);
is($untouched->{step}, 0, 'before the first step');
cmp_ok(abs($untouched->{validation_loss} - $before->{validation_loss}), '<', 1e-12, 'it is as good as the first run left it');
my ($learning) = named('step', @events);
my (undef, @fresh) = run_engine('train', new_job(job => { options => \%options }));
cmp_ok($learning->{training_loss}, '<', 0.9 * (named('step', @fresh))[0]{training_loss}, 'and knows the rows');
isnt(adapter($second), adapter($first), 'it learns more');

# With words that agree
(my $third, $code) = run_from('train', "$first/adapter", lora_r => 4, lora_alpha => 6, use_rslora => JSON::PP::true,
	lora_target_modules => [ 'down_proj', 'q_proj' ]);
is(adapter($third), adapter($second), 'the same shape, given: the same weights');

# With others
for my $case (
	[ lora_r => 8, 'option "lora_r" is 8, but the adapter to continue from has 4' ],
	[ lora_alpha => 6.5, 'option "lora_alpha" is 6.5, but the adapter to continue from has 6' ],
	[ use_rslora => JSON::PP::false, 'option "use_rslora" is not that of the adapter to continue from' ],
	[ lora_target_modules => 'all-linear', 'option "lora_target_modules" is not that of the adapter to continue from' ])
{
	my ($key, $value, $message) = @$case;
	for my $program ('train', 'estimate')
	{
		my (undef, $code, @events) = run_from($program, "$first/adapter", $key => $value);
		is($code, 1, "$program: another $key is an error");
		is_deeply([ @{ (named('failed', @events))[0] }{qw(code message)} ], [ 'invalid', $message ], 'which says so');
	}
}

# An estimate of it
(undef, $code, @events) = run_from('estimate', "$first/adapter");
is($code, 0, 'it can be estimated');
is((named('plan', @events))[0]{options}{lora_r}, 4, 'with the shape that it has');

# What is resumed needs the first adapter no more
my $resumed = new_job(job => { options => \%options, adapter => "$first/adapter" });
my ($pid, $handle) = start_engine('train', $resumed);
while (my $line = <$handle>)
{
	last if decode_json($line)->{event} eq 'checkpoint';
}
kill 'KILL', $pid;
waitpid $pid, 0;
remove_tree("$first/adapter");
my $job = decode_json(slurp("$resumed/job.json"));
delete $job->{adapter};
spew("$resumed/job.json", JSON::PP->new->encode($job));
($code, @events) = run_engine('train', $resumed);
is($code, 0, 'a run that was killed goes on though the adapter is gone');
cmp_ok((named('started', @events))[0]{resumed_from}, '>', 0, 'from its checkpoint');
is(adapter($resumed), adapter($second), 'to the same weights');

# Nor does one that must begin anew
remove_tree($_) for glob "$resumed/checkpoint-* $resumed/adapter $resumed/metrics.jsonl";
($code) = run_engine('train', $resumed);
is($code, 0, 'without a checkpoint it begins anew');
is(adapter($resumed), adapter($second), 'from the adapter\'s copy');

done_testing();
