# An engine may die at any instruction, and a server at any time: the server
# goes on without the one, and nothing is left of the engine after the other.
use strict;
use warnings;

use FinetuneCluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($node) = new_echo_cluster('crash');
my $started = q(SELECT pg_postmaster_start_time());
my $start_time = $node->safe_psql('postgres', $started);

# A session that is no part of this, to see that it survives
my $bystander = $node->background_psql('postgres');
my $bystander_pid = $bystander->query('SELECT pg_backend_pid()');

# Have a session ask something that is never answered, and wait until it does.
sub begin_sleeping
{
	my ($sql) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query('SELECT pg_backend_pid()');

	$session->{run}->pump_nb;
	$session->query_until(qr/asleep/, "\\set VERBOSITY verbose\n\\echo asleep\n$sql;\n\\echo over\n");
	ok( wait_until(
			sub {
				$node->safe_psql('postgres',
					"SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND wait_event_type = 'Extension'"
				) eq '1';
			}),
		'a completion is under way');
	return $session;
}

sub output_of
{
	my ($session) = @_;

	$session->{timeout}->start($PostgreSQL::Test::Utils::timeout_default);
	pump_until($session->{run}, $session->{timeout}, \$session->{stdout}, qr/over/);
	my $words = $session->{stderr};
	$session->quit;
	return $words;
}

sub children_of
{
	my ($parent) = @_;
	my @children;

	for my $stat (glob('/proc/[0-9]*/stat'))
	{
		open(my $file, '<', $stat) or next;
		my ($pid, $ppid) = (<$file> // '') =~ /^(\d+) .*\) \S (\d+)/;
		push @children, $pid if defined $ppid && $ppid == $parent;
	}
	return @children;
}

is($node->safe_psql('postgres', q(SELECT complete('one', 'x'))), 'echo: x', 'an answer');

# Death by a signal, again and again, each time in the middle of a completion
for my $signal (qw(KILL SEGV BUS ABRT TERM))
{
	my $session = begin_sleeping(q(SELECT complete('one', 'sleep')));
	my $engine = engine_pid($node);

	kill $signal, $engine;
	like(output_of($session), qr/ERROR:  57P03: the engine ended while/, "SIG$signal: the completion fails");
	is($node->safe_psql('postgres', q(SELECT complete('one', 'x'))), 'echo: x', "SIG$signal: the next one is answered");
	isnt(engine_pid($node), $engine, "SIG$signal: by another engine");
}
is((sqlstate_of($node, q(SELECT complete('one', 'die'))))[0], '57P03', 'it dies of a request');
is($node->safe_psql('postgres', q(SELECT complete('one', 'x'))), 'echo: x', 'the next one is answered');

# One that hangs is ended by its supervisor
my $session = begin_sleeping(q(SELECT complete('one', 'sleep')));
my $hanging = engine_pid($node);
kill 'STOP', $hanging;
like(output_of($session), qr/ERROR:  57P03: the engine ended while/, 'a hanging engine: the completion fails');
like(slurp_file($node->logfile), qr/engine \(PID $hanging\) does not answer/, 'the log says why');
is($node->safe_psql('postgres', q(SELECT complete('one', 'x'))), 'echo: x', 'the next one is answered');

# One that is cancelled by SIGINT to the whole group of processes goes on
my $engine = engine_pid($node);
kill 'INT', $engine;
is($node->safe_psql('postgres', q(SELECT complete('one', 'x'))), 'echo: x', 'SIGINT is ignored');
is(engine_pid($node), $engine, 'by the same engine');

is($node->safe_psql('postgres', $started), $start_time, 'the postmaster has not restarted');
is($bystander->query('SELECT pg_backend_pid()'), $bystander_pid, 'nor has any session ended');
$bystander->quit;

# What the engine is given
my %environment = map { split /=/, $_, 2 } split /\0/, slurp_file("/proc/$engine/environ");
ok(!exists $environment{PGDATABASE} && !exists $environment{PGHOST}, 'no variables of PostgreSQL');
ok(exists $environment{PATH}, 'but PATH');
my @open = map { readlink $_ // '' } glob("/proc/$engine/fd/*");
is(scalar(grep { m{/(base|global|pg_wal)/} } @open), 0, 'no file of the server');
is(slurp_file("/proc/$engine/oom_score_adj"), "1000\n", 'it is the first to go when memory is short');
like(slurp_file("/proc/$engine/status"), qr/NoNewPrivs:\s+1/, 'it cannot gain privileges');
like(slurp_file("/proc/$engine/limits"), qr/Max core file size\s+0\s/, 'it leaves no core file');
unlike(slurp_file("/proc/$engine/maps"), qr/SYSV|PostgreSQL/, 'it has no shared memory of the server');

# Its supervisor ends: another takes over
my ($worker) = slurp_file("/proc/$engine/stat") =~ /\) \S (\d+)/;
kill 'TERM', $worker;
ok(wait_until(sub { !is_running($engine) }), 'the engine ends with its worker');
ok(wait_until(sub { engine_pid($node) != $engine }), 'the worker is started again');
is($node->safe_psql('postgres', q(SELECT complete('one', 'x'))), 'echo: x', 'and its engine answers');
is($node->safe_psql('postgres', $started), $start_time, 'the postmaster has not restarted');

# The server stops, however it does: the engine ends
for my $mode (qw(fast immediate))
{
	my $session = begin_sleeping(q(SELECT complete('one', 'sleep')));

	$engine = engine_pid($node);
	$node->stop($mode);
	ok(wait_until(sub { !is_running($engine) }), "no engine is left after a stop, $mode");
	output_of($session);
	$node->start;
	is($node->safe_psql('postgres', q(SELECT complete('one', 'x'))), 'echo: x', 'one answers after the start');
}
$engine = engine_pid($node);
my ($postmaster) = slurp_file($node->data_dir . '/postmaster.pid') =~ /^(\d+)/;
my @children = children_of($postmaster);
cmp_ok(scalar @children, '>=', 5, 'the processes of the server');
kill_server($node);
ok(!is_running($engine), 'no engine is left when the postmaster is killed');
is(scalar(grep { is_running($_) } $postmaster, @children), 0, 'and no process of the server');
$node->start;
is($node->safe_psql('postgres', q(SELECT complete('one', 'x'))), 'echo: x', 'one answers after the start');

# An engine that cannot be started
$node->stop;
$node->append_conf('postgresql.conf', "pg_finetune.engine_path = '/nonexistent/engine'");
$node->start;
is((sqlstate_of($node, q(SET pg_finetune.request_timeout = '500ms'; SELECT complete('one', 'x'))))[0],
	'57P03', 'without an engine, an error');
ok(wait_until(sub { log_count($node, qr/engine: could not execute the engine: No such file/) > 0 }), 'the log says why');
is($node->safe_psql('postgres', 'SELECT 1'), '1', 'the server runs');
$node->stop;

done_testing();
