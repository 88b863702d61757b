# 205_answers.pl: several answers to a prompt, their probabilities, and answers in pieces.

use strict;
use warnings;

use List::Util qw(sum);
use Test::More;

binmode Test::More->builder->$_, ":encoding(UTF-8)" for qw(output failure_output);

use ServeTest;
use TinyModel;

my ($true, $false) = (JSON::PP::true(), JSON::PP::false());
my ($status, $reply);

my $engine = ServeTest->new(args => [ '--cache-memory', 1, '--max-requests', 20 ]);
my $folder = $engine->{folder};
write_model("$folder/tiny.gguf", context => 3000);
$engine->post('/v1/load_model', { model => 'm', path => "$folder/tiny.gguf" });
my %ask  = (model => 'm', prompt => 'Hello', max_tokens => 40, temperature => 1, seed => 11, ignore_eos => $true);
my %chat = (model => 'm', messages => [ { role => 'user', content => 'Hi' } ], max_tokens => 30, temperature => 1, seed => 5);

# --- several answers --------------------------------------------------------------------------

($status, $reply) = $engine->post('/v1/completions', { %ask, n => 3 });
is($status, 200, 'three answers');
is_deeply([ map { $_->{index} } @{ $reply->{choices} } ], [ 0, 1, 2 ], 'by their numbers');
is($reply->{usage}{completion_tokens}, 120, 'all of their tokens count');
is($reply->{usage}{prompt_tokens},     5,   'and the prompt once');
my @three = map { $_->{text} } @{ $reply->{choices} };
my @single = map { $engine->post('/v1/completions', { %ask, seed => 11 + $_ }) } 0 .. 2;
is_deeply(\@three, [ map { $_->{choices}[0]{text} } grep { ref } @single ], 'each has the seed after the one before');
isnt($three[0], $three[1], 'so they differ');
($status, $reply) = $engine->post('/v1/chat/completions', { %chat, n => 2 });
is(scalar @{ $reply->{choices} }, 2, 'a chat has two, too');
($status, $reply) = $engine->post('/v1/completions', { %ask, n => 21 });
is($status, 429, 'more than may wait are refused');
is($reply->{error}{code}, 'busy', 'as busy');
(undef, $reply) = $engine->get('/stats');
is($reply->{running} + $reply->{waiting}, 0, 'and none of them goes on');
is($reply->{cache}{m}{used}, 0, 'or holds a block');

# --- probabilities ----------------------------------------------------------------------------

($status, $reply) = $engine->post('/v1/completions', { %ask, max_tokens => 12, logprobs => 20 });
my $choice = $reply->{choices}[0];
my $l      = $choice->{logprobs};
is(scalar @{ $l->{tokens} }, 12, 'a probability for each token');
is($l->{text_offset}[0], 0, 'from the text\'s beginning');
is(scalar(grep { $_ > 0 } @{ $l->{token_logprobs} }), 0, 'none is above 1');
for my $i (0 .. 11)
{
	my $top = $l->{top_logprobs}[$i];
	next if !exists $top->{ $l->{tokens}[$i] } || $l->{tokens}[$i] eq "\x{fffd}";
	cmp_ok(abs($top->{ $l->{tokens}[$i] } - $l->{token_logprobs}[$i]), '<', 1e-6, "token $i stands among the likely ones with the same");
	last;
}
($status, my $without) = $engine->post('/v1/completions', { %ask, max_tokens => 12 });
is($without->{choices}[0]{text}, $choice->{text}, 'that they are asked for changes nothing');
ok(!exists $without->{choices}[0]{logprobs}, 'and else there are none');
($status, my $greedy) = $engine->post('/v1/completions', { %ask, temperature => 0, max_tokens => 5, logprobs => 1, frequency_penalty => 0 });
for my $i (0 .. 4)
{
	my ($best) = values %{ $greedy->{choices}[0]{logprobs}{top_logprobs}[$i] };
	cmp_ok(abs($best - $greedy->{choices}[0]{logprobs}{token_logprobs}[$i]), '<', 1e-6, "greedy token $i is the likeliest");
}
($status, $reply) = $engine->post('/v1/chat/completions', { %chat, logprobs => $true, top_logprobs => 3, max_tokens => 6 });
my $content = $reply->{choices}[0]{logprobs}{content};
my @sorted  = sort { $b <=> $a } map { $_->{logprob} } @{ $content->[0]{top_logprobs} };
is(scalar @sorted, 3, 'a chat\'s first token has three');
is_deeply([ map { $_->{logprob} } @{ $content->[0]{top_logprobs} } ], \@sorted, 'the likeliest first');
my $bytes = pack 'C*', map { @{ $_->{bytes} } } @$content;
utf8::decode(my $decoded = $bytes);
is($decoded, $reply->{choices}[0]{message}{content}, 'the tokens\' bytes are the text') if utf8::decode(my $copy = $bytes);
# the model's own probabilities: all 259 tokens would add up to 1
($status, $reply) = $engine->post('/v1/completions', { %ask, temperature => 0, max_tokens => 1, logprobs => 20 });
my $sum = sum(map { exp } values %{ $reply->{choices}[0]{logprobs}{top_logprobs}[0] });
cmp_ok($sum, '<', 1, 'twenty of them less');
cmp_ok($sum, '>', 20 / 259, 'but more than their share');
($status, $reply) = $engine->post('/v1/chat/completions', { %chat, top_logprobs => 3 });
like($reply->{error}{message}, qr/"top_logprobs" is given without "logprobs"/, 'they are asked for by two members');

# --- in pieces --------------------------------------------------------------------------------

sub stream
{
	my ($path, $body) = @_;
	my $s = $engine->connect;
	$engine->send_request($s, 'POST', $path, { %$body, stream => $true });
	return $engine->read_stream($s);
}

# The text of an answer's events
sub joined
{
	my ($events, $index) = @_;
	return join '', map { $_->{text} // $_->{delta}{content} // '' }
		grep { $_->{index} == ($index // 0) } map { ref $_ ? @{ $_->{choices} } : () } @$events;
}

for my $seed (1 .. 6)
{
	# bytes at random: much of it is no character, or half of one
	my %random = (%ask, temperature => 3, max_tokens => 150, seed => $seed);
	(undef, $reply) = $engine->post('/v1/completions', \%random);
	my ($code, $head, $events) = stream('/v1/completions', \%random);
	is(joined($events), $reply->{choices}[0]{text}, "seed $seed: the pieces are the whole");
	cmp_ok(scalar @$events, '>', 20, "seed $seed: and many");
	next if $seed > 1;
	is($code, 200, 'a stream');
	like($head, qr{^Content-Type: text/event-stream}mi, 'of events');
	is($events->[-1], '[DONE]', 'ends as OpenAI\'s');
	is($events->[-2]{choices}[0]{finish_reason}, 'length', 'with a reason');
	is($events->[0]{object}, 'text_completion', 'of pieces of a completion');
	is(scalar(grep { ref && $_->{id} ne $events->[0]{id} } @$events), 0, 'with one id');
}

(undef, $reply) = $engine->post('/v1/chat/completions', \%chat);
my (undef, undef, $events) = stream('/v1/chat/completions', { %chat, stream_options => { include_usage => $true } });
is(joined($events), $reply->{choices}[0]{message}{content}, 'a chat in pieces');
is($events->[0]{object}, 'chat.completion.chunk', 'are called that');
is($events->[0]{choices}[0]{delta}{role}, 'assistant', 'the first has the role');
is(scalar(grep { ref && @{ $_->{choices} } && exists $_->{choices}[0]{delta}{role} } @$events), 1, 'only the first');
is_deeply($events->[-2]{choices}, [], 'the last has no choice');
is($events->[-2]{usage}{completion_tokens}, $reply->{usage}{completion_tokens}, 'but the usage');
ok(exists $events->[0]{usage} && !defined $events->[0]{usage}, 'which the others have as null');

(undef, undef, $events) = stream('/v1/chat/completions', { %chat, stream_options => { include_usage => $true, continuous_usage_stats => $true } });
my @sofar = map { $_->{usage}{completion_tokens} } grep { ref } @$events;
is(scalar(grep { !defined } @sofar), 0, 'each piece may say the usage so far');
is_deeply(\@sofar, [ sort { $a <=> $b } @sofar ], 'which rises');
cmp_ok($sofar[0], '<', $sofar[-1], 'from the first');
is($sofar[-1], $reply->{usage}{completion_tokens}, 'to the whole');
is($events->[0]{usage}{prompt_tokens}, $reply->{usage}{prompt_tokens}, 'the prompt\'s is always said');

(undef, $reply) = $engine->post('/v1/completions', { %ask, n => 3, max_tokens => 60 });
(undef, undef, $events) = stream('/v1/completions', { %ask, n => 3, max_tokens => 60 });
is_deeply([ map { joined($events, $_) } 0 .. 2 ], [ map { $_->{text} } @{ $reply->{choices} } ], 'three answers in pieces');

# a stop string is held back until it is none
my $text = $three[0];
my ($stop) = $text =~ /([!-~]{2})/;
(undef, $reply) = $engine->post('/v1/completions', { %ask, stop => [ $stop, "$stop never" ] });
(undef, undef, $events) = stream('/v1/completions', { %ask, stop => [ $stop, "$stop never" ] });
is(joined($events), $reply->{choices}[0]{text}, 'nothing of a stop string comes');
is($events->[-2]{choices}[0]{finish_reason}, 'stop', 'which is the reason');
(undef, undef, $events) = stream('/v1/completions', { %ask, stop => substr($text, 3, 5) . 'not in it' });
is(joined($events), $text, 'what only begins like one does');

my $format = { type => 'json_schema', json_schema => { schema => { const => [ 'a', { b => 1 } ] } } };
(undef, undef, $events) = stream('/v1/chat/completions', { %chat, response_format => $format });
is(joined($events), '["a",{"b":1}]', 'a format in pieces');

# errors before the stream begins are none of it
($status, $reply) = $engine->post('/v1/completions', { %ask, stream => $true, prompt => 'x' x 5000 });
is($status, 400, 'a prompt that is too long is refused as ever');

# a client that goes in the middle
my $s = $engine->connect;
$engine->send_request($s, 'POST', '/v1/completions', { %ask, stream => $true, max_tokens => 2900 });
ok(sysread($s, my $some, 100), 'a stream begins');
close $s;
ok( ServeTest::wait_until(sub { (undef, $reply) = $engine->get('/stats'); $reply->{running} == 0 && $reply->{cache}{m}{used} == 0 }),
	'and ends with its client');

# an engine that ends in the middle
$s = $engine->connect;
$engine->send_request($s, 'POST', '/v1/completions', { %ask, stream => $true, max_tokens => 2900 });
ServeTest::wait_until(sub { (undef, $reply) = $engine->get('/stats'); $reply->{running} == 1 });
kill 'TERM', $engine->{pid};
(undef, undef, $events) = $engine->read_stream($s);
is($events->[-2]{error}{code}, 'cancelled', 'a stream that is cut off says so');
is($engine->wait_exit, 0, 'and the engine ends well');

done_testing();
