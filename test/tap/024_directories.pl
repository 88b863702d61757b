# Bases that are Hugging Face directories: registered, asked, tuned, stored, and refused when they have changed.
use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use FinetuneCluster;
use FinetuneJob;
use File::Copy;
use File::Path qw(remove_tree);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node     = new_node('directories', "pg_finetune.numerics = reference\n");
my $models   = $node->basedir . '/models';
my $golden   = "$ENV{TESTDIR}/test/golden/directories";
my $expected = decode_json(slurp_file("$golden/expected.json"));
my $create   = "TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS";
my $cache    = $node->data_dir . '/pgsql_tmp_finetune/cache';

sub answer { return $node->safe_psql('postgres', $_[0]); }

sub fails
{
	my ($sql, $state, $pattern, $name) = @_;
	my ($got, $words) = sqlstate_of($node, $sql);

	is($got, $state, "$name: SQLSTATE");
	like($words, $pattern, "$name: message");
}

sub files_of { my ($from) = @_; return map { s{.*/}{}r } sort glob "$from/*"; }

# Bring a directory of the fixtures into the model directory.
sub bring
{
	my ($name, $as) = @_;
	my $to = "$models/" . ($as // $name);

	mkdir $to or die "$to: $!" if !-d $to;
	copy("$golden/$name/$_", "$to/$_") or die "$_: $!" for files_of("$golden/$name");
}

# What the digest of a directory is: names and contents, each with its length.
sub digest_of
{
	my ($directory) = @_;
	my $all = '';

	for my $name (files_of($directory))
	{
		my $contents = slurp_file("$directory/$name");
		$all .= pack('Q>', length $name) . $name . pack('Q>', length $contents) . $contents;
	}
	return sha256_hex($all);
}

# An answer of eight tokens, without a character at its end that the last one did not complete.
sub ask { return whole(answer("SELECT complete('$_[0]', 'av', '{\"max_tokens\": 8}')#>>'{choices,0,messages}'")); }

sub whole { my ($text) = @_; return $text =~ s/(?:\xef\xbf\xbd|\x{fffd})+\z//r; }

# The text of what transformers answers.
sub told
{
	my ($model, $name) = @_;
	return whole(answer("SELECT detokenize('$model', '{" . join(',', @{ $expected->{$name}{answer} }) . "}')"));
}

sub digests { return answer("SELECT base_digest, weights_digest FROM finetune.model WHERE name = '$_[0]'"); }

# --- Registered and asked

my %size;
for my $name (qw(plain old new half untied qwen2 qwen3 mixtral))
{
	bring($name);
	$size{$name} = 0;
	$size{$name} += -s "$golden/$name/$_" for files_of("$golden/$name");
	answer("CREATE SERVER $name $create (file '$name')");
	is(ask($name), told($name, $name), "$name answers as in transformers");
	is(digests($name), digest_of("$golden/$name") . '|', "$name: the digest of its files is recorded");
}
is( answer("SELECT kind, status, architecture, parameters, context_length, size, storage FROM finetune.models WHERE name = 'plain'"),
	"base|ready|llama|11560|64|$size{plain}|file", 'what is known of it');
is( answer("SELECT tokenize('plain', 'at the 12th av\x{c3}\x{a9}nue of them')"),
	'{' . join(',', @{ $expected->{ids} }) . '}', 'its tokens');

# --- Tuned

answer("SELECT finetune('CREATE', 'tuned', 'plain', 'TABLE fact', NULL, '{\"max_steps\": 3, \"learning_rate\": 0.01}')");
my $id = answer("SELECT job_id FROM finetune.models WHERE name = 'tuned'");
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'a job trains from a directory');
my $said = ask('tuned');
isnt($said, ask('plain'), 'and changes what it says');
my $estimate = decode_json(answer("SELECT finetune_estimate('plain', 'TABLE fact')"));
is($estimate->{parameters}, 11560, 'an estimate');
my $exported = $node->basedir . '/exported';
answer("SELECT finetune_export('tuned', '$exported')");
answer("SELECT finetune_import('again', 'plain', '$exported')");
is(ask('again'), $said, 'its adapter is exported and imported');
is(decode_json(answer("SELECT finetune_evaluate('tuned', 'TABLE fact')"))->{rows}{used}, 100, 'an evaluation');

# --- Changed

my $digest = digest_of("$golden/plain");
my $changed = qr/base model "plain" has changed\n.*DETAIL:  Its file "plain" is not the one that was recorded/s;
for my $file (qw(model-00002-of-00003.safetensors config.json generation_config.json tokenizer_config.json))
{
	my $contents = slurp_file("$golden/plain/$file");

	if ($file =~ /safetensors$/) { substr($contents, -1) ^= "\x01"; }
	else                         { $contents .= "\n"; }
	write_file("$models/plain/$file", $contents);
	fails("SELECT complete('plain', 'x')", '55000', $changed, "another $file");
	fails("SELECT complete('tuned', 'x')", '55000', $changed, "also under what was tuned, another $file");
	copy("$golden/plain/$file", "$models/plain/$file");
}
write_file("$models/plain/tokenizer.model", '{}');
fails("SELECT complete('plain', 'x')", '55000', $changed, 'a file more');
my $job = wait_for_status($node, start_job_on('plain'), 'ERROR');
is($job->{error}{code}, '55000', 'a job on it fails');
like($job->{error}{message}, qr/"plain" has digest [0-9a-f]{64}, expected $digest/, 'naming both digests');
unlink "$models/plain/tokenizer.model";
write_file("$models/plain/README.md", 'about');
write_file("$models/plain/consolidated.safetensors", 'Meta');
mkdir "$models/plain/original";
is(ask('tuned'), $said, 'what is no file of the model does not count');

sub start_job_on
{
	my ($base) = @_;
	return answer("SELECT finetune('CREATE', 'doomed', '$base', 'TABLE fact', NULL, '{\"max_steps\": 2}')");
}

# --- What is wrong with a directory is said when its server is created

my $warning = sub {
	my ($name, $pattern, $words) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', "CREATE SERVER wrong $create (file '$name')");

	like($err, $pattern, $words);
	answer('DROP SERVER wrong');
};
mkdir "$models/empty";
$warning->('empty', qr/WARNING:  model directory "empty" has no config\.json\n.*HINT:  Name a GGUF file, or a directory/s, 'a directory of nothing');
fails("CREATE SERVER x $create (file 'empty', storage 'database')", 'XX001', qr/model directory "empty" has no config\.json/,
	'which cannot be stored either');
bring('plain', 'outside');
unlink "$models/outside/tokenizer.json";
copy("$golden/plain/tokenizer.json", $node->basedir . '/secret');
symlink $node->basedir . '/secret', "$models/outside/tokenizer.json";
$warning->('outside', qr{WARNING:  model file "outside/tokenizer\.json" is outside of pg_finetune\.model_directory}, 'a link that leads out');
answer("CREATE SERVER outside $create (file 'outside')");
fails("SELECT complete('outside', 'x')", '42501', qr{model file "outside/tokenizer\.json" is outside of pg_finetune\.model_directory},
	'which is never followed');
unlink "$models/outside/tokenizer.json";
mkdir "$models/blobs";
copy("$golden/plain/tokenizer.json", "$models/blobs/0123");
symlink '../blobs/0123', "$models/outside/tokenizer.json";
is(ask('outside'), ask('plain'), 'a link to a file that is inside is');
unlink "$models/outside/tokenizer.json";
symlink 'nowhere', "$models/outside/tokenizer.json";
fails("SELECT complete('outside', 'x')", '58P01', qr{could not find model file "outside/tokenizer\.json"}, 'a link to nothing');
unlink "$models/outside/tokenizer.json";
mkdir "$models/outside/tokenizer.json";
fails("SELECT complete('outside', 'x')", '42809', qr{model file "outside/tokenizer\.json" is not a regular file}, 'a folder of that name');
rmdir "$models/outside/tokenizer.json";
answer("ALTER SERVER outside OPTIONS (SET file 'outside')");
fails("SELECT complete('outside', 'x')", '58P01', qr{model file "outside": tokenizer file "outside/tokenizer\.model": no such file}, 'no tokenizer');
copy("$golden/plain/tokenizer.json", "$models/outside/tokenizer.json");
unlink "$models/outside/model-00002-of-00003.safetensors";
answer("ALTER SERVER outside OPTIONS (SET file 'outside')");
fails("SELECT complete('outside', 'x')", '58P01', qr{model file "outside": .*shard "model-00002-of-00003\.safetensors" is missing}, 'no shard');
copy("$golden/plain/model-00002-of-00003.safetensors", "$models/outside/model-00002-of-00003.safetensors");
truncate "$models/outside/model-00003-of-00003.safetensors", 5000;
answer("ALTER SERVER outside OPTIONS (SET file 'outside')");
fails("SELECT complete('outside', 'x')", 'XX001', qr{model file "outside": model-00003-of-00003\.safetensors: .* stands at bytes}, 'a shard that was cut');
chmod 0, "$models/outside";
fails("SELECT complete('outside', 'x')", '42501', qr/could not open model directory "outside": Permission denied/, 'one that cannot be read');
chmod 0700, "$models/outside";
remove_tree("$models/outside");
answer('DROP SERVER outside');

# a configuration alone
mkdir "$models/bare";
copy("$golden/plain/config.json", "$models/bare/config.json");
answer("CREATE SERVER bare $create (file 'bare')");
is(answer("SELECT architecture, parameters FROM finetune.models WHERE name = 'bare'"), 'llama|11560', 'what a configuration alone says');
fails("SELECT finetune('CREATE', 'x', 'bare', 'TABLE fact')", '0A000', qr/model file "bare": the weights are missing/, 'but nothing can be tuned');

# --- In the database

my $count = scalar(files_of("$golden/old"));
answer("CREATE SERVER kept $create (file 'old', storage 'database')");
is(digests('kept'), join('|', (digest_of("$golden/old")) x 2), 'the digests of a stored directory');
is( answer("SELECT string_agg(file, ' ' ORDER BY part) FROM finetune.weights JOIN finetune.model ON id = model_id WHERE name = 'kept'"),
	join(' ', files_of("$golden/old")), 'its parts keep the names of the files');
is(answer("SELECT size, storage FROM finetune.models WHERE name = 'kept'"), "$size{old}|database", 'and its size');
remove_tree("$models/old");
is(ask('kept'), told('kept', 'old'), 'it answers without its files');
my $entry = "$cache/" . digest_of("$golden/old");
is_deeply([ files_of($entry) ], [ files_of("$golden/old") ], 'from a copy in the work directory');
answer("SELECT finetune('CREATE', 'on_kept', 'kept', 'TABLE fact', NULL, '{\"max_steps\": 2}')");
$id = answer("SELECT job_id FROM finetune.models WHERE name = 'on_kept'");
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'a job trains from it');
for my $damage ([ removed => sub { unlink "$entry/model-00002-of-00004.safetensors" or die $! } ],
	[ damaged => sub { open my $f, '+<', "$entry/model-00003-of-00004.safetensors" or die $!; seek $f, -9, 2; print $f 'x' x 9; close $f } ],
	[ emptied => sub { remove_tree($entry) } ])
{
	my ($name, $do) = @$damage;
	$node->stop;
	$do->();
	$node->start;
	is(ask('kept'), told('kept', 'old'), "a copy that was $name is written again");
	is(digest_of($entry), digest_of("$golden/old"), 'as it was');
}
fails("ALTER SERVER kept OPTIONS (SET storage 'file')", '58P01', qr/could not find model file "old"/, 'out of the database without a directory');
bring('old');
answer("ALTER SERVER kept OPTIONS (SET storage 'file')");
is(answer("SELECT count(*) FROM finetune.weights JOIN finetune.model ON id = model_id WHERE name = 'kept'"), 0, 'out of the database again');
is(ask('kept'), told('kept', 'old'), 'from its files');
answer("ALTER SERVER kept OPTIONS (SET file 'tiny.gguf', SET storage 'database')");
is(answer("SELECT string_agg(file, ' ') FROM finetune.weights JOIN finetune.model ON id = model_id WHERE name = 'kept'"),
	'model.gguf', 'a file takes the place of a directory');
answer("ALTER SERVER kept OPTIONS (SET file 'new')");
is(ask('kept'), told('kept', 'new'), 'and a directory that of a file');
answer("UPDATE finetune.weights SET file = 'model.gguf' WHERE file = 'config.json' AND model_id = (SELECT id FROM finetune.model WHERE name = 'kept')");
$node->stop;
remove_tree("$cache/" . digest_of("$golden/new"));
$node->start;
fails("SELECT complete('kept', 'x')", 'XX001', qr/weights are not those that were stored/, 'parts that are renamed');

# --- Without an engine to judge it, a directory is found by its config.json

answer("DROP SERVER kept CASCADE");
$node->append_conf('postgresql.conf', 'pg_finetune.serve = off');
$node->reload;
ok(wait_until(sub { (sqlstate_of($node, "SELECT complete('plain', 'x')"))[0] eq '57P03' }), 'the engine is off');
answer("CREATE SERVER kept $create (file 'plain', storage 'database')");
is(digests('kept'), "$digest|$digest", 'stored without an engine');
$node->stop;

done_testing();
