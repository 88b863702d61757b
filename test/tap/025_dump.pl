# Models and jobs through pg_dump, pg_dumpall and pg_restore, in every form,
# while another job is being trained.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneCopy;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $source = new_node('source', "pg_finetune.max_running_jobs = 2\n");
make_models($source);
my $endless = start_endless($source);
# The base's row after those that refer to it, as an ALTER SERVER leaves it
$source->safe_psql('postgres', q(UPDATE finetune.model SET created_at = created_at WHERE kind = 'base'));
my $wanted = state_of($source, 'postgres');
is(scalar(() = $wanted->{completions} =~ /finish_reason/g), 3, 'three models answer');
like($wanted->{models}, qr/bob=U\*\/alice.*carol=U\/bob/, 'grants have their options and grantors');

# --- Dumps, all of them quiet

my $dir = $source->basedir;

sub dump_to
{
	my ($program, $name, @options) = @_;
	my $database = $program eq 'pg_dump' ? [ '-d', $source->connstr('postgres') ] : [ '-d', $source->connstr ];
	my ($out, $err) = run_command([ $program, @$database, '-f', "$dir/$name", @options ]);

	is($err, '', "$program @options");
	return;
}

dump_to('pg_dump', 'plain');
dump_to('pg_dump', 'custom',    '-Fc');
dump_to('pg_dump', 'directory', '-Fd', '-j4');
dump_to('pg_dump', 'clean.sql', '--clean', '--if-exists');
dump_to('pg_dump', 'inserts',   '--inserts');
dump_to('pg_dump', 'schema',    '--schema-only');
dump_to('pg_dump', 'data', '--data-only');
dump_to('pg_dumpall', 'all');

# --- Into a fresh cluster

my $target = new_bare_node('target');
$target->start;

sub restore
{
	my ($program, $db, $file, @options) = @_;
	my @usual = $program eq 'psql' ? ('-Xq', '-v', 'ON_ERROR_STOP=1') : '-e';
	my @input = $program eq 'psql' ? ('-f', "$dir/$file") : "$dir/$file";
	my ($out, $err) = run_command([ $program, '-d', $target->connstr($db), @usual, @options, @input ]);

	return $err;
}

sub new_database
{
	my ($db) = @_;

	$target->safe_psql('postgres', "CREATE DATABASE $db TEMPLATE template0");
	return $db;
}

# pg_dumpall creates the superuser, who is there already
my $err = restore('psql', 'postgres', 'all', '-v', 'ON_ERROR_STOP=0');
is(join('', grep { !/role ".*" already exists/ } split /^/m, $err), '', 'restored: pg_dumpall');
is_same($target, 'postgres', $wanted, 'pg_dumpall');
is_whole($target, 'postgres', 'pg_dumpall');

for my $case (
	[ 'psql', 'plain', 'plain' ],
	[ 'psql', 'inserts', 'inserts', '-1' ],
	[ 'pg_restore', 'custom', 'custom' ],
	[ 'pg_restore', 'directory', 'directory', '-j4' ])
{
	my ($program, $db, @arguments) = @$case;

	is(restore($program, new_database($db), @arguments), '', "restored: $db");
	is_same($target, $db, $wanted, $db);
	is_whole($target, $db, $db);
}

# Over what is there: as it was, and after it has been changed
for my $case (
	[ 'psql', 'plain', 'clean.sql' ],
	[ 'pg_restore', 'custom', 'custom', '--clean', '--if-exists', '-1' ],
	[ 'pg_restore', 'directory', 'directory', '--clean', '--if-exists', '-j4' ])
{
	my ($program, $db, @arguments) = @$case;

	$target->safe_psql($db, 'ALTER SERVER parity RENAME TO parity3; ALTER SERVER parity3 RENAME TO parity;'
		  . ' REVOKE USAGE ON FOREIGN SERVER parity FROM bob CASCADE; ALTER SERVER parity OWNER TO carol');
	is(restore($program, $db, @arguments), '', "cleaned and restored: $db");
	is_same($target, $db, $wanted, "$db, cleaned");
	is_whole($target, $db, "$db, cleaned");
}

# First one half, then the other
is(restore('psql', new_database('split'), 'schema'), '', 'restored: schema only');
like((sqlstate_of($target, q(SELECT complete('parity', 'x')), db => 'split'))[1],
	qr/55000: model "parity" has no weights/, 'a tuned model without its row has no weights');
is(restore('psql', 'split', 'data'), '', 'restored: data only');
is_same($target, 'split', $wanted, 'schema, then data');
is_whole($target, 'split', 'schema, then data');

# Without the base's file
my $file = $target->basedir . '/models/tiny.gguf';
rename $file, "$file.away" or die "$file: $!";
like(restore('psql', new_database('lost'), 'plain'), qr/^psql:\S* WARNING:  could not find model file "tiny.gguf".*\nHINT:.*\z/,
	'restored without the file of the base: a warning');
for my $model ('tiny', 'parity')
{
	my ($state, $words) = sqlstate_of($target, "SELECT complete('$model', 'x')", db => 'lost');

	is($state, '58P01', "$model without the file: SQLSTATE");
	like($words, qr/could not find model file "tiny.gguf".*HINT/s, "$model without the file: message");
}
rename "$file.away", $file or die "$file: $!";
is_same($target, 'lost', $wanted, 'with the file again');
is_whole($target, 'lost', 'with the file again');

# --- What had not ended

$target->restart;
is_paused($target, 'directory', $endless, 'restored');
is_paused($target, 'postgres', $endless, 'restored by pg_dumpall');

# In copies within the cluster, whose jobs have the same ids, and so the same directory
my ($uuid) = $endless =~ /ft_(.*)/;

sub goes_on
{
	my ($attempts, $what) = @_;
	my $steps = 'SELECT steps_done FROM finetune.progress';
	my $before = $source->safe_psql('postgres', $steps) || 0;

	ok(wait_for_sql($source, "SELECT coalesce(($steps), 0) > $before"), "$what: the job itself goes on");
	is(job($source, $endless)->{attempts}, $attempts, "$what: in attempt $attempts");
	ok(scalar(() = glob $source->data_dir . "/pgsql_tmp_finetune/jobs/*-$uuid/job.json"), "$what: in its directory");
	return;
}

$source->safe_psql('postgres', 'CREATE DATABASE twin TEMPLATE template0');
$source->command_ok([ 'pg_restore', '-e', '-d', $source->connstr('twin'), "$dir/custom" ], 'restored beside it');
is_same($source, 'twin', $wanted, 'restored beside it');
is_paused($source, 'twin', $endless, 'restored beside it');
goes_on(1, 'restored beside it');

$source->safe_psql('template1', 'CREATE DATABASE copy TEMPLATE postgres');
is_same($source, 'copy', $wanted, 'CREATE DATABASE ... TEMPLATE');
is_whole($source, 'copy', 'CREATE DATABASE ... TEMPLATE');
is_paused($source, 'copy', $endless, 'CREATE DATABASE ... TEMPLATE');
goes_on(2, 'CREATE DATABASE ... TEMPLATE');

$source->stop;
$target->stop;

done_testing();
