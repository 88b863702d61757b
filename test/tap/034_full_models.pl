# Full models: made by a job, asked, shared, tuned further, exported, kept in the database or as files,
# in copies of the database and on a standby.
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

my $node   = new_node('full_models', "wal_level = replica\nmax_wal_senders = 5\n");
my $models = $node->basedir . '/models';
my $cache  = $node->data_dir . '/pgsql_tmp_finetune/cache';
my $out    = $node->basedir . '/out';
my $create = "TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS";

# What a job is given; the learning rate is such that answers change.
my %short = (max_steps => 4, learning_rate => 0.01, batch_size => 256);
my %full  = (%short, method => 'full');

mkdir $out or die "$out: $!";

sub answer { return $node->safe_psql('postgres', $_[0]); }

sub fails
{
	my ($sql, $state, $pattern, $name, %with) = @_;
	my ($got, $words) = sqlstate_of($with{node} // $node, $sql, %with);

	is($got, $state, "$name: SQLSTATE");
	like($words, $pattern, "$name: message");
}

sub create
{
	my ($model, $base, $options, $query) = @_;
	$query //= 'SELECT prompt, completion FROM fact';
	return "SELECT finetune('CREATE', '$model', '$base', \$q\$$query\$q\$, NULL, '" . encode_json($options) . "')";
}

# Train a model; what DESCRIBE says of its job.
sub train
{
	my ($model, $base, $options, $query) = @_;
	my $job = wait_for_status($node, answer(create($model, $base, $options, $query)), 'SUCCESS');

	is($job->{status}, 'SUCCESS', "$model is trained") or diag($job->{error}{message});
	return $job;
}

sub ask
{
	my ($model, $on) = @_;
	return ($on // $node)->safe_psql('postgres', "SELECT complete('$model', 'item 4', '{\"max_tokens\": 8}')#>>'{choices,0,messages}'");
}

sub row_of
{
	my ($model, $columns, $on) = @_;
	return ($on // $node)->safe_psql('postgres', "SELECT $columns FROM finetune.models WHERE name = '$model'");
}

sub digest_of_model { return answer("SELECT weights_digest FROM finetune.model WHERE name = '$_[0]'"); }

# What the digest of a directory is: names and contents, each with its length.
sub digest_of
{
	my ($directory) = @_;
	my $all = '';

	for my $name (map { s{.*/}{}r } sort glob "$directory/*")
	{
		my $contents = slurp_file("$directory/$name");
		$all .= pack('Q>', length $name) . $name . pack('Q>', length $contents) . $contents;
	}
	return sha256_hex($all);
}

# --- CREATE: a server at once, of the caller's transaction

answer('BEGIN; ' . create('whole', 'tiny', \%full) . '; ROLLBACK');
is(answer("SELECT count(*) FROM finetune.jobs, finetune.models WHERE kind = 'full'"), 0, 'ROLLBACK leaves nothing');
stop_jobs($node);
my $id = answer(create('whole', 'tiny', \%full));
is(answer("SELECT srvtype FROM pg_foreign_server WHERE srvname = 'whole'"), 'full', 'a server of type full');
is(row_of('whole', 'kind, status, base, storage'), 'full|training|tiny|database', 'what is known of it before its end');
fails("SELECT complete('whole', 'x')", '55000', qr/model "whole" is still being trained/, 'asked before its end');
fails(create('x', 'whole', \%short), '55000', qr/model "whole" is still being trained/, 'a base before its end');
fails('DROP SERVER tiny', '2BP01', qr/server whole depends on server tiny/, 'its base is needed until then');
answer('CREATE ROLE alice LOGIN; GRANT USAGE ON FOREIGN SERVER whole TO alice');
let_jobs_run($node);
my $job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'it is trained') or diag($job->{error}{message});
is($job->{options}{method}, 'full', 'DESCRIBE: method');
is($job->{options}{storage}, 'database', 'DESCRIBE: storage');
is(join(' ', grep { /lora/ } keys %{ $job->{options} }), '', 'DESCRIBE: nothing of an adapter');
ok(defined $job->{training_result}{$_}, "DESCRIBE: $_") for qw(training_loss validation_loss validation_token_accuracy);

# --- The model

my $size = answer("SELECT sum(octet_length(data)) FROM finetune.weights JOIN finetune.model ON id = model_id WHERE name = 'whole'");
is( row_of('whole', 'kind, status, base, owner = current_user, architecture, parameters > 1000, context_length, size, storage'),
	"full|ready|tiny|t|llama|t|" . row_of('tiny', 'context_length') . "|$size|database", 'what is known of it');
cmp_ok($size, '>', 1000, 'its parts');
is(answer("SELECT training_loss IS NOT NULL AND validation_loss IS NOT NULL FROM finetune.models WHERE name = 'whole'"), 't', 'its losses');
my $said = ask('whole');
isnt($said, ask('tiny'), 'it answers otherwise than its base');
my $digest = digest_of_model('whole');
is(digest_of("$cache/$digest"), $digest, 'out of a copy in the work directory');
is((stat "$cache/$digest")[2] & 0777, 0700, 'which is nobody else\'s');
is( answer("SELECT complete('whole', messages => '[{\"role\": \"user\", \"content\": \"item 4\"}]', options => '{\"max_tokens\": 8}')#>>'{choices,0,messages}'"),
	$said, 'a conversation');
is(answer("SELECT left(complete('whole', 'item 4'), 3) = left('$said', 3)"), 't', 'a plain question') if $said !~ /'/;
is(answer("SELECT try_complete('whole', 'item 4') IS NOT NULL"), 't', 'try_complete()');
is(answer("SELECT detokenize('whole', tokenize('whole', 'item 4')), count_tokens('whole', 'item 4') = count_tokens('tiny', 'item 4')"),
	'item 4|t', 'its tokens');
my $judged = decode_json(answer("SELECT finetune_evaluate('whole', 'TABLE fact')"));
is($judged->{rows}{used}, 100, 'an evaluation');
is( $node->safe_psql('postgres', "SELECT length(complete('whole', 'item 4')) > 0", extra_params => [ '-U', 'alice' ]),
	't', 'who was granted it before it was trained may use it');
fails("SELECT complete('tiny', 'x')", '42501', qr/permission denied for foreign server tiny/, 'but not its base', user => 'alice');
fails("SELECT finetune_export('whole', '$out/x', 'gguf')", '42501', qr/must be owner of foreign server whole/, 'nor export it', user => 'alice');
answer('ALTER SERVER whole RENAME TO renamed');
is(ask('renamed'), $said, 'renamed');
answer('ALTER SERVER renamed RENAME TO whole');
$node->restart;
is(ask('whole'), $said, 'after a restart');
$node->stop;
remove_tree("$cache/$digest");
$node->start;
is(ask('whole'), $said, 'without a copy');

# --- It needs no base

answer("CREATE SERVER passing $create (file 'tiny.gguf', context_length '48', template 'chatml')");
train('orphan', 'passing', \%full);
my $orphan_said = ask('orphan');
answer('DROP SERVER passing');
is(row_of('orphan', 'kind, status, base, context_length'), 'full|ready||48', 'its base may be dropped');
is(ask('orphan'), $orphan_said, 'it answers as before');
is(answer("SELECT template FROM finetune.model WHERE name = 'orphan'"), 'chatml', 'with the chat template that it was trained with');
fails("SELECT complete('orphan', repeat('item ', 100))", '22023', qr/context/, 'and the length of its context');
fails(create('x', 'tiny', { %full, from_model => 'orphan' }), '22023', qr/model "orphan" is not tuned from base model "tiny"/, 'whose it is nobody knows any more');

# --- It is a base

my $other = q(SELECT prompt, 'neither' AS completion FROM fact);
train('further', 'whole', \%full, $other);
isnt(ask('further'), $said, 'a full model that was trained further');
is(row_of('further', 'kind, base'), 'full|whole', 'its base is a full model');
$job = train('continued', 'tiny', { %full, from_model => 'whole' }, $other);
is(digest_of_model('continued'), digest_of_model('further'), 'continued from with from_model: the same');
is($job->{base_model}, 'whole', 'DESCRIBE: that model is the base');
is($job->{options}{from_weights}, $digest, 'DESCRIBE: by its weights');
train('light', 'whole', { %short, max_steps => 20 }, $other);
is(row_of('light', 'kind, base'), 'lora|whole', 'an adapter over it');
my $light_said = ask('light');
isnt($light_said, $said, 'answers otherwise');
is(decode_json(answer("SELECT finetune_evaluate('light', 'TABLE fact')"))->{rows}{used}, 100, 'and is evaluated');
fails('DROP SERVER whole', '2BP01', qr/server light depends on server whole/, 'it is needed as a base is');
answer("SELECT finetune_export('light', '$out/light')");
answer("SELECT finetune_import('imported', 'whole', '$out/light')");
is(ask('imported'), $light_said, 'an adapter is imported over it');
is(answer("SELECT (finetune_estimate('whole', 'TABLE fact'))->'base_model'"), '"whole"', 'an estimate');
my $estimate = decode_json(answer("SELECT finetune_estimate('tiny', 'TABLE fact', NULL, '{\"method\": \"full\"}')"));
is($estimate->{trainable_parameters}, $estimate->{parameters}, 'an estimate of method full');
is($estimate->{options}{method}, 'full', 'with its options');
$node->restart;
is(ask('light'), $light_said, 'the adapter after a restart');

# --- What cannot be continued from

fails(create('x', 'whole', { %short, from_model => 'whole' }), '42809',
	qr/model "whole" is not an adapter that could be continued from\n.*HINT:  It is a full model: name it as the base model of the job\./s,
	'a full model as an adapter');
fails(create('x', 'whole', { %full, from_model => 'light' }), '42809',
	qr/model "light" is an adapter, from which method "full" cannot continue\n.*HINT:  Merge it by finetune_export/s, 'an adapter as a full model');
fails(create('x', 'tiny', { %full, from_model => 'tiny' }), '42809', qr/model "tiny" is not a full model that could be continued from/, 'a base');
fails(create('x', 'whole', { %full, from_model => 'whole' }), '22023', qr/model "whole" is not tuned from base model "whole"/, 'another base');
fails(create('x', 'light', \%short), '42809', qr/model "light" is not a base model/, 'an adapter is no base');
fails("SELECT finetune_estimate('tiny', 'TABLE fact', NULL, '{\"method\": \"full\", \"from_model\": \"light\"}')", '42809',
	qr/model "light" is an adapter, from which/, 'nor is it estimated');

# --- Exports

for my $format ('peft', 'gguf-adapter')
{
	fails("SELECT finetune_export('whole', '$out/adapter', '$format')", '42809',
		qr/model "whole" cannot be exported in format "$format"\n.*DETAIL:  It is a full model and has no adapter\.\n.*HINT:  Name a format/s,
		"exported as $format");
}
fails("SELECT finetune_export('whole', '$out/adapter')", '42809', qr/cannot be exported in format "peft"/, 'exported as what is the default');
for my $format ('safetensors', 'gguf-f32')
{
	my $name = $format =~ tr/-/_/r;

	is(answer("SELECT finetune_export('whole', '$models/$name', '$format')"), "$models/$name", "exported as $format");
	answer("CREATE SERVER $name $create (file '" . ($format eq 'safetensors' ? $name : "$name/model.gguf") . "')");
	is(ask($name), $said, 'is a base that answers the same');
}
answer("SELECT finetune_export('light', '$models/merged', 'safetensors')");
is(scalar(() = glob "$models/merged/model.safetensors"), 1, 'an adapter over it is exported merged');

# --- Cancelled and dropped while it is trained

my %endless = endless_job(options => { method => 'full', max_epochs => 50, batch_size => 64, validation_fraction => 0 });
for my $end ('CANCEL', 'DROP SERVER')
{
	$id = start_job($node, 'endless', %endless);
	wait_for_status($node, $id, 'running');
	answer($end eq 'CANCEL' ? "SELECT finetune('CANCEL', '$id')" : 'DROP SERVER endless');
	is(job($node, $id)->{status}, 'CANCELLED', "$end: cancelled");
	is(answer("SELECT count(*) FROM finetune.model WHERE name = 'endless'"), 0, "$end: with its model");
	ok(wait_until(sub { !glob $node->data_dir . '/pgsql_tmp_finetune/jobs/*' }), "$end: nothing is left");
}

# --- Kept as files

my $folder = "$models/pg_finetune_full";
stop_jobs($node);
answer(create('gone', 'tiny', { %full, storage => 'file' }));
is(row_of('gone', 'status, size, storage'), 'training||file', 'storage file');
answer('DROP SERVER gone');
let_jobs_run($node);
$job = train('filed', 'tiny', { %full, storage => 'file' });
is($job->{options}{storage}, 'file', 'DESCRIBE: storage');
my $filed = digest_of_model('filed');
is($filed, $digest, 'the same weights as in the database');
is(digest_of("$folder/$filed"), $filed, 'in a directory that is named by their digest');
is((stat "$folder/$filed")[2] & 0777, 0700, 'nobody else\'s');
is(join(' ', map { sprintf '%o', (stat)[2] & 0777 } glob "$folder/$filed/*") =~ s/\b600\b ?//gr, '', 'nor its files');
is(answer("SELECT count(*) FROM finetune.weights JOIN finetune.model ON id = model_id WHERE name = 'filed'"), 0, 'and not in the database');
is(row_of('filed', 'status, size, storage'), "ready|$size|file", 'as the view says');
is(ask('filed'), $said, 'it answers');
train('on_filed', 'filed', { %short, max_steps => 20 }, $other);
is(ask('on_filed'), $light_said, 'and can be tuned');
fails("CREATE SERVER x $create (file 'pg_finetune_full/$filed', storage 'database')", '42501',
	qr/model file "pg_finetune_full\/$filed" belongs to a full model\n.*HINT:  Use that model by its name\./s, 'its directory is no base\'s');
is(answer("SELECT directory, size, written > now() - interval '1 day', model FROM finetune.model_files()"),
	"pg_finetune_full/$filed|$size|t|filed", 'finetune.model_files()');
train('again', 'tiny', { %full, storage => 'file' });
is(join(' ', glob "$folder/*"), "$folder/$filed", 'the same once more takes no room');
answer('DROP SERVER filed CASCADE');
is(answer('SELECT model FROM finetune.model_files()'), 'again', 'a directory stays while a model needs it');
is(ask('again'), $said, 'which answers');
rename("$folder/$filed", "$folder/aside") or die $!;
fails("SELECT complete('again', 'x')", '58P01',
	qr/directory "pg_finetune_full\/$filed" of model "again" is missing\n.*HINT:  The model is kept as files\. Copy them to pg_finetune\.model_directory/s,
	'a directory that is missing');
is(row_of('again', 'status, size'), 'missing|', 'as the view says');
fails(create('x', 'again', \%short), '58P01', qr/directory "pg_finetune_full\/$filed" of model "again" is missing/, 'nothing is tuned from it');
rename("$folder/aside", "$folder/$filed") or die $!;
my $weights = slurp_file("$folder/$filed/model.safetensors");
substr($weights, -1) ^= "\x01";
write_file("$folder/$filed/model.safetensors", $weights);
fails("SELECT complete('again', 'x')", '55000',
	qr/the files of model "again" have changed\n.*DETAIL:  They are in directory "pg_finetune_full\/$filed"\.\n.*HINT:  Bring back/s, 'files that have changed');
my $twice = answer(create('twice', 'tiny', { %full, storage => 'file' }));
$job = wait_for_status($node, $twice, 'PAUSED');
like("$job->{error}{code}: $job->{error}{message}", qr/^55000: directory "pg_finetune_full\/$filed" is there already, with other files$/,
	'they are not written over');
is($job->{status}, 'PAUSED', 'the job waits, with what it has trained');
is($job->{error}{hint}, "Put that right, then call finetune('RESUME', '$twice').", 'for it to be put right');
is(slurp_file("$folder/$filed/model.safetensors"), $weights, 'and left as they are');
substr($weights, -1) ^= "\x01";
write_file("$folder/$filed/model.safetensors", $weights);
is(ask('again'), $said, 'until they are back');
answer("SELECT finetune('RESUME', '$twice')");
is(wait_for_status($node, $twice, 'SUCCESS')->{status}, 'SUCCESS', 'and the job ends well');
is(ask('twice'), $said, 'with the same files');
answer('DROP SERVER twice');
is(join(' ', glob "$folder/*"), "$folder/$filed", 'nothing else is left');

# where they cannot be kept
chmod 0500, $folder;
fails(create('x', 'tiny', { %full, storage => 'file' }), '42501',
	qr/could not write to directory "pg_finetune_full" in pg_finetune\.model_directory: Permission denied/, 'a folder that cannot be written to');
stop_jobs($node);
chmod 0700, $folder;
$id = answer(create('later', 'whole', { %full, storage => 'file' }));
chmod 0500, $folder;
let_jobs_run($node);
$job = wait_for_status($node, $id, 'PAUSED');
like("$job->{error}{code}: $job->{error}{message}", qr/^42501: could not create directory "pg_finetune_full\/tmp\.[-0-9a-f]+": Permission denied$/,
	'nor by a job, which is paused');
answer("SELECT finetune('CANCEL', '$id')");
chmod 0700, $folder;
rename($folder, "$folder.aside") or die $!;
chmod 0500, $models;
fails(create('x', 'tiny', { %full, storage => 'file' }), '42501',
	qr/could not create directory "pg_finetune_full" in pg_finetune\.model_directory: Permission denied/, 'a folder that cannot be made');
chmod 0700, $models;
rename("$folder.aside", $folder) or die $!;
answer("ALTER SYSTEM SET pg_finetune.model_directory = ''");
$node->reload;
ok(wait_until(sub { answer('SHOW pg_finetune.model_directory') eq '' }), 'no directory of models');
fails(create('x', 'whole', { %full, storage => 'file' }), '55000',
	qr/a model cannot be kept as files without a directory for them\n.*HINT:  Set pg_finetune\.model_directory/s, 'nowhere to be kept');
is(ask('whole'), $said, 'a model in the database needs none');
is(answer('SELECT count(*) FROM finetune.model_files()'), 0, 'nor is any there');
answer('ALTER SYSTEM RESET pg_finetune.model_directory');
$node->reload;
ok(wait_until(sub { answer('SHOW pg_finetune.model_directory') ne '' }), 'it is back');

# --- Copies: a standby and a restored dump, without files

$node->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'b', has_streaming => 1);
mkdir $standby->basedir . '/none';
$standby->append_conf('postgresql.conf', "pg_finetune.model_directory = '" . $standby->basedir . "/none'");
$standby->start;
is(ask('whole', $standby), $said, 'a full model on a standby');
is(ask('light', $standby), $light_said, 'and an adapter over it');
is(ask('orphan', $standby), $orphan_said, 'and one without a base');
fails("SELECT complete('again', 'x')", '58P01', qr/directory "pg_finetune_full\/$filed" of model "again" is missing/, 'one that is kept as files', node => $standby);
$standby->stop;

my $dump = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-d', $node->connstr('postgres'), '-f', $dump ], 'pg_dump');
my $restored = PostgreSQL::Test::Cluster->new('restored');
$restored->init;
mkdir $restored->basedir . '/none';
$restored->append_conf('postgresql.conf', <<"CONF");
shared_preload_libraries = 'pg_finetune'
pg_finetune.model_directory = '@{[$restored->basedir]}/none'
pg_finetune.threads = 1
CONF
$restored->start;
$restored->safe_psql('postgres', 'CREATE ROLE alice');
$restored->command_ok([ 'psql', '-X', '-v', 'ON_ERROR_STOP=1', '-d', $restored->connstr('postgres'), '-f', $dump ], 'restored');
is(ask('whole', $restored), $said, 'a full model in a restored dump');
is(ask('light', $restored), $light_said, 'and an adapter over it');
is(ask('orphan', $restored), $orphan_said, 'and one without a base');
is(row_of('again', 'status', $restored), 'missing', 'one that is kept as files');
fails('DROP SERVER whole', '2BP01', qr/server light depends on server whole/, 'what is needed is known', node => $restored);
fails('DROP SERVER tiny', '', qr/^$/, 'and what is not', node => $restored);
is(ask('whole', $restored), $said, 'without its base');
mkdir $restored->basedir . '/none/pg_finetune_full';
mkdir $restored->basedir . "/none/pg_finetune_full/$filed";
copy($_, $_ =~ s{.*/}{$restored->basedir . "/none/pg_finetune_full/$filed/"}er) or die "$_: $!" for glob "$folder/$filed/*";
is(ask('again', $restored), $said, 'files are copied by hand');

# rows in any order, several tables at a time
my $archive = $node->basedir . '/archive';
$node->command_ok([ 'pg_dump', '-Fd', '-j2', '-d', $node->connstr('postgres'), '-f', $archive ], 'pg_dump -j');
$restored->safe_psql('postgres', 'CREATE DATABASE parallel');
$restored->command_ok([ 'pg_restore', '-j3', '-e', '-d', $restored->connstr('parallel'), $archive ], 'pg_restore -j');
is($restored->safe_psql('parallel', "SELECT complete(name, 'item 4', '{\"max_tokens\": 8}')#>>'{choices,0,messages}' FROM finetune.models WHERE name IN ('whole', 'light') ORDER BY name"),
	"$light_said\n$said", 'they answer');
is( $restored->safe_psql('parallel', <<'SQL'), 'light whole', 'servers depend on what they need, and no others');
SELECT string_agg(s.srvname || ' ' || b.srvname, ', ' ORDER BY 1) FILTER (WHERE s.srvname IN ('whole', 'light', 'orphan', 'further', 'continued', 'again'))
FROM pg_depend JOIN pg_foreign_server s ON objid = s.oid JOIN pg_foreign_server b ON refobjid = b.oid
WHERE classid = 'pg_foreign_server'::regclass AND refclassid = classid
SQL
$restored->stop;

# --- Dropped

answer('DROP SERVER whole CASCADE');
is(answer("SELECT count(*) FROM finetune.weights w WHERE NOT EXISTS (SELECT FROM finetune.model WHERE id = model_id)"), 0, 'DROP SERVER removes the parts');
is(answer("SELECT string_agg(name, ' ' ORDER BY name) FROM finetune.models WHERE kind <> 'base'"), 'again continued further orphan', 'and what depends on it, no more');

$node->stop;
done_testing();
