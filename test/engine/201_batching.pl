# 201_batching.pl: many requests at once: answers do not depend on company, the cache is shared and
# freed, the queue is bounded.

use strict;
use warnings;

use Test::More;

use ServeTest;
use TinyModel;

my $true = JSON::PP::true();
my ($status, $reply);

sub texts { return [ map { $_->[1]{choices}[0]{text} // "status $_->[0]" } @_ ] }

# --- company ----------------------------------------------------------------------------------

# 1 MiB holds 256 blocks of 16 tokens: far from enough for what is asked at once below
my $engine = ServeTest->new(args => [ '--cache-memory', 1 ]);
my $folder = $engine->{folder};
write_model("$folder/tiny.gguf");
write_adapter("$folder/lora$_", seed => $_) for 1, 2;
($status) = $engine->post('/v1/load_model', { model => 'm', path => "$folder/tiny.gguf" });
is($status, 200, 'model loaded');
for (1, 2)
{
	($status) = $engine->post('/v1/load_lora_adapter',
		{ lora_name => "lora$_", lora_path => "$folder/lora$_", base_model_name => 'm' });
	is($status, 200, "adapter $_ loaded");
}

my @models   = qw(m lora1 lora2);
my @requests = map {
	[   '/v1/completions',
		{
			model       => $models[ $_ % 3 ],
			prompt      => "request $_ " . 'abc' x ($_ * 3 % 40),
			max_tokens  => 10 + $_ * 5,
			ignore_eos  => $true,
			temperature => $_ % 2 ? 0 : 1,
			seed        => $_,
			repetition_penalty => $_ % 3 == 0 ? 1.3 : 1,
			frequency_penalty  => $_ % 4 == 0 ? 0.5 : 0,
			presence_penalty   => $_ % 4 == 1 ? -0.5 : 0
		}
	]
} 1 .. 8;
my @alone    = map { [ $engine->post(@$_) ] } @requests;
my @together = $engine->post_all(@requests);
is_deeply(texts(@together), texts(@alone), '8 requests at once are answered as one by one');

my @many = map {
	[   '/v1/completions',
		{
			model             => $models[ $_ % 3 ],
			prompt            => "many $_",
			max_tokens        => 240,
			ignore_eos        => $true,
			frequency_penalty => $_ % 2 ? 0.75 : 0
		}
	]
} 1 .. 48;
@together = $engine->post_all(@many);
($status, $reply) = $engine->get('/stats');
cmp_ok($reply->{preemptions}, '>', 0, 'a cache that is too small makes some give way');
@alone = map { [ $engine->post(@$_) ] } @many;
is_deeply(texts(@together), texts(@alone), 'and changes no answer');
($status, $reply) = $engine->get('/stats');
is($reply->{cache}{m}{free}, $reply->{cache}{m}{blocks}, 'all blocks are free again');

# --- a sliding window -------------------------------------------------------------------------

# 256 blocks again: 12 answers of 600 tokens would take 456, their windows take four blocks each
write_model("$folder/window.gguf", context => 1000, window => 40);
($status) = $engine->post('/v1/load_model', { model => 'w', path => "$folder/window.gguf" });
is($status, 200, 'a model with a sliding window');
(undef, $reply) = $engine->get('/stats');
my ($preempted, $blocks) = ($reply->{preemptions}, $reply->{cache}{w}{blocks});
@many = map {
	[   '/v1/completions',
		{   model => 'w', prompt => "window $_ " . 'abc' x ($_ * 7 % 60), max_tokens => 600, ignore_eos => $true,
			temperature => 1, seed => $_ }
	]
} 1 .. 12;
@alone = map { [ $engine->post(@$_) ] } @many;
my $tokens = 0;
$tokens += $_->[1]{usage}{total_tokens} for @alone;
cmp_ok($tokens, '>', 16 * $blocks, "$tokens tokens are more than $blocks blocks hold");
@together = $engine->post_all(@many);
is_deeply(texts(@together), texts(@alone), 'answers at once are those one by one');
($status, $reply) = $engine->get('/stats');
is($reply->{preemptions}, $preempted, 'and nobody gave way: blocks before the window are free again');
is($reply->{cache}{w}{free}, $blocks, 'at the end all are');

# --- clients that go --------------------------------------------------------------------------

my %endless = (model => 'm', prompt => 'x', ignore_eos => $true, max_tokens => 250);
write_model("$folder/long.gguf", context => 200000);
($status) = $engine->stop;
$engine->start('--max-requests', 3);
($status) = $engine->post('/v1/load_model',
	{ model => 'm', path => "$folder/long.gguf", context_length => 150000 });
is($status, 200, 'a model with a long context');
$endless{max_tokens} = 149000;

my @open = map { my $s = $engine->connect; $engine->send_request($s, 'POST', '/v1/completions', \%endless); $s } 1 .. 3;
ok( ServeTest::wait_until(
		sub {
			($status, $reply) = $engine->get('/stats');
			$reply->{running} == 3 && $reply->{tokens} > 20;
		}),
	'three long requests run');
($status, $reply) = $engine->post('/v1/completions', \%endless);
is($status, 429, 'a fourth is one too many');
is($reply->{error}{code}, 'busy', 'with its code');
like($reply->{error}{message}, qr/3.*3/, 'and the limit');
ok($reply->{error}{hint}, 'and a hint');

close $open[0];
ok( ServeTest::wait_until(
		sub {
			($status, $reply) = $engine->get('/stats');
			$reply->{running} == 2;
		}),
	'a client that goes leaves the batch');
close $_ for @open[ 1, 2 ];
ok( ServeTest::wait_until(
		sub {
			($status, $reply) = $engine->get('/stats');
			$reply->{running} == 0 && $reply->{cache}{m}{free} == $reply->{cache}{m}{blocks};
		}),
	'when all have gone their blocks are free');
my $steps = $reply->{steps};
($status, $reply) = $engine->get('/stats');
is($reply->{steps}, $steps, 'and the engine rests');

# a model that is replaced while it answers
my $s = $engine->connect;
$engine->send_request($s, 'POST', '/v1/completions', { %endless, max_tokens => 3000 });
ServeTest::wait_until(sub { ($status, $reply) = $engine->get('/stats'); $reply->{running} == 1 });
($status) = $engine->post('/v1/load_model', { model => 'm', path => "$folder/tiny.gguf" });
is($status, 200, 'a model may be replaced while it answers');
($status, $reply) = $engine->read_reply($s);
is($reply->{usage}{completion_tokens}, 3000, 'and the answer is finished by the old one');
ok(ServeTest::wait_until(sub { $engine->log_text =~ /model "m" unloaded/ }), 'which then goes');

# --- the end ----------------------------------------------------------------------------------

$engine->post('/v1/load_model', { model => 'm', path => "$folder/long.gguf", context_length => 150000 });
$s = $engine->connect;
$engine->send_request($s, 'POST', '/v1/completions', \%endless);
ServeTest::wait_until(sub { ($status, $reply) = $engine->get('/stats'); $reply->{running} == 1 });
kill 'INT', $engine->{pid};
($status) = $engine->get('/health');
is($status, 200, 'SIGINT is ignored');

my $second = system("$engine->{engine} serve --socket '$engine->{socket}' 2>'$folder/second'");
is($second >> 8, 1, 'a second engine on the socket fails');
like(do { local (@ARGV, $/) = "$folder/second"; <> }, qr/another engine/, 'and says why');
($status) = $engine->get('/health');
is($status, 200, 'the first is not disturbed');

kill 'TERM', $engine->{pid};
($status, $reply) = $engine->read_reply($s);
is($status, 503, 'SIGTERM: a request under way is told');
is($reply->{error}{code}, 'cancelled', 'that it was cancelled');
is($engine->wait_exit, 0, 'and the engine ends well');

$engine->start;
kill 'KILL', $engine->{pid};
$engine->wait_exit;
ok(-S $engine->{socket}, 'a killed engine leaves its socket');
$engine->start;
($status) = $engine->get('/health');
is($status, 200, 'which the next one takes over');
is((stat $engine->{socket})[2] & 0777, 0600, 'for its owner alone');

close $engine->{control};
$engine->wait_exit;
ok(1, 'the end of the parent is its end');

# --- descriptors ------------------------------------------------------------------------------

my $narrow = ServeTest->new(descriptors => 40);
my @idle   = map { $narrow->connect } 1 .. 60;
ok(ServeTest::wait_until(sub { $narrow->log_text =~ /could not accept/ }), 'without descriptors none is accepted');
sleep 1;
my $warnings = () = $narrow->log_text =~ /could not accept/g;
cmp_ok($warnings, '<', 100, 'and the engine does not spin');
@idle = ();
($status) = $narrow->get('/health');
is($status, 200, 'it goes on once there are some');
is($narrow->stop, 0, 'and ends well');

for my $usage ([], ['--socket'], [ '--socket', 'x', '--threads', 'two' ], [ '--socket', 'x', '--numerics', 'exact' ])
{
	my $code = system("$engine->{engine} serve @$usage 2>/dev/null");
	is($code >> 8, 2, "wrong usage: serve @$usage");
}

done_testing();
