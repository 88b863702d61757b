# 208_residency.pl: which models stay in memory: they make room for one another and leave when nobody asks them.

use strict;
use warnings;

use Test::More;

use ServeTest;
use TinyModel;

my $true = JSON::PP::true();
my ($status, $reply, $engine);

sub load
{
	my ($id, $file) = @_;
	return $engine->post('/v1/load_model', { model => $id, path => "$engine->{folder}/" . ($file // 'tiny.gguf') });
}

sub models { return join ' ', sort map { $_->{id} } @{ ($engine->get('/v1/models'))[1]{data} } }
sub memory { return ($engine->get('/stats'))[1]{memory} }

sub ask
{
	my ($id, $tokens) = @_;
	return [ '/v1/completions',
		{ model => $id, prompt => 'words', max_tokens => $tokens // 20, ignore_eos => $true, temperature => 0 } ];
}

sub text { my ($answer) = @_; return $answer->[1]{choices}[0]{text} // "status $answer->[0]" }

# What a tiny model holds, and an adapter over it
$engine = ServeTest->new(args => [ '--cache-memory', 1 ]);
my $folder = $engine->{folder};
write_model("$folder/tiny.gguf");
write_adapter("$folder/lora", seed => 1);
is(memory()->{held}, 0, 'nothing is held at first');
cmp_ok(memory()->{limit}, '>', 0, 'but there is a limit');
load('a');
my $one = memory()->{held};
cmp_ok($one, '>', 1 << 20, 'a model holds its weights, work memory and cache');
$engine->post('/v1/load_lora_adapter', { lora_name => 'l', lora_path => "$folder/lora", base_model_name => 'a' });
cmp_ok(memory()->{held}, '>', $one, 'an adapter its own');
my $answer = text([ $engine->post(@{ ask('a') }) ]);
my $tuned  = text([ $engine->post(@{ ask('l') }) ]);
my $long   = text([ $engine->post(@{ ask('a', 200) }) ]);
isnt($tuned, $answer, 'which changes the answer');
$engine->stop;

# --- room for one and a half ------------------------------------------------------------------

my $mib = int($one * 1.5 / (1 << 20)) + 1;
$engine->start('--cache-memory', 1, '--engine-memory', $mib);
load('a');
$engine->post('/v1/load_lora_adapter', { lora_name => 'l', lora_path => "$folder/lora", base_model_name => 'a' });
is(models(), 'a l', 'a base and its adapter');
$engine->post(@{ ask($_) }) for qw(a l);
($status) = load('b');
is($status,   200, 'another base is loaded');
is(models(), 'b', 'in the place of the first one and what was over it');
is(memory()->{held}, $one, 'which hold nothing any more');
($status, $reply) = $engine->post(@{ ask('a') });
is("$status $reply->{error}{code}", '404 not_found', 'who asks for the first one is told');
load('a');
is(models(), 'a', 'it comes back');
is(text([ $engine->post(@{ ask('a') }) ]), $answer, 'and answers as before');

# In use: its answer is finished, whether or not the other one had to take its name away
my @replies = $engine->post_all(ask('a', 200), [ '/v1/load_model', { model => 'b', path => "$folder/tiny.gguf" } ]);
is(text($replies[0]), $long, 'an answer under way is finished');
is($replies[1][0], 200, 'and the base that waited is loaded');
is(models(), 'b', 'alone');

# Asked without a pause by others: it comes in all the same
load('a');
my @busy = map { ask('a', 200) } 1 .. 40;
@replies = $engine->post_all(@busy[ 0 .. 19 ], [ '/v1/load_model', { model => 'b', path => "$folder/tiny.gguf" } ],
	@busy[ 20 .. 39 ]);
is($replies[20][0], 200, 'a base is loaded beside many that ask for another');
my %texts = map { text($_) => 1 } @replies[ 0 .. 19 ];
is_deeply([ keys %texts ], [$long], 'those that came before it are answered');
$engine->stop;

# --- too large --------------------------------------------------------------------------------

$engine->start('--engine-memory', 1);
($status, $reply) = load('a');
is($status, 503, 'a model of more than the limit is refused');
like($reply->{error}{message}, qr/^the model needs [2-9][0-9]* MiB of memory, all models together may hold 1 MiB$/, 'by both numbers');
like($reply->{error}{hint} // $reply->{hint}, qr/Raise engine_memory/, 'with a hint');
is(memory()->{held}, 0, 'and holds nothing');
$engine->stop;

# --- nobody asks ------------------------------------------------------------------------------

$engine->start('--cache-memory', 1, '--keep-alive', 1);
load('a');
$engine->post('/v1/load_lora_adapter', { lora_name => 'l', lora_path => "$folder/lora", base_model_name => 'a' });
ok(ServeTest::wait_until(sub { models() eq '' }), 'models that nobody asks are unloaded');
ok(ServeTest::wait_until(sub { memory()->{held} == 0 }), 'and hold nothing');
like($engine->log_text, qr/model "a" unloaded/, 'which the log says');
load('a');
is(text([ $engine->post(@{ ask('a') }) ]), $answer, 'they come back');
is($engine->stop, 0, 'the engine ends with one loaded');

done_testing();
