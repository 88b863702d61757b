# 025_early_stopping.pl: a run whose validation loss rises ends early, with the
# adapter of the best evaluation, also when it is killed in between.
use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use FaultShim;
use JobTest;
use Test::More;

# What is learnt says nothing of what is asked: the validation loss soon rises.
my $train      = jsonl(map { { prompt => "row $_", completion => 'yes' } } 1 .. 24);
my $validation = jsonl(map { { prompt => "row $_", completion => 'no' } } 30 .. 35);
my %options    = (max_epochs => 40, batch_size => 200, learning_rate => 0.01, lora_r => 4, n_evals => 30);

sub new_run
{
	my (%more) = @_;
	return new_job(train => $train, validation => $validation, job => { options => { %options, %more } });
}

sub adapter { return sha256_hex(slurp("$_[0]/adapter/adapter_model.safetensors") // ''); }

# Without it: the whole way
my $whole = new_run();
my ($code, @events) = run_engine('train', $whole);
is($code, 0, 'a run without the option');
is(scalar named('stopped_early', @events), 0, 'does not stop early');
my @all = grep { $_->{step} > 0 } named('evaluation', @events);
my ($completed) = named('completed', @events);
is($completed->{validation_loss}, $all[-1]{validation_loss}, 'its result is the last evaluation\'s');
is($completed->{best_step}, $completed->{steps}, 'and the last step\'s weights');

# What must become of it, by what was just seen
sub expected
{
	my ($patience) = @_;
	my ($best, $waited) = (undef, 0);
	for my $evaluation (@all)
	{
		if (!defined $best || $evaluation->{validation_loss} < $best->{validation_loss})
		{
			($best, $waited) = ($evaluation, 0);
		}
		elsif (++$waited >= $patience) { return ($best, $evaluation->{step}); }
	}
	return ($best, $all[-1]{step});
}

my %adapter;
for my $patience (1, 3, 10000)
{
	my $run = new_run(early_stopping_patience => $patience);
	my ($best, $last) = expected($patience);
	($code, @events) = run_engine('train', $run);
	($completed) = named('completed', @events);
	my ($stopped) = named('stopped_early', @events);
	is($code, 0, "patience $patience: it ends well");
	is($completed->{steps}, $last, "patience $patience: at step $last");
	is($completed->{best_step}, $best->{step}, "patience $patience: with the weights of step $best->{step}");
	cmp_ok($completed->{best_step}, '<', $completed->{steps}, "patience $patience: which is not the last");
	is($completed->{$_}, $best->{$_}, "patience $patience: $_ is that step's")
	  for qw(validation_loss validation_token_accuracy);
	if ($last == $all[-1]{step}) { is($stopped, undef, "patience $patience: it goes the whole way"); }
	else { is_deeply([ @$stopped{qw(step best_step)} ], [ $last, $best->{step} ], "patience $patience: it says so"); }
	$adapter{$patience} = adapter($run);

	# The weights are those, not only the words: judged anew they give that loss
	my $judged = new_job(train => $validation, job => { adapter => "$run/adapter", options => {} });
	my (undef, @said) = run_engine('evaluate', $judged);
	my ($evaluated) = named('evaluated', @said);
	cmp_ok(abs($evaluated->{loss} - $best->{validation_loss}), '<', 1e-6, "patience $patience: the adapter gives that loss");
}
is($adapter{3}, $adapter{10000}, 'the best one is the same however long is waited after it');

# Killed at each of its checkpoints' ends, and gone on with
my $killed = new_run(early_stopping_patience => 3);
my $control = "$JobTest::scratch/control";
my $kills = 0;
{
	local $ENV{LD_PRELOAD} = $FaultShim::library;
	local $ENV{FAULT_CONTROL} = $control;
	for my $at (1 .. 60)
	{
		arm($control, 'KILL', 'rename */state.json', 2, 2);
		($code, @events) = run_engine('train', $killed);
		last if named('completed', @events);
		$kills++;
	}
}
cmp_ok($kills, '>', 2, "killed $kills times");
is($code, 0, 'it ends in the end');
is(adapter($killed), $adapter{3}, 'with the same weights');
is((named('completed', @events))[0]{best_step}, (expected(3))[0]{step}, 'of the same step');

# Nothing to judge by
my $blind = new_job(job => { options => { %options, early_stopping_patience => 2, validation_fraction => 0 } });
($code, @events) = run_engine('train', $blind);
is($code, 1, 'no validation rows: an error');
is_deeply([ @{ (named('failed', @events))[0] }{qw(code message)} ],
	[ 'invalid', 'option "early_stopping_patience" needs validation rows, there are none' ], 'which says so');

done_testing();
