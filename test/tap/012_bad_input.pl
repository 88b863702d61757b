# Bad input that only files and data can tell: a clear error, at CREATE where it
# can be known, else in DESCRIBE's error.  sql/finetune_errors.sql has the rest.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node   = new_node('bad_input');
my $models = $node->basedir . '/models';
my $gguf   = slurp_file("$models/tiny.gguf");

# --- Files of base models, at CREATE

(my $unknown = $gguf) =~ s/(general\.architecture.{4}\x05\0{7})llama/$1xlstm/s or die 'no architecture';
write_file("$models/empty.gguf",     '');
write_file("$models/text.gguf",      "This is no model.\n" x 100);
write_file("$models/truncated.gguf", substr($gguf, 0, length($gguf) / 2));
write_file("$models/header.gguf",    substr($gguf, 0, 40));
write_file("$models/unknown.gguf",   $unknown);
$node->safe_psql('postgres', join '', map {
		"CREATE SERVER $_ TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file '$_.gguf');\n"
	} qw(missing empty text truncated header unknown));

for my $case (
	[ missing   => '58P01' ],
	[ empty     => 'XX001' ],
	[ text      => 'XX001' ],
	[ truncated => 'XX001' ],
	[ header    => 'XX001' ],
	[ unknown   => '0A000' ])
{
	my ($base, $code) = @$case;
	my $error = error_of($node, "SELECT finetune('CREATE', 'm', '$base', 'TABLE fact')");

	like($error, qr/^$code: /, "a model file that is $base: $code");
	like($error, qr/$base\.gguf/, "a model file that is $base: named");
	unlike($error, qr/\Q$models\E/, "a model file that is $base: no path");
}
like(error_of($node, "SELECT finetune('CREATE', 'm', 'unknown', 'TABLE fact')"),
	qr/xlstm/, 'the unknown architecture is named');
is($node->safe_psql('postgres', 'SELECT count(*) FROM finetune.jobs'), 0, 'no job was created');

# The same without an engine to ask, as far as it goes
$node->append_conf('postgresql.conf', "pg_finetune.serve = off\n");
$node->reload;
ok(wait_until(sub { $node->safe_psql('postgres', 'SHOW pg_finetune.serve') eq 'off' }), 'reloaded');
for my $case ([ missing => '58P01' ], [ empty => 'XX001' ], [ text => 'XX001' ])
{
	like(error_of($node, "SELECT finetune('CREATE', 'm', '$case->[0]', 'TABLE fact')"),
		qr/^$case->[1]: .*$case->[0]\.gguf/, "without an engine: $case->[0]");
}

# --- Queries and data, in DESCRIBE

# The job's error must have this code and match this pattern.
sub fails
{
	my ($id, $code, $pattern, $what) = @_;
	my $job = wait_for_status($node, $id, 'ERROR');

	is($job->{status}, 'ERROR', "$what: the job fails");
	is($job->{error}{code}, $code, "$what: code");
	like($job->{error}{message}, $pattern, "$what: message");
	is($job->{progress}, 0, "$what: before it takes a device");
	is( $node->safe_psql('postgres',
			"SELECT count(*) FROM pg_foreign_server WHERE srvname = '$job->{model}'"),
		0, "$what: the model is gone")
	  if wait_for_sql($node, "SELECT NOT has_directory FROM finetune.job WHERE 'ft_' || id = '$id'");
	return $job;
}

fails(start_job($node, 'm', query => 'SELECT prompt, (1 / (id - 50))::text AS completion FROM fact'),
	'22012', qr/division by zero/, 'a query that fails');
fails(
	start_job($node, 'm',
		query => 'SELECT prompt, md5(id::text)::int::text AS completion FROM fact ORDER BY id'),
	'22P02', qr/c4ca4238a0b923820dcc509a6f75849b/, 'an error that quotes data');
fails(start_job($node, 'm', validation => 'SELECT prompt, (1 / (id - 50))::text AS completion FROM fact'),
	'22012', qr/division by zero/, 'a validation query that fails');
fails(start_job($node, 'm', query => 'SELECT prompt, completion FROM fact WHERE false'),
	'22023', qr/row/, 'a query that yields no rows');
my $job = fails(start_job($node, 'm', query => 'SELECT prompt, NULL::text AS completion FROM fact'),
	'22023', qr/row/, 'a query that yields only NULLs');
is($job->{attempts}, 1, 'an error that would come again is not tried again');

# What was right at CREATE may be wrong later
$node->safe_psql('postgres', 'ALTER SYSTEM SET pg_finetune.max_running_jobs = 0');
$node->reload;
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE fleeting (prompt text, completion text);
CREATE TABLE changing (prompt text, completion text);
CREATE SERVER fading TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'fading.gguf');
SQL
write_file("$models/fading.gguf", $gguf);
my $dropped = start_job($node, 'dropped', query => 'SELECT prompt, completion FROM fleeting');
my $altered = start_job($node, 'altered', query => 'SELECT * FROM changing');
my $faded   = $node->safe_psql('postgres', "SELECT finetune('CREATE', 'faded', 'fading', 'TABLE fact')");
is(job($node, $dropped)->{phase}, 'pending', 'with no place for a job it waits');
$node->safe_psql('postgres', <<'SQL');
DROP TABLE fleeting;
ALTER TABLE changing RENAME completion TO answer;
ALTER SYSTEM RESET pg_finetune.max_running_jobs;
SQL
unlink "$models/fading.gguf";
$node->reload;
fails($dropped, '42P01', qr/relation "fleeting" does not exist/, 'a table that was dropped');
fails($altered, '42703', qr/no column "completion"/, 'a column that was renamed');
fails($faded, '58P01', qr/fading\.gguf/, 'a model file that was removed');

# Bytes that are no text
$node->safe_psql('postgres',
	"CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'");
my $id = $node->safe_psql('bytes', <<'SQL');
CREATE EXTENSION pg_finetune;
CREATE SERVER tiny TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf');
SELECT finetune('CREATE', 'm', 'tiny', $$SELECT 'a' AS prompt, E'b\xff' AS completion$$);
SQL
$node->poll_query_until('bytes', "SELECT phase = 'failed' FROM finetune.jobs") or die 'still no failure';
is($node->safe_psql('bytes', "SELECT error->>'code' FROM finetune.jobs WHERE job_id = '$id'"),
	'22021', 'text that is invalid in UTF-8');

$node->stop;
ok(slurp_file($node->logfile) !~ /c4ca4238a0b923820dcc509a6f75849b/, 'no data in the log');

done_testing();
