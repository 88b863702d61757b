# A disk that is full: finetune_export() and the cache of weights leave nothing half done, and work
# once there is room.  Runs in a mount namespace of its own, where it can have a disk of its own.
use strict;
use warnings;

use Test::More;

# Before the modules below take hold of the output
BEGIN
{
	my @unshare = qw(unshare --mount --map-current-user --keep-caps);

	if (!$ENV{FINETUNE_OWN_MOUNTS})
	{
		plan skip_all => 'no file system can be mounted here'
		  if system("@unshare sh -c 'mount -t tmpfs none /tmp' 2>/dev/null") != 0;
		$ENV{FINETUNE_OWN_MOUNTS} = 1;
		exec @unshare, $^X, map({ "-I$_" } @INC), $0;
	}
}

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

# A disk with this much room, in KiB.
sub disk
{
	my ($path, $size) = @_;
	my $options = "size=${size}k" . (-e "$path/mounted" ? ',remount' : '');

	mkdir $path;
	system('mount', '-t', 'tmpfs', '-o', $options, 'none', $path) == 0 or die "could not mount $path";
	write_file("$path/mounted", '');
}

my $node   = new_node('full', "pg_finetune.work_directory = 'pgsql_tmp_disk'\npg_finetune.reserve_disk = 0\n");
my $golden = "$ENV{TESTDIR}/test/golden/tiny_llama/tied";
my $out    = $node->basedir . '/out';

sub answer { return $node->safe_psql('postgres', $_[0]); }

sub fails
{
	my ($sql, $pattern, $name) = @_;
	my ($got, $words) = sqlstate_of($node, $sql);

	is($got, '53100', "$name: SQLSTATE");
	like($words, $pattern, "$name: message");
}

# the work directory becomes a disk of its own, with no room for a base
$node->stop;
my $work = $node->data_dir . '/pgsql_tmp_disk';
system('rm', '-rf', $work);
disk($work, 16);
$node->start;
answer("CREATE SERVER kept TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf', storage 'database')");
fails("SELECT complete('kept', 'x')", qr/could not write file "[^"]*model\.gguf": No space left/, 'a cache without room');
fails("SELECT finetune_import('m', 'tiny', '$golden/adapter')", qr/could not write.*No space left/, 'nor for an import');
is(join(' ', glob("$work/cache/*")), '', 'nothing is left there');
disk($work, 4096);
is(answer("SELECT length(complete('kept', 'x')) > 0"), 't', 'with room, it is written');
answer("SELECT finetune_import('m', 'tiny', '$golden/adapter')");

disk($out, 12);
fails("SELECT finetune_export('m', '$out/m')", qr/could not write file "[^"]*adapter_model\.safetensors": No space left/,
	'an export without room');
is(join(' ', glob("$out/m*")), "$out/mounted", 'nothing is left of it');
disk($out, 1024);
is(answer("SELECT finetune_export('m', '$out/m')"), "$out/m", 'with room, it is written');
is(slurp_file("$out/m/$_"), slurp_file("$golden/adapter/$_"), $_) for qw(adapter_config.json adapter_model.safetensors);

$node->stop;
done_testing();
