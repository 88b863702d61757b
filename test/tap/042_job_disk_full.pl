# A disk that is full, in the middle of a job: while its data is written, while a checkpoint is, while the
# weights are stored.  The job is paused, has lost nothing, and goes on once there is room.  Runs in a mount
# namespace of its own, where it can have disks of its own.
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

my $node = new_node('full', <<'CONF');
pg_finetune.work_directory = 'pgsql_tmp_disk'
pg_finetune.reserve_disk = 0
CONF
my $work       = $node->data_dir . '/pgsql_tmp_disk';
my $tablespace = $node->basedir . '/space';
my %long       = (options => { max_steps => 200, learning_rate => 0.001, batch_size => 256 });

# A disk with this much room, in KiB.
sub disk
{
	my ($path, $size) = @_;

	mkdir $path;
	system('mount', '-t', 'tmpfs', '-o', "size=${size}k", 'none', $path) == 0 or die "could not mount $path";
}

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Take all the room that a disk has.
sub fill
{
	my ($path) = @_;

	open(my $file, '>>:unix', "$path/ballast") or die "$path/ballast: $!";
	while (syswrite($file, 'x' x 4096)) { }
	ok($!{ENOSPC}, 'a disk is full');
	close $file;
}

sub make_room { unlink "$_[0]/ballast" or die "$_[0]/ballast: $!"; }

# The job must be paused by the disk, with this message; its worker and its engine must be gone.
sub is_paused
{
	my ($id, $pattern, $what) = @_;
	my $job = wait_for_status($node, $id, 'PAUSED');

	is($job->{status},      'PAUSED', "$what: the job is paused");
	is($job->{error}{code}, '53100',  "$what: SQLSTATE");
	like($job->{error}{message}, $pattern, "$what: message");
	is($job->{error}{hint}, "Make room, then call finetune('RESUME', '$id').", "$what: hint");
	ok( wait_for_sql($node, "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type ~ 'pg_finetune (reader|job)'"),
		"$what: its worker ends");
	is(sql("SELECT status FROM finetune.models WHERE name = '$job->{model}'"), 'untrained', "$what: no model is there");
	is(sql("SELECT count(*) FROM finetune.weights w JOIN finetune.model m ON m.id = w.model_id WHERE m.name = '$job->{model}'"),
		0, "$what: nor a part of one");
}

sub goes_on
{
	my ($id, $what) = @_;

	sql("SELECT finetune('RESUME', '$id')");
	is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', "$what: with room it ends well");
	is(job($node, $id)->{error}, undef, "$what: without an error");
}

sub digest_of
{
	my ($model) = @_;
	return sql("SELECT weights_digest FROM finetune.model WHERE name = '$model'");
}

$node->stop;
system('rm', '-rf', $work);
disk($work, 8192);
disk($tablespace, 8192);
$node->start;
sql("CREATE TABLESPACE small LOCATION '$tablespace'");
my $undisturbed = start_job($node, 'undisturbed', %long);
is(wait_for_status($node, $undisturbed, 'SUCCESS')->{status}, 'SUCCESS', 'a job that nobody disturbs');

# While its data is written
my $id = start_job($node, 'reading',
	query   => "SELECT prompt, completion || repeat(' and so on', 20000) AS completion FROM fact",
	options => { max_steps => 2, max_seq_length => 16 });
is_paused($id, qr/^could not write to file "[^"]*": No space left on device/, 'data');
cmp_ok(-s $_, '<', 8192 * 1024, "data: what was written of it is bounded") for glob "$work/jobs/*/train.jsonl";
sql("SELECT finetune('RESUME', '$id')");
is_paused($id, qr/No space left/, 'data, without more room');
sql("SELECT finetune('CANCEL', '$id')");
ok(wait_until(sub { !glob "$work/jobs/*" }), 'cancelled, it leaves nothing');
fill($work);
$id = start_job($node, 'reading', query => 'SELECT prompt, completion FROM fact', options => { max_steps => 2 });
is_paused($id, qr/No space left|could not create/, 'no room at all');
make_room($work);
goes_on($id, 'no room at all');

# While a checkpoint is written
my $control = hold_engines($node);
hold_at($control, 45);
$id = start_job($node, 'training', %long);
ok(is_held($control), 'a job is trained');
ok(wait_for_sql($node, "SELECT count(*) > 0 FROM finetune.events WHERE job_id = '$id' AND type = 'checkpoint'"),
	'and has a checkpoint');
fill($work);
let_go($control);
is_paused($id, qr/No space left/, 'checkpoint');
my @checkpoints = glob "$work/jobs/*/checkpoint-*";
cmp_ok(scalar @checkpoints, '>', 0, 'checkpoint: the last good one is there');
is(join(' ', grep { m{\.(tmp|new)$} } glob "$work/jobs/*/* $work/jobs/*/*/*"), '', 'checkpoint: and nothing half written');
make_room($work);
goes_on($id, 'checkpoint');
is( sql("SELECT max((data->>'resumed_from')::int) > 0 FROM finetune.events WHERE job_id = '$id' AND type = 'running'"),
	't', 'checkpoint: from where it was');
is(digest_of('training'), digest_of('undisturbed'), 'checkpoint: to the same weights');

# While the weights are stored
sql('ALTER TABLE finetune.weights SET TABLESPACE small');
fill($tablespace);
$id = start_job($node, 'storing', %long);
is_paused($id, qr/^could not extend file "[^"]*"/, 'weights');
is(scalar(() = glob "$work/jobs/*/adapter/adapter_model.safetensors"), 1, 'weights: on disk they are whole');
make_room($tablespace);
goes_on($id, 'weights');
is(digest_of('storing'), digest_of('undisturbed'), 'weights: the same');
is(sql("SELECT min(step), max(step), count(*) FROM finetune.metrics WHERE job_id = '$id'"), '0|200|201',
	'weights: no step was trained twice');
is(sql("SELECT length(complete('storing', 'item 1')) > 0"), 't', 'weights: the model answers');
ok(wait_until(sub { !glob "$work/jobs/*" }), 'nothing is left on disk');

# While a full model is stored, in the database and as files
my %full = (options => { method => 'full', max_steps => 4, learning_rate => 0.001, batch_size => 256 });
fill($tablespace);
$id = start_job($node, 'full', %full);
is_paused($id, qr/^could not extend file "[^"]*"/, 'full model');
make_room($tablespace);
goes_on($id, 'full model');
my $folder = $node->basedir . '/models/pg_finetune_full';
disk($folder, 24);
$full{options}{storage} = 'file';
$id = start_job($node, 'files', %full);
is_paused($id, qr/^could not write file "[^"]*": No space left on device/, 'files');
is(join(' ', glob "$folder/*"), '', 'files: nothing is left of them');
system('mount', '-o', 'remount,size=4096k', $folder) == 0 or die 'could not remount';
goes_on($id, 'files');
is(digest_of('files'), digest_of('full'), 'files: the same weights');
is(join(' ', glob "$folder/*"), "$folder/" . digest_of('files'), 'files: under their digest');
is(sql("SELECT complete('files', 'item 1') = complete('full', 'item 1')"), 't', 'files: the model answers');

# Before it is full: what pg_finetune.reserve_disk says counts for files, too
my $small = $node->basedir . '/small';
disk($small, 65536);
sql("ALTER SYSTEM SET pg_finetune.reserve_disk = '128MB'");
system('cp', '-r', glob($node->basedir . '/models/*'), $small);
sql("ALTER SYSTEM SET pg_finetune.model_directory = '$small'");
system('mount', '-o', 'remount,size=256m', $work) == 0 or die 'could not remount';
$node->reload;
$id = start_job($node, 'reserved', %full);
is_paused($id, qr/^the disk of pg_finetune\.model_directory has 6\d MB free, and would have less than pg_finetune\.reserve_disk \(128 MB\) with a model of 0 MB/,
	'a disk that is nearly full, 53100');

$node->stop;
is(log_count($node, 'PANIC|TRAP|Segmentation'), 0, 'nothing unseemly in the log');

done_testing();
