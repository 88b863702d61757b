# 023_directories.pl: `inspect` of Hugging Face directories, whole ones and ones
# of a config.json alone, and the memory that training with them would take.
use strict;
use warnings;

use File::Copy qw(copy);
use File::Temp qw(tempdir);
use IPC::Open3 qw(open3);
use JSON::PP qw(decode_json);
use Symbol qw(gensym);
use Test::More;

my $engine = "build/pg_finetune_engine";
my $golden = "test/golden/directories";
my $configs = "test/golden/configs";

sub run
{
	my ($in, $out, $err) = (undef, undef, gensym);
	my $pid = open3($in, $out, $err, $engine, @_);
	close $in;
	my $said = do { local $/; <$out> } // '';
	my $words = do { local $/; <$err> } // '';
	waitpid $pid, 0;
	return ($? >> 8, $said, $words);
}

sub inspected
{
	my ($code, $out, $err) = run('inspect', @_);
	is($code, 0, "inspect @_") or diag $err;
	return $code == 0 ? decode_json($out) : {};
}

# --- Whole ones

my %types = (plain => { f32 => 20 }, old => { bf16 => 21 }, new => { bf16 => 20 }, half => { f16 => 21 }, untied => { f32 => 21 },
	qwen2 => { bf16 => 26 }, qwen3 => { bf16 => 24 }, mixtral => { bf16 => 35 });
for my $name (sort keys %types)
{
	my $d = inspected("$golden/$name");

	is_deeply($d->{unsupported}, [], "$name can be used");
	is_deeply($d->{tensor_types}, $types{$name}, '... its types');
	is($d->{weights}, 'present', '... its weights');
	is($d->{tokenizer}{source}, 'tokenizer.json', '... its tokenizer');
	is($d->{chat_template}, 'chatml', '... its template');
	is($d->{plan}, undef, '... and no plan that nobody asked for');
}
my $d = inspected("$golden/old");
is($d->{format}, 'safetensors', 'the format');
is_deeply([ @$d{qw(architecture parameters layers hidden ffn heads kv_heads head_dim vocab context_length)} ],
	[ 'llama', 16780, 2, 20, 28, 4, 2, 6, 261, 64 ], 'the sizes');
ok(!$d->{tied_embeddings}, 'untied');
ok(inspected("$golden/new")->{tied_embeddings}, 'tied');

# --- The exact shapes of models that are too large for a test: their configurations alone

my %bases = (
	'llama3-8b' => [ 'llama', 8030261248, 32, 4096, 14336, 32, 8, 128, 128256, 8192 ],
	'llama3-70b' => [ 'llama', 70553706496, 80, 8192, 28672, 64, 8, 128, 128256, 8192 ],
	'llama3.1-8b' => [ 'llama', 8030261248, 32, 4096, 14336, 32, 8, 128, 128256, 131072 ],
	'llama3.1-70b' => [ 'llama', 70553706496, 80, 8192, 28672, 64, 8, 128, 128256, 131072 ],
	'mistral-7b' => [ 'mistral', 7241732096, 32, 4096, 14336, 32, 8, 128, 32000, 32768 ],
	'mixtral-8x7b' => [ 'mixtral', 46702792704, 32, 4096, 14336, 32, 8, 128, 32000, 32768 ]);
my $readme = do { local (@ARGV, $/) = ('README.md'); <> };
for my $name (sort keys %bases)
{
	my $d = inspected('--plan', '--memory', '139', "$configs/$name");
	my $plan = $d->{plan};
	my @cells;

	is_deeply([ @$d{qw(architecture parameters layers hidden ffn heads kv_heads head_dim vocab context_length)} ],
		$bases{$name}, "$name: the sizes");
	is($d->{weights}, 'missing', '... the weights are missing');
	is($d->{tokenizer}, 'missing', '... and so is the tokenizer');
	is(scalar(grep { /^the (weights are|tokenizer is) missing$/ } @{ $d->{unsupported} }), 2, '... and both are said');
	is($plan->{tokens}, 2048, '... a batch of 2,048 tokens');
	for my $method (qw(lora qlora full))
	{
		my $m = $plan->{$method};
		my $left = 139 * 2**30 - $m->{weights};
		my $need = $m->{total} - $m->{weights};

		is($m->{total}, $m->{weights} + $m->{adapter} + $m->{optimizer} + $m->{activations}, "... $method: a sum");
		is($m->{fits} ? 1 : 0, $need <= $left - $left / 8 ? 1 : 0, "... $method: fits, or not");
		is($m->{fits} ? 1 : 0, $m->{max_tokens} >= 2048 ? 1 : 0, "... $method: as the most tokens say");
		push @cells, sprintf('%.0f', $m->{total} / 2**30), $m->{max_tokens} > 0 ? commas($m->{max_tokens}) : '–';
	}
	is($plan->{lora}{weights} > 2 * $bases{$name}[1] ? 1 : 0, 1, '... weights of two bytes');
	cmp_ok($plan->{qlora}{weights}, '<', $plan->{lora}{weights} / 2, '... fewer when quantised');
	cmp_ok($plan->{full}{optimizer}, '>', 6 * $bases{$name}[1], '... full: gradient and moments');
	my $row = "| $name | " . join(' | ', @cells) . ' |';
	ok(index($readme, "$row\n") >= 0, "README.md has the row of $name") or diag "it should be\n$row";
}

sub commas { my $n = reverse shift; $n =~ s/(\d{3})(?=\d)/$1,/g; return scalar reverse $n }

# more tokens take more, in one part only
my $few = inspected('--plan', '--tokens', '1024', "$configs/mistral-7b")->{plan};
my $many = inspected('--plan', '--tokens', '4096', "$configs/mistral-7b")->{plan};
is($few->{lora}{$_}, $many->{lora}{$_}, "the same $_") for qw(adapter optimizer);
cmp_ok($many->{lora}{activations}, '>', 3 * $few->{lora}{activations}, 'the activations grow');
is($few->{lora}{fits}, undef, 'without a memory nothing fits or not');
ok(inspected('--plan', 'test/golden/tiny_llama/tied/base.gguf')->{plan}{lora}{total} > 0, 'a plan for a GGUF file');

# --- Directories that cannot be used, or not be read

my $scratch = tempdir(CLEANUP => 1);
my ($code, $out, $err) = run('inspect', $scratch);
is($code, 1, 'an empty directory');
like($err, qr/^model file "\Q$scratch\E": is a directory without a config\.json\nhint: Name a GGUF file, or a directory/, '... says what is missing');

sub config
{
	open(my $file, '>', "$scratch/config.json") or die $!;
	print $file $_[0];
	close $file or die $!;
}
config('{"architectures": ["GemmaForCausalLM"], "hidden_size": 3}');
$d = inspected('--plan', $scratch);
like($d->{unsupported}[0], qr/^config\.json: architecture "GemmaForCausalLM" is not supported$/, 'an unknown architecture is named');
is($d->{architecture}, undef, '... and nothing else is said of it');
is($d->{plan}, undef, '... nor planned');
config('{"architectures": [');
($code, $out, $err) = run('inspect', $scratch);
is($code, 1, 'a configuration that is no JSON');
like($err, qr/^model file "\Q$scratch\E": config\.json: not valid JSON at line 1$/m, '... is an error');
config('{"model_type": "llama", "vocab_size": 2, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 5000, "num_attention_heads": 1}');
($code, $out, $err) = run('inspect', '--plan', $scratch);
is($code, 1, 'sizes without bounds');
like($err, qr/number of layers is 5000, expected 1 to 4096/, '... are an error');
copy("$configs/mistral-7b/config.json", "$scratch/config.json");
copy("$golden/plain/tokenizer.json", "$scratch/tokenizer.json");
$d = inspected($scratch);
is_deeply([ $d->{weights}, $d->{tokenizer}{tokens} ], [ 'missing', 261 ], 'a tokenizer without weights');
copy("$golden/plain/model.safetensors.index.json", "$scratch/model.safetensors.index.json");
$d = inspected($scratch);
ok((grep { /^model\.safetensors\.index\.json: shard "model-0000\d-of-00003\.safetensors" is missing$/ } @{ $d->{unsupported} }),
	'an index without shards');

# --- Wrong usage

is((run('inspect', @$_, "$golden/plain"))[0], 2, "wrong usage: @$_")
  for [ '--memory', '0' ], [ '--memory', 'x' ], [ '--tokens', '1x' ], ['--fast'], ["$golden/plain"];

done_testing();
