# Two hundred sessions make ten thousand calls: each is answered, and gets its own answer.
use strict;
use warnings;

use FinetuneCluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($node) = new_echo_cluster('many', "max_connections = 230\n");
my ($sessions, $calls) = (200, 50);

# A number of its own for each call; pgbench ends with an error when an answer is another's
my $script = $node->basedir . '/calls.sql';
write_file($script, <<'SQL');
\set nonce random(1, 1000000000000)
SELECT 1 / (complete('one', ':client_id and :nonce') = 'echo: :client_id and :nonce')::int;
SQL
my $engine = do { $node->safe_psql('postgres', "SELECT complete('one', 'x')"); engine_pid($node) };
my $offset = log_end($node);
my ($out, $err) = run_command([ 'pgbench', '-n', '-h', $node->host, '-p', $node->port, '-M', 'simple',
	'-c', $sessions, '-j', 2, '-t', $calls, '-f', $script, 'postgres' ]);
my $expected = $sessions * $calls;
like($out, qr{number of transactions actually processed: $expected/$expected\n}, "$expected calls in $sessions sessions")
  or diag($err);
like($out, qr/number of failed transactions: 0 /, 'none failed');
is(log_count($node, qr/ERROR|FATAL|PANIC/, $offset), 0, 'the log has no error');
is(engine_pid($node), $engine, 'one engine answered all of them');
is($node->safe_psql('postgres', "SELECT complete('one', 'x')"), 'echo: x', 'and answers the next one');
$node->stop;

done_testing();
