# Storing a full model of many parts, in the database and as files: interrupted by a cancel, a drop, a
# shutdown, by kills and errors of the disk.  There is all of it afterwards or nothing, nobody waits for
# it, and nothing is trained twice.  Parts that are damaged are never served.
use strict;
use warnings;

use lib "$ENV{TESTDIR}/test/engine";

use Cwd qw(abs_path);
use Digest::SHA qw(sha256_hex);
use Errno qw(EIO);
use FaultShim;
use File::Basename;
use File::Copy;
use File::Path qw(remove_tree);
use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node    = new_bare_node('storing', "restart_after_crash = on\nfsync = on\nlog_error_verbosity = verbose\n");
my $models  = $node->basedir . '/models';
my $folder  = "$models/pg_finetune_full";
my $cache   = $node->data_dir . '/pgsql_tmp_finetune/cache';
my $control = $node->basedir . '/control';
my $result  = $node->basedir . '/result';
my $engine  = $node->basedir . '/engine';

# What the engine "trains" is one of the fixtures, with a file more, so that there are many parts.
my $pad = '';
$pad .= pack('N', $_ * 2654435761 % 4294967296) for 1 .. 700_000;
mkdir $result or die "$result: $!";
copy($_, $_ =~ s{.*/}{$result/}r) or die "$_: $!" for glob "$ENV{TESTDIR}/test/golden/directories/plain/*";
write_file("$result/model.padding.safetensors", $pad);
my $digest = digest_of($result);
my $parts  = 0;
$parts += int((-s) / 1048576) + 1 for glob "$result/*";
my ($libraries) = run_command([ 'pg_config', '--pkglibdir' ]);
my $player = abs_path(dirname(__FILE__)) . '/full_engine.pl';
write_file($engine, "#!/bin/sh\nexec '$^X' '$player' '$libraries/pg_finetune_engine' '$result' \"\$@\"\n");
chmod 0755, $engine or die "$engine: $!";
$node->append_conf('postgresql.conf', "pg_finetune.engine_path = '$engine'\n");

# The server's processes go by the control file; its engines do not.
disarm($control);
{
	local $ENV{LD_PRELOAD} = $FaultShim::library;
	local $ENV{FAULT_CONTROL} = $control;
	$node->start;
}
answer(<<'SQL');
CREATE EXTENSION pg_finetune;
CREATE SERVER tiny TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf');
CREATE TABLE fact AS SELECT 'item ' || i AS prompt, 'odd' AS completion FROM generate_series(1, 100) i;
CREATE FUNCTION wait_for_lock() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_catalog.pg_advisory_xact_lock(1);
	RETURN NEW;
END $$;
SQL

sub answer { return $node->safe_psql('postgres', $_[0]); }

sub start_full
{
	my ($model, $storage) = @_;
	return start_job($node, $model, options => { method => 'full', storage => $storage // 'database' });
}

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

sub stored
{
	my ($model) = @_;
	return answer(<<"SQL");
SELECT weights_digest, count(part), min(part), max(part), max(octet_length(data)) <= 1048576
	FROM finetune.model m JOIN finetune.weights ON model_id = m.id WHERE m.name = '$model' GROUP BY 1
SQL
}

my $expected = "$digest|$parts|0|" . ($parts - 1) . '|t';

# Parts of models that are not there, and files of jobs that have ended.
sub nothing_left
{
	my ($what) = @_;

	is(answer('SELECT count(*) FROM finetune.weights w WHERE NOT EXISTS (SELECT FROM finetune.model WHERE id = model_id)'),
		0, "$what: no part is left over");
	ok(wait_until(sub { !glob $node->data_dir . '/pgsql_tmp_finetune/jobs/*' }), "$what: nor a file");
	is(join(' ', glob "$folder/tmp*"), '', "$what: nor a copy that was begun");
	return;
}

sub ends_well
{
	my ($id, $what, $attempts) = @_;
	my $job = wait_for_status($node, $id, 'SUCCESS');

	is($job->{status}, 'SUCCESS', "$what: the job ends well") or diag($job->{error}{message});
	is($job->{attempts}, $attempts, "$what: in attempt $attempts");
	is(answer("SELECT count(*) FROM finetune.events WHERE job_id = '$id' AND type = 'plan'"), 1, "$what: nothing is trained twice");
	return;
}

# --- Undisturbed

my $id = start_full('whole');
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'a full model');
cmp_ok($parts, '>', 8, 'has many parts');
is(stored('whole'), $expected, 'all of them are stored, numbered, none too large');
my $said = answer(q(SELECT complete('whole', 'av', '{"max_tokens": 8}')->>'choices'));
isnt($said, '', 'it answers');
is(digest_of("$cache/$digest"), $digest, 'from a copy that is the engine\'s result');
is(job($node, $id)->{training_result}{validation_loss}, 2.25, 'with what the engine said of it');
nothing_left('undisturbed');

# --- Stopped in the middle: a session that cancels or drops waits for nobody

# Have the worker wait with the third part in hand; returns the session that it waits for.
sub hold_part
{
	my $session = $node->background_psql('postgres');

	answer('CREATE TRIGGER hold BEFORE INSERT ON finetune.weights FOR EACH ROW WHEN (NEW.part = 2) EXECUTE FUNCTION wait_for_lock()');
	$session->query('SELECT pg_advisory_lock(1)');
	return $session;
}

sub is_storing
{
	return wait_for_sql($node, "SELECT count(*) = 1 FROM pg_stat_activity JOIN pg_locks USING (pid)"
		  . " WHERE backend_type = 'pg_finetune job' AND NOT granted AND locktype = 'advisory'");
}

for my $end ('CANCEL', 'DROP SERVER', 'PAUSE')
{
	my $model  = lc($end =~ tr/ /_/r);
	my $holder = hold_part();
	my $begin  = log_end($node);

	$id = start_full($model);
	ok(is_storing(), "$end: the worker is storing parts");
	is(job($node, $id)->{phase}, 'uploading', "$end: the job is uploading");
	answer($end eq 'DROP SERVER' ? "DROP SERVER $model" : "SELECT finetune('$end', '$id')");
	is(job($node, $id)->{status}, $end eq 'PAUSE' ? 'PAUSED' : 'CANCELLED', "$end: at once");
	$holder->quit;
	answer('DROP TRIGGER hold ON finetune.weights');
	ok(wait_for_sql($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'pg_finetune job'"), "$end: the worker ends");
	is(log_count($node, qr/LOG:  57014: job \S+: the storing of weights was interrupted/, $begin), 1, "$end: before the next part");
	if ($end eq 'PAUSE')
	{
		answer("SELECT finetune('RESUME', '$id')");
		is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', "$end: resumed, the job ends well");
		is(stored($model), $expected, "$end: with all parts once");
		answer("DROP SERVER $model");
	}
	is(answer("SELECT count(*) FROM finetune.model WHERE name = '$model'"), 0, "$end: no model is there");
	nothing_left($end);
}

# --- Refused: what was trained is kept until it can be stored

answer(<<'SQL');
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today' USING ERRCODE = '23514'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON finetune.weights FOR EACH ROW WHEN (NEW.part = 2) EXECUTE FUNCTION refuse();
SQL
$id = start_full('refused');
my $job = wait_for_status($node, $id, 'PAUSED');
is("$job->{status} $job->{error}{code} $job->{error}{message}", 'PAUSED 23514 not today', 'refused: the job is paused');
is($job->{error}{hint}, "Put that right, then call finetune('RESUME', '$id').", 'refused: hint');
answer("DROP TRIGGER refuse ON finetune.weights; SELECT finetune('RESUME', '$id')");
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'refused: resumed, the job ends well');
is(stored('refused'), $expected, 'refused: with all parts once');
answer('DROP SERVER refused');

# --- Ended with the server, and killed

for my $end ('shutdown', 'kill')
{
	my $holder  = hold_part();
	my $log_end = log_end($node);

	$id = start_full($end);
	ok(is_storing(), "$end: the worker is storing parts");
	if ($end eq 'kill')
	{
		kill 'KILL', answer('SELECT pid FROM finetune.progress');
		$holder->quit;
		restarted($node, $log_end) or die 'no restart';
	}
	else
	{
		local $ENV{LD_PRELOAD} = $FaultShim::library;
		local $ENV{FAULT_CONTROL} = $control;

		$node->stop('fast');
		$holder->quit;
		$node->start;
	}
	answer('DROP TRIGGER IF EXISTS hold ON finetune.weights');
	ends_well($id, $end, 2);
	is(stored($end), $expected, "$end: with all parts once");
	answer("DROP SERVER $end");
	nothing_left($end);
}

# --- As files: each kind of call is met by an error of the disk, and by a kill

mkdir $folder;
arm($control, 'LOG', "*$folder*", 1, 0);
$id = start_full('logged', 'file');
ends_well($id, 'files', 1);
my @calls = logged($control);
disarm($control);
is(digest_of("$folder/$digest"), $digest, 'files: the engine\'s result');
answer('DROP SERVER logged');
my @kinds = ([ EIO, qr/^open / ], [ EIO, qr/^fsync / ], [ EIO, qr/^rename / ], [ 'KILL', qr/^write / ], [ 'KILL', qr/^rename / ]);
for my $kind (@kinds)
{
	my ($action, $pattern) = @$kind;
	my ($n) = grep { $calls[$_] =~ $pattern } 1 .. $#calls;
	my $what = ($action eq 'KILL' ? 'a kill' : 'an error') . " at \"" . ($calls[$n] // 'no call') =~ s{ .*/}{ …/}r . '"';
	my $log_end = log_end($node);

	remove_tree("$folder/$digest");
	arm($control, $action, "*$folder*", $n, $n);
	$id = start_full('filed', 'file');
	if ($action eq 'KILL')
	{
		ok(restarted($node, $log_end), "$what: the server restarts");
		disarm($control);
	}
	ends_well($id, $what, 2);
	disarm($control);
	like(answer("SELECT '58030: ' || message FROM finetune.events WHERE job_id = '$id' AND type = 'attempt_failed'"),
		qr/^58030: could not rename a directory to "pg_finetune_full\/$digest": Input\/output error$/, "$what: an event says so")
	  if $action eq EIO && $calls[$n] =~ /^rename /;
	is(digest_of("$folder/$digest"), $digest, "$what: all files are there afterwards");
	answer('DROP SERVER filed');
	nothing_left($what);
}

# --- Parts that are damaged

my $all = answer("SELECT id FROM finetune.model WHERE name = 'whole'");
for my $damage (
	[ changed => "UPDATE finetune.weights SET data = overlay(data PLACING '\\xff'::bytea FROM 7) WHERE part = 5", qr/part 5 of the model's weights is damaged/ ],
	[ missing => 'DELETE FROM finetune.weights WHERE part = 4', qr/part 4 of the model's weights is missing/ ],
	[ 'out of order', 'UPDATE finetune.weights SET part = 1000 WHERE part = 2', qr/part 2 of the model's weights is missing/ ],
	[ 'of another file', "UPDATE finetune.weights SET file = 'prompt.txt' WHERE part = 3", qr/part 3 of the model's weights has a bad file name/ ])
{
	my ($how, $sql, $pattern) = @$damage;

	answer('CREATE TABLE kept AS TABLE finetune.weights');
	answer($sql);
	$node->stop;
	remove_tree("$cache/$digest");
	$node->start;
	my ($state, $words) = sqlstate_of($node, "SELECT complete('whole', 'x')");
	is($state, 'XX001', "a part that is $how: SQLSTATE");
	like($words, $pattern, "a part that is $how: message");
	is(join(' ', glob "$cache/*"), '', "a part that is $how: no copy is left");
	is(answer("SELECT try_complete('whole', 'x') IS NULL"), 't', "a part that is $how: try_complete()");
	answer('TRUNCATE finetune.weights; INSERT INTO finetune.weights TABLE kept; DROP TABLE kept');
}
is(answer(q(SELECT complete('whole', 'av', '{"max_tokens": 8}')->>'choices')), $said, 'put right, it answers as before');

$node->stop;
done_testing();
