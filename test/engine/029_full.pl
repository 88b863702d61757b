# 029_full.pl: training all weights of a base (method full) as a program: what it
# leaves behind, kills, the best weights, and what may be done with the result.
use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use FaultShim;
use JobTest;
use JSON::PP qw(decode_json);
use ServeTest;
use Test::More;

my $control = "$JobTest::scratch/control";
my %options = (method => 'full', max_epochs => 3, batch_size => 200, learning_rate => 0.003, n_evals => 4);

sub new_run
{
	my (%change) = @_;
	my $more = delete $change{options} // {};
	my $rows = delete $change{rows} // {};
	return new_job(%$rows, job => { options => { %options, %$more }, %change });
}

# Name and contents of all files of a result.
sub model
{
	my ($directory) = @_;
	return { map { my ($name) = m{([^/]+)\z}; ($name => sha256_hex(slurp($_))) } glob "$directory/model/*" };
}

# The 16-bit products that most processors of today have, by force where this one lacks them.
sub in_bf16
{
	my ($work) = @_;
	local $ENV{PG_FINETUNE_CPU} = 'bf16';
	return $work->();
}

# --- a whole run -----------------------------------------------------------------------------------

my $whole = new_run();
my ($code, @events) = run_engine('train', $whole);
my ($plan) = named('plan', @events);
my ($completed) = named('completed', @events);
my @steps = named('step', @events);
is($code, 0, 'a job ends well');
is($plan->{options}{method}, 'full', 'plan: the method');
is_deeply([ grep { /lora/ } keys %{ $plan->{options} } ], [], 'plan: no options of adapters');
is($plan->{trainable_parameters}, (named('started', @events))[0]{parameters}, 'plan: all parameters are trained');
cmp_ok($steps[-1]{training_loss}, '<', $steps[0]{training_loss} * 0.8, 'the loss falls');
is($completed->{model}, 'model', 'completed: the model');
ok(!exists $completed->{adapter}, 'completed: no adapter');
my $expected = model($whole);
is_deeply([ sort keys %$expected ],
	[qw(config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json)], 'the directory is whole');
is(decode_json(slurp("$whole/model/config.json"))->{torch_dtype}, 'float32', 'in f32, as it was trained');
is(scalar(() = glob "$whole/checkpoint-*"), 2, 'two checkpoints are kept');
is(scalar(() = glob "$whole/*.tmp"), 0, 'nothing temporary is left');

my $small = new_run(numerics => 'fast');
my ($small_code, @small) = in_bf16(sub { run_engine('train', $small) });
my ($small_completed) = named('completed', @small);
my $small_expected = model($small);
is($small_code, 0, 'with 16-bit weights, too');
is(decode_json(slurp("$small/model/config.json"))->{torch_dtype}, 'bfloat16', 'which it writes as such');
cmp_ok(-s "$small/model/model.safetensors", '<', 0.6 * -s "$whole/model/model.safetensors", 'in half of the room');
cmp_ok(abs($small_completed->{validation_loss} / $completed->{validation_loss} - 1),
	'<', 0.01, 'and the loss is about the same');

# --- killed ------------------------------------------------------------------------------------------

# Kill a run at a call and go on with it.
sub killed
{
	my ($call, $at, @job) = @_;
	my $job = new_run(@job);
	{
		local $ENV{LD_PRELOAD} = $FaultShim::library;
		local $ENV{FAULT_CONTROL} = $control;
		arm($control, 'KILL', $call, $at, $at);
		($code, @events) = run_engine('train', $job);
	}
	my $dead = named('completed', @events) ? 0 : 1;
	($code, @events) = run_engine('train', $job);
	return ($job, $dead);
}

my @bad;
for my $line (1 .. @steps + 5)
{
	my ($job, $dead) = in_bf16(sub { killed('write */metrics.jsonl', $line, numerics => 'fast') });
	push @bad, $line unless $dead && $code == 0 && JSON::PP->new->canonical->encode(model($job)) eq
	  JSON::PP->new->canonical->encode($small_expected);
}
is_deeply(\@bad, [], 'killed at every step and evaluation, with 16-bit weights: the same bytes');
for my $call ('rename */checkpoint-6', 'write */checkpoint-6.tmp/optimizer.safetensors', 'write */model.tmp/model.safetensors',
	'rename */model', 'fsync */model.tmp/config.json')
{
	my ($job, $dead) = killed($call, 1);
	ok($dead, "killed at \"$call\"");
	is_deeply(model($job), $expected, '... it ends with the same bytes');
	is(scalar(() = glob "$job/*.tmp"), 0, '... and nothing temporary');
}

my $full_disk = new_run();
{
	local $ENV{LD_PRELOAD} = $FaultShim::library;
	local $ENV{FAULT_CONTROL} = $control;
	arm($control, 28, 'write */model.tmp/model.safetensors', 1, 0);
	($code, @events) = run_engine('train', $full_disk);
}
is($code, 1, 'no room for the result');
is($events[-1]{code}, 'no_space', '... which is said');
ok(!-e "$full_disk/model" && !-e "$full_disk/model.tmp", '... and no part of it is left');
($code, @events) = run_engine('train', $full_disk);
is((named('started', @events))[0]{resumed_from}, scalar @steps, '... no step is taken again');
is_deeply(model($full_disk), $expected, '... once there is room');

# --- the best weights ----------------------------------------------------------------------------------

my $validation = jsonl(map { { prompt => "row $_", completion => 'no' } } 30 .. 35);
my %diverging = (rows => { train => jsonl(map { { prompt => "row $_", completion => 'yes' } } 1 .. 24), validation => $validation },
	options => { max_epochs => 40, n_evals => 30, early_stopping_patience => 2 });
my $early = new_run(%diverging);
($code, @events) = run_engine('train', $early);
my ($early_completed) = named('completed', @events);
is($code, 0, 'a run that is stopped early');
cmp_ok($early_completed->{best_step}, '<', $early_completed->{steps}, 'has its best weights before its end');
my $early_expected = model($early);
my ($early_killed, $early_dead) = killed('rename */state.json', 3, %diverging);
ok($early_dead, 'killed in between');
is_deeply(model($early_killed), $early_expected, 'it ends with the same ones');

sub judge
{
	my ($base, $rows) = @_;
	my $job = new_job(train => $rows, job => { base => { path => $base }, options => {} });
	my ($exit, @said) = run_engine('evaluate', $job);
	return (named('evaluated', @said))[0];
}

cmp_ok(abs(judge("$early/model", $validation)->{loss} - $early_completed->{validation_loss}), '<', 1e-6,
	'judged anew, they give the loss of the best step');

# --- what may be done with it --------------------------------------------------------------------------

my $again = new_run(base => { path => "$whole/model" });
($code, @events) = run_engine('train', $again);
is($code, 0, 'the result is a base to go on from');
cmp_ok(abs((named('evaluation', @events))[0]{validation_loss} - $completed->{validation_loss}), '<', 1e-6,
	'where the first run has ended');
($code, @events) = run_engine('train', new_job(job => { base => { path => "$whole/model" } }));
is($code, 0, 'and a base for an adapter');
is((named('completed', @events))[0]{adapter}, 'adapter', 'which is trained over it');

my $server = ServeTest->new(args => [ '--numerics', 'reference' ]);
my %answer;
for my $which (qw(base tuned))
{
	my ($status, $reply) = $server->post('/v1/load_model', { model => $which, path => $which eq 'base' ? $JobTest::base : "$whole/model" });
	is($status, 200, "serve: the $which model is loaded");
	($status, $reply) = $server->post('/v1/completions',
		{ model => $which, prompt => 'row 3 xxx', max_tokens => 12, temperature => 0, ignore_eos => JSON::PP::true });
	is($status, 200, '... and answers');
	$answer{$which} = $reply->{choices}[0]{text};
}
isnt($answer{tuned}, $answer{base}, 'serve: it has learnt something');
$server->stop;

my $estimated = new_run();
($code, @events) = run_engine('estimate', $estimated);
is($code, 0, 'an estimate');
my ($estimate) = named('estimate', @events);
is($estimate->{total_tokens}, $steps[-1]{tokens}, '... of all the tokens');
cmp_ok($estimate->{memory}{host}, '>', 16 * 29448, '... and of the memory of weights, gradient and moments');
ok(!-e "$estimated/model", '... which trains nothing');

# --- misled ----------------------------------------------------------------------------------------------

sub fails
{
	my ($name, $message, %job) = @_;
	for my $program (qw(train estimate))
	{
		my ($exit, @told) = run_engine($program, new_run(%job));
		is($exit, 1, "$name: $program fails");
		is($told[-1]{code}, 'invalid', '... code invalid');
		like($told[-1]{message}, $message, '... message');
		is(scalar named('started', @told), 0, '... before a device is taken');
	}
}

fails('an option of adapters', qr/option "lora_r" does not go with method full/, options => { lora_r => 8 });
fails('rslora', qr/option "use_rslora" does not go with method full/, options => { use_rslora => JSON::PP::true });
fails('an adapter', qr/method full does not continue from an adapter/, adapter => '/nowhere');

my $moved = new_run(numerics => 'fast');
in_bf16(sub {
	local $ENV{LD_PRELOAD} = $FaultShim::library;
	local $ENV{FAULT_CONTROL} = $control;
	arm($control, 'KILL', 'write */metrics.jsonl', 10, 10);
	run_engine('train', $moved);
});
{
	local $ENV{PG_FINETUNE_CPU} = 'portable';
	($code, @events) = run_engine('train', $moved);
}
is($code, 1, 'but not with others');
is($events[-1]{code}, 'mismatch', '... code mismatch');
like($events[-1]{hint}, qr/other numerics/, '... with a hint');

done_testing();
