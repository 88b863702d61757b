# The server is stopped and started again in each phase of a job: stopping needs no patience, nothing is
# left running, and the job goes on where it was.  011_job_crash.pl stops it in the middle of training.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('shutdown');
my $no_workers =
  "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type ~ 'pg_finetune (reader|job)'";

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub setting
{
	my ($name, $value) = @_;
	sql("ALTER SYSTEM SET $name = '$value'");
	$node->reload;
}

# Engines whose job this is, by the directory that they were given.
sub engines_of
{
	my ($id) = @_;
	my @pids;

	for my $file (glob '/proc/[0-9]*/cmdline')
	{
		open(my $in, '<', $file) or next;
		my $line = <$in> // next;
		push @pids, $file =~ /(\d+)/ if index($line, "\0train\0" . $node->data_dir) >= 0;
	}
	return @pids;
}

sub events_of
{
	my ($id) = @_;
	return sql("SELECT string_agg(type, ' ' ORDER BY at, type) FROM finetune.events"
		  . " WHERE job_id = '$id' AND type <> 'checkpoint'");
}

# Stop and start; a stop that takes longer than pg_ctl waits fails here.
sub restart_in
{
	my ($mode, $id, $phase) = @_;

	is(job($node, $id)->{phase}, $phase, "$phase, $mode: the job is there");
	$node->stop($mode);
	ok(wait_until(sub { !engines_of($id) }), "$phase, $mode: no engine is left");
	$node->start;
}

for my $mode ('fast', 'immediate')
{
	# Nobody has read its data yet: no place for it
	setting('pg_finetune.max_running_jobs', 0);
	my $id = start_job($node, "pending_$mode", options => { max_steps => 2 });
	restart_in($mode, $id, 'pending');
	is(job($node, $id)->{phase}, 'pending', "pending, $mode: it still waits");
	setting('pg_finetune.max_running_jobs', 1);
	my $job = wait_for_status($node, $id, 'SUCCESS');
	is("$job->{status} $job->{attempts}", 'SUCCESS 1', "pending, $mode: with a place it ends well");

	# A query is under way, and comes to nothing
	my $guard = $node->background_psql('postgres');
	$guard->query_safe('SELECT pg_advisory_lock(7)');
	$id = start_job($node, "reading_$mode",
		query   => 'SELECT prompt, completion, pg_advisory_xact_lock_shared(7) FROM fact',
		options => { max_steps => 2 });
	ok( wait_for_sql($node,
			"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_finetune reader' AND wait_event_type = 'Lock'"),
		"reading, $mode: a reader waits");
	restart_in($mode, $id, 'pending');
	$job = wait_for_status($node, $id, 'SUCCESS');
	is($job->{status},     'SUCCESS', "reading, $mode: it ends well");
	is($job->{rows}{read}, 100,       "reading, $mode: with all rows, each once");
	eval { $guard->finish; };

	# The data is there, the device is not
	setting('pg_finetune.max_running_jobs', 0);
	$id = start_job($node, "queued_$mode", options => { max_steps => 2 });
	setting('pg_finetune.device', 'cuda:99');
	setting('pg_finetune.max_running_jobs', 1);
	ok(wait_for_sql($node, "SELECT count(*) = 1 FROM finetune.events WHERE job_id = '$id' AND type = 'waiting'"),
		"queued, $mode: it waits for a device");
	sql("ALTER SYSTEM SET pg_finetune.device = 'cpu'");
	restart_in($mode, $id, 'queued');
	$job = wait_for_status($node, $id, 'SUCCESS');
	is($job->{status}, 'SUCCESS', "queued, $mode: it ends well");
	is(sql("SELECT count(*) FROM finetune.events WHERE job_id = '$id' AND type = 'queued'"),
		1, "queued, $mode: its data was read once");

	# Trained, but not stored: somebody has the table
	$guard = $node->background_psql('postgres');
	$guard->query_safe('BEGIN; LOCK TABLE finetune.weights IN SHARE MODE');
	$id = start_job($node, "uploading_$mode", options => { max_steps => 2 });
	ok( wait_for_sql($node,
			"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'pg_finetune job' AND wait_event_type = 'Lock'"),
		"uploading, $mode: a worker waits");
	restart_in($mode, $id, 'uploading');
	$job = wait_for_status($node, $id, 'SUCCESS');
	is($job->{status}, 'SUCCESS', "uploading, $mode: it ends well");
	is(sql("SELECT count(*) FROM finetune.events WHERE job_id = '$id' AND type = 'running'"),
		1, "uploading, $mode: it was trained once");
	like(sql("SELECT complete('uploading_$mode', 'item 1', '{\"max_tokens\": 1}')"), qr/./s,
		"uploading, $mode: the model answers");
	eval { $guard->finish; };
}

# Paused and ended jobs are none of a restart's business
setting('pg_finetune.max_running_jobs', 0);
my $paused    = start_job($node, 'paused');
my $cancelled = start_job($node, 'cancelled');
sql("SELECT finetune('PAUSE', '$paused'), finetune('CANCEL', '$cancelled')");
my @before = map { events_of($_) } $paused, $cancelled;
sql('ALTER SYSTEM RESET pg_finetune.max_running_jobs');
$node->restart('fast');
my $last = start_job($node, 'last', options => { max_steps => 2 });
is(wait_for_status($node, $last, 'SUCCESS')->{status}, 'SUCCESS', 'a job after the restart');
is_deeply([ map { events_of($_) } $paused, $cancelled ], \@before, 'a paused and a cancelled one were left alone');
sql("SELECT finetune('CANCEL', '$paused')");
ok(wait_for_sql($node, $no_workers), 'no worker is left');
is(sql("SELECT count(*) FROM pg_ls_dir('pgsql_tmp_finetune/jobs')"), 0, 'and nothing on disk');
$node->stop;
is(log_count($node, 'PANIC|TRAP|Segmentation'), 0, 'nothing unseemly in the log');

done_testing();
