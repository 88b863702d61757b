# 028_dpo.pl: training on preference pairs as a program: what it tells, kills
# while the reference is made and after, adapters that it goes on with, and
# what it refuses.
use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use FaultShim;
use JobTest;
use JSON::PP qw(decode_json);
use Test::More;

my %options = (method => 'dpo', max_epochs => 2, batch_size => 400, learning_rate => 0.003, lora_r => 4, n_evals => 4);
my @pairs = map { { prompt => "row $_", chosen => 'yes ' . 'a' x ($_ % 5), rejected => 'no ' . 'b' x ($_ % 3) } } 1 .. 40;
my $control = "$JobTest::scratch/control";
my $ln2 = sprintf '%.9g', log 2; # as events have it

sub pairs_job
{
	my (%more) = @_;
	my $rows = delete $more{rows} // \@pairs;
	my $adapter = delete $more{adapter};
	my $validation = delete $more{validation};
	return new_job(train => jsonl(@$rows), $validation ? (validation => jsonl(@$validation)) : (),
		job => { options => { %options, %more }, $adapter ? (adapter => $adapter) : () });
}

sub adapter { return sha256_hex(slurp("$_[0]/adapter/adapter_model.safetensors") // ''); }

# --- a whole run

my $whole = pairs_job();
my ($code, @events) = run_engine('train', $whole);
is($code, 0, 'a run over pairs');
my ($dataset) = named('dataset', @events);
is_deeply($dataset->{rows}, { read => 40, used => 40, skipped_null => 0, truncated => 0 }, 'a pair is a row');
is($dataset->{validation_rows}, 4, 'a tenth of them validates');
my ($plan) = named('plan', @events);
is($plan->{options}{method}, 'dpo', 'the plan says method dpo');
is($plan->{options}{dpo_beta}, 0.1, 'and its beta');
is((named('reference', @events))[0]{pairs}, 40, 'all pairs have a reference');
my @evaluations = named('evaluation', @events);
is_deeply([ @{ $evaluations[0] }{qw(step validation_loss validation_token_accuracy reward_margin)} ],
	[ 0, $ln2, 0, 0 ], 'before the first step the loss is ln 2, and nothing is preferred');
cmp_ok($evaluations[-1]{validation_loss}, '<', 0.6, 'the loss falls');
is($evaluations[-1]{validation_token_accuracy}, 1, 'every pair is told apart');
cmp_ok($evaluations[-1]{reward_margin}, '>', 0.2, 'by a margin');
my @steps = named('step', @events);
cmp_ok($steps[-1]{reward_margin}, '>', $steps[0]{reward_margin}, 'which grows from step to step');
is($steps[-1]{tokens}, 2 * $dataset->{tokens}, 'both sides\' tokens are counted');
is($steps[-1]{trained_tokens}, 2 * $dataset->{trained_tokens}, 'and their trained ones');
my ($completed) = named('completed', @events);
is($completed->{validation_loss}, $evaluations[-1]{validation_loss}, 'the result is the last evaluation\'s');
is(scalar(grep { exists $_->{reward_margin} } (run_engine('train', new_job()))[ 1 .. 20 ]), 0, 'other methods have no margin');

my $again = pairs_job();
run_engine('train', $again);
is(adapter($again), adapter($whole), 'the same again: the same bytes');
my $stiff = pairs_job(dpo_beta => 0.5);
run_engine('train', $stiff);
isnt(adapter($stiff), adapter($whole), 'another beta: others');

# --- killed

# At every call that changes the reference's file, which has two windows of
# training pairs and one of validation pairs; all of it makes the same bytes.
{
	my @many = map { { prompt => "$_", chosen => 'y' . $_ % 7, rejected => 'n' } } 1 .. 1100;
	my %few = (rows => \@many, max_steps => 3, n_evals => 1, validation_fraction => 0.02);
	my $unbroken = pairs_job(%few);
	local $ENV{LD_PRELOAD} = $FaultShim::library;
	local $ENV{FAULT_CONTROL} = $control;
	arm($control, 'LOG', '* */reference.bin', 1, 0);
	($code) = run_engine('train', $unbroken);
	is($code, 0, 'a run over many pairs');
	my $calls = counted($control);
	cmp_ok($calls, '>=', 8, "its reference takes $calls calls");
	my $reference = sha256_hex(slurp("$unbroken/reference.bin"));
	my $kills = 0;
	for my $action ('KILL', 'TEAR')
	{
		my $killed = pairs_job(%few);
		for my $at (1 .. $calls)
		{
			# each attempt comes a call further, as windows that are whole stay
			arm($control, $action, '* */reference.bin', $at, $at);
			(my $end, @events) = run_engine('train', $killed);
			last if named('completed', @events);
			$kills++;
		}
		disarm($control);
		($code) = run_engine('train', $killed);
		is($code, 0, "$action: it ends in the end");
		is(sha256_hex(slurp("$killed/reference.bin")), $reference, "$action: with the same reference");
		is(adapter($killed), adapter($unbroken), "$action: and the same weights");
	}
	cmp_ok($kills, '>=', 8, "after $kills kills");
	arm($control, 28, 'write */reference.bin', 2, 2);
	my $full = pairs_job(%few);
	($code, @events) = run_engine('train', $full);
	is((named('failed', @events))[0]{code}, 'no_space', 'a full disk is said');
	disarm($control);
	($code) = run_engine('train', $full);
	is("$code " . adapter($full), '0 ' . adapter($unbroken), 'and with room again it goes on');
}

# Behind a checkpoint; also where the reference's file is damaged meanwhile.
for my $damage (0, 1)
{
	my $killed = pairs_job();
	my ($pid, $handle) = start_engine('train', $killed);
	while (my $line = <$handle>)
	{
		last if decode_json($line)->{event} eq 'checkpoint';
	}
	kill 'KILL', $pid;
	waitpid $pid, 0;
	spew("$killed/reference.bin", 'x' . substr slurp("$killed/reference.bin"), 1) if $damage;
	($code, @events) = run_engine('train', $killed);
	is($code, 0, "damage $damage: a killed run goes on");
	cmp_ok((named('started', @events))[0]{resumed_from}, '>', 0, "damage $damage: from its checkpoint");
	is(adapter($killed), adapter($whole), "damage $damage: to the same bytes");
}

# --- other adapters

# The reference is the adapter that training begins with.
my @others = map { { prompt => "other $_", chosen => 'up', rejected => 'down' } } 1 .. 20;
my $second = pairs_job(adapter => "$whole/adapter", rows => \@others);
($code, @events) = run_engine('train', $second);
is($code, 0, 'a run that continues from an adapter');
($evaluations[0]) = named('evaluation', @events);
is_deeply([ @{ $evaluations[0] }{qw(validation_loss reward_margin)} ], [ $ln2, 0 ], 'which is its reference');
my $from_base = pairs_job(rows => \@others);
run_engine('train', $from_base);
isnt(sha256_hex(slurp("$second/reference.bin")), sha256_hex(slurp("$from_base/reference.bin")), 'and not the base');

# After training on answers, as one does; and answers after pairs
my $answers = new_job();
run_engine('train', $answers);
($code) = run_engine('train', pairs_job(adapter => "$answers/adapter"));
is($code, 0, 'pairs after answers');
($code) = run_engine('train', new_job(job => { options => { max_steps => 2 }, adapter => "$whole/adapter" }));
is($code, 0, 'answers after pairs');

# --- ended early

# What is preferred is the other way round where it is judged.
my @against = map { { prompt => "row $_", chosen => 'no', rejected => 'yes' } } 41 .. 46;
my $early = pairs_job(validation => \@against, max_epochs => 20, early_stopping_patience => 2, n_evals => 20);
($code, @events) = run_engine('train', $early);
my ($stopped) = named('stopped_early', @events);
ok(defined $stopped, 'a run whose validation loss rises is ended early');
is((named('completed', @events))[0]{best_step}, $stopped->{best_step}, 'and keeps the best step\'s weights');
my ($best) = grep { $_->{step} == $stopped->{best_step} } named('evaluation', @events);
is((named('completed', @events))[0]{validation_loss}, $best->{validation_loss}, 'with its loss');

# --- estimated

(my $estimated, my @estimate) = run_engine('estimate', pairs_job());
($code, @events) = run_engine('train', pairs_job());
is("$estimated $code", '0 0', 'an estimate');
is_deeply([ named($_, @estimate) ], [ named($_, @events) ], "says the same $_") for qw(started dataset plan);
is((named('estimate', @estimate))[0]{total_tokens}, (named('step', @events))[-1]{tokens}, 'and the same tokens');

# --- refused

sub fails
{
	my ($name, $program, $directory, $error, $message) = @_;
	my ($end, @told) = run_engine($program, $directory);
	my ($failed) = named('failed', @told);
	is($end, 1, "$name: an error");
	is($failed->{code}, $error, "$name: $error");
	like($failed->{message}, $message, "$name: a message");
	unlike($failed->{message} . ($failed->{hint} // ''), qr/CANARY/, "$name: without text of a row");
}

my %answer = (prompt => 'CANARY', completion => 'CANARY');
my %pair = (prompt => 'CANARY', chosen => 'CANARY', rejected => 'CANARY');
fails('answers', 'train', pairs_job(rows => [ \%pair, \%answer ]), 'invalid', qr/^row 2 of train\.jsonl: row is no pair/);
fails('pairs', 'train', pairs_job(method => 'lora', rows => [ \%pair ]), 'invalid', qr/^row 1 of train\.jsonl: row is a pair/);
fails('half a pair', 'train', pairs_job(rows => [ { prompt => 'CANARY', chosen => 'x' } ]), 'invalid', qr/column "rejected" is missing/);
fails('no text', 'train', pairs_job(rows => [ { %pair, rejected => [1] } ]), 'invalid', qr/column "rejected" is no string/);
fails('pairs and answers', 'train', pairs_job(rows => [ { %pair, %answer } ]), 'invalid', qr/2 column sets/);
fails('only weight 0', 'train', pairs_job(rows => [ { %pair, weight => 0 } ]), 'invalid', qr/no usable rows: 1 read/);
fails('beta without dpo', 'train', pairs_job(method => 'lora', dpo_beta => 0.2), 'invalid', qr/"dpo_beta" is of method dpo only/);
fails('beta 0', 'train', pairs_job(dpo_beta => 0), 'invalid', qr/"dpo_beta" is no number from/);
fails('inputs', 'train', pairs_job(train_on_inputs => JSON::PP::true), 'invalid', qr/"train_on_inputs" does not go with method dpo/);
fails('evaluate', 'evaluate', pairs_job(), 'unsupported', qr/preference pairs cannot be evaluated/);

done_testing();
