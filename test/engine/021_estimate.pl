# 021_estimate.pl: `estimate JOBDIR` and `evaluate JOBDIR`: they say beforehand,
# and of any rows, what `train` says.
use strict;
use warnings;

use JSON::PP qw(decode_json);
use JobTest;
use Test::More;

my $validation = jsonl(map { { prompt => "row $_", completion => "the " . $_ % 3 } } 30 .. 40);

# The only event of a name.
sub event
{
	my ($name, @events) = @_;
	my @found = named($name, @events);
	is(scalar @found, 1, "one event $name");
	return $found[0] // {};
}

# --- What is estimated is what is done

# The same job, estimated and run, must agree; returns the estimate and the run's events.
sub agree
{
	my ($name, %with) = @_;
	my ($estimated, @estimate) = run_engine('estimate', new_job(%with));
	my $trained = new_job(%with);
	my ($code, @events) = run_engine('train', $trained);
	my $estimate = event('estimate', @estimate);
	my ($last) = (named('step', @events))[-1];

	is("$estimated $code", '0 0', "$name: both end well");
	is_deeply([ named($_, @estimate) ], [ named($_, @events) ], "$name: $_") for qw(started dataset plan);
	is($estimate->{total_tokens}, $last->{tokens}, "$name: tokens of the whole job");
	is($estimate->{trained_tokens}, $last->{trained_tokens}, "$name: trained tokens of the whole job");
	is($estimate->{evaluations}, scalar named('evaluation', @events), "$name: evaluations");
	is(scalar named('step', @estimate), 0, "$name: no step is told");
	cmp_ok($estimate->{seconds}, '>', 0, "$name: seconds");
	cmp_ok($estimate->{tokens_per_second}, '>', 0, "$name: tokens per second");
	cmp_ok($estimate->{memory}{host}, '>', 1 << 20, "$name: memory");
	is($estimate->{memory}{device}, 0, "$name: none but the host's");
	return ($estimate, $trained, @events);
}

my ($estimate, $directory, @events) = agree('three epochs', validation => $validation);
is($estimate->{max_tokens_per_row}, 38, 'the longest row');
my ($no_validation) = agree('no validation',
	job => { options => { max_epochs => 2, batch_size => 100, validation_fraction => 0 } });
is($no_validation->{evaluations}, 0, 'nothing to evaluate');
agree('an epoch cut short',
	job => { options => { max_steps => 7, batch_size => 150, learning_rate => 0.001, n_evals => 3 } });
agree('one step', job => { options => { max_steps => 1, batch_size => 100000 } });
agree('automatic options', job => { options => {} });

# Steps so large that only a part of one is measured
{
	my $long = jsonl(map { { prompt => "row $_ of many", completion => "the number $_" } } 1 .. 12000);
	my ($code, @told) = run_engine('estimate',
		new_job(train => $long, job => { threads => 1, options => { max_epochs => 50, batch_size => 10000000 } }));
	is($code, 0, 'huge steps: it ends');
	my $huge = event('estimate', @told);
	cmp_ok($huge->{total_tokens}, '==', 50 * event('dataset', @told)->{tokens}, 'huge steps: tokens');
	cmp_ok(abs($huge->{seconds} * $huge->{tokens_per_second} / $huge->{total_tokens} - 1), '<', 0.5,
		'huge steps: the time is that of the tokens');
}

# --- What is evaluated is what training evaluates

my @evaluations = named('evaluation', @events);
my @cases = ([ base => undef, $evaluations[0] ], [ tuned => "$directory/adapter", $evaluations[-1] ]);
for my $case (@cases)
{
	my ($name, $adapter, $expected) = @$case;
	my ($code, @told) = run_engine('evaluate', new_job(train => $validation, job => { adapter => $adapter, options => {} }));
	my $evaluated = event('evaluated', @told);

	is($code, 0, "$name: it ends well");
	cmp_ok(abs($evaluated->{loss} - $expected->{validation_loss}), '<', 1e-6, "$name: training's loss");
	cmp_ok(abs($evaluated->{token_accuracy} - $expected->{validation_token_accuracy}),
		'<', 1e-6, "$name: training's token accuracy");
	cmp_ok($evaluated->{exact}, '<=', 11, "$name: exact rows are rows");
	is(event('dataset', @told)->{rows}{used}, 11, "$name: every row is judged");
}

# --- Both fail as training does

my @failures = (
	[ 'no job.json', do { my $d = new_job(); unlink "$d/job.json"; $d }, 'not_found', qr/job\.json/ ],
	[ 'missing base', new_job(job => { base => { path => "$JobTest::scratch/none.gguf" } }), 'not_found', qr/none\.gguf/ ],
	[ 'another base', new_job(job => { base => { path => $JobTest::base, digest => '0' x 64 } }), 'mismatch', qr/digest/ ],
	[ 'no rows', new_job(train => ''), 'invalid', qr/no usable rows: 0 read/ ],
	[ 'a bad row', new_job(train => jsonl({ prompt => 'CANARY', completion => ['CANARY'] })),
		'invalid', qr/row 1 of train\.jsonl: column "completion" is no string/ ],
	[ 'no device', new_job(job => { device => 'cuda:99' }), 'device', qr/./ ],
	[ 'adapter of another type', new_job(job => { adapter => 7 }), 'invalid', qr/"adapter" is no string/ ]);
for my $failure (@failures)
{
	my ($name, $job, $code, $message) = @$failure;

	for my $program (qw(estimate evaluate))
	{
		my ($exit, @told) = run_engine($program, $job);
		is($exit, 1, "$program, $name: exit code 1");
		is($told[-1]{event} . ' ' . ($told[-1]{code} // ''), "failed $code", "$program, $name: code $code");
		like($told[-1]{message} // '', $message, "$program, $name: message");
	}
}
for my $program (qw(train estimate evaluate))
{
	my ($exit, @told) = run_engine($program, new_job(job => { adapter => "$JobTest::scratch/none" }));
	is("$exit $told[-1]{code}", '1 not_found', "$program: an adapter that is missing");
}
{
	# a model whose last weights are no numbers
	my $damaged = slurp($JobTest::base);
	substr($damaged, -64) = pack('f<', 'NaN') x 16;
	spew("$JobTest::scratch/nan.gguf", $damaged);
	for my $program (qw(estimate evaluate))
	{
		my ($exit, @told) = run_engine($program, new_job(job => { base => { path => "$JobTest::scratch/nan.gguf" } }));
		is("$exit $told[-1]{code}", '1 non_finite', "$program: a loss that is no number");
		like($told[-1]{message}, qr/^loss is -?nan/, "$program: says so");
	}
}
is(system("$JobTest::engine $_ --what 2>/dev/null") >> 8, 2, "$_: wrong usage: exit code 2") for qw(estimate evaluate);

# --- Ended

for my $program (qw(estimate evaluate))
{
	my $long = jsonl(map { { prompt => "row $_ of many", completion => "the number $_" } } 1 .. 50000);
	my $job = new_job(train => $long, job => { options => { max_epochs => 1, batch_size => 10000000 } });
	my ($pid, $told) = start_engine($program, $job);
	my ($busy, @second);

	1 while !-e "$job/dataset.bin.tmp" && !-e "$job/dataset.bin" && select(undef, undef, undef, 0.01) == 0;
	($busy, @second) = run_engine($program, $job);
	is("$busy $second[-1]{code}", '1 busy', "$program: a second engine in the same directory fails");
	kill 'TERM', $pid;
	my @rest = <$told>;
	waitpid $pid, 0;
	is($? >> 8, 3, "$program: SIGTERM ends it with exit code 3");
	is(scalar(grep { /estimate"|evaluated/ } @rest), 0, "$program: before its end");
}
unlike(slurp("$JobTest::scratch/stderr"), qr/CANARY/, 'no text of a row is logged');

done_testing();
