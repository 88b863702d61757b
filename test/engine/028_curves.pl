# 028_curves.pl: SmolLM2's loss, step by step, is that of PEFT and transformers.
#
#   perl -Itest/engine test/engine/028_curves.pl [NAME…]
#
# The references are test/golden/curves/NAME.tsv, made by test/golden/make_curves.py; both sides have
# the rows and the options there, and draw order, steps and the adapter's first values by the same rules.
# In f32 every step's loss is within 1 %.  In bf16 (NAME-bf16) rounding takes another way from the first step
# on, and the more so the higher the learning rate: the mean of every ten steps is within 1 % of the reference
# in f32, or as near to it as the reference's own curve in bf16 is, which is NAME-bf16.tsv; the mean of all
# steps is within 1 %.  Without names one curve is compared; `make test-curves` compares all.
use strict;
use warnings;

use Cwd qw(abs_path);
use File::Path qw(remove_tree);
use JobTest;
use JSON::PP qw(decode_json);
use List::Util qw(max sum);
use Test::More;

my $model  = 'cache/SmolLM2-135M-Instruct.Q4_1.gguf';
my $folder = 'test/golden/curves';
my $steps  = 100;
my @names  = @ARGV ? @ARGV : ('lora_r16');
plan skip_all => "$model is not there" if !-e $model;

# The options and the lines of a reference: step, loss, gradient norm.
sub reference
{
	my ($name) = @_;
	my @lines = split /\n/, slurp("$folder/$name.tsv") // die "$folder/$name.tsv: $!\n";
	my ($options) = map { /^# (\{.*\})$/ ? decode_json($1) : () } @lines;
	return ($options, map { [ split /\t/ ] } grep { /^\d/ } @lines);
}

# Train as the reference was: exit code, what failed, steps.
sub trained
{
	my ($options, $numerics) = @_;
	my $job = new_job(
		job => {
			base     => { path => abs_path($model), name => 'smollm2' },
			numerics => $numerics,
			options  => { %$options, validation_fraction => 0, n_evals => 1 }
		},
		train => slurp("$folder/rows.jsonl"));
	my ($code, @events) = run_engine('train', $job);
	remove_tree($job);
	my ($failed) = named('failed', @events);
	return ($code, $failed ? "$failed->{code}: $failed->{message}" : undef, named('step', @events));
}

sub mean { return sum(@_) / @_; }

# The largest relative difference of two lists.
sub largest
{
	my ($ours, $theirs) = @_;
	return max(map { abs($ours->[$_] / $theirs->[$_] - 1) } 0 .. $#$theirs);
}

# Means of every ten.
sub tens
{
	my ($list) = @_;
	return [ map { mean(@$list[ 10 * $_ .. 10 * $_ + 9 ]) } 0 .. @$list / 10 - 1 ];
}

# How far the means of ten of the reference's own curve in bf16, where there is one, are from those in f32.
sub own_distance
{
	my ($curve, $losses) = @_;
	return 0 if !-e "$folder/$curve.tsv";
	my (undef, @own) = reference($curve);
	my $distance = largest(tens([ map { $_->[1] } @own ]), tens($losses));
	note(sprintf '%-16s the reference itself is within %.2g in bf16, means of ten', $curve, $distance);
	return $distance;
}

# Why 16-bit products cannot be had at a bearable price; undef: they can, natively or emulated.
sub no_bf16
{
	my $processor = slurp('/proc/cpuinfo') // '';
	delete $ENV{PG_FINETUNE_CPU};
	return undef if $processor =~ /\bavx512_bf16\b/;
	return 'this processor has no AVX-512, and emulates 16-bit products too slowly' if $processor !~ /\bavx512bw\b/;
	$ENV{PG_FINETUNE_CPU} = 'bf16';
	return undef;
}

for my $curve (@names)
{
	my ($name, $bf16) = $curve =~ /^(\w+?)(-bf16)?$/ or die "no curve \"$curve\"\n";
	my ($options, @theirs) = reference($name);
  SKIP:
	{
		my $reason = $bf16 ? no_bf16() : undef;
		skip "$curve: $reason", 4 if defined $reason;
		my ($code, $failed, @ours) = trained($options, $bf16 ? 'fast' : 'reference');
		delete $ENV{PG_FINETUNE_CPU};
		is($code, 0, "$curve: trained") or diag($failed // 'without a word');
		is_deeply([ map { $_->{step} } @ours ], [ 1 .. $steps ], "$curve: $steps steps");
		skip "$curve: there is nothing to compare", 2 if @ours != @theirs;
		my @losses = ([ map { $_->{training_loss} } @ours ], [ map { $_->[1] } @theirs ]);
		my $bound  = $bf16 ? max(0.01, own_distance($curve, $losses[1])) : 0.01;
		my @norms  = ([ map { $_->{grad_norm} } @ours ],     [ map { $_->[2] } @theirs ]);
		my $each   = largest(@losses);
		my $ten    = largest(map { tens($_) } @losses);
		note(sprintf '%-16s loss within %.2g of the reference at every step, means of ten within %.2g, gradient norm within %.2g',
			$curve, $each, $ten, largest(@norms));
		cmp_ok($bf16 ? $ten : $each, '<=', $bound, sprintf "$curve: the loss is the reference's within %.2g %%", 100 * $bound);
		my $all = mean(@{ $losses[0] }) / mean(@{ $losses[1] }) - 1;
		cmp_ok(abs $all, '<', 0.01, "$curve: over all steps within 1 %");
	}
}

done_testing();
