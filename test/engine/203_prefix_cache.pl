# 203_prefix_cache.pl: keys and values of earlier requests are found again, by who may see them and
# with which weights they were made, and change no answer.

use strict;
use warnings;

use Test::More;

use ServeTest;
use TinyModel;

my $true = JSON::PP::true();
my ($status, $reply);

sub texts { return [ map { $_->[1]{choices}[0]{text} // "status $_->[0]" } @_ ] }
sub cached { my ($reply) = @_; return $reply->{usage}{prompt_tokens_details}{cached_tokens} }

# An engine with the models that all of them have: (engine, folder).
sub serving
{
	my (@args) = @_;
	my $engine = ServeTest->new(args => \@args);
	my $folder = $engine->{folder};
	write_model("$folder/tiny.gguf", context => 1000);
	write_model("$folder/window.gguf", context => 1000, window => 40);
	write_adapter("$folder/lora$_", seed => $_) for 1, 2;
	$engine->post('/v1/load_model', { model => 'm', path => "$folder/tiny.gguf" });
	$engine->post('/v1/load_model', { model => 'w', path => "$folder/window.gguf" });
	$engine->post('/v1/load_lora_adapter', { lora_name => "lora$_", lora_path => "$folder/lora$_", base_model_name => 'm' })
		for 1, 2;
	return ($engine, $folder);
}

# 1 MiB: 256 blocks of 16 tokens
my ($engine, $folder) = serving('--cache-memory', 1);

# --- what is found ----------------------------------------------------------------------------

my $prompt = join ' ', 'a prompt that several share', 1 .. 40;    # bytes are tokens
my %ask    = (model => 'm', prompt => $prompt, max_tokens => 30, ignore_eos => $true);
my $whole  = 16 * int((length($prompt) - 1) / 16);

($status, my $first) = $engine->post('/v1/completions', \%ask);
is($status, 200, 'a prompt');
is(cached($first), 0, 'is new');
($status, $reply) = $engine->post('/v1/completions', \%ask);
is(cached($reply), $whole, 'the second time its whole blocks are in the cache');
is($reply->{choices}[0]{text}, $first->{choices}[0]{text}, 'and the answer is the same');
($status, $reply) = $engine->post('/v1/completions', { %ask, prompt => substr($prompt, 0, 50) . 'another end' });
is(cached($reply), 48, 'of a prompt that begins alike, what is alike');
($status, $reply) = $engine->post('/v1/completions', { %ask, prompt => 'x' . $prompt });
is(cached($reply), 0, 'of one that is shifted by a token, nothing');
($status, $reply) = $engine->post('/v1/completions', { %ask, prompt => substr($prompt, 0, 16) });
is(cached($reply), 0, 'at least one token is computed');
($status, $reply) = $engine->post('/v1/completions', { %ask, prompt => substr($prompt, 0, 17) });
is(cached($reply), 16, 'and no more than that');

# the ids of the answer's tokens are not in the reply: a prompt of ids that has them all is asked for
my @ids = map { ord } split //, $prompt;
($status, $reply) = $engine->post('/v1/completions', { %ask, prompt => [ @ids, (65) x 20 ], max_tokens => 1 });
is(cached($reply), $whole, 'a list of ids is found like its text');

($status, $reply) = $engine->get('/stats');
cmp_ok($reply->{cached_tokens}, '>=', 2 * $whole + 64, 'stats count what was found');
cmp_ok($reply->{prompt_tokens}, '>',  $reply->{cached_tokens}, 'and what was asked');
is($reply->{cache}{m}{used}, 0, 'no block is in use');
cmp_ok($reply->{cache}{m}{kept}, '>', 0, 'but some keep their contents');
is($reply->{cache}{m}{free}, $reply->{cache}{m}{blocks}, 'and are free all the same');

# --- by whom, and with which weights ------------------------------------------------------------

my %alice = (%ask, cache_salt => 'role 10 in database 5');
($status, $reply) = $engine->post('/v1/completions', \%alice);
is(cached($reply), 0, 'what nobody in particular asked is not found by a role');
($status, $reply) = $engine->post('/v1/completions', \%alice);
is(cached($reply), $whole, 'its own is');
($status, $reply) = $engine->post('/v1/completions', { %ask, cache_salt => 'role 11 in database 5' });
is(cached($reply), 0, 'another role finds nothing of it');
is($reply->{choices}[0]{text}, $first->{choices}[0]{text}, 'and is answered the same');
for my $lora ('lora1', 'lora2')
{
	($status, $reply) = $engine->post('/v1/completions', { %ask, model => $lora });
	is(cached($reply), 0, "$lora: neither the base's nor another adapter's is found");
	($status, $reply) = $engine->post('/v1/completions', { %ask, model => $lora });
	is(cached($reply), $whole, "$lora: its own is");
}
$engine->post('/v1/unload_lora_adapter', { lora_name => 'lora1' });
$engine->post('/v1/load_lora_adapter', { lora_name => 'lora1', lora_path => "$folder/lora2", base_model_name => 'm' });
($status, $reply) = $engine->post('/v1/completions', { %ask, model => 'lora1' });
is(cached($reply), 0, 'a name with other weights finds nothing');
($status, $reply) = $engine->post('/v1/completions', { %ask, cache_salt => 'x' x 257 });
is($status, 400, 'a salt has a limit');
like($reply->{error}{message}, qr/"cache_salt" has 257 bytes, the limit is 256/, 'which is said');
($status, $reply) = $engine->post('/v1/completions', { %ask, cache_salt => 1 });
like($reply->{error}{message}, qr/"cache_salt" must be a string/, 'and it is a string');

# --- a full cache -------------------------------------------------------------------------------

(undef, $reply) = $engine->get('/stats');
my $preempted = $reply->{preemptions};
for my $n (1 .. 8)
{
	$engine->post('/v1/completions', { %ask, prompt => "filler $n " . chr(64 + $n) x 800, max_tokens => 2 });
}
(undef, $reply) = $engine->get('/stats');
is($reply->{preemptions}, $preempted, 'blocks that are only kept make nobody give way');
cmp_ok($reply->{cache}{m}{kept}, '<=', $reply->{cache}{m}{blocks}, 'they are written over');
($status, $reply) = $engine->post('/v1/completions', { %ask, prompt => "filler 8 " . 'H' x 800, max_tokens => 2 });
cmp_ok(cached($reply), '>', 700, 'the latest are still there');
($status, $reply) = $engine->post('/v1/completions', \%ask);
is(cached($reply), 0, 'the oldest are not');
is($reply->{choices}[0]{text}, $first->{choices}[0]{text}, 'which changes no answer');

# --- on and off, in pieces of any size, with and without company -------------------------------

sub many
{
	my ($model, $n) = @_;
	return map {
		[   '/v1/completions',
			{   model => $model eq 'w' ? 'w' : (qw(m lora1 lora2))[ $_ % 3 ],
				prompt => "shared by all of them, and long enough for some blocks of it; " . 'abc' x ($_ % 4 * 9),
				max_tokens => 320 + 5 * $_,
				ignore_eos => $true,
				cache_salt => 'role ' . $_ % 2,
				temperature => $_ % 3 ? 0 : 1,
				seed => $_,
				repetition_penalty => $_ % 5 ? 1 : 1.2
			}
		]
	} 1 .. $n;
}
my ($without) = serving('--prefix-cache', 'off', '--cache-memory', 8);
$without->post('/v1/unload_lora_adapter', { lora_name => 'lora1' });
$without->post('/v1/load_lora_adapter',
	{ lora_name => 'lora1', lora_path => "$without->{folder}/lora2", base_model_name => 'm' });
my %alone;
for my $model ('m', 'w')
{
	$alone{$model} = [ map { [ $without->post(@$_) ] } many($model, 14) ];
	is(scalar(grep { $_->[0] == 200 && cached($_->[1]) == 0 } @{ $alone{$model} }), 14, "$model: answers without a prefix cache");
	for my $try ('first', 'second')
	{
		my @together = $engine->post_all(many($model, 14));
		is_deeply(texts(@together), texts(@{ $alone{$model} }), "$model: the same with one, at once, $try time");
	}
	(undef, $reply) = $engine->get('/stats');
	is($reply->{cache}{$model}{used}, 0, "$model: no block is in use afterwards");
}
cmp_ok($reply->{preemptions}, '>', 0, 'some had to give way');
$engine->stop;
$without->stop;

for my $rows (1, 7, 16, 33)
{
	my ($pieces) = serving('--cache-memory', 1, '--prefill-rows', $rows);
	$pieces->post('/v1/unload_lora_adapter', { lora_name => 'lora1' });
	$pieces->post('/v1/load_lora_adapter',
		{ lora_name => 'lora1', lora_path => "$pieces->{folder}/lora2", base_model_name => 'm' });
	my @few = (many('m', 6), many('w', 6));
	my @together = ($pieces->post_all(@few), map { [ $pieces->post(@$_) ] } @few);
	my @expected = (@{ $alone{m} }[ 0 .. 5 ], @{ $alone{w} }[ 0 .. 5 ]);
	is_deeply(texts(@together), texts(@expected, @expected), "prompts in pieces of $rows rows are answered the same");
	cmp_ok(cached($together[-1][1]), '>', 0, 'with much in the cache');
	$pieces->stop;
}

# a client that goes leaves nothing in use
($engine) = serving();
my $s = $engine->connect;
$engine->send_request($s, 'POST', '/v1/completions', { %ask, max_tokens => 700 });
ServeTest::wait_until(sub { (undef, $reply) = $engine->get('/stats'); $reply->{tokens} > 40 });
close $s;
ok( ServeTest::wait_until(sub { (undef, $reply) = $engine->get('/stats'); $reply->{running} == 0 && $reply->{cache}{m}{used} == 0 }),
	'a client that goes leaves no block in use');
($status, $reply) = $engine->post('/v1/completions', \%ask);
is(cached($reply), $whole, 'and its prompt can be found');
is($reply->{choices}[0]{text}, $first->{choices}[0]{text}, 'and answered as before');

my $code = system("$engine->{engine} serve --socket x --prefix-cache maybe 2>'$engine->{folder}/usage'");
is($code >> 8, 2, 'the switch is on or off');
like(do { local (@ARGV, $/) = "$engine->{folder}/usage"; <> }, qr/--prefix-cache is "maybe", expected on or off/, 'and says so');

done_testing();
