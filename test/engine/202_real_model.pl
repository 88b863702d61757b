# 202_real_model.pl: the real model over HTTP: eight requests at once are answered as one by one, in
# both numerics.

use strict;
use warnings;

use Test::More;

use ServeTest;

my $model = 'cache/SmolLM2-135M-Instruct.Q4_1.gguf';
plan skip_all => "$model is not there" if !-e $model;

my @questions = (
	'What is the capital of France?',
	'Name three colours.',
	'Write a line about the sea.',
	'def fibonacci(n):',
	'Count from one to ten.',
	'Repeat: ' . 'the quick brown fox jumps over the lazy dog, ' x 20,
	'Translate to German: good morning',
	'Summarise: ' . 'PostgreSQL keeps the truth and an engine does the arithmetic. ' x 12);

for my $numerics ('fast', 'reference')
{
	my $engine = ServeTest->new(args => [ '--numerics', $numerics, '--cache-memory', 128 ]);
	my ($status, $reply) = $engine->post('/v1/load_model', { model => 'm', path => $model });
	is($status, 200, "$numerics: loaded");
	my @requests = map {
		[   '/v1/chat/completions',
			{
				model       => 'm',
				messages    => [ { role => 'user', content => $questions[$_] } ],
				max_tokens  => 12 + $_,
				temperature => $_ % 4 == 3 ? 0.8 : 0,
				seed        => $_
			}
		]
	} 0 .. $#questions;
	my $texts    = sub { [ map { $_->[1]{choices}[0]{message}{content} // "status $_->[0]" } @_ ] };
	my @together = $engine->post_all(@requests);
	my @alone    = map { [ $engine->post(@$_) ] } @requests;
	is_deeply($texts->(@together), $texts->(@alone), "$numerics: eight at once are answered as one by one");
	# what it says of France's capital hangs on the last bits: its first token has three of one weight
	like($together[4][1]{choices}[0]{message}{content}, qr/1.*2.*3/s, "$numerics: and sensibly");
	is($engine->stop, 0, "$numerics: it ends well");
}

done_testing();
