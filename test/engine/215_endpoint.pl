# 215_endpoint.pl: chats that a server elsewhere answers: what it is sent, what its
# answers, refusals and faults become, TLS, cancels, many at once.

use strict;
use warnings;

use File::Temp ();
use JSON::PP ();
use Test::More;
use Time::HiRes qw(sleep);

use Endpoint;
use ServeTest;
use TinyModel;

my $key    = 'sk-' . 'Zq9' x 9;
my $canary = 'xylophone-canary';
my $server = Endpoint->new;
my $engine = ServeTest->new(args => [ '--max-requests', '80' ]);
my $json   = JSON::PP->new->canonical->utf8;
my $route  = '/v1/endpoint/chat/completions';
my ($status, $reply);

# A request: what the endpoint is asked, options, and changes to its "endpoint".
sub body
{
	my ($text, $options, $endpoint) = @_;
	return {
		endpoint => { url => $server->url, api_key => $key, timeout_ms => 60000, %{ $endpoint // {} } },
		request => { model => 'remote/model', messages => [ { role => 'user', content => $text } ], %{ $options // {} } }
	};
}

sub ask
{
	($status, $reply) = $engine->post($route, body(@_));
	return ref $reply ? $reply->{choices} ? $reply->{choices}[0]{message}{content} : "$status $reply->{error}{code}" : $reply;
}

sub fails
{
	my ($request, $expected, $message, $hint) = @_;
	my $name = substr($request->[0] || $message, 0, 60);
	is(ask(@$request), $expected, "$name: status and code");
	like($reply->{error}{message}, $message, "$name: message");
	$hint ? like($reply->{error}{hint} // '', $hint, "$name: hint") : ok(!defined $reply->{error}{hint}, "$name: no hint");
	unlike($json->encode($reply), qr/\Q$key\E|\Q$canary/, "$name: neither key nor prompt");
	return;
}

sub endpoints
{
	my (undef, $stats) = $engine->get('/stats');
	return $stats->{endpoints};
}

# --- what is sent, and what comes back ----------------------------------------------------------

is(ask('hello there'), 'echo: hello there', 'an answer');
is($status, 200, 'with status 200');
is_deeply(
	$reply->{usage},
	{ prompt_tokens => 7, completion_tokens => 3, total_tokens => 10, prompt_tokens_details => { cached_tokens => 2 } },
	'the tokens that it took');
is($reply->{created}, 1700000000, 'and when');
is($reply->{choices}[0]{finish_reason}, 'stop', 'and why it ended');
is($reply->{choices}[0]{logprobs}, undef, 'without log-probabilities');

is(ask('show key'), "Bearer $key", 'the key is shown');
is(ask('show key', {}, { api_key => undef }), 'none', 'or none');
is(ask('show path'), 'POST /v1/chat/completions HTTP/1.1', 'a URL without a path is that of version 1');
is(ask('show path', {}, { url => $server->url . $_->[0] }), "POST $_->[1]/chat/completions HTTP/1.1", "path $_->[0]")
  for [ '/' => '/v1' ], [ '/v1' => '/v1' ], [ '/v1//' => '/v1' ], [ '/openai/v2/' => '/openai/v2' ];
is(ask('show path', {}, { url => $server->url('localhost') }), 'POST /v1/chat/completions HTTP/1.1', 'localhost');

is_deeply(
	$json->decode(ask('show body', { cache_salt => '1/2', seed => undef, stop => [] })),
	{ model => 'remote/model', messages => [ { role => 'user', content => 'show body' } ], stop => [] },
	'what is for us is not sent');
my %options = (
	temperature => 0.5, top_p => 0.25, top_k => 5, min_p => 0.125, max_tokens => 9, stop => ['b'], seed => -3, n => 2,
	presence_penalty => -2, frequency_penalty => 1.5, repetition_penalty => 1.25, logprobs => JSON::PP::true, top_logprobs => 3);
my $sent = $json->decode(ask('show body', \%options));
is_deeply($sent->{$_}, $options{$_}, "option $_ is passed on") for sort keys %options;
is(scalar @{ $reply->{choices} }, 2, 'n answers come back');
is($reply->{choices}[1]{index}, 1, 'in order');
is($reply->{choices}[1]{logprobs}{content}[0]{logprob}, -0.5, 'with log-probabilities');

my $schema = { type => 'object', properties => { a => { type => 'integer' } }, required => ['a'] };
$sent = $json->decode(
	ask('show body', { response_format => { type => 'json_schema', json_schema => { required_first => JSON::PP::true, schema => $schema } } }));
is_deeply(
	$sent->{response_format},
	{ type => 'json_schema', json_schema => { name => 'answer', strict => JSON::PP::true, schema => $schema } },
	'a schema goes as OpenAI wants it');
$sent = $json->decode(ask('show body', { response_format => { type => 'json_object' } }));
is_deeply($sent->{response_format}, { type => 'json_object' }, 'and any object, too');
ok(!exists $json->decode(ask('show body', { response_format => { type => 'text' } }))->{response_format}, 'text is no format');

sub stream
{
	my $s = $engine->connect;
	$engine->send_request($s, 'POST', $route, body($_[0], { stream => JSON::PP::true, %{ $_[1] } }));
	return $engine->read_stream($s);
}
my ($code, $head, $events) = stream('hello', { n => 2, stream_options => { include_usage => JSON::PP::true } });
is($code, 200, 'a stream');
like($head, qr{^Content-Type: text/event-stream}m, 'is one');
is_deeply(
	$events->[0]{choices},
	[ map { { index => $_, delta => { role => 'assistant', content => 'echo: hello' }, finish_reason => 'stop' } } 0, 1 ],
	'whose pieces are the answers');
is($events->[0]{object}, 'chat.completion.chunk', 'in a chunk');
is_deeply([ $events->[1]{choices}, $events->[1]{usage}{completion_tokens} ], [ [], 3 ], 'then the numbers');
is_deeply([ @$events[ 2 .. $#$events ] ], ['[DONE]'], 'and the end');
(undef, undef, $events) = stream('hello', {});
is_deeply([ scalar @$events, exists $events->[0]{usage} ], [ 2, '' ], 'numbers only where they are asked for');
($status, $reply) = $engine->post($route, body('status 500 x', { stream => JSON::PP::true }));
is("$status $reply->{error}{code}", '502 remote', 'a failure is no stream');

# --- answers of all kinds -----------------------------------------------------------------------

sub answer { return 'answer ' . $json->encode({ usage => { prompt_tokens => 1, completion_tokens => 1 }, @_ }) }

sub choice
{
	my ($content, $finish, %more) = @_;
	return { index => 0, message => { content => $content, %more }, finish_reason => $finish };
}

for my $case ([ eos_token => 'stop' ], [ end_turn => 'stop' ], [ stop_sequence => 'stop' ], [ max_tokens => 'length' ], [ content_filter => 'content_filter' ])
{
	is(ask(answer(choices => [ choice('x', $case->[0]) ])), 'x', "an answer that ends with $case->[0]");
	is($reply->{choices}[0]{finish_reason}, $case->[1], "is one that ends with $case->[1]");
}
is(ask(answer(choices => [ choice(undef, 'content_filter') ])), '', 'what a filter has kept is empty');
is(ask(answer(choices => [ choice(undef, 'stop', refusal => 'no') ]), { response_format => { type => 'json_object' } }), 'no', 'a refusal in words');
ok(!exists $reply->{usage}{prompt_tokens_details}, 'tokens of a cache only where they are said');
is( ask(answer(choices => [ { %{ choice('b', 'stop') }, index => 1 }, choice('a', 'stop') ]), { n => 2 }),
	'a', 'choices in any order');

my $no_chat = qr/the endpoint's answer is no chat completion: /;
fails([ 'answer {"choices"' ],  '502 protocol', qr/${no_chat}it is no JSON object/);
fails([ 'answer [1]' ],         '502 protocol', qr/${no_chat}it is no JSON object/);
fails([ 'answer ' . '{"a":' x 100000 ], '502 protocol', qr/${no_chat}it is no JSON object/);
fails([ 'answer {"a":"\u0000"}' ], '502 protocol', qr/${no_chat}it is no JSON object/);
fails([ 'answer {}' ],          '502 protocol', qr/${no_chat}it has no choices/);
fails([ answer(choices => []) ], '502 protocol', qr/${no_chat}it has no choices/);
fails([ answer(choices => [1]) ], '502 protocol', qr/${no_chat}it does not say why it ended/);
fails([ answer(choices => [ choice($canary, 'tool_calls') ]) ], '502 protocol', qr/${no_chat}it does not say why it ended/);
fails([ answer(choices => [ choice(undef, 'stop') ]) ], '502 protocol', qr/${no_chat}it has no text/);
fails([ answer(choices => [ choice(['a'], 'stop') ]) ], '502 protocol', qr/${no_chat}it has no text/);
fails([ answer(choices => [ choice('x', 'stop') ], usage => undef) ], '502 protocol', qr/${no_chat}it does not say how many tokens it took/);
fails([ answer(choices => [ choice('x', 'stop') ], usage => { prompt_tokens => -1, completion_tokens => 1 }) ],
	'502 protocol', qr/${no_chat}it does not say how many tokens it took/);
fails([ answer(choices => [ (choice('x', 'stop')) x 2 ]) ], '502 protocol', qr/${no_chat}it has more choices than were asked for/);
fails([ answer(choices => [ (choice('x', 'stop')) x 2 ]), { n => 2 } ], '502 protocol', qr/${no_chat}its choices are not numbered/);
fails([ answer(choices => [ choice('x', 'stop') ]), { n => 2 } ], '400 unsupported', qr/the endpoint ignores the option "n": it gives 1 answers of 2/);
fails([ answer(choices => [ choice('x', 'stop') ]), { logprobs => JSON::PP::true } ], '400 unsupported', qr/the endpoint ignores the option "logprobs"/);
fails([ "Sure! $canary", { response_format => { type => 'json_object' } } ],
	'400 unsupported', qr/the endpoint ignores the option "response_format": its answer is no JSON/);

# --- faults -------------------------------------------------------------------------------------

my $quoted = qq({"error": {"message": "$key may not say $canary", "code": "$canary", "param": "$key"}});
fails([ "status 401 $quoted" ], '502 denied', qr/the endpoint does not accept the API key \(HTTP status 401\)/);
fails([ "status 401 $quoted", {}, { api_key => undef } ], '502 denied', qr/the endpoint wants an API key \(HTTP status 401\)/);
fails([ "status 403 $quoted" ], '502 denied', qr/the endpoint does not permit the request \(HTTP status 403\)/);
fails([ "status 400 $quoted" ], '400 invalid', qr/the endpoint refuses the request \(HTTP status 400\)/);
fails([ "status 404 $quoted" ], '400 invalid', qr/the endpoint has no such model, or no chat completions at this URL \(HTTP status 404\)/);
fails([ "status 500 $quoted" ], '502 remote',  qr/the endpoint has failed \(HTTP status 500\)/);
fails([ "status 504 $quoted" ], '504 timeout', qr/the endpoint did not answer in time \(HTTP status 504\)/);
fails([ "status 204" ],         '502 protocol', qr/the endpoint answers with HTTP status 204/);
fails([ 'status 400 {"error": {"message": "too long", "code": "context_length_exceeded"}}' ],
	'400 invalid', qr/is longer than the context of the endpoint's model \(HTTP status 400\)/);
fails([ 'status 400 {"error": {"code": "content_policy_violation"}}' ],
	'400 invalid', qr/the endpoint refuses the request \(HTTP status 400, content_policy_violation\)/);
fails([ 'status 400 {"error": {"message": "bad", "param": "top_p"}}', { temperature => 1, top_p => 1 } ],
	'400 invalid', qr/the endpoint refuses the option "top_p" \(HTTP status 400\)/);
fails([ 'status 400 {"error": {"message": "Unrecognized request argument supplied: top_k"}}', { seed => 1, top_k => 2 } ],
	'400 invalid', qr/the endpoint refuses the option "top_k" \(HTTP status 400\)/);
fails([ 'status 422 {"detail": [{"loc": ["body", "min_p"], "msg": "extra"}]}', { seed => 1, min_p => 0.5 } ],
	'400 invalid', qr/the endpoint refuses the option "min_p" \(HTTP status 422\)/);
fails([ 'status 400 {"message": "no min_p"}' ], '400 invalid', qr/the endpoint refuses the request \(HTTP status 400\)/);
fails([ 'redirect http://127.0.0.1:1/v1/chat/completions' ],
	'502 protocol', qr/the endpoint answers with a redirection \(HTTP status 307\)/, qr/Redirections are not followed/);
fails([ "huge $canary" ],    '502 protocol', qr/the endpoint's answer is longer than 16777216 bytes/);
fails([ "cut $canary" ],     '502 protocol', qr/the endpoint's answer is broken: /);
fails([ "drip $canary" ],    '502 protocol', qr/the endpoint's answer is (?:broken|no chat completion): /);
fails([ "garbage $canary" ], '502 protocol', qr/the endpoint's answer is broken: /);
fails([ "nothing $canary" ], '502 protocol', qr/the endpoint's answer is broken: /);
fails([ 'never', {}, { timeout_ms => 200 } ], '504 timeout', qr/the endpoint did not answer in time/);
my $dead = Endpoint->new;
$dead->stop;
fails([ $canary, {}, { url => $dead->url } ], '502 unreachable', qr/could not connect to the endpoint "http:\/\/127\.0\.0\.1:$dead->{port}": Failed to connect/);
fails([ $canary, {}, { url => 'https://127.0.0.1:' . $server->{port}, timeout_ms => 300 } ],
	'502 unreachable', qr/could not connect to the endpoint "https:\/\/127\.0\.0\.1:\d+": /);

# --- no room ------------------------------------------------------------------------------------

my $before = endpoints()->{retries};
is(ask('busy 2 0 429'), 'echo: busy 2 0 429 after 2', 'an endpoint that has no room is asked again');
is(ask('busy 1 1 503'), 'echo: busy 1 1 503 after 1', 'after the time that it names');
is(endpoints()->{retries} - $before, 3, 'that is counted');
fails([ 'busy 9 0 503', {}, { timeout_ms => 900 } ],
	'429 busy', qr/the endpoint takes no more requests \(HTTP status 503\)/, qr/Try again later, or ask for fewer answers at once/);
fails([ 'busy 9 3600 429' ], '429 busy', qr/the endpoint takes no more requests \(HTTP status 429\)/, qr/Try again in 3600 seconds/);
$before = endpoints()->{retries};
fails([ 'status 429 {"error": {"code": "insufficient_quota"}}' ],
	'429 busy', qr/the endpoint takes no more requests \(HTTP status 429\)/, qr/What its key may spend is used up/);
fails([ 'status 402 {}' ], '429 busy', qr/the endpoint takes no more requests \(HTTP status 402\)/, qr/What its key may spend is used up/);
is(endpoints()->{retries}, $before, 'these are not asked again');

# --- what is refused before anything is sent ------------------------------------------------------

for my $case (
	[ 'ftp://127.0.0.1/', qr/must begin with https:\/\/ or http:\/\// ],
	[ 'file:///etc/passwd', qr/must begin with https:\/\/ or http:\/\// ],
	[ 'http://', qr/has no host/ ],
	[ 'http://:80', qr/has no host/ ],
	[ 'https://user:secret@host/', qr/must not have a user or a password/ ],
	[ 'https://host/?a=b', qr/must not have a query or a fragment/ ],
	[ 'https://host/#a', qr/must not have a query or a fragment/ ],
	[ "https://host/\r\nX: y", qr/has a character that does not belong there/ ],
	[ 'https://h st/', qr/has a character that does not belong there/ ],
	[ 'https://host:', qr/has no number behind the host's colon/ ],
	[ 'https://host:99999', qr/has a port that is no number from 1 to 65535/ ],
	[ 'https://host:0', qr/has a port that is no number from 1 to 65535/ ],
	[ 'https://host:8x', qr/has a port that is no number from 1 to 65535/ ],
	[ 'https://[::1', qr/has a host that is no address/ ],
	[ 'https://[::1]x', qr/has a host that is no address/ ],
	[ 'https://[host]', qr/has a host that is no address/ ],
	[ 'https://h%41/', qr/has a host that is no name/ ],
	[ 'https://' . 'h' x 254, qr/has a host of more than 253 characters/ ],
	[ 'https://h/' . 'p' x 2048, qr/has 2058 bytes, the limit is 2048/ ])
{
	fails([ '', {}, { url => $case->[0] } ], '400 invalid', qr/the endpoint's URL $case->[1]/);
}
for my $host ('example.com', '10.0.0.1', '127.0.0.1.example.com', '0x7f000001', '127.1', '[::ffff:127.0.0.1]', 'localhost.example.com')
{
	fails([ '', {}, { url => "http://$host:1/v1" } ],
		'400 invalid', qr/the endpoint's URL is http, which only this machine may be asked by/, qr/"allow_http"/);
}
is(ask('', {}, { url => "http://$_:$dead->{port}" }), '502 unreachable', "http to $_ is let through") for '127.3.2.1', '[::1]', 'LOCALHOST';
is(ask('', {}, { url => "http://0.0.0.0:$dead->{port}", allow_http => JSON::PP::true }), '502 unreachable', 'to others where that is asked for');

fails([ '', {}, { api_key => "a\r\nX-Evil: b" } ], '400 invalid', qr/the API key has a character that does not belong there/);
fails([ '', {}, { api_key => '' } ], '400 invalid', qr/the API key has 0 characters, expected 1 to 4096/);
fails([ '', {}, { sslrootcert => '/no/such.crt' } ], '500 io', qr/could not open the file that "sslrootcert" names: No such file/);
fails([ '', {}, { verify => JSON::PP::false } ], '400 invalid', qr/unknown field "verify"/);
fails([ '', {}, { allow_http => 1 } ], '400 invalid', qr/"allow_http" must be true or false/);
fails([ '', {}, { timeout_ms => -1 } ], '400 invalid', qr/"timeout_ms" is -1, which is not between/);
fails([ '', { tools => [] } ], '400 invalid', qr/unknown field "tools"/);
fails([ '', { stream => JSON::PP::true, logprobs => JSON::PP::true } ], '400 unsupported', qr/"logprobs" with "stream" is not supported/);
fails([ '', { stream_options => 1 } ], '400 invalid', qr/"stream_options" must be an object/);
fails([ '', { n => 0 } ], '400 invalid', qr/"n" is 0, which is not between 1 and 128/);
fails([ '', { model => undef } ], '400 invalid', qr/"model" is missing/);
fails([ '', { messages => 'hi' } ], '400 invalid', qr/"messages" must be a list/);
for my $case ([ {}, qr/"endpoint" must be an object/ ], [ { endpoint => { url => $server->url } }, qr/"request" must be an object/ ], [ { a => 1 }, qr/unknown field "a"/ ])
{
	($status, $reply) = $engine->post($route, $case->[0]);
	is($status, 400, 'a body that is no request');
	like($reply->{error}{message}, $case->[1], 'is told why');
}

# --- TLS ------------------------------------------------------------------------------------------

my $certificates = File::Temp->newdir;
Endpoint::certificates("$certificates");
my $tls   = Endpoint->new(tls => $server->{port}, certificates => $certificates, name => 'good');
my $other = Endpoint->new(tls => $server->{port}, certificates => $certificates, name => 'other');
my %ca    = (sslrootcert => "$certificates/ca.crt");
my $hint  = qr/certificate must be for this host, and by an authority/;

is(ask('hello', {}, { url => $tls->url('localhost', 'https'), %ca }), 'echo: hello', 'TLS, by an authority that is named');
is(ask('show key', {}, { url => $tls->url('127.0.0.1', 'https'), %ca }), "Bearer $key", 'by an address');
fails([ $canary, {}, { url => $tls->url('localhost', 'https') } ],
	'502 unreachable', qr/could not connect to the endpoint "https:\/\/localhost:\d+": SSL certificate problem/, $hint);
fails([ $canary, {}, { url => $other->url('localhost', 'https'), %ca } ],
	'502 unreachable', qr/could not connect to the endpoint "https:\/\/localhost:\d+": SSL: no alternative certificate subject name/, $hint);
fails([ $canary, {}, { url => $tls->url('localhost', 'https'), sslrootcert => "$certificates/good.key" } ],
	'400 invalid', qr/the file that "sslrootcert" names holds no certificates/);

# --- many at once, and cancels --------------------------------------------------------------------

my @replies = $engine->post_all(map { [ $route, body("gather 64 $_") ] } 1 .. 64);
is(scalar(grep { $_->[0] == 200 } @replies), 64, '64 requests are under way at once');
is_deeply([ map { $_->[1]{choices}[0]{message}{content} } @replies ], [ map { "echo: gather 64 $_" } 1 .. 64 ], 'and each has its own answer');

sub tally { return ask('tally') }
my $gone = (split ' ', tally())[1];
my @open = map {
	my $s = $engine->connect;
	$engine->send_request($s, 'POST', $route, body('never'));
	$s
} 1 .. 80;
ok(ServeTest::wait_until(sub { endpoints()->{running} == 80 }), '80 requests are open');
fails([$canary], '429 busy', qr/80 requests to endpoints are under way, which is the limit/, qr/Try again later/);
close $_ for splice @open, 0, 40;
ok(ServeTest::wait_until(sub { endpoints()->{running} == 40 }), 'a client that goes takes its request along');
ok(ServeTest::wait_until(sub { tally() eq '40 ' . ($gone + 40) }), 'and the endpoint is told');
close $_ for @open;
ok(ServeTest::wait_until(sub { endpoints()->{running} == 0 && tally() eq '0 ' . ($gone + 80) }), 'nothing is left');

my $waiting = $engine->connect;
$engine->send_request($waiting, 'POST', $route, body('busy 9 20 429'));
ok(ServeTest::wait_until(sub { endpoints()->{running} == 1 }), 'one that waits to be sent again');
close $waiting;
ok(ServeTest::wait_until(sub { endpoints()->{running} == 0 }), 'ends with its client, too');

# --- beside other requests --------------------------------------------------------------------------

my (undef, $stats) = $engine->get('/stats');
is($stats->{memory}{held}, 0, 'no memory of the models is taken');
my (undef, $metrics) = $engine->get('/metrics');
like($metrics, qr/^pg_finetune_endpoint_$_ \d+$/m, "metric endpoint_$_") for qw(requests_running answers_total failures_total retries_total);
unlike($engine->log_text, qr/\Q$key\E|\Q$canary/, 'neither key nor prompt is in the log');
unlike(do { local (@ARGV, $/) = "/proc/$engine->{pid}/cmdline"; <> }, qr/\Q$key/, 'nor in the command line');

# --- our own engine behind it -----------------------------------------------------------------------

open my $key_file, '>', "$engine->{folder}/key" or die;
print $key_file "$key\n";
close $key_file;
chmod 0600, "$engine->{folder}/key";
my $remote = ServeTest->new(args => [ '--listen', '127.0.0.1:0', '--api-key-file', "$engine->{folder}/key" ]);
my ($port) = $remote->log_text =~ /, port (\d+)/;
write_model("$remote->{folder}/tiny.gguf", chat => 1);
($status) = $remote->post('/v1/load_model', { model => 'remote/model', path => "$remote->{folder}/tiny.gguf" });
is($status, 200, 'an engine elsewhere has a model');
my %asked  = (max_tokens => 8, temperature => 0);
my %there  = (url => "http://127.0.0.1:$port");
my (undef, $direct) = $remote->post('/v1/chat/completions', body('Hello', \%asked)->{request});
is(ask('Hello', \%asked, \%there), $direct->{choices}[0]{message}{content}, 'the same answer comes through');
is($reply->{usage}{completion_tokens}, $direct->{usage}{completion_tokens}, 'and the same numbers');
fails([ $canary, \%asked, { %there, api_key => "${key}x" } ], '502 denied', qr/the endpoint does not accept the API key/);
fails([ $canary, { %asked, model => 'none' }, \%there ], '400 invalid', qr/the endpoint has no such model/);
($status) = $engine->post('/v1/endpoint/chat/completions', body('x', \%asked, { %there, url => "http://127.0.0.1:$port/v1/endpoint" }));
is($status, 400, 'the route itself is not there for others');

# --- the end ------------------------------------------------------------------------------------------

my $last = $engine->connect;
$engine->send_request($last, 'POST', $route, body('never'));
ok(ServeTest::wait_until(sub { endpoints()->{running} == 1 }), 'one is open');
kill 'TERM', $engine->{pid};
($status, $reply) = $engine->read_reply($last);
is($status, 503, 'it is answered when the engine ends');
like($reply->{error}{message}, qr/the engine is shutting down/, 'and told why');
is($engine->wait_exit, 0, 'the engine ends well');

done_testing();
