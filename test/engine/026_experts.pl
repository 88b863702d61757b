# 026_experts.pl: a mixture of experts from end to end: inspected, trained, stopped and resumed, evaluated,
# served in company.
use strict;
use warnings;

use JSON::PP ();
use Test::More;

use JobTest;
use ServeTest;

my $folder = "test/golden/tiny_mixtral";
my %base = (path => "$folder/plain/base.gguf", name => "mixtral");
my %options = (max_epochs => 10, batch_size => 150, learning_rate => 0.01, lora_r => 3, n_evals => 2);

sub inspect
{
	my $text = `$JobTest::engine inspect $_[0]`;
	return JSON::PP::decode_json($text);
}

my $described = inspect($base{path});
is($described->{experts}, 5, 'inspect says how many experts there are');
is($described->{experts_per_token}, 2, '... and how many a token has');
is_deeply($described->{unsupported}, [], '... and that nothing stands in the way');

# --- training ---------------------------------------------------------------------------------

my $job = new_job(job => { base => \%base, options => \%options });
my ($code, @events) = run_engine('train', $job);
is($code, 0, 'training ends');
my ($plan) = named('plan', @events);
is_deeply($plan->{options}{lora_target_modules}, [qw(q_proj k_proj v_proj o_proj)],
	'all-linear: attention alone is adapted');
my ($completed) = named('completed', @events);
my ($before) = named('evaluation', @events);
cmp_ok($completed->{validation_loss}, '<', $before->{validation_loss}, '... and something is learned');
my $weights = slurp("$job/adapter/adapter_model.safetensors");

my $stopped = new_job(job => { base => \%base, options => \%options });
my ($pid, $told) = start_engine('train', $stopped);
while (<$told>)
{
	kill 'TERM', $pid if /"step"/;
}
waitpid $pid, 0;
is($? >> 8, 3, 'stopped after a step');
($code) = run_engine('train', $stopped);
is($code, 0, '... resumed');
is(slurp("$stopped/adapter/adapter_model.safetensors"), $weights, '... to the same bytes');

($code, @events) = run_engine('estimate', new_job(job => { base => \%base, options => \%options }));
my ($estimate) = named('estimate', @events);
cmp_ok($estimate->{memory}{host}, '>', $described->{parameters} * 4, 'an estimate counts the experts');

($code, @events) = run_engine('evaluate', new_job(job => { base => \%base, adapter => "$job/adapter" }));
is($code, 0, 'the adapter is evaluated');
my ($evaluated) = named('evaluated', @events);

my $merged = "$JobTest::scratch/merged";
my %export = (base => \%base, adapter => "$job/adapter", export => { path => $merged, format => 'safetensors-f32' });
($code, @events) = run_engine('export', new_job(job => \%export));
is($code, 0, 'base and adapter are merged into a directory');
is(inspect($merged)->{architecture}, 'mixtral', '... of the type that transformers knows');
($code, @events) = run_engine('evaluate', new_job(job => { base => { path => $merged, name => 'merged', template => 'chatml' } }));
my ($again) = named('evaluated', @events);
cmp_ok(abs($again->{loss} / $evaluated->{loss} - 1), '<', 1e-5, '... which is judged as they are');
$export{export} = { path => "$JobTest::scratch/gguf", format => 'gguf-f32' };
($code, @events) = run_engine('export', new_job(job => \%export));
is($code, 0, '... and into a GGUF file');
($code, @events) = run_engine('evaluate', new_job(job => { base => { path => "$JobTest::scratch/gguf/model.gguf", name => 'merged', template => 'chatml' } }));
($again) = named('evaluated', @events);
cmp_ok(abs($again->{loss} / $evaluated->{loss} - 1), '<', 1e-5, '... which is judged as they are, too');

my $continued = new_job(job => { base => \%base, adapter => "$job/adapter", options => { max_epochs => 1, lora_target_modules => 'all-linear' } });
($code, @events) = run_engine('train', $continued);
is($code, 0, 'training goes on from the adapter');

for my $module (qw(gate_proj up_proj down_proj))
{
	my $refused = new_job(job => { base => \%base, options => { lora_target_modules => [ 'q_proj', $module ] } });

	($code, @events) = run_engine('train', $refused);
	my ($failed) = named('failed', @events);
	is("$code $failed->{code}", '1 unsupported', "$module of experts is not adapted");
	is($failed->{message}, qq{LoRA on "$module" is not supported on a base of 5 experts}, '... it says');
	like($failed->{hint}, qr/q_proj, k_proj, v_proj and o_proj/, '... and what is');
}

# --- serving ----------------------------------------------------------------------------------

my $engine = ServeTest->new(args => [ '--numerics', 'fast' ]);
my ($status, $reply) = $engine->post('/v1/load_model', { model => 'm', path => "$folder/window/base.gguf" });
is($status, 200, 'served, with a window and a tensor for each expert');
is($reply->{parameters}, inspect("$folder/window/base.gguf")->{parameters},
	'... its parameters counted');
($status, $reply) = $engine->post('/v1/load_lora_adapter',
	{ lora_name => 'l', lora_path => "$folder/window/adapter", base_model_name => 'm' });
is($status, 200, '... with an adapter');

my @requests = map {
	[ '/v1/completions',
		{ model => $_ % 2 ? 'm' : 'l', prompt => 'ab' x $_, max_tokens => 30, ignore_eos => JSON::PP::true(),
			temperature => $_ % 3 ? 0 : 1, seed => $_ } ]
} 1 .. 8;
my @alone = map { [ $engine->post(@$_) ] } @requests;
my @together = $engine->post_all(@requests);
my @texts = map { [ map { $_->[1]{choices}[0]{text} // "status $_->[0]" } @$_ ] } \@alone, \@together;
is_deeply($texts[1], $texts[0], '8 requests at once are answered as one by one');
isnt($texts[0][0], $texts[0][3], '... and not all alike');
is($engine->stop, 0, 'it ends');

done_testing();
