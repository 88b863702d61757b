# Weights in and out: finetune_import() of what PEFT made, finetune_export(), rights, hostile
# directories, and what a transaction that is undone leaves behind.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use File::Copy;
use File::Path qw(make_path);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node    = new_node('weights');
my $golden  = "$ENV{TESTDIR}/test/golden/tiny_llama";
my $folder  = $node->basedir . '/adapters';
my $adapter = "$golden/tied/adapter";
my @files   = qw(adapter_config.json adapter_model.safetensors);
my $peft    = decode_json(slurp_file("$golden/completions.json"));

mkdir $folder or die "$folder: $!";

sub answer { return $node->safe_psql('postgres', $_[0]); }

sub as
{
	my ($user, $sql) = @_;
	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', $user ]);
}

sub fails
{
	my ($sql, $state, $pattern, $name, $user) = @_;
	my ($got, $words) = sqlstate_of($node, $sql, defined $user ? (user => $user) : ());

	is($got, $state, "$name: SQLSTATE");
	like($words, $pattern, "$name: message");
}

# What a model answers to the prompts that PEFT was asked.
sub answers_of
{
	my ($model) = @_;
	return map {
		answer("SELECT complete('$model', '$_->{prompt}', '{\"max_tokens\": $peft->{max_tokens}}')"
			  . "#>>'{choices,0,messages}'")
	} @{ $peft->{completions} };
}

# A copy of PEFT's adapter, to be changed.
sub new_adapter
{
	my ($name) = @_;
	mkdir "$folder/$name" or die "$folder/$name: $!";
	copy("$adapter/$_", "$folder/$name/$_") or die "$_: $!" for @files;
	return "$folder/$name";
}

sub counts
{
	return answer('SELECT (SELECT count(*) FROM finetune.model), (SELECT count(*) FROM finetune.weights),'
		  . ' (SELECT count(*) FROM pg_foreign_server)');
}

my $before = counts();
answer('CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE carol LOGIN IN ROLE alice');

# --- What PEFT made

answer("SELECT finetune_import('imported', 'tiny', '$adapter/')");
is_deeply([ answers_of('imported') ], [ map { $_->{answer} } @{ $peft->{completions} } ],
	'an imported adapter answers as PEFT does');
isnt((answers_of('tiny'))[$_], $peft->{completions}[$_]{answer}, "the base does not: $_")
  for 0 .. $#{ $peft->{completions} };
is( answer("SELECT kind, status, base, architecture, parameters > 0, context_length, size > 16000, job_id, training_loss,"
		  . " storage FROM finetune.models WHERE name = 'imported'"),
	'lora|ready|tiny|llama|t|64|t|||database', 'what is known of it');
is( answer("SELECT m.base_digest = b.base_digest FROM finetune.model m JOIN finetune.model b ON b.id = m.base_id"
		  . " WHERE m.name = 'imported'"),
	't', 'it is bound to the bytes of its base');
is( answer("SELECT string_agg(file, ' ' ORDER BY part) FROM finetune.weights"
		  . " JOIN finetune.model ON id = model_id WHERE name = 'imported'"),
	join(' ', @files), 'what is stored of the directory');
fails('DROP SERVER tiny', '2BP01', qr/server imported depends on server tiny/, 'its base is needed');

# --- Out, and in again

is(answer("SELECT finetune_export('imported', '$folder/out/')"), "$folder/out", 'export returns the directory');
is(slurp_file("$folder/out/$_"), slurp_file("$adapter/$_"), "$_ is what it was") for @files;
is(join(' ', map { sprintf '%o', (stat $_)[2] & 07777 } "$folder/out", map { "$folder/out/$_" } @files),
	'755 644 644', 'as readable as what COPY writes');
is_deeply([ map { s{.*/}{}r } sort glob("$folder/*") ], ['out'], 'nothing temporary is left');
answer("SELECT finetune_import('again', 'tiny', '$folder/out')");
is( answer("SELECT count(DISTINCT weights_digest) FROM finetune.model WHERE name IN ('imported', 'again')"),
	1, 'export and import keep the digest');
is_deeply([ answers_of('again') ], [ answers_of('imported') ], 'and the answers');

# a model that was trained here
wait_for_status($node, start_job($node, 'trained', options => { max_steps => 3 }), 'SUCCESS');
answer("SELECT finetune_export('trained', '$folder/trained', 'peft')");
answer("SELECT finetune_import('copied', 'tiny', '$folder/trained')");
is( answer("SELECT count(DISTINCT weights_digest) FROM finetune.model WHERE name IN ('trained', 'copied')"),
	1, 'a trained model goes the same way');
is_deeply([ answers_of('copied') ], [ answers_of('trained') ], 'with the same answers');
is( answer("BEGIN READ ONLY; SELECT finetune_export('trained', '$folder/read_only'); ROLLBACK"),
	"$folder/read_only", 'a read-only transaction may export');
ok(-e "$folder/read_only/$files[1]", 'and what is written stays, as what COPY writes does');

# --- Transactions

$before = counts();
for my $undone ("BEGIN; SELECT finetune_import('gone', 'tiny', '$adapter'); ROLLBACK",
	"BEGIN; SAVEPOINT s; SELECT finetune_import('gone', 'tiny', '$adapter'); ROLLBACK TO s; COMMIT")
{
	answer($undone);
	is(counts(), $before, 'an import that is rolled back leaves nothing');
}
is( answer("BEGIN; SELECT finetune_import('early', 'tiny', '$adapter');"
		  . " SELECT complete('early', '$peft->{completions}[0]{prompt}', '{\"max_tokens\": $peft->{max_tokens}}')"
		  . "#>>'{choices,0,messages}'; COMMIT"),
	"\n$peft->{completions}[0]{answer}", 'a model can be asked in the transaction of its import');
answer("BEGIN; SELECT finetune_import('prepared', 'tiny', '$adapter'); PREPARE TRANSACTION 'p'");
answer("COMMIT PREPARED 'p'");
is_deeply([ answers_of('prepared') ], [ answers_of('imported') ], 'an import that is prepared, then committed');
fails("BEGIN READ ONLY; SELECT finetune_import('x', 'tiny', '$adapter')",
	'25006', qr/cannot execute finetune_import\(\) in a read-only transaction/, 'a read-only import');
answer('DROP SERVER early; DROP SERVER prepared; DROP SERVER again; DROP SERVER copied');

# --- Rights

my $import = "SELECT finetune_import('mine', 'tiny', '$adapter')";
my $export = "SELECT finetune_export('mine', '$folder/mine')";
fails($import, '42501', qr/permission denied for foreign-data wrapper pg_finetune/,
	'import without USAGE on the wrapper', 'alice');
answer('GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO alice, bob');
fails($import, '42501', qr/permission denied for foreign server tiny/, 'without USAGE on the base', 'alice');
answer('GRANT USAGE ON FOREIGN SERVER tiny TO alice, bob');
fails($import, '42501',
	qr/permission denied for finetune_import\n.*DETAIL:  Only roles with privileges of pg_read_server_files/s,
	'without the right to read files', 'alice');
answer('GRANT pg_read_server_files TO alice');
as('alice', $import);
is(answer("SELECT owner FROM finetune.models WHERE name = 'mine'"), 'alice', 'who imports is the owner');
fails($export, '42501',
	qr/permission denied for finetune_export\n.*DETAIL:  Only roles with privileges of pg_write_server_files/s,
	'export without the right to write files', 'alice');
answer('GRANT pg_write_server_files TO alice, bob; GRANT USAGE ON FOREIGN SERVER mine TO bob');
fails($export, '42501', qr/must be owner of foreign server mine/, 'export by who may use the model', 'bob');
is(as('carol', $export), "$folder/mine", 'a member of the owner role may export');
fails($export, '58P02', qr/"\Q$folder\E\/mine" already exists/, 'a directory that is there', 'alice');
is(as('alice', "SELECT finetune_export('mine', '$folder/mine2')"), "$folder/mine2", 'the owner may');
answer("SELECT finetune_export('mine', '$folder/mine3')");
ok(-d "$folder/mine3", 'and a superuser');

# --- Arguments

for my $nulls ([ "finetune_export(NULL, '/x')", 'model', 'finetune_export' ],
	[ "finetune_export('mine', NULL)", 'directory', 'finetune_export' ],
	[ "finetune_export('mine', '/x', NULL)", 'format', 'finetune_export' ],
	[ "finetune_import(NULL, 'tiny', '/x')", 'model', 'finetune_import' ],
	[ "finetune_import('x', NULL, '/x')", 'base_model', 'finetune_import' ],
	[ "finetune_import('x', 'tiny', NULL)", 'directory', 'finetune_import' ])
{
	fails("SELECT $nulls->[0]", '22004', qr/argument "$nulls->[1]" of $nulls->[2] must not be null/, $nulls->[0]);
}
fails("SELECT finetune_export('mine', '$folder/x', 'onnx')", '22023',
	qr/unknown format "onnx"\n.*HINT:  Supported formats are: peft, safetensors, .*, gguf-adapter\./s, 'format onnx');
fails("SELECT finetune_export('none', '$folder/x')", '42704', qr/model "none" does not exist/, 'no model');
fails("SELECT finetune_export('tiny', '$folder/x')", '42809',
	qr/model "tiny" is a base model\n.*HINT:  Only tuned models/s, 'export of a base');
answer("CREATE SERVER bare TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune");
fails("SELECT finetune_export('bare', '$folder/x')", '55000', qr/model "bare" has no weights/, 'no weights');
answer('DROP SERVER bare');
answer("CREATE SERVER whole TYPE 'full' FOREIGN DATA WRAPPER pg_finetune");
fails("SELECT finetune_export('whole', '$folder/x', 'gguf')", '55000', qr/model "whole" has no weights/, 'a full model without weights');
answer('DROP SERVER whole');
fails("SELECT finetune_export('mine', 'x')", '42602', qr/directory "x" is not an absolute path/, 'a relative path');
fails("SELECT finetune_export('mine', '/' || repeat('x/', 600))", '42602', qr/path of the directory is too long/,
	'a long path');
fails("SELECT finetune_export('mine', '$folder/no/such')", '58P01', qr/could not create directory "\Q$folder\E\/no\/such"/,
	'no parent directory');
fails("SELECT finetune_export('mine', '$folder')", '58P02', qr/already exists/, 'another directory that is there');
symlink 'nowhere', "$folder/link";
fails("SELECT finetune_export('mine', '$folder/link')", '58P02', qr/already exists/, 'a link to nowhere');
symlink $node->data_dir, "$folder/data";
fails("SELECT finetune_export('mine', '$_')", '22023', qr/directory "\Q$_\E" is inside the data directory/, "export to $_")
  for ($node->data_dir . '/x', $node->data_dir . '/base/x', "$folder/data/x");
fails("SELECT finetune_import('x', 'mine', '$adapter')", '42809', qr/model "mine" is not a base model/,
	'a base that is none');
fails("SELECT finetune_import('x', 'none', '$adapter')", '42704', qr/model "none" does not exist/, 'no base');
fails("SELECT finetune_import('mine', 'tiny', '$adapter')", '42710', qr/model "mine" already exists/, 'a taken name');
fails("SELECT finetune_import('', 'tiny', '$adapter')", '42602', qr/name of a model must not be empty/, 'an empty name');
fails("SELECT finetune_import('x', 'tiny', 'x')", '42602', qr/not an absolute path/, 'import of a relative path');

# --- Directories that are no adapters, or hostile

$before = counts();

# Change PEFT's configuration.
sub with_config
{
	my ($name, %changes) = @_;
	my $path   = new_adapter($name);
	my $config = decode_json(slurp_file("$path/$files[0]"));

	$config->{$_} = $changes{$_} for keys %changes;
	write_file("$path/$files[0]", encode_json($config));
	return $path;
}

# Change PEFT's tensors: what the header says, and the bytes after it.
sub with_tensors
{
	my ($name, $change) = @_;
	my $path  = new_adapter($name);
	my $bytes = slurp_file("$path/$files[1]");
	my $n     = unpack 'Q<', $bytes;
	my $header = decode_json(substr $bytes, 8, $n);
	my $data   = substr $bytes, 8 + $n;

	$change->($header, \$data);
	my $json = encode_json($header);
	write_file("$path/$files[1]", pack('Q<', length $json) . $json . $data);
	return $path;
}

my $tensor = 'base_model.model.model.layers.1.mlp.up_proj.lora_A.weight';
my $path   = new_adapter('cut');
truncate "$path/$files[1]", 5000;
$path = new_adapter('huge');
write_file("$path/$files[1]", pack('Q<', 2**62) . '{}');
$path = new_adapter('no_json');
write_file("$path/$files[0]", '{"r": ');
$path = new_adapter('empty');
write_file("$path/$files[1]", '');
with_config('rank', r => 5);
with_config('dora', use_dora => JSON::PP::true);
with_config('targets', target_modules => ['lm_head']);
with_config('alpha', lora_alpha => -1);
with_tensors('missing', sub { $_[0]{"$tensor.not"} = delete $_[0]{$tensor} });
with_tensors('shape', sub { $_[0]{$tensor}{shape} = [ 36, 3 ] });
with_tensors('nan', sub { substr(${ $_[1] }, $_[0]{$tensor}{data_offsets}[0], 4) = pack('L<', 0x7fc00000) });
with_tensors('far', sub { $_[0]{$tensor}{data_offsets}[1] = 1 << 40 });

my $refused = qr/the adapter in "[^"]*" cannot be used with base model "tiny"\n.*DETAIL:  .*/s;
for my $case (
	[ cut     => 'XX001', qr/$files[1]/ ],
	[ huge    => 'XX001', qr/$files[1]/ ],
	[ empty   => 'XX001', qr/$files[1]/ ],
	[ no_json => 'XX001', qr/$files[0]: not valid JSON/ ],
	[ rank    => '22023', qr/$files[1]: tensor "[^"]*lora_A\.weight" has shape \[3, 36\], expected \[5, 36\]/ ],
	[ dora    => '0A000', qr/$files[0]: use_dora is not supported/ ],
	[ targets => '0A000', qr/$files[0]: target module "lm_head" is not supported/ ],
	[ alpha   => 'XX001', qr/$files[0]: lora_alpha is no positive number/ ],
	[ missing => '22023', qr/$files[1]: tensor "\Q$tensor\E" is missing/ ],
	[ shape   => '22023', qr/tensor "\Q$tensor\E" has shape/ ],
	[ nan     => 'XX001', qr/tensor "\Q$tensor\E" has a value that is not finite/ ],
	[ far     => 'XX001', qr/$files[1]/ ])
{
	my ($name, $state, $words) = @$case;
	fails("SELECT finetune_import('x', 'tiny', '$folder/$name')", $state, qr/$refused$words/, "adapter: $name");
}
my ($state, $words) = sqlstate_of($node, "SELECT finetune_import('x', 'tiny', '$folder/cut')");
unlike($words, qr/pgsql_tmp/, 'errors name the directory of the user');
like($words, qr/DETAIL: .*\Q$folder\E\/cut/, 'in the detail, too');

mkdir "$folder/nothing";
fails("SELECT finetune_import('x', 'tiny', '$folder/nothing')", '58P01',
	qr/directory "\Q$folder\E\/nothing" has no file "$files[0]"\n.*HINT: .*save_pretrained/s, 'an empty directory');
$path = new_adapter('pickled');
rename "$path/$files[1]", "$path/adapter_model.bin";
fails("SELECT finetune_import('x', 'tiny', '$path')", '58P01',
	qr/has no file "$files[1]"\n.*HINT:  Pickled weights are not read.*safe_serialization=True/s, 'pickled weights');
fails("SELECT finetune_import('x', 'tiny', '$folder/none')", '58P01', qr/could not open directory/, 'no directory');
fails("SELECT finetune_import('x', 'tiny', '$adapter/$files[0]')", '42809', qr/is not a directory/, 'a file');
$path = new_adapter('pipe');
unlink "$path/$files[1]";
system('mkfifo', "$path/$files[1]");
fails("SELECT finetune_import('x', 'tiny', '$path')", '42809', qr/$files[1]" is not a regular file/, 'a named pipe');
$path = new_adapter('closed');
chmod 0, $path;
fails("SELECT finetune_import('x', 'tiny', '$path')", '42501', qr/could not stat file "\Q$path\E\/$files[0]"/,
	'a directory that cannot be looked into');
chmod 0700, $path;
is(counts(), $before, 'nothing of all that was stored');
is(answer("SELECT count(*) FROM pg_ls_dir('pgsql_tmp_finetune/cache') n WHERE n LIKE '%import%'"),
	0, 'or is left in the work directory');
is(answer('SELECT 1'), 1, 'the server lives');
is_deeply([ answers_of('imported') ], [ map { $_->{answer} } @{ $peft->{completions} } ], 'and so does the engine');

# Hugging Face's cache is made of links
$path = "$folder/linked";
mkdir $path;
symlink "$adapter/$_", "$path/$_" for @files;
answer("SELECT finetune_import('linked', 'tiny', '$path')");
is_deeply([ answers_of('linked') ], [ answers_of('imported') ], 'an adapter of links');

# --- Weights that were damaged are not exported

my $part = "model_id = (SELECT id FROM finetune.model WHERE name = 'linked') AND part = 1";
answer("UPDATE finetune.weights SET data = set_byte(data, 9000, 1 + get_byte(data, 9000) % 255) WHERE $part");
fails("SELECT finetune_export('linked', '$folder/damaged')", 'XX001', qr/part 1 of the model's weights is damaged/,
	'a damaged part');
answer("DELETE FROM finetune.weights WHERE $part");
fails("SELECT finetune_export('linked', '$folder/damaged')", 'XX001', qr/weights are not those that were stored/,
	'a part that is missing at the end');
is(join(' ', glob("$folder/damaged*")), '', 'no directory appears');
answer('DROP SERVER linked');

# --- Without an engine

$node->append_conf('postgresql.conf', 'pg_finetune.serve = off');
$node->reload;
ok(wait_until(sub { (sqlstate_of($node, "SELECT complete('imported', 'x')"))[0] eq '57P03' }), 'the engine is off');
fails("SELECT finetune_import('x', 'tiny', '$adapter')", '57P03', qr/the engine is turned off/, 'import needs an engine');
is(answer("SELECT finetune_export('imported', '$folder/off')"), "$folder/off", 'export does not');

$node->stop;
ok(slurp_file($node->logfile) !~ /PANIC|TRAP|Segmentation/, 'nothing unseemly in the log');

done_testing();
