# An engine that says it has trained and has not: the job fails, no model is
# made.  And directories that the server cannot use.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Utils;
use Test::More;

my $node   = new_node('bad_engine', "pg_finetune.serve = off\nlog_line_prefix = '%m [%p] %e '\n");
my $engine = $node->basedir . '/engine';
my $mode   = $node->basedir . '/mode';

write_file($engine, <<"SH");
#!/bin/sh
# "train DIRECTORY": what the mode says is the adapter
[ "\$1" = train ] || exit 2
adapter=\$(cat $mode)
mkdir "\$2/empty"
echo "{\\"event\\": \\"completed\\", \\"steps\\": 1\$adapter}"
SH
chmod 0755, $engine or die;
$node->append_conf('postgresql.conf', "pg_finetune.engine_path = '$engine'\n");
$node->restart;

# A statement must fail with this SQLSTATE and message.
sub fails
{
	my ($sql, $state, $pattern, $name) = @_;
	my ($got, $words) = sqlstate_of($node, $sql);

	is($got, $state, "$name: SQLSTATE");
	like($words, $pattern, "$name: message");
}

for my $case (
	[ outside => ', "adapter": "../../elsewhere"', 'XX000', qr/training engine named no usable directory of weights/ ],
	[ absent => '', 'XX000', qr/training engine named no usable directory of weights/ ],
	[ empty => ', "adapter": "empty"', 'XX001', qr/directory ".*" holds no weights/ ])
{
	my ($name, $says, $code, $pattern) = @$case;

	write_file($mode, $says);
	my $id  = start_job($node, $name);
	my $job = wait_for_status($node, $id, 'ERROR');

	is($job->{status}, 'ERROR', "$name: the job fails");
	is($job->{error}{code}, $code, "$name: code");
	like($job->{error}{message}, $pattern, "$name: message");
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_foreign_server WHERE srvname = '$name'"),
		0, "$name: the model is gone");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM finetune.weights'), 0, "$name: no weights");
}

# A job that waits has not ended
$node->safe_psql('postgres', 'ALTER SYSTEM SET pg_finetune.max_running_jobs = 0');
$node->reload;
my $id = start_job($node, 'waiting');
fails("SELECT finetune('DELETE', '$id')", '55000', qr/job "ft_[-0-9a-f]*" has not ended/, 'DELETE of a job that waits');
$node->safe_psql('postgres', "SELECT finetune('CANCEL', '$id')");
$node->safe_psql('postgres', "SELECT finetune('DELETE', '$id')");

# A file that is no model, or cannot be read, without an engine to ask
write_file($node->basedir . '/models/text.gguf', 'This is no model.');
write_file($node->basedir . '/models/secret.gguf', 'GGUF');
chmod 0, $node->basedir . '/models/secret.gguf' or die;
$node->safe_psql('postgres', "CREATE SERVER $_ TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file '$_.gguf')")
  for qw(text secret);
fails(q(SELECT finetune('CREATE', 'm', 'text', 'TABLE fact')), 'XX001', qr/model file "text.gguf" is not a GGUF file/,
	'no model');
fails(q(SELECT finetune('CREATE', 'm', 'secret', 'TABLE fact')), '42501',
	qr/could not open model file "secret.gguf": Permission denied/, 'a model that cannot be read');

# Directories of models
for my $case (
	[ '', '55000', qr/pg_finetune.model_directory is not set/ ],
	[ '/no/such/directory', '58P01', qr/could not open the directory of model files: No such file/ ])
{
	my ($directory, $code, $pattern) = @$case;

	$node->safe_psql('postgres', "ALTER SYSTEM SET pg_finetune.model_directory = '$directory'");
	$node->reload;
	ok( wait_until(sub { $node->safe_psql('postgres', 'SHOW pg_finetune.model_directory') eq $directory }),
		"model_directory '$directory'");
	fails(q(SELECT complete('tiny', 'x')), $code, $pattern, "model_directory '$directory'");
}
$node->safe_psql('postgres', 'ALTER SYSTEM RESET pg_finetune.model_directory');

# An engine that does not serve
$node->append_conf('postgresql.conf', "pg_finetune.serve = on\n");
$node->reload;
ok(wait_until(sub { $node->safe_psql('postgres', 'SHOW pg_finetune.serve') eq 'on' }), 'to be served');
fails(q(SET pg_finetune.request_timeout = '300ms'; SELECT complete('tiny', 'x')), '57P03',
	qr/the engine did not come up in time/, 'an engine that ends at once');

# A work directory whose name is too long for a socket, and one that cannot be made
for my $case (
	[ 'pgsql_tmp_' . 'x' x 110, '22023', qr/ 22023 ERROR:  the path of the engine's socket is too long/ ],
	[ 'PG_VERSION/finetune', '58P01|20', qr/ERROR:  could not create directory "PG_VERSION\/finetune[^"]*": Not a directory/ ])
{
	my ($directory, $code, $pattern) = @$case;
	my $offset = -s $node->logfile;

	$node->append_conf('postgresql.conf', "pg_finetune.work_directory = '$directory'\n");
	$node->restart;
	ok(wait_until(sub { log_count($node, $pattern, $offset) > 0 }), "work_directory '$directory': the log says what is wrong");
	is($node->safe_psql('postgres', 'SELECT 1'), 1, 'the server runs');
}

$node->stop;
done_testing();
