# FinetuneCluster.pm: clusters with pg_finetune, for the tests of this folder.
package FinetuneCluster;

use strict;
use warnings;

use Cwd qw(abs_path);
use Digest::SHA qw(sha256_hex);
use Exporter 'import';
use File::Basename;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(new_echo_cluster engine_pid is_running wait_until log_count logged_times log_end restarted
  kill_server sqlstate_of store_adapter write_file);

# The longest that anything is waited for, in seconds: PG_TEST_TIMEOUT_DEFAULT.
our $patience = $PostgreSQL::Test::Utils::timeout_default;

# A running cluster whose engine is echo_engine.pl, with the extension and a
# base model "one" in database postgres.  Returns it and its model directory.
sub new_echo_cluster
{
	my ($name, $settings) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	my $models = $node->basedir . '/models';
	my $engine = abs_path(dirname(__FILE__)) . '/echo_engine.pl';

	$node->init(allows_streaming => 1);
	mkdir $models or die "could not create $models: $!";
	write_file("$models/one.gguf", 'one');
	$node->append_conf('postgresql.conf', <<"CONF");
shared_preload_libraries = 'pg_finetune'
pg_finetune.engine_path = '$engine'
pg_finetune.model_directory = '$models'
max_worker_processes = 16
log_min_error_statement = panic
CONF
	$node->append_conf('postgresql.conf', $settings // '');
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION pg_finetune');
	$node->safe_psql('postgres',
		q(CREATE SERVER one TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf')));
	return ($node, $models);
}

sub write_file
{
	my ($path, $contents) = @_;

	open(my $file, '>:raw', $path) or die "could not write $path: $!";
	print $file $contents;
	close $file or die "could not write $path: $!";
}

# Process id of the serving engine that was started last.
sub engine_pid
{
	my ($node) = @_;
	my @pids = slurp_file($node->logfile) =~ /engine started with process ID (\d+)/g;

	return $pids[-1];
}

sub is_running
{
	my ($pid) = @_;

	# A dead process whose parent has not waited for it yet does not count
	return 0 if !-e "/proc/$pid/stat";
	open(my $stat, '<', "/proc/$pid/stat") or return 0;
	my $line = <$stat> // '';
	return $line =~ /\) Z / ? 0 : 1;
}

# Wait for a condition, for a generous time.
sub wait_until
{
	my ($condition) = @_;

	for (1 .. $patience * 10)
	{
		return 1 if $condition->();
		select(undef, undef, undef, 0.1);
	}
	return 0;
}

# How often a pattern stands in the server log, from an offset on.
sub log_count
{
	my ($node, $pattern, $offset) = @_;
	my $log = slurp_file($node->logfile, $offset // 0);

	return scalar(() = $log =~ /$pattern/g);
}

# The same, once it has been that often or more: what an engine says is written by
# its worker, which may come later than the engine's answer to a session.
sub logged_times
{
	my ($node, $pattern, $times, $offset) = @_;

	wait_until(sub { log_count($node, $pattern, $offset) >= $times });
	return log_count($node, $pattern, $offset);
}

# Where the server log ends, for those who look at what comes after.
sub log_end
{
	my ($node) = @_;

	return -s $node->logfile;
}

# Wait until the server has come up again since the log had this length.
sub restarted
{
	my ($node, $offset) = @_;

	return wait_until(sub { log_count($node, qr/ready to accept connections/, $offset) > 0 });
}

# Kill the postmaster, and wait until nothing of its server is left: before that
# another one could not take its place.  All its processes, engines too, work in
# the data directory; and for its successor the postmaster lives until its own
# parent has waited for it.
sub kill_server
{
	my ($node) = @_;
	my $data = abs_path($node->data_dir);
	my ($postmaster) = slurp_file("$data/postmaster.pid") =~ /^(\d+)/;

	$node->kill9;
	wait_until(
		sub {
			return 0 if -e "/proc/$postmaster";
			for my $process (glob '/proc/[0-9]*')
			{
				my $cwd = readlink("$process/cwd") // next;
				return 0 if $cwd eq $data && is_running($process =~ /(\d+)$/);
			}
			return 1;
		}) or die 'something outlives the postmaster';
	return;
}

# Run SQL that fails; returns its SQLSTATE, and what psql said.
sub sqlstate_of
{
	my ($node, $sql, %option) = @_;
	my ($rc, $out, $err) = $node->psql($option{db} // 'postgres',
		$sql, extra_params => [ '-v', 'VERBOSITY=verbose', '-U', $option{user} // $node->{_user} // getpwuid($<) ]);

	return ('', $err) if $rc == 0;
	return ($err =~ /(?:ERROR|FATAL):  (\w{5}):/ ? $1 : 'none', $err);
}

my @crc_table = map {
	my $c = $_;
	$c = $c & 1 ? 0x82f63b78 ^ ($c >> 1) : $c >> 1 for 1 .. 8;
	$c
} 0 .. 255;

sub crc32c
{
	my ($data) = @_;
	my $crc = 0xffffffff;

	$crc = $crc_table[ ($crc ^ $_) & 255 ] ^ ($crc >> 8) for unpack 'C*', $data;
	return $crc ^ 0xffffffff;
}

# Make a tuned model of "one" as a finished job would, out of {file => contents}.
sub store_adapter
{
	my ($node, $name, $files, %option) = @_;
	my $base_digest = $option{base_digest} // 'one';
	my ($digest, $rows, $part) = ('', '', 0);

	for my $file (sort keys %$files)
	{
		my $left = $files->{$file};

		$digest .= pack('Q>', length $file) . $file . pack('Q>', length $left) . $left;
		do
		{
			my $piece = substr($left, 0, 1024 * 1024, '');
			$rows .= sprintf(
				"INSERT INTO finetune.weights SELECT id, %d, '%s', %d, '\\x%s' FROM finetune.model WHERE name = '%s';\n",
				$part++, $file, crc32c($piece), unpack('H*', $piece), $name);
		} while (length $left);
	}
	$digest = sha256_hex($digest);
	$node->safe_psql('postgres', <<"SQL");
BEGIN;
CREATE SERVER "$name" TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune;
INSERT INTO finetune.model (id, name, kind, base_id, base_digest, weights_digest)
	SELECT gen_random_uuid(), '$name', 'lora', id, '$base_digest', '$digest'
	FROM finetune.model WHERE name = 'one';
$rows
COMMIT;
SQL
	return $digest;
}

1;
