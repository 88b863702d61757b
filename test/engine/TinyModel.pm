# TinyModel.pm: small random models and adapters as files, for tests of the engine as a program.
package TinyModel;

use strict;
use warnings;

use Exporter qw(import);
use JSON::PP ();

our @EXPORT = qw(write_model write_adapter %TINY);

our %TINY = (
	hidden   => 48,
	ffn      => 80,
	layers   => 2,
	heads    => 6,
	kv_heads => 2,
	head_dim => 8,
	context  => 256,
	vocab    => 259);

# Numbers in [-1, 1) that depend on the seed alone (a linear congruential generator is random enough).
sub noise
{
	my ($seed, $n) = @_;
	my $x = ($seed * 2654435761 + 12345) & 0xffffffff;
	return map { $x = ($x * 1664525 + 1013904223) & 0xffffffff; $x / 2147483648 - 1 } 1 .. $n;
}

sub gguf_string { my ($s) = @_; return pack('Q<', length $s) . $s }
sub key_u32     { my ($k, $v) = @_; return gguf_string($k) . pack('L<L<', 4, $v) }
sub key_f32     { my ($k, $v) = @_; return gguf_string($k) . pack('L<f<', 6, $v) }
sub key_string  { my ($k, $v) = @_; return gguf_string($k) . pack('L<', 8) . gguf_string($v) }

# GPT-2's printable alphabet of bytes, as UTF-8.
sub byte_tokens
{
	my $n = 256;
	return map {
		my $code =
			($_ >= 33 && $_ <= 126) || ($_ >= 161 && $_ <= 172) || $_ >= 174 ? $_ : $n++;
		my $text = chr($code);
		utf8::encode($text);
		$text;
	} 0 .. 255;
}

sub vocabulary
{
	my @tokens = (byte_tokens(), '<|im_start|>', '<|im_end|>', '<|endoftext|>');
	my $template =
		  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
		. "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if "
		. "add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

	return (
		key_string('tokenizer.ggml.model', 'gpt2'),
		key_string('tokenizer.ggml.pre', 'smollm'),
		gguf_string('tokenizer.ggml.tokens')
			. pack('L<L<Q<', 9, 8, scalar @tokens)
			. join('', map { gguf_string($_) } @tokens),
		gguf_string('tokenizer.ggml.token_type')
			. pack('L<L<Q<', 9, 5, scalar @tokens)
			. pack('l<*', map { $_ < 256 ? 1 : 3 } 0 .. $#tokens),
		gguf_string('tokenizer.ggml.merges') . pack('L<L<Q<', 9, 8, 0),
		key_u32('tokenizer.ggml.eos_token_id', 257),
		key_u32('tokenizer.ggml.bos_token_id', 256),
		key_string('tokenizer.chat_template', $template));
}

# Write a model as GGUF, all in f32: write_model($path, seed => 1, context => 256), with window => 40 with a sliding window.
sub write_model
{
	my ($path, %options) = @_;
	my %m    = (%TINY, seed => 1, %options);
	my $q    = $m{heads} * $m{head_dim};
	my $kv   = $m{kv_heads} * $m{head_dim};
	my @list = ([ 'token_embd', $m{vocab}, $m{hidden} ]);

	for my $i (0 .. $m{layers} - 1)
	{
		push @list,
			[ "blk.$i.attn_norm", 1, $m{hidden} ],
			[ "blk.$i.attn_q", $q, $m{hidden} ],
			[ "blk.$i.attn_k", $kv, $m{hidden} ],
			[ "blk.$i.attn_v", $kv, $m{hidden} ],
			[ "blk.$i.attn_output", $m{hidden}, $q ],
			[ "blk.$i.ffn_norm", 1, $m{hidden} ],
			[ "blk.$i.ffn_gate", $m{ffn}, $m{hidden} ],
			[ "blk.$i.ffn_up", $m{ffn}, $m{hidden} ],
			[ "blk.$i.ffn_down", $m{hidden}, $m{ffn} ];
	}
	push @list, [ 'output_norm', 1, $m{hidden} ];

	my ($tensors, $data) = ('', '');
	for my $t (@list)
	{
		my ($name, $rows, $cols) = @$t;
		my $spread = $name eq 'token_embd' ? 1 : 0.3;
		my $centre = $rows == 1            ? 1 : 0;
		$tensors .= gguf_string("$name.weight")
			. ($rows == 1 ? pack('L<Q<', 1, $cols) : pack('L<Q<Q<', 2, $cols, $rows))
			. pack('L<Q<', 0, length $data);
		$data .= pack('f<*',
			map { $centre + $spread * $_ } noise($m{seed} * 1000 + length $tensors, $rows * $cols));
		$data .= "\0" x (-length($data) % 32);
	}

	my @keys = (
		key_string('general.architecture', 'llama'),
		key_u32('llama.block_count',             $m{layers}),
		key_u32('llama.embedding_length',        $m{hidden}),
		key_u32('llama.feed_forward_length',     $m{ffn}),
		key_u32('llama.context_length',          $m{context}),
		key_u32('llama.attention.head_count',    $m{heads}),
		key_u32('llama.attention.head_count_kv', $m{kv_heads}),
		key_u32('llama.attention.key_length',    $m{head_dim}),
		key_u32('llama.attention.value_length',  $m{head_dim}),
		key_u32('llama.rope.dimension_count',    $m{head_dim}),
		key_f32('llama.attention.layer_norm_rms_epsilon', 1e-5),
		($m{window} ? key_u32('llama.attention.sliding_window', $m{window}) : ()),
		vocabulary());
	my $head = 'GGUF' . pack('L<Q<Q<', 3, scalar @list, scalar @keys) . join('', @keys) . $tensors;
	$head .= "\0" x (-length($head) % 32);
	write_file($path, $head . $data);
	return;
}

# Write a PEFT adapter of rank 4 on every linear layer, with random A and B.
sub write_adapter
{
	my ($directory, %options) = @_;
	my %m       = (%TINY, seed => 1, %options);
	my $q       = $m{heads} * $m{head_dim};
	my $kv      = $m{kv_heads} * $m{head_dim};
	my @targets = (
		[ 'self_attn.q_proj', $m{hidden}, $q ],
		[ 'self_attn.k_proj', $m{hidden}, $kv ],
		[ 'self_attn.v_proj', $m{hidden}, $kv ],
		[ 'self_attn.o_proj', $q, $m{hidden} ],
		[ 'mlp.gate_proj', $m{hidden}, $m{ffn} ],
		[ 'mlp.up_proj', $m{hidden}, $m{ffn} ],
		[ 'mlp.down_proj', $m{ffn}, $m{hidden} ]);
	my ($data, %header) = ('');

	for my $layer (0 .. $m{layers} - 1)
	{
		for my $t (@targets)
		{
			my ($module, $in, $out) = @$t;
			for my $part ([ 'A', 4, $in ], [ 'B', $out, 4 ])
			{
				my ($letter, $rows, $cols) = @$part;
				my $begin = length $data;
				$data .= pack('f<*',
					map { 0.2 * $_ } noise($m{seed} * 7919 + $begin, $rows * $cols));
				$header{"base_model.model.model.layers.$layer.$module.lora_$letter.weight"} = {
					dtype        => 'F32',
					shape        => [ $rows, $cols ],
					data_offsets => [ $begin, length $data ],
				};
			}
		}
	}
	my $json = JSON::PP->new->canonical->encode(\%header);
	$json .= ' ' x (-length($json) % 8);
	mkdir $directory;
	write_file("$directory/adapter_model.safetensors", pack('Q<', length $json) . $json . $data);
	write_file(
		"$directory/adapter_config.json",
		JSON::PP->new->canonical->encode(
			{
				peft_type      => 'LORA',
				r              => 4,
				lora_alpha     => 8,
				bias           => 'none',
				target_modules =>
					[qw(q_proj k_proj v_proj o_proj gate_proj up_proj down_proj)],
			}));
	return;
}

sub write_file
{
	my ($path, $bytes) = @_;
	open my $fh, '>:raw', $path or die "$path: $!";
	print $fh $bytes or die "$path: $!";
	close $fh or die "$path: $!";
	return;
}

1;
