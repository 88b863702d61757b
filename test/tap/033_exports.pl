# finetune_export() in formats that the engine writes: what comes of a merged model as a base, files and
# their rights, and exports that are interrupted, which leave nothing.
use strict;
use warnings;

use lib "$ENV{TESTDIR}/test/engine";

use Errno qw(EIO ENOSPC);
use File::Copy qw(copy);
use FaultShim;
use FinetuneCluster;
use FinetuneJob;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use TinyModel ();

my $node    = new_bare_node('exports');
my $golden  = "$ENV{TESTDIR}/test/golden/tiny_llama";
my $models  = $node->basedir . '/models';
my $folder  = $node->basedir . '/out';
my $control = $node->basedir . '/control';
my $wrapper = $node->basedir . '/engine';
my $peft    = decode_json(slurp_file("$golden/completions.json"));

# An engine whose exports go by the control file.
my ($libraries) = run_command([ 'pg_config', '--pkglibdir' ]);
write_file($wrapper, <<"SH");
#!/bin/sh
if [ "\$1" = export ]; then
	export LD_PRELOAD='$FaultShim::library' FAULT_CONTROL='$control'
fi
exec '$libraries/pg_finetune_engine' "\$@"
SH
chmod 0755, $wrapper;
disarm($control);
mkdir $folder or die "$folder: $!";
$node->append_conf('postgresql.conf', "pg_finetune.engine_path = '$wrapper'\n");
$node->start;

sub answer { return $node->safe_psql('postgres', $_[0]); }

sub base
{
	my ($name, $file) = @_;
	answer("CREATE SERVER $name TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file '$file')");
}

sub fails
{
	my ($sql, $state, $pattern, $name, %option) = @_;
	my ($got, $words) = sqlstate_of($node, $sql, %option);

	is($got, $state, "$name: SQLSTATE");
	like($words, $pattern, "$name: message");
}

# What a model answers to the prompts that PEFT was asked.
sub answers_of
{
	my ($model) = @_;
	return map {
		answer("SELECT complete('$model', '$_->{prompt}', '{\"max_tokens\": $peft->{max_tokens}, \"temperature\": 0}')"
			  . "#>>'{choices,0,messages}'")
	} @{ $peft->{completions} };
}

sub in_folder { return join ' ', map { s{.*/}{}r } sort glob("$folder/* $folder/.[!.]*"); }

answer('CREATE EXTENSION pg_finetune; CREATE ROLE bob LOGIN');
base('tiny', 'tiny.gguf');
answer("SELECT finetune_import('tuned', 'tiny', '$golden/tied/adapter')");
my @expected = map { $_->{answer} } @{ $peft->{completions} };
is_deeply([ answers_of('tuned') ], \@expected, 'the tuned model answers as PEFT does');

# --- A merged model is a base

for my $format (qw(gguf gguf-f32 gguf-f16 gguf-q8_0))
{
	my $name = "merged_$format" =~ tr/-/_/r;

	is(answer("SELECT finetune_export('tuned', '$models/$name', '$format')"), "$models/$name", "$format: the directory");
	base($name, "$name/model.gguf");
	is_deeply([ answers_of($name) ], \@expected, "$format: a base that answers as the tuned model does");
	is( join(' ', map { sprintf '%o', (stat $_)[2] & 07777 } "$models/$name", "$models/$name/model.gguf"),
		'755 644', "$format: as readable as what COPY writes");
}
is( answer("SELECT architecture, parameters = (SELECT parameters FROM finetune.models WHERE name = 'tiny'), context_length"
		  . " FROM finetune.models WHERE name = 'merged_gguf'"),
	'llama|t|64', 'what is known of it');

# tuned on the base that it was exported to, and out once more
answer("SELECT finetune_import('twice', 'merged_gguf_f32', '$golden/tied/adapter')");
answer("SELECT finetune_export('twice', '$models/twice', 'gguf-f32')");
base('twice_merged', 'twice/model.gguf');
is_deeply([ answers_of('twice_merged') ], [ answers_of('twice') ], 'so is one that was exported before');

# a mixture of experts
copy("$golden/../tiny_mixtral/plain/base.gguf", "$models/mixtral.gguf") or die $!;
base('mixtral', 'mixtral.gguf');
answer("SELECT finetune_import('mixtral_tuned', 'mixtral', '$golden/../tiny_mixtral/plain/adapter')");
answer("SELECT finetune_export('mixtral_tuned', '$models/mixtral_merged', 'gguf-f32')");
base('mixtral_merged', 'mixtral_merged/model.gguf');
isnt(join('|', answers_of('mixtral_tuned')), join('|', answers_of('mixtral')), 'experts: the adapter tells');
is_deeply([ answers_of('mixtral_merged') ], [ answers_of('mixtral_tuned') ],
	'experts: the merged model answers as the tuned one does');
answer("SELECT finetune_export('mixtral_tuned', '$folder/mixtral_adapter', 'gguf-adapter')");
is(-e "$folder/mixtral_adapter/adapter.gguf", 1, 'experts: an adapter over them');

# --- Safetensors and adapters

for my $format ([ 'safetensors', 'float32' ], [ 'safetensors-f32', 'float32' ], [ 'safetensors-f16', 'float16' ],
	[ 'safetensors-bf16', 'bfloat16' ])
{
	my ($name, $type) = @$format;

	answer("SELECT finetune_export('tuned', '$folder/$name', '$name')");
	is( join(' ', map { s{.*/}{}r } sort glob("$folder/$name/*")),
		'config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json',
		"$name: the files");
	is(join(' ', map { sprintf '%o', (stat $_)[2] & 07777 } glob("$folder/$name/*")), join(' ', (644) x 5),
		"$name: their modes");
	my $config = decode_json(slurp_file("$folder/$name/config.json"));
	is_deeply(
		[ @$config{qw(model_type torch_dtype hidden_size head_dim num_key_value_heads vocab_size)},
			$config->{tie_word_embeddings} ? 1 : 0 ],
		[ 'llama', $type, 36, 10, 2, 261, 1 ],
		"$name: config.json");
}
is(answer("SELECT finetune_export('tuned', '$models/adapter', 'gguf-adapter')"), "$models/adapter", 'gguf-adapter');
base('adapter', 'adapter/adapter.gguf');
fails("SELECT complete('adapter', 'x')", '0A000', qr/holds a "adapter", expected a "model"/, 'an adapter is no base');
is(-e "$models/adapter/adapter.gguf", 1, 'the adapter is there');
my ($rc, $out, $err) = $node->psql('postgres', "SELECT finetune_export('tuned', '$folder/quiet', 'gguf')");
is($err, '', 'nothing is said of a base that is not quantised');

# --- A quantised base

my %sizes = (hidden => 64, ffn => 96, head_dim => 16, heads => 4);
TinyModel::write_model("$models/even.gguf", %sizes);
TinyModel::write_adapter($node->basedir . '/even_adapter', %sizes);
base('even', 'even.gguf');
answer("SELECT finetune_import('even_tuned', 'even', '" . $node->basedir . "/even_adapter')");
answer("SELECT finetune_export('even_tuned', '$models/packed', 'gguf-q8_0')");
base('packed', 'packed/model.gguf');
answer("SELECT finetune_import('packed_tuned', 'packed', '" . $node->basedir . "/even_adapter')");
($rc, $out, $err) = $node->psql('postgres', "SELECT finetune_export('packed_tuned', '$folder/packed', 'gguf-q8_0')");
like($err, qr/NOTICE:  answers of the merged model may differ from those of "packed_tuned"\n.*DETAIL:  It was trained over the quantised weights of base model "packed"/s,
	'a merged quantised base: a notice');
is("$rc $out", "0 $folder/packed", 'and the export');
($rc, $out, $err) = $node->psql('postgres', "SELECT finetune_export('packed_tuned', '$folder/packed_adapter', 'gguf-adapter')");
is("$rc $err", '0 ', 'an adapter alone is what it was');

# --- Refusals

my $left = in_folder();
unlike($left, qr/\.tmp/, 'nothing temporary is left');
fails("SELECT finetune_export('tuned', '$folder/x', 'gguf')", '42501', qr/must be owner of foreign server tuned/,
	'a stranger', user => 'bob');
fails("SELECT finetune_export('tuned', '$folder/quiet', 'gguf')", '58P02', qr/"\Q$folder\E\/quiet" already exists/,
	'a directory that is there');
fails("SELECT finetune_export('tuned', '$folder/no/such', 'gguf')", '58P01',
	qr/could not create directory "\Q$folder\E\/no\/such"/, 'no parent directory');
rename "$models/tiny.gguf", "$models/away.gguf";
fails("SELECT finetune_export('tuned', '$folder/x', 'gguf')", '58P01', qr/tiny\.gguf/, 'the base is gone');
rename "$models/away.gguf", "$models/tiny.gguf";
is(in_folder(), $left, 'nothing is left of these');

# --- Interrupted

# one call after another that changes a file
arm($control, 'LOG', "*$folder/x*", 1, 0);
answer("SELECT finetune_export('tuned', '$folder/x', 'gguf')");
my @calls = map { s/\.tmp\.\w+//r } grep { defined } logged($control);
ok(grep({ $_ eq "rename $folder/x/model" || $_ eq "rename $folder/x/model.tmp" } @calls), 'the engine renames what it wrote');
disarm($control);
system('rm', '-r', "$folder/x") == 0 or die;
for my $fault ([ ENOSPC, '53100', qr/could not write "\Q$folder\E\/x[^"]*model\.gguf": No space left on device/, 'write *model.gguf' ],
	[ EIO, '58030', qr/could not fsync "\Q$folder\E\/x[^"]*model\.gguf": Input\/output error/, 'fsync *model.gguf' ],
	[ 'KILL', '58000', qr/exporting engine died: /, 'write *model.gguf' ],
	[ 'TEAR', '58000', qr/exporting engine died: /, 'write *model.gguf' ])
{
	my ($action, $state, $pattern, $calls) = @$fault;

	arm($control, $action, $calls, 3, 3);
	arm($control, $action, $calls, 1, 1) if $calls =~ /^fsync/;
	fails("SELECT finetune_export('tuned', '$folder/x', 'gguf')", $state, $pattern, "$action at $calls");
	disarm($control);
	is(in_folder(), $left, "$action at $calls: nothing is left");
}

# somebody makes a directory of that name meanwhile
{
	my ($out, $err) = ('', '');

	arm($control, 'HOLD', 'write *model.gguf', 2, 2);
	my $session = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres'),
			'-c', "SELECT finetune_export('tuned', '$folder/x', 'gguf')" ], '>', \$out, '2>', \$err);
	wait_until(sub { held($control) }) or die 'no export is held';
	mkdir "$folder/x";
	write_file("$folder/x/theirs", 'x');
	disarm($control);
	$session->finish;
	like($err, qr/ERROR:  42809: could not rename directory "[^"]*" to "\Q$folder\E\/x": Directory not empty/, 'a name that is taken meanwhile');
	is(slurp_file("$folder/x/theirs"), 'x', 'what is there stays');
	system('rm', '-r', "$folder/x") == 0 or die;
	is(in_folder(), $left, 'and nothing else is left');
}

# cancelled, and its session ended
for my $end ([ 'pg_cancel_backend', '57014', qr/canceling statement due to user request/ ],
	[ 'pg_terminate_backend', '57P01', qr/terminating connection due to administrator command/ ])
{
	my ($function, $state, $pattern) = @$end;
	my ($out, $err) = ('', '');

	arm($control, 'HOLD', 'write *model.gguf', 2, 2);
	my $session = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres'),
			'-c', "SELECT finetune_export('tuned', '$folder/x', 'gguf')" ], '>', \$out, '2>', \$err);
	wait_until(sub { held($control) }) or die 'no export is held';
	isnt(in_folder(), $left, "$function: something is being written");
	is(answer("SELECT $function(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT finetune_export%'"), 't', $function);
	$session->finish;
	disarm($control);
	like($err, $pattern, "$function: message");
	like($err, qr/(?:ERROR|FATAL):  $state:/, "$function: SQLSTATE");
	wait_until(sub { in_folder() eq $left });
	is(in_folder(), $left, "$function: nothing is left");
}
is(answer("SELECT finetune_export('tuned', '$folder/x', 'gguf')"), "$folder/x", 'then it works');

$node->stop;
done_testing();
