# Bases: the digest that is recorded of their files, and files that are kept in the database.
use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use FinetuneCluster;
use FinetuneJob;
use File::Copy;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node   = new_node('bases', "wal_level = replica\nmax_wal_senders = 5\n");
my $models = $node->basedir . '/models';
my $golden = "$ENV{TESTDIR}/test/golden/tiny_llama";
my $digest = sha256_hex(slurp_file("$golden/tied/base.gguf"));
my $other  = sha256_hex(slurp_file("$golden/untied/base.gguf"));
my $size   = -s "$golden/tied/base.gguf";
my $peft   = decode_json(slurp_file("$golden/completions.json"));
my $cache  = 'pgsql_tmp_finetune/cache';
my $create = "TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS";

sub answer { return $node->safe_psql('postgres', $_[0]); }

sub fails
{
	my ($sql, $state, $pattern, $name, %with) = @_;
	my ($got, $words) = sqlstate_of($with{node} // $node, $sql, %with);

	is($got, $state, "$name: SQLSTATE");
	like($words, $pattern, "$name: message");
}

sub ask
{
	my ($model, $on) = @_;
	return ($on // $node)->safe_psql('postgres', "SELECT complete('$model', 'av', '{\"max_tokens\": 8}')#>>'{choices,0,messages}'");
}

# The digests of a model's row; '' for null.
sub digests { return answer("SELECT base_digest, weights_digest FROM finetune.model WHERE name = '$_[0]'"); }

sub parts
{
	return answer("SELECT count(w), coalesce(sum(octet_length(data)), 0) FROM finetune.model LEFT JOIN finetune.weights w"
		  . " ON id = model_id WHERE name = '$_[0]'");
}

# --- Files: the digest is recorded when the server is created, and is what counts

is(digests('tiny'), "$digest|", 'CREATE SERVER records the digest of the file');
is(answer("SELECT storage, status, size FROM finetune.models WHERE name = 'tiny'"), "file|ready|$size", 'storage file');
my $said = ask('tiny');
copy("$golden/untied/base.gguf", "$models/tiny.gguf");
my $changed = qr/base model "tiny" has changed\n.*DETAIL:  Its file "tiny\.gguf" is not the one that was recorded.*HINT: .*ALTER SERVER tiny OPTIONS \(SET file 'tiny\.gguf'\)/s;
fails("SELECT complete('tiny', 'x')", '55000', $changed, 'a file that was replaced');
fails("SELECT count_tokens('tiny', 'x')", '55000', $changed, 'also for its tokenizer');
my $job = wait_for_status($node, start_job($node, 'doomed', options => { max_steps => 2 }), 'ERROR');
is($job->{error}{code}, '55000', 'a job on it fails');
like($job->{error}{message}, qr/"tiny\.gguf" has digest $other, expected $digest/, 'naming the file and both digests');
copy("$golden/tied/base.gguf", "$models/tiny.gguf");
is(ask('tiny'), $said, 'the original file again');
answer("SELECT finetune_import('tuned', 'tiny', '$golden/tied/adapter')");
my $tuned_said = ask('tuned');
copy("$golden/untied/base.gguf", "$models/tiny.gguf");
fails("SELECT complete('tuned', 'x')", '55000', $changed, 'a tuned model over a replaced file');
answer("ALTER SERVER tiny OPTIONS (SET file 'tiny.gguf')");
is(digests('tiny'), "$other|", 'ALTER SERVER accepts it');
isnt(ask('tiny'), $said, 'and it is used');
fails("SELECT complete('tuned', 'x')", '55000', qr/base model "tiny" has changed since "tuned" was trained\n.*HINT/s,
	'what was tuned from the old one stays refused');
copy("$golden/tied/base.gguf", "$models/tiny.gguf");
answer("BEGIN; ALTER SERVER tiny OPTIONS (SET file 'tiny.gguf'); ROLLBACK");
is(digests('tiny'), "$other|", 'a rolled back ALTER accepts nothing');
answer("ALTER SERVER tiny OPTIONS (SET file 'tiny.gguf')");
is(ask('tuned'), $tuned_said, 'until it is back');

# a file that comes after its server
my ($rc, $out, $err) = $node->psql('postgres', "CREATE SERVER late $create (file 'late.gguf')");
like($err, qr/WARNING:  could not find model file "late\.gguf"/, 'a file that is not there is a warning');
is(digests('late'), '|', 'and has no digest');
copy("$golden/tied/base.gguf", "$models/late.gguf");
is(ask('late'), $said, 'it may come later');
answer("SELECT finetune('CREATE', 'from_late', 'late', 'TABLE fact', NULL, '{\"max_steps\": 2}')");
my $id = answer("SELECT job_id FROM finetune.models WHERE name = 'from_late'");
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'a job trains from it');
is(digests('late'), "$digest|", 'and records the digest');
copy("$golden/tied/base.gguf", "$models/closed.gguf");
chmod 0, "$models/closed.gguf";
($rc, $out, $err) = $node->psql('postgres', "CREATE SERVER closed $create (file 'closed.gguf')");
like($err, qr/WARNING:  could not open file "closed\.gguf": Permission denied/, 'one that cannot be read is a warning');
answer('DROP SERVER closed');
mkdir "$models/folder";
($rc, $out, $err) = $node->psql('postgres', "CREATE SERVER folder $create (file 'folder')");
like($err, qr/WARNING:  model directory "folder" has no config\.json/, 'a directory of nothing is a warning');
answer('DROP SERVER folder');

# a stranger cannot have a base looked at anew
answer('CREATE ROLE alice LOGIN; GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO alice');
answer("UPDATE finetune.model SET base_digest = NULL WHERE name = 'late'");
($rc, $out, $err) = $node->psql('postgres', "CREATE SERVER IF NOT EXISTS late $create (file 'x')",
	extra_params => [ '-U', 'alice' ]);
is(digests('late'), '|', 'CREATE SERVER IF NOT EXISTS by a stranger records nothing');

# --- In the database

$node->safe_psql('postgres', "CREATE SERVER kept $create (file 'late.gguf', storage 'database')",
	extra_params => [ '-U', 'alice' ]);
answer('GRANT USAGE ON FOREIGN SERVER kept TO PUBLIC');
is(digests('kept'), "$digest|$digest", 'the digests of a stored base');
is(parts('kept'), "1|$size", 'its parts');
is( answer("SELECT kind, status, owner, architecture, size, storage FROM finetune.models WHERE name = 'kept'"),
	"base|ready|alice|llama|$size|database", 'what is known of it');
unlink "$models/late.gguf" or die $!;
is(ask('kept'), $said, 'it answers without its file');
is(answer("SELECT size FROM pg_stat_file('$cache/$digest/model.gguf')"), $size, 'from a copy in the work directory');
answer("SELECT finetune('CREATE', 'from_kept', 'kept', 'TABLE fact', NULL, '{\"max_steps\": 2}')");
$id = answer("SELECT job_id FROM finetune.models WHERE name = 'from_kept'");
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'a job trains from it');
my $kept_said = ask('from_kept');
answer("SELECT finetune_import('on_kept', 'kept', '$golden/tied/adapter')");
is(ask('on_kept'), $tuned_said, 'an adapter is imported over it');

# many parts, and a file that ends with a part
for my $case ([ two => 1048576 + 5, 2 ], [ even => 2 * 1048576, 2 ])
{
	my ($name, $bytes, $parts) = @$case;
	write_file("$models/$name.gguf", slurp_file("$golden/tied/base.gguf") . "\0" x ($bytes - $size));
	answer("CREATE SERVER $name $create (file '$name.gguf', storage 'database')");
	is(parts($name), "$parts|$bytes", "a file of $bytes bytes is in $parts parts");
	is( answer("SELECT max(octet_length(data)) <= 1048576 FROM finetune.weights"), 't', 'none is too large');
	is((split /\|/, digests($name))[1], sha256_hex(slurp_file("$models/$name.gguf")), 'its digest');
}
unlink "$models/two.gguf";
is(ask('two'), $said, 'it is put together again');
answer('DROP SERVER two; DROP SERVER even');
is(answer("SELECT count(*) FROM finetune.weights w WHERE NOT EXISTS (SELECT FROM finetune.model WHERE id = model_id)"
	  . " OR octet_length(data) = 1048576"), 0, 'DROP SERVER removes the parts');

# --- What cannot be stored

my $before = answer('SELECT (SELECT count(*) FROM finetune.model), (SELECT count(*) FROM finetune.weights)');
write_file("$models/junk.gguf", 'no model');
fails("CREATE SERVER x $create (file 'none.gguf', storage 'database')", '58P01',
	qr/could not find model file "none\.gguf".*HINT/s, 'a file that is not there');
fails("CREATE SERVER x $create (file 'junk.gguf', storage 'database')", 'XX001', qr/"?junk\.gguf/, 'a file that is no model');
answer("BEGIN; CREATE SERVER x $create (file 'tiny.gguf', storage 'database'); ROLLBACK");
is(answer('SELECT (SELECT count(*) FROM finetune.model), (SELECT count(*) FROM finetune.weights)'),
	$before, 'ROLLBACK leaves nothing');
is( answer("BEGIN; CREATE SERVER x $create (file 'tiny.gguf', storage 'database');"
		  . " SELECT complete('x', 'av', '{\"max_tokens\": 8}')#>>'{choices,0,messages}'; COMMIT; DROP SERVER x"),
	$said, 'a base can be asked in the transaction of its CREATE SERVER');

# --- ALTER SERVER

answer("ALTER SERVER kept OPTIONS (ADD context_length '60')");
is(ask('kept'), $said, 'another option needs no file');
answer("ALTER SERVER kept OPTIONS (DROP context_length)");
fails("ALTER SERVER kept OPTIONS (SET storage 'database')", '58P01', qr/could not find model file/, 'storing it anew does');
copy("$golden/untied/base.gguf", "$models/new.gguf");
answer("ALTER SERVER kept OPTIONS (SET file 'new.gguf')");
is(digests('kept'), "$other|$other", 'another file takes the place of the one that was stored');
is(answer("SELECT count(*) FROM finetune.weights JOIN finetune.model ON id = model_id WHERE name = 'kept'"), 1, 'whole');
isnt(ask('kept'), $said, 'and is used');
fails("SELECT complete('on_kept', 'x')", '55000', qr/base model "kept" has changed since "on_kept" was trained/,
	'what was tuned from the old one is refused');
answer("ALTER SERVER kept OPTIONS (SET file 'tiny.gguf', SET storage 'file')");
is(digests('kept') . ' ' . parts('kept'), "$digest| 0|0", 'out of the database with another file');
copy("$golden/tied/base.gguf", "$models/late.gguf");
answer("ALTER SERVER kept OPTIONS (SET file 'late.gguf', SET storage 'database')");
is(ask('on_kept'), $tuned_said, 'until it is back');
unlink "$models/late.gguf";
fails("ALTER SERVER kept OPTIONS (SET storage 'file')", '58P01', qr/could not find model file "late\.gguf"/,
	'out of the database without a file outside');
copy("$golden/untied/base.gguf", "$models/late.gguf");
fails("ALTER SERVER kept OPTIONS (SET storage 'file')", '55000',
	qr/model file "late\.gguf" is not the one that base model "kept" keeps in the database\n.*HINT:  Name the option "file"/s,
	'or with another');
is(ask('kept'), $said, 'it stays where it is');
copy("$golden/tied/base.gguf", "$models/late.gguf");
answer("ALTER SERVER kept OPTIONS (SET storage 'file')");
is(digests('kept') . ' ' . parts('kept'), "$digest| 0|0", 'out of the database again');
is(answer("SELECT storage, size FROM finetune.models WHERE name = 'kept'"), "file|$size", 'as the view says');
is(ask('kept'), $said, 'from its file');
copy("$golden/untied/base.gguf", "$models/late.gguf");
fails("SELECT complete('kept', 'x')", '55000', qr/base model "kept" has changed/, 'which is the one that was stored');
answer("ALTER SERVER kept OPTIONS (DROP storage)");
fails("SELECT complete('kept', 'x')", '55000', qr/base model "kept" has changed/, 'unless it is named');
copy("$golden/tied/base.gguf", "$models/late.gguf");
answer("ALTER SERVER kept OPTIONS (ADD storage 'database')");
is(digests('kept'), "$digest|$digest", 'and in again');
unlink "$models/late.gguf";

# --- The cache is damaged, or gone

my $copy = $node->data_dir . "/$cache/$digest/model.gguf";
ask('kept');
$node->stop;
for my $damage ([ damaged => sub { open my $f, '+<', $copy or die $!; seek $f, 60000, 0; print $f 'x' x 100; close $f } ],
	[ truncated => sub { truncate $copy, 100 } ],
	[ removed => sub { unlink $copy or die $! } ],
	[ replaced => sub { unlink $copy; mkdir $copy or die $! } ])
{
	my ($name, $do) = @$damage;
	$do->();
	$node->start;
	is(ask('kept'), $said, "a copy that was $name is written again");
	is(sha256_hex(slurp_file($copy)), $digest, 'as it was');
	$node->stop;
}
open my $file, '+<', $copy or die $!;
seek $file, 60000, 0;
print $file 'y' x 100;
close $file;
$node->start;
answer("SELECT finetune('CREATE', 'from_damaged', 'kept', 'TABLE fact', NULL, '{\"max_steps\": 2}')");
$id = answer("SELECT job_id FROM finetune.models WHERE name = 'from_damaged'");
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'a job does so too');
is(sha256_hex(slurp_file($copy)), $digest, 'before it trains');

# --- Many sessions write it once

$node->stop;
unlink $copy;
rmdir $node->data_dir . "/$cache/$digest";
$node->start;
my $holder   = $node->background_psql('postgres');
my @sessions = map { $node->background_psql('postgres') } 1 .. 4;
$holder->query('BEGIN; LOCK TABLE finetune.weights');
$_->query_until(qr/asked/, "\\echo asked\nSELECT complete('kept', 'av') IS NOT NULL;\n") for @sessions;
ok( wait_for_sql($node, "SELECT count(*) FILTER (WHERE locktype = 'relation') = 1 AND count(*) FILTER (WHERE locktype = 'advisory') = 3"
		  . ' FROM pg_locks WHERE NOT granted'),
	'of four sessions one writes, and the others wait for it');
$holder->query('COMMIT');
like($_->query('SELECT 1'), qr/^t\n1$/, 'each gets its answer') for @sessions;
$_->quit for $holder, @sessions;
is(answer("SELECT string_agg(n, ' ') FROM pg_ls_dir('$cache') n WHERE n LIKE '%tmp%'"), '', 'nothing temporary is left');
is(answer("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"), 0, 'and no lock');

# --- Elsewhere: a standby, and a restored dump, without the file

$node->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'b', has_streaming => 1);
mkdir $standby->basedir . '/none';
$standby->append_conf('postgresql.conf', "pg_finetune.model_directory = '" . $standby->basedir . "/none'");
$standby->start;
is(ask('kept', $standby), $said, 'a stored base on a standby that has no file');
is(ask('on_kept', $standby), $tuned_said, 'and an adapter over it');
fails("SELECT complete('tiny', 'x')", '58P01', qr/could not find model file "tiny\.gguf"/, 'a base that is a file', node => $standby);
fails("SELECT finetune_import('x', 'kept', '$golden/tied/adapter')", '25006',
	qr/cannot execute finetune_import\(\) in a read-only transaction/, 'no import there', node => $standby);
my $exported = $standby->basedir . '/exported';
is($standby->safe_psql('postgres', "SELECT finetune_export('on_kept', '$exported')"), $exported, 'but an export');
is(slurp_file("$exported/$_"), slurp_file("$golden/tied/adapter/$_"), "of $_")
  for qw(adapter_config.json adapter_model.safetensors);
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
is(ask('kept', $restored), $said, 'a stored base in a restored dump');
is(ask('on_kept', $restored), $tuned_said, 'and an adapter over it');
is($restored->safe_psql('postgres', "SELECT count(*), sum(octet_length(data)) FROM finetune.weights JOIN finetune.model"
	  . " ON id = model_id WHERE name = 'kept'"), "1|$size", 'stored once');

# only the definitions: what is missing is said
$restored->safe_psql('postgres', 'CREATE DATABASE definitions');
$node->command_ok([ 'pg_dump', '-s', '-d', $node->connstr('postgres'), '-f', $dump ], 'pg_dump --schema-only');
$restored->command_ok([ 'psql', '-X', '-v', 'ON_ERROR_STOP=1', '-d', $restored->connstr('definitions'), '-f', $dump ], 'restored');
fails("SELECT complete('kept', 'x')", '55000',
	qr/the file of base model "kept" is not in the database\n.*HINT: .*ALTER SERVER kept OPTIONS \(SET storage 'database'\)/s,
	'a base without its weights', node => $restored, db => 'definitions');
is($restored->safe_psql('definitions', "SELECT status, size, storage FROM finetune.models WHERE name = 'kept'"),
	'missing||database', 'as the view says');
copy("$golden/tied/base.gguf", $restored->basedir . '/none/late.gguf');
$restored->safe_psql('definitions', "ALTER SERVER kept OPTIONS (SET storage 'database')");
is($restored->safe_psql('definitions', "SELECT status, size FROM finetune.models WHERE name = 'kept'"), "ready|$size",
	'and can be stored again');
$restored->stop;

# --- Parts that are not what was stored are never used

for my $case (
	[ "UPDATE finetune.weights SET data = set_byte(data, 70000, 1 + get_byte(data, 70000) % 255)", qr/part 0 of the model's weights is damaged/ ],
	[ "UPDATE finetune.weights SET part = 1", qr/part 0 of the model's weights is missing/ ],
	[ "UPDATE finetune.weights SET file = 'other'", qr/part 0 of the model's weights has a bad file name/ ],
	[ "DELETE FROM finetune.weights", qr/weights are not those that were stored/ ])
{
	my ($damage, $words) = @$case;

	answer("CREATE SERVER spoilt $create (file 'tiny.gguf', storage 'database')");
	answer("$damage WHERE model_id = (SELECT id FROM finetune.model WHERE name = 'spoilt')");
	$node->stop;
	unlink $copy;
	$node->start;
	fails("SELECT complete('spoilt', 'x')", 'XX001', $words, $damage =~ s/WHERE.*//r);
	answer('DROP SERVER spoilt');
}
answer("UPDATE finetune.model SET weights_digest = '../x' WHERE name = 'kept'");
fails("SELECT complete('kept', 'x')", 'XX001', qr/digest of the model's weights is damaged/, 'a digest that is none');
answer("UPDATE finetune.model SET weights_digest = base_digest WHERE name = 'kept'");
is(answer("SELECT string_agg(n, ' ') FROM pg_ls_dir('$cache') n WHERE n LIKE '%tmp%'"), '', 'nothing temporary is left');
is(ask('kept'), $said, 'the others are as they were');

# --- Storing can be cancelled

write_file("$models/long.gguf", slurp_file("$golden/tied/base.gguf") . "\0" x (64 * 1048576));
fails("SET statement_timeout = '20ms'; CREATE SERVER long $create (file 'long.gguf', storage 'database')",
	'57014', qr/statement timeout/, 'a cancelled CREATE SERVER');
is(answer("SELECT count(*) FROM finetune.model WHERE name = 'long'"), 0, 'leaves nothing');

# --- Without an engine to judge a file, its first bytes do

$node->append_conf('postgresql.conf', 'pg_finetune.serve = off');
$node->reload;
ok(wait_until(sub { (sqlstate_of($node, "SELECT complete('kept', 'x')"))[0] eq '57P03' }), 'the engine is off');
fails("CREATE SERVER x $create (file 'junk.gguf', storage 'database')", 'XX001',
	qr/model file "junk\.gguf" is not a GGUF file/, 'a file that is no model');
chmod 0, "$models/junk.gguf";
fails("CREATE SERVER x $create (file 'junk.gguf', storage 'database')", '42501',
	qr/could not open model file "junk\.gguf": Permission denied/, 'one that cannot be read');
answer("CREATE SERVER unseen $create (file 'tiny.gguf', storage 'database')");
is(digests('unseen'), "$digest|$digest", 'one that is');

$node->stop;
ok(slurp_file($node->logfile) !~ /PANIC|TRAP|Segmentation/, 'nothing unseemly in the log');

done_testing();
