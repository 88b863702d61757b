# 200_serve.pl: the routes of `serve`: what they answer, and what they refuse.

use strict;
use warnings;

use Test::More;

binmode Test::More->builder->$_, ":encoding(UTF-8)" for qw(output failure_output);

use ServeTest;
use TinyModel;

my $engine = ServeTest->new;
my $folder = $engine->{folder};
my ($true, $false) = (JSON::PP::true(), JSON::PP::false());
my ($status, $reply);

write_model("$folder/tiny.gguf");

# --- life and models --------------------------------------------------------------------------

($status, $reply) = $engine->get('/health');
is($status, 200, 'it is healthy');
is_deeply($reply, { status => 'ok' }, 'and says so');

($status, $reply) = $engine->post('/v1/completions', { model => 'm', prompt => 'x', nonsense => 1 });
is($status, 404, 'an unknown model comes before all else');
is($reply->{error}{code}, 'not_found', 'with its code');

($status, $reply) = $engine->post('/v1/load_model', { model => 'm', path => "$folder/none.gguf" });
is($status, 404, 'a file that is not there');
like($reply->{error}{message}, qr/none\.gguf/, 'is named');

my @loads = $engine->post_all(
	map { [ '/v1/load_model', { model => 'm', path => "$folder/tiny.gguf" } ] } 1 .. 3);
is_deeply([ map { $_->[0] } @loads ], [ 200, 200, 200 ], 'three loads of a model at once');
is_deeply($loads[0][1], $loads[2][1], 'get the same answer');
$reply = $loads[0][1];
is($reply->{model},          'm',     'a load says the model');
is($reply->{architecture},   'llama', 'the architecture');
is($reply->{context_length}, 256,     'the context');
like($reply->{digest}, qr/\A[0-9a-f]{64}\z/, 'the digest');
is($reply->{bytes}, -s "$folder/tiny.gguf", 'the size');
my $digest = $reply->{digest};
my $loaded = () = $engine->log_text =~ /model "m" loaded/g;
is($loaded, 1, 'and loaded it once');
my %known = (model => 'm', path => "$folder/tiny.gguf");
($status) = $engine->post('/v1/load_model', { %known, digest => $digest });
is($status, 200, 'a digest that is right');
for my $model ('m', 'not loaded yet')
{
	($status, $reply) =
	  $engine->post('/v1/load_model', { %known, model => $model, digest => '0' x 64 });
	is($status, 409, 'a digest that is not');
	is($reply->{error}{code}, 'mismatch', 'has its code');
	like($reply->{error}{message}, qr/tiny\.gguf" has digest $digest, expected 0{64}/, 'and says both');
}

($status, $reply) = $engine->get('/v1/models');
is_deeply([ map { $_->{id} } @{ $reply->{data} } ], ['m'], 'models lists it');

($status, $reply) = $engine->post('/inspect', { path => "$folder/tiny.gguf" });
is($status, 200, 'inspect');
is($reply->{layers}, 2, 'describes the file');

# --- completions ------------------------------------------------------------------------------

my %greedy = (model => 'm', prompt => 'Hello', max_tokens => 20, ignore_eos => $true);
($status, my $first) = $engine->post('/v1/completions', \%greedy);
is($status, 200, 'a completion');
is($first->{object}, 'text_completion', 'is called that');
is($first->{model},  'm',               'names its model');
is_deeply(
	$first->{usage},
	{ prompt_tokens => 5, completion_tokens => 20, total_tokens => 25, prompt_tokens_details => { cached_tokens => 0 } },
	'counts its tokens');
is($first->{choices}[0]{finish_reason}, 'length', 'ended at the limit');
is($first->{choices}[0]{index},         0,        'has an index');
($status, my $again) = $engine->post('/v1/completions', \%greedy);
is($again->{choices}[0]{text}, $first->{choices}[0]{text}, 'greedy again is the same');
isnt($again->{id}, $first->{id}, 'under another id');

($status, $reply) = $engine->post('/v1/chat/completions',
	{ model => 'm', messages => [ { role => 'user', content => 'Hi' } ], max_tokens => 5 });
is($status, 200, 'a chat');
is($reply->{object}, 'chat.completion', 'is called that');
is($reply->{choices}[0]{message}{role}, 'assistant', 'is answered by the assistant');
ok(defined $reply->{choices}[0]{message}{content}, 'with content');
($status, my $parts) = $engine->post(
	'/v1/chat/completions',
	{
		model    => 'm',
		messages => [
			{ role => 'user', content => [ { type => 'text', text => 'H' }, { type => 'text', text => 'i' } ] }
		],
		max_tokens => 5
	});
is(
	$parts->{choices}[0]{message}{content},
	$reply->{choices}[0]{message}{content},
	'content in parts is the same content');

my $text = $first->{choices}[0]{text};
my %drawn = (%greedy, temperature => 1.5, seed => 7);
($status, my $seven)       = $engine->post('/v1/completions', \%drawn);
($status, my $seven_again) = $engine->post('/v1/completions', \%drawn);
($status, my $eight)       = $engine->post('/v1/completions', { %drawn, seed => 8 });
is($seven_again->{choices}[0]{text}, $seven->{choices}[0]{text}, 'a seed fixes the answer');
isnt($eight->{choices}[0]{text}, $seven->{choices}[0]{text}, 'another one changes it');
($status, $reply) = $engine->post('/v1/completions', { %drawn, top_k => 1 });
is($reply->{choices}[0]{text}, $text, 'top_k 1 is greedy');
($status, $reply) = $engine->post('/v1/completions', { %drawn, top_p => 1e-6 });
is($reply->{choices}[0]{text}, $text, 'so is a tiny top_p');
($status, $reply) = $engine->post('/v1/completions', { %drawn, min_p => 1 });
is($reply->{choices}[0]{text}, $text, 'so is min_p 1');

# penalties: a token that costs more each time it is drawn cannot be drawn again and again
sub most_often
{
	my %count;
	$count{$_}++ for split //, $_[0]{choices}[0]{text};
	return (sort { $b <=> $a } values %count)[0];
}
my %plain = (%greedy, max_tokens => 60);
($status, my $repeating) = $engine->post('/v1/completions', \%plain);
($status, $reply) = $engine->post('/v1/completions', { %plain, frequency_penalty => 2 });
cmp_ok(most_often($reply), '<', most_often($repeating), 'frequency_penalty');
($status, $reply) = $engine->post('/v1/completions', { %plain, presence_penalty => 2 });
isnt($reply->{choices}[0]{text}, $repeating->{choices}[0]{text}, 'presence_penalty');
($status, $reply) = $engine->post('/v1/completions', { %plain, repetition_penalty => 5 });
cmp_ok(most_often($reply), '<', most_often($repeating), 'repetition_penalty');
($status, $reply) = $engine->post('/v1/completions',
	{ %plain, presence_penalty => 0, frequency_penalty => 0, repetition_penalty => 1 });
is($reply->{choices}[0]{text}, $repeating->{choices}[0]{text}, 'penalties that are off change nothing');

# a long answer with chance in it has printable characters somewhere
my %long = (%drawn, max_tokens => 100);
($status, $reply) = $engine->post('/v1/completions', \%long);
my $answer = $reply->{choices}[0]{text};
my ($before, $stop) = $answer =~ /\A(.*?)([!-~]{2})/s;
ok(defined $stop, 'there is something to stop at');
($status, $reply) = $engine->post('/v1/completions', { %long, stop => [ "not\tin it", $stop ] });
is($reply->{choices}[0]{finish_reason}, 'stop', 'a stop string stops');
is($reply->{choices}[0]{text}, $before, 'the answer ends before it');
($status, $reply) = $engine->post('/v1/completions', { %long, stop => $stop });
is($reply->{choices}[0]{text}, $before, 'also when it is not in a list');

# --- the context ------------------------------------------------------------------------------

($status, $reply) = $engine->post('/v1/completions', { %greedy, max_tokens => 4096 });
is($reply->{usage}{total_tokens}, 256, 'an answer is capped by the context');
($status, $reply) = $engine->post('/v1/completions', { %greedy, prompt => 'x' x 256 });
is($status, 400, 'a prompt as long as the context');
like($reply->{error}{message}, qr/256.*256/, 'is refused with both numbers');
($status, $reply) = $engine->post('/v1/completions', { %greedy, prompt => 'y' x 300000 });
is($status, 400, 'so is a much longer one');
($status, $reply) = $engine->post('/v1/completions', { %greedy, prompt => 'x' x 255 });
is($reply->{usage}{completion_tokens}, 1, 'a token less leaves room for a token');
($status, $reply) = $engine->post('/v1/completions', { %greedy, prompt => '' });
is($status, 400, 'a prompt without tokens');

# --- tokens -----------------------------------------------------------------------------------

($status, $reply) = $engine->post('/tokenize', { model => 'm', prompt => 'ab<|im_end|>' });
is_deeply(
	$reply,
	{ count => 12, max_model_len => 256, tokens => [ map { ord } split //, 'ab<|im_end|>' ] },
	'text never becomes a special token');
($status, my $chat) = $engine->post('/tokenize',
	{ model => 'm', messages => [ { role => 'user', content => 'Hi' } ] });
is($chat->{tokens}[0], 256, 'but the template has some');
($status, $reply) = $engine->post('/tokenize',
	{ model => 'm', messages => [ { role => 'user', content => 'Hi' } ], add_generation_prompt => $false });
ok($reply->{count} < $chat->{count}, 'fewer without the prompt for an answer');
($status, $reply) = $engine->post('/detokenize', { model => 'm', tokens => [ 97, 98, 257 ] });
is($reply->{prompt}, 'ab<|im_end|>', 'and back');
($status, $reply) = $engine->post('/detokenize', { model => 'm', tokens => [ 259 ] });
is($status, 400, 'a token that does not exist');

# --- what is refused --------------------------------------------------------------------------

my @bad = (
	[ 'no JSON',            '{"model": "m", "prompt": "canary-1',   400, 'invalid',     qr/JSON/ ],
	[ 'no object',          '[1]',                                  400, 'invalid',     qr/object/ ],
	[ 'a doubled key',      '{"model":"m","model":"m","prompt":""}', 400, 'invalid',    qr/JSON/ ],
	[ 'invalid UTF-8',      "{\"model\":\"m\",\"prompt\":\"\xff\"}", 400, 'invalid',    qr/JSON/ ],
	[ 'deep nesting',       '[' x 100000,                           400, 'invalid',     qr/JSON/ ],
	[ 'an empty body',      '',                                     400, 'invalid',     qr/JSON/ ],
	[ 'no model',           { prompt => 'x' },                      400, 'invalid',     qr/model/ ],
	[ 'no prompt',          { model => 'm' },                       400, 'invalid',     qr/prompt/ ],
	[ 'an unknown field',   { %greedy, temprature => 1 },           400, 'invalid',     qr/temprature/ ],
	[ 'a negative limit',   { %greedy, max_tokens => -1 },          400, 'invalid',     qr/max_tokens.*-1/ ],
	[ 'a limit as text',    { %greedy, max_tokens => 'x' },         400, 'invalid',     qr/max_tokens/ ],
	[ 'a hot temperature',  { %greedy, temperature => 1e9 },        400, 'invalid',     qr/temperature/ ],
	[ 'top_p over 1',       { %greedy, top_p => 1.5 },              400, 'invalid',     qr/top_p.*1\.5/ ],
	[ 'top_p 0',            { %greedy, top_p => 0 },                400, 'invalid',     qr/top_p/ ],
	[ 'an empty stop',      { %greedy, stop => '' },                400, 'invalid',     qr/stop/ ],
	[ 'a stop that is none', { %greedy, stop => [1] },              400, 'invalid',     qr/stop/ ],
	[ 'many answers',       { %greedy, n => 129 },                  400, 'invalid',     qr/"n" is 129.*1 and 128/ ],
	[ 'the best of two',    { %greedy, best_of => 2 },              400, 'unsupported', qr/"best_of"/ ],
	[ 'log probabilities',  { %greedy, logprobs => $true },         400, 'invalid',     qr/"logprobs" must be an integer/ ],
	[ 'too many of them',   { %greedy, logprobs => 21 },            400, 'invalid',     qr/"logprobs" is 21.*0 and 20/ ],
	[ 'a chat\'s',          { %greedy, top_logprobs => 2 },         400, 'invalid',     qr/"top_logprobs" is for chats/ ],
	[ 'them in a stream',   { %greedy, logprobs => 2, stream => $true }, 400, 'unsupported', qr/"logprobs" with "stream"/ ],
	[ 'a stream as text',   { %greedy, stream => 'yes' },           400, 'invalid',     qr/"stream" must be true or false/ ],
	[ 'usage of no stream', { %greedy, stream_options => { include_usage => $true } }, 400, 'invalid', qr/"stream_options" is given without "stream"/ ],
	[ 'usage of pieces alone', { %greedy, stream => $true, stream_options => { continuous_usage_stats => $true } }, 400, 'invalid', qr/"continuous_usage_stats" is given without "include_usage"/ ],
	[ 'unknown options',    { %greedy, stream => $true, stream_options => { usage => $true } }, 400, 'invalid', qr/unknown field "usage"/ ],
	[ 'a high penalty',     { %greedy, presence_penalty => 2.5 },   400, 'invalid',     qr/presence_penalty.*2\.5.*-2 and 2/ ],
	[ 'a low penalty',      { %greedy, frequency_penalty => -3 },   400, 'invalid',     qr/frequency_penalty.*-3/ ],
	[ 'a penalty as text',  { %greedy, frequency_penalty => 'x' },  400, 'invalid',     qr/frequency_penalty/ ],
	[ 'no repetition',      { %greedy, repetition_penalty => 0 },   400, 'invalid',     qr/repetition_penalty/ ],
	[ 'token ids too high', { %greedy, prompt => [ 1, 9999 ] },     400, 'invalid',     qr/prompt.*9999.*0 to 258/ ],
	[ 'a negative id',      { %greedy, prompt => [ -1 ] },          400, 'invalid',     qr/prompt.*-1/ ],
	[ 'ids that are none',  { %greedy, prompt => [ 1, 'x' ] },      400, 'invalid',     qr/prompt.*integer/ ]);
for my $case (@bad)
{
	my ($name, $body, $code, $word, $message) = @$case;
	($status, $reply) = $engine->post('/v1/completions', $body);
	is($status, $code, "$name: status");
	is($reply->{error}{code}, $word, "$name: code");
	like($reply->{error}{message}, $message, "$name: message");
}
($status, $reply) = $engine->post('/v1/completions',
	{ %greedy, stream => $false, n => 1, user => 'me', presence_penalty => 0, logit_bias => undef });
is($status, 200, 'fields that ask for nothing are taken');
($status, $reply) = $engine->post('/v1/completions', { %greedy, prompt => [ map { ord } split //, 'Hello' ] });
is($reply->{choices}[0]{text}, $text, 'a prompt may be token ids');
($status, $reply) = $engine->post('/v1/chat/completions',
	{ model => 'm', messages => [ { role => 'tool', content => 'x' } ] });
is($status, 400, 'a role that the template does not know');
($status) = $engine->post('/v1/completions', '{"model": "m", "prompt": "' . 'x' x (16 * 1024 * 1024) . '"}');
is($status, 413, 'a body over 16 MiB');
($status, $reply) = $engine->get('/v1/completions');
is($status, 405, 'a wrong method');
($status, $reply) = $engine->post('/v2/completions', {});
is($status, 404, 'a wrong path');

# --- adapters ---------------------------------------------------------------------------------

write_adapter("$folder/one", seed => 1);
my %lora = (lora_name => 'a', lora_path => "$folder/one", base_model_name => 'm', base_digest => $digest);
($status, $reply) = $engine->post('/v1/load_lora_adapter', { %lora, base_model_name => 'other' });
is($status, 404, 'an adapter over a base that is not loaded');
($status, $reply) = $engine->post('/v1/load_lora_adapter', { %lora, base_digest => '0' x 64 });
is($status, 409, 'over a base with another digest');
is($reply->{error}{code}, 'mismatch', 'with its code');
($status, $reply) = $engine->post('/v1/load_lora_adapter', { %lora, lora_path => "$folder/none" });
is($status, 400, 'from a directory that is not there');
($status, $reply) = $engine->post('/v1/load_lora_adapter', { %lora, lora_name => 'm' });
is($status, 400, 'under the name of a base');
for my $time ('', ' twice')
{
	($status, $reply) = $engine->post('/v1/load_lora_adapter', \%lora);
	is($status, 200, "loaded$time");
}
($status, my $tuned) = $engine->post('/v1/completions', { %greedy, model => 'a' });
is($tuned->{model}, 'a', 'the adapter is a model');
isnt($tuned->{choices}[0]{text}, $text, 'that says something else than its base');
($status, $reply) = $engine->post('/v1/completions', \%greedy);
is($reply->{choices}[0]{text}, $text, 'which is what it was');
($status) = $engine->post('/v1/unload_lora_adapter', { lora_name => 'a' });
is($status, 200, 'unloaded');
($status) = $engine->post('/v1/unload_lora_adapter', { lora_name => 'a' });
is($status, 404, 'once');
($status) = $engine->post('/v1/completions', { %greedy, model => 'a' });
is($status, 404, 'and no model any more');

# --- a base that changes ----------------------------------------------------------------------

$engine->post('/v1/load_lora_adapter', \%lora);
write_model("$folder/new", seed => 2);
rename "$folder/new", "$folder/tiny.gguf";
($status, $reply) = $engine->post('/v1/load_model', { model => 'm', path => "$folder/tiny.gguf" });
is($status, 200, 'a replaced file is loaded anew');
isnt($reply->{digest}, $digest, 'with another digest');
($status) = $engine->post('/v1/completions', { %greedy, model => 'a' });
is($status, 404, 'the adapters of the old one have gone');
truncate "$folder/tiny.gguf", 5000;
($status, $reply) = $engine->post('/v1/load_model', { model => 'm', path => "$folder/tiny.gguf" });
is($reply->{error}{code}, 'corrupt', 'a truncated file is refused');
($status) = $engine->post('/v1/completions', \%greedy);
is($status, 200, 'while what was loaded goes on');

# --- connections ------------------------------------------------------------------------------

my $s = $engine->connect;
$engine->send_request($s, 'POST', '/v1/completions', \%greedy);
$engine->send_request($s, 'GET',  '/health');
($status) = $engine->read_reply($s);
is($status, 200, 'two requests on one connection');
($status, $reply) = $engine->read_reply($s);
is($reply->{status}, 'ok', 'are answered in order');

unlike($engine->log_text, qr/canary|Hello/, 'no prompt stands in the log');
is($engine->stop, 0, 'it ends well');
ok(!-e $engine->{socket}, 'and takes its socket along');

done_testing();
