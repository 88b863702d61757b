# 010_programs.pl: the program itself: usage, exit codes, `inspect` and
# `tokenize` on right and on wrong files.
use strict;
use warnings;

use File::Temp qw(tempdir);
use IPC::Open3 qw(open3);
use JSON::PP qw(decode_json);
use Symbol qw(gensym);
use Test::More;

my $engine = "build/pg_finetune_engine";
my $base = "test/golden/tiny_llama/tied/base.gguf";
my $real = "cache/SmolLM2-135M-Instruct.Q4_1.gguf";
my $seeds = "test/fuzz/corpus/gguf";
my $scratch = tempdir(CLEANUP => 1);

# Exit code (or "signal N"), standard output, standard error.
sub run
{
	my ($input, @arguments) = @_;
	open my $in, '>:raw', "$scratch/in" or die $!;
	print $in $input;
	close $in or die $!;
	open my $from, '<:raw', "$scratch/in" or die $!;
	my $errors = gensym;
	open my $to, '+>:raw', "$scratch/out" or die $!;
	open $errors, '+>:raw', "$scratch/err" or die $!;
	my $pid = open3('<&' . fileno $from, '>&' . fileno $to, '>&' . fileno $errors, $engine, @arguments);
	waitpid $pid, 0;
	my $code = $? & 127 ? "signal " . ($? & 127) : $? >> 8;
	local $/;
	return ($code, map { open my $f, '<:raw', "$scratch/$_" or die $!; scalar(<$f>) // '' } qw(out err));
}

my ($code, $out, $err) = run('');
is($code, 2, 'no subcommand is wrong usage');
like($err, qr/^usage: .* serve .* train .* inspect .* tokenize /s, '... which says the right one');
is($out, '', '... on standard error');
is((run('', 'fly'))[0], 2, 'an unknown subcommand is wrong usage');
is((run('', 'inspect'))[0], 2, 'inspect without a file is wrong usage');
is((run('', 'inspect', 'a', 'b'))[0], 2, '... and so is one with two');
is((run('', 'tokenize', '--fast', $base))[0], 2, 'an unknown option is wrong usage');
($code, $out) = run('', '--help');
is($code, 0, '--help');
like($out, qr/^usage: /, '... goes to standard output');

($code, $out, $err) = run('', 'inspect', '/nonexistent/x.gguf');
is($code, 1, 'a file that is not there');
is($err, qq{model file "/nonexistent/x.gguf": could not open: No such file or directory\n}, '... is named');
is($out, '', '... and nothing is printed');

for my $seed (sort glob "$seeds/*")
{
	($code, $out, $err) = run('', 'inspect', $seed);
	ok($code eq '0' || ($code eq '1' && $err =~ /^model file "\Q$seed\E": /), "inspect of $seed")
	  or diag "$code: $err";
}

($code, $out) = run('', 'inspect', "$seeds/valid");
my $described = decode_json($out);
is($described->{architecture}, 'llama', 'inspect prints JSON');
is($described->{parameters}, 12 + 4 * 3 + 16 * 2 + 8 * 2 + 16 * 3, '... with the parameters');
is_deeply($described->{tensor_types}, { f32 => 11 }, '... and the types of tensors');
is_deeply($described->{unsupported}, ['the file has no tokenizer'], '... and what stands in the way');

my $files = "test/golden/tokenizer_files";
($code, $out) = run(qq{"Hello </s>"\n"a\\u0000b"\n""}, 'tokenize', "$files/spm_json", '--lines');
is($code, 0, 'a directory with tokenizer.json, and a text a line');
my @lines = split /\n/, $out, -1;
is(scalar @lines, 4, '... give a line of ids each');
my $lists = join '', map { '[' . join(', ', split ' ', $_) . "]\n" } @lines[ 0 .. 2 ];
is((run($lists, 'tokenize', "$files/spm_json", '--lines', '--decode'))[1], qq{"Hello </s>"\n"a\\u0000b"\n""\n},
	'... which become the texts again');
isnt((run(qq{"</s>"\n}, 'tokenize', "$files/spm_model", '--lines'))[1], "2\n", 'text is no special token');
is((run(qq{"</s>"\n}, 'tokenize', "$files/spm_model", '--lines', '--special'))[1], "2\n", '... unless asked for');
is((run("{}\n", 'tokenize', "$files/spm_model", '--lines'))[2], "line 1 of standard input: is no JSON string\n",
	'a line that is no text is named');
is((run(qq{[1]\n"x"\n}, 'tokenize', "$files/spm_model", '--lines', '--decode'))[2],
	"line 2 of standard input: is no list of token ids\n", '... and one that is no list of ids');
is((run('', 'tokenize', $scratch))[2],
	qq{tokenizer file "$scratch/tokenizer.model": no such file\nhint: A model's directory has a tokenizer.json or a tokenizer.model.\n},
	'a directory without a tokeniser is named');

SKIP:
{
	skip "$real is not there", 6 if !-r $real;
	($code, $out) = run('', 'inspect', $real);
	$described = decode_json($out);
	is($described->{chat_template}, 'smollm2', 'the real model has a template that is known');
	is_deeply($described->{unsupported}, [], '... and can be used');
	is((run("Hello  world 123 <|im_end|>", 'tokenize', $real))[1],
		"19556 216 905 216 33 34 35 2067 108 306 79 486 108 46\n", 'text to ids');
	is((run("Hello  world 123 <|im_end|>", 'tokenize', $real, '--special'))[1],
		"19556 216 905 216 33 34 35 216 2\n", '... with special tokens');
	is((run("19556 216\n905 2", 'tokenize', '--decode', $real))[1], "Hello  world<|im_end|>", 'ids to text');
	is((run('', 'tokenize', $real))[1], "\n", 'empty text has no ids');
}

for my $ids ('1 x', '-1', '99999999999999999999', '1,2', '3')
{
	($code, $out, $err) = run($ids, 'tokenize', '--decode', "$seeds/vocabulary");
	is($code, 1, "\"$ids\" cannot be decoded");
	like($err, qr/token id/, '... because of a token id');
	is($out, '', '... and nothing is printed');
}

SKIP:
{
	skip "/dev/full is not there", 2 if !-c '/dev/full';
	is(system("$engine inspect $seeds/valid >/dev/full 2>$scratch/err") >> 8, 1, 'a full disk is a failure of inspect');
	is(system("echo a | $engine tokenize $seeds/vocabulary >/dev/full 2>$scratch/err") >> 8, 1, '... and of tokenize');
}

done_testing();
