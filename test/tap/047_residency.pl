# Models make room for one another within pg_finetune.engine_memory and leave after pg_finetune.keep_alive,
# and no caller sees more of it than the time.
use strict;
use warnings;

use lib "$ENV{TESTDIR}/test/engine";

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Utils;
use Test::More;
use TinyModel;

my $node = new_node('residency', "pg_finetune.engine_memory = '1MB'\n");
my @bases = qw(one two);
for (@bases)
{
	write_model($node->basedir . "/models/$_.gguf", ffn => 4096, seed => ord);
	$node->safe_psql('postgres', "CREATE SERVER $_ TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file '$_.gguf')");
}
# The weights are too large by themselves; then, with the rest that it takes, the model
my ($need, $words);
for my $pattern (qr/the model needs at least ([0-9]+) MiB of memory, all models together may hold 1 MiB/,
	qr/the model needs ([0-9]+) MiB of memory, all models together may hold [0-9]+ MiB/)
{
	(my $state, $words) = sqlstate_of($node, q(SELECT complete('one', 'words')));
	is($state, '53200', 'a base of more than the engine may hold');
	like($words, $pattern, 'is refused by both numbers');
	like($words, qr/HINT: +Raise engine_memory/, 'with a hint');
	($need) = $words =~ $pattern or die $words;
	my $engine = engine_pid($node);
	$node->safe_psql('postgres', "ALTER SYSTEM SET pg_finetune.engine_memory = '@{[ $need + 1 ]}MB'");
	$node->reload;
	ok(wait_until(sub { engine_pid($node) != $engine }), 'another limit is another engine');
}

# Room for one
my $ask = q(SELECT complete('%s', 'words', '{"max_tokens": 8}') #>> '{choices,0,messages}');
my %answer = map { $_ => $node->safe_psql('postgres', sprintf $ask, $_) } @bases;
isnt($answer{one}, $answer{two}, 'two bases');
for (1 .. 3)
{
	is($node->safe_psql('postgres', sprintf $ask, $_), $answer{$_}, "in turn where there is room for one: $_") for reverse @bases;
}
cmp_ok(logged_times($node, qr/model "[^"]+" unloaded/, 6), '>=', 6, 'they made room for one another');

# Nobody asks
$node->safe_psql('postgres', q(ALTER SYSTEM SET pg_finetune.keep_alive = '1s'));
my $before = log_count($node, qr/model "[^"]+" unloaded/);
my $pid = engine_pid($node);
$node->reload;
ok(wait_until(sub { my $now = engine_pid($node); return $now && $now != $pid }), 'another keep_alive is another engine');
is($node->safe_psql('postgres', sprintf $ask, 'one'), $answer{one}, 'which answers');
ok(wait_until(sub { log_count($node, qr/model "[^"]+" unloaded/) > $before }), 'and unloads what nobody asks');
is($node->safe_psql('postgres', sprintf $ask, 'one'), $answer{one}, 'until somebody does');
$node->stop;

done_testing();
