# FinetuneJob.pm: jobs on a tiny model, with the real engine.
package FinetuneJob;

use strict;
use warnings;

use Exporter 'import';
use File::Copy;
use FinetuneCluster;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);

our @EXPORT = qw(new_bare_node new_node start_job endless_job job wait_for_status wait_for_sql error_of engine_of
  start_time stop_jobs let_jobs_run hold_engines hold_at is_held let_go);

# The longest that anything is waited for, in seconds.
our $patience = $FinetuneCluster::patience;

# The tree's root: tests are run there.
my $tiny = "$ENV{TESTDIR}/test/golden/tiny_llama/tied/base.gguf";

# A cluster, not running, with the file of the base model "tiny" and without
# the extension.  %with goes to init.
sub new_bare_node
{
	my ($name, $conf, %with) = @_;
	my $node   = PostgreSQL::Test::Cluster->new($name);
	my $models = $node->basedir . '/models';

	$node->init(%with);
	mkdir $models or die "$models: $!";
	copy($tiny, "$models/tiny.gguf") or die "$tiny: $!";
	$node->append_conf('postgresql.conf', <<"CONF" . ($conf // ''));
shared_preload_libraries = 'pg_finetune'
pg_finetune.model_directory = '$models'
pg_finetune.threads = 1
max_worker_processes = 16
max_prepared_transactions = 5
CONF
	return $node;
}

# A running cluster with the extension, the base model "tiny", and a table "fact"
# of rows to learn.
sub new_node
{
	my $node = new_bare_node(@_);

	$node->start;
	$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION pg_finetune;
CREATE SERVER tiny TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf');
CREATE TABLE fact (id int PRIMARY KEY, prompt text, completion text);
INSERT INTO fact SELECT i, 'item ' || i, CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END
	FROM generate_series(1, 100) i;
SQL
	return $node;
}

# Create a job; returns its id.  %with: user, query, validation, options (a hash).
sub start_job
{
	my ($node, $model, %with) = @_;
	my $options = encode_json($with{options} // { max_steps => 20 });
	my $query   = $with{query} // 'SELECT prompt, completion FROM fact';
	my $validation = defined $with{validation} ? "\$q\$$with{validation}\$q\$" : 'NULL';

	return $node->safe_psql(
		'postgres',
		"SELECT finetune('CREATE', '$model', 'tiny', \$q\$$query\$q\$, $validation, '$options')",
		extra_params => [ '-U', $with{user} // $node->safe_psql('postgres', 'SELECT current_user') ]);
}

# What start_job() is to be given for a job that is trained for as long as any test lasts.
sub endless_job
{
	return (
		query   => q(SELECT 'item ' || i AS prompt, 'odd' AS completion FROM generate_series(1, 20000) i),
		options => { max_epochs => 50, batch_size => 64, validation_fraction => 0 },
		@_);
}

# From here on no job is begun, until let_jobs_run().
sub stop_jobs
{
	my ($node) = @_;

	$node->safe_psql('postgres', 'ALTER SYSTEM SET pg_finetune.max_running_jobs = 0');
	$node->reload;
	return;
}

sub let_jobs_run
{
	my ($node) = @_;

	$node->safe_psql('postgres', 'ALTER SYSTEM RESET pg_finetune.max_running_jobs');
	$node->reload;
	return;
}

# What DESCRIBE says of a job, as a hash.
sub job
{
	my ($node, $id) = @_;

	return JSON::PP->new->decode(
		$node->safe_psql('postgres', "SELECT finetune('DESCRIBE', '$id')"));
}

# Wait until a job's status or phase is one of these; returns its description.
sub wait_for_status
{
	my ($node, $id, @wanted) = @_;
	my $job;

	for (1 .. $patience * 10)
	{
		$job = job($node, $id);
		return $job if grep { $job->{status} eq $_ || $job->{phase} eq $_ } @wanted;
		last if $job->{status} =~ /^(SUCCESS|ERROR|CANCELLED)$/;
		sleep 0.1;
	}
	diag("job is $job->{status}, not @wanted: " . ($job->{error} ? $job->{error}{message} : ''));
	return $job;
}

# Wait until a query says 't'; false when it never does.
sub wait_for_sql
{
	my ($node, $sql) = @_;

	for (1 .. $patience * 10)
	{
		return 1 if $node->safe_psql('postgres', $sql) eq 't';
		sleep 0.1;
	}
	diag("never true: $sql");
	return 0;
}

# The error that a script ends with, as "SQLSTATE: message"; '' when there is none.
sub error_of
{
	my ($node, $sql, $user) = @_;
	my ($rc, $out, $err) = $node->psql(
		'postgres', "\\set VERBOSITY verbose\n$sql",
		on_error_stop => 1,
		extra_params  => defined $user ? [ '-U', $user ] : []);

	return $err =~ /(?:ERROR|FATAL):  (.*)/ ? $1 : '';
}

# Processes whose parent this is.
sub children_of
{
	my ($parent) = @_;
	my @children;

	for my $file (glob '/proc/[0-9]*/stat')
	{
		open(my $stat, '<', $file) or next;
		my $line = <$stat> // next;
		push @children, $1 if $line =~ /^(\d+) \(.*\) \S (\d+) / && $2 == $parent;
	}
	return @children;
}

# The process that trains, of the only job there is; waits for it.
sub engine_of
{
	my ($node) = @_;

	for (1 .. $patience * 10)
	{
		my $worker   = $node->safe_psql('postgres', 'SELECT pid FROM finetune.progress');
		my @children = $worker eq '' ? () : children_of($worker);

		return $children[0] if @children;
		sleep 0.1;
	}
	die 'no engine';
}

# Have the engines of a cluster's jobs be such that can be made to wait in the
# middle of their training, so that nothing has to happen in time; the server is
# restarted.  Returns what the functions below want.
sub hold_engines
{
	my ($node)  = @_;
	my $control = $node->basedir . '/control';
	my $engine  = $node->basedir . '/held_engine';

	require lib;
	lib->import("$ENV{TESTDIR}/test/engine");
	require FaultShim;
	my $shim = do { no warnings 'once'; $FaultShim::library };
	chomp(my $library = qx(pg_config --pkglibdir));
	write_file($engine, <<"SH");
#!/bin/sh
if [ "\$1" = train ]; then export LD_PRELOAD='$shim' FAULT_CONTROL='$control'; fi
exec '$library/pg_finetune_engine' "\$@"
SH
	chmod 0755, $engine or die "$engine: $!";
	let_go($control);
	$node->append_conf('postgresql.conf', "pg_finetune.engine_path = '$engine'\n");
	$node->restart;
	return $control;
}

# Have the next engine wait before it tells of its Nth step or evaluation, once;
# one that waits goes on if N is another number than before.
sub hold_at
{
	my ($control, $n) = @_;
	FaultShim::arm($control, 'HOLD', 'write */metrics.jsonl', $n, $n);
	return;
}

# Wait until an engine waits.
sub is_held
{
	my ($control) = @_;
	return wait_until(sub { FaultShim::held($control) });
}

# Have the engine that waits go on, and none wait any more.
sub let_go
{
	my ($control) = @_;
	FaultShim::disarm($control);
	return;
}

sub start_time
{
	my ($node) = @_;

	return $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
}

1;
