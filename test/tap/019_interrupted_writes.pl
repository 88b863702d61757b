# Writing weights to the cache, or to a directory, is interrupted at each call that
# changes a file, and storing them by a kill of the worker: there is nothing or
# all of it afterwards, the next try works, and the server goes on.
use strict;
use warnings;

use lib "$ENV{TESTDIR}/test/engine";

use Errno qw(EIO ENOSPC);
use FaultShim;
use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node    = new_node('interrupted', "restart_after_crash = on\nfsync = on\n");
my $golden  = "$ENV{TESTDIR}/test/golden/tiny_llama/tied";
my $cache   = $node->data_dir . '/pgsql_tmp_finetune/cache';
my $control = $node->basedir . '/control';

sub answer { return $node->safe_psql('postgres', $_[0]); }

# From here on the server's processes go by the control file; its engines do not,
# for they are given few variables of the environment.
disarm($control);
$node->stop;
{
	local $ENV{LD_PRELOAD} = $FaultShim::library;
	local $ENV{FAULT_CONTROL} = $control;
	$node->start;
}

answer("SELECT finetune_import('adapter', 'tiny', '$golden/adapter')");
answer("CREATE SERVER kept TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf', storage 'database')");

# Both write the model's files to the cache if they are not there; the engine of
# the second one is new each time and reads them.
sub question { return "SELECT complete('$_[0]', 'item 1', '{\"max_tokens\": 4, \"temperature\": 0}')"; }

sub evaluate
{
	my ($model) = @_;
	return answer("SELECT finetune_evaluate('$model', 'SELECT prompt, completion FROM fact WHERE id < 5')");
}

sub clear_cache { system("rm -rf $cache/*") == 0 or die; }

# What is in the cache: names of files and their sizes.
sub cached { return join ' ', sort map { s{^\Q$cache\E/}{}r . ':' . -s $_ } grep { -f $_ } glob("$cache/*/*"); }

my $tmp = qr/\.tmp\./;

# Interrupt the writing at each call; the calls, from 1 on.
sub fail_everywhere
{
	my ($model) = @_;

	clear_cache();
	arm($control, 'LOG', "*$cache*", 1, 0);
	my $expected = evaluate($model);
	my @calls    = logged($control);
	my $whole    = cached();
	my $starts   = start_time($node);
	unlike($whole, $tmp, "$model: the cache holds " . ($whole =~ s/[0-9a-f]{60}//gr));
	cmp_ok(@calls, '>', 6, "$model: " . $#calls . ' calls write it');

	for my $fault ([ EIO, '58030', 'an error of the disk' ], [ ENOSPC, '53100', 'a full disk' ])
	{
		my ($errno, $sqlstate, $what) = @$fault;
		my @wrong;

		for my $n (1 .. $#calls)
		{
			clear_cache();
			arm($control, $errno, "*$cache*", $n, $n);
			my ($got) = sqlstate_of($node, question($model));
			disarm($control);
			push @wrong, "call $n ($calls[$n]): SQLSTATE $got" if $got ne $sqlstate;
			push @wrong, "call $n ($calls[$n]): left " . join(' ', glob "$cache/*")
			  if cached() ne $whole && glob("$cache/*");
			my $again = evaluate($model);
			push @wrong, "call $n ($calls[$n]): then $again" if $again ne $expected || cached() ne $whole;
		}
		is(scalar @wrong, 0, "$model: $what at each call: SQLSTATE $sqlstate, nothing half done, and the next try works")
		  or diag(map { "$_\n" } @wrong);
	}
	is(start_time($node), $starts, "$model: the server goes on");
	return ($expected, $whole, @calls);
}

# Kill the process that writes, where a call of this kind is.
sub kill_at_calls
{
	my ($model, $expected, $whole, $calls, @kinds) = @_;

	for my $kind (@kinds)
	{
		my ($action, $pattern) = @$kind;
		my ($n) = grep { $calls->[$_] =~ $pattern } 1 .. $#$calls;

		clear_cache();
		arm($control, $action, "*$cache*", $n, $n);
		my $log_end = log_end($node);
		my ($rc) = $node->psql('postgres', question($model));
		disarm($control);
		isnt($rc, 0, "$model: a session is killed at \"" . ($calls->[$n] =~ s{ .*/}{ …/}r) . '"');
		restarted($node, $log_end) or die 'no restart';
		ok(!grep({ !/$tmp/ } glob "$cache/*"), "$model: nothing in the cache is taken to be whole");
		is(evaluate($model), $expected, "$model: the next try works");
		is(join(' ', grep { !/$tmp/ } split / /, cached()), $whole, "$model: with the whole of it in the cache");
	}
	return;
}

# An adapter, and a base that the database holds
for my $model ('adapter', 'kept')
{
	my ($expected, $whole, @calls) = fail_everywhere($model);
	kill_at_calls($model, $expected, $whole, \@calls, [ 'KILL', qr/^open / ], [ 'TEAR', qr/^write / ], [ 'KILL', qr/^rename / ]);
	clear_cache();
	isnt(answer(question($model)), '', "$model: and complete() answers");
}

# An export
{
	my $out    = $node->basedir . '/out';
	my $export = "SELECT finetune_export('adapter', '$out/adapter')";
	my $starts = start_time($node);
	my @wrong;

	mkdir $out or die "$out: $!";
	arm($control, 'LOG', "*$out*", 1, 0);
	answer($export);
	my @calls = logged($control);
	for my $n (1 .. $#calls)
	{
		system("rm -rf $out/*");
		arm($control, EIO, "*$out*", $n, $n);
		my ($got) = sqlstate_of($node, $export);
		disarm($control);
		push @wrong, "call $n ($calls[$n]): SQLSTATE $got" if $got ne '58030';
		push @wrong, "call $n ($calls[$n]): left " . join(' ', glob "$out/*") if glob("$out/*");
	}
	cmp_ok($#calls, '>', 6, "finetune_export(): $#calls calls write it");
	is(scalar @wrong, 0, 'an error of the disk at each call: SQLSTATE 58030, and nothing is left')
	  or diag(map { "$_\n" } @wrong);
	is(answer($export), "$out/adapter", 'and the next try works');
	is(start_time($node), $starts, 'the server goes on');
}

# Storing weights: the worker dies before its first part, and after the last one.
my %job = (options => { max_steps => 10, learning_rate => 0.001 });
my $id  = start_job($node, 'undisturbed', %job);
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'a job that nobody disturbs');

sub stored
{
	my ($model) = @_;
	return answer(<<"SQL");
SELECT weights_digest, count(part), count(DISTINCT part), sum(length(data))
	FROM finetune.model m JOIN finetune.weights ON model_id = m.id WHERE m.name = '$model' GROUP BY 1
SQL
}

my $expected = stored('undisturbed');
like($expected, qr/^[0-9a-f]{64}\|(\d+)\|\1\|/, 'stores its weights');

sub lock_table
{
	my ($table) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	$session->query("BEGIN; LOCK TABLE finetune.$table IN SHARE MODE");
	return $session;
}

sub job_waits_for
{
	my ($table) = @_;
	return wait_for_sql($node, "SELECT count(*) = 1 FROM pg_stat_activity JOIN pg_locks USING (pid)"
		  . " WHERE backend_type = 'pg_finetune job' AND NOT granted AND relation = 'finetune.$table'::regclass");
}

for my $table ('weights', 'model')
{
	my $model  = "killed_at_$table";
	my $holder = lock_table('weights');
	my $second;

	$id = start_job($node, $model, %job);
	ok(job_waits_for('weights'), "$model: a worker is about to store weights");
	if ($table eq 'model')
	{
		$second = lock_table('model');
		$holder->query('COMMIT');
		ok(job_waits_for('model'), "$model: and has stored them, but not committed");
	}
	is(job($node, $id)->{phase}, 'uploading', "$model: the job is uploading");
	my $log_end = log_end($node);
	kill 'KILL', answer('SELECT pid FROM finetune.progress');
	# the sessions with the locks die with the rest
	$_->quit for grep { defined } $holder, $second;
	restarted($node, $log_end) or die 'no restart';
	my $job = wait_for_status($node, $id, 'SUCCESS');
	is($job->{status}, 'SUCCESS', "$model: the job ends well");
	is($job->{attempts}, 2, "$model: in its second attempt");
	is(stored($model), $expected, "$model: with the same weights, each part once");
	is(answer("SELECT count(*) FROM finetune.weights w WHERE NOT EXISTS (SELECT FROM finetune.model WHERE id = model_id)"),
		0, "$model: and no part is left over");
}

$node->stop;

done_testing();
