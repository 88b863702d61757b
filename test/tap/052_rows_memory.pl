# A query over many rows takes no more memory than for those that it holds.  ROWS=1000000 makes it long.
use strict;
use warnings;

use FinetuneCluster;
use List::Util qw(max);
use PostgreSQL::Test::Utils;
use Test::More;

my $rows = $ENV{ROWS} // 20000;
my ($node) = new_echo_cluster('memory', "pg_finetune.batch_rows = 32\njit = off\nautovacuum = off\n");
my $timeout = max($PostgreSQL::Test::Utils::timeout_default, $rows / 50);
my $session = $node->background_psql('postgres', on_error_stop => 0, timeout => $timeout);
my $pid = $session->query('SELECT pg_backend_pid()');

# Private memory in kB; what is shared grows as pages of the table are read
sub resident
{
	my ($kilobytes) = slurp_file("/proc/$pid/status") =~ /RssAnon:\s+(\d+)/;
	return $kilobytes;
}

$node->safe_psql('postgres', "CREATE TABLE many AS SELECT i, rpad('p' || i, 200, ' and so on') AS p FROM generate_series(1, $rows) i; ANALYZE many");
my $query = q(SELECT count(c), sum(length(c) - length(p)) FROM (SELECT p, complete('one', p) AS c FROM many %s OFFSET 0) s);
like($node->safe_psql('postgres', 'EXPLAIN ' . sprintf($query, '')), qr/Rows in Flight/, 'rows in flight');

# What a session has after its first rows, and what it has later
is($session->query(sprintf($query, 'WHERE i <= 2000')), '2000|12000', 'the first rows');
my @samples;
$session->query_until(qr/under way/, "\\echo under way\n" . sprintf($query, '') . ";\n\\echo over\n");
until ($session->{stdout} =~ /over/)
{
	push @samples, resident();
	select(undef, undef, undef, 0.1);
	$session->{run}->pump_nb;
}
like($session->{stdout}, qr/^$rows\|@{[ $rows * 6 ]}$/m, "$rows rows, each with its answer");
my $early = max(@samples[ 0 .. $#samples / 10 ]);
my $late = max(@samples[ $#samples / 10 .. $#samples ]);
note("$rows rows: $early kB after the first tenth, at most $late kB later, " . resident() . ' kB at the end');
cmp_ok($late - $early, '<', 1024, 'memory stays as it was');
$session->quit;
$node->stop;

done_testing();
