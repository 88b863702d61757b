# The clock on the wall jumps, by years and in both directions: no job, no engine and no request notices.
use strict;
use warnings;

use lib "$ENV{TESTDIR}/test/engine";

use FaultShim;
use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node  = new_node('clock');
my $clock = $node->basedir . '/clock';
my $control = $node->basedir . '/control';
my $year  = 365 * 24 * 3600;
my %long  = (options => { max_steps => 200, learning_rate => 0.001, batch_size => 256 });

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub jump { write_file($clock, $_[0]); }

sub digest_of { return sql("SELECT weights_digest FROM finetune.model WHERE name = '$_[0]'"); }

sub question { return "SELECT complete('tiny', 'item 1', '{\"max_tokens\": 8, \"temperature\": 0}')->'choices'"; }

is(wait_for_status($node, start_job($node, 'undisturbed', %long), 'SUCCESS')->{status}, 'SUCCESS',
	'a job under a good clock');

# From here on it is the tests' clock, of the server's processes and of the engines
jump(0);
let_go($control);
$node->stop;
my $engine = $node->basedir . '/engine';
write_file($engine, <<"SH");
#!/bin/sh
export LD_PRELOAD='$FaultShim::library' FAULT_CLOCK='$clock' FAULT_CONTROL='$control'
exec '$ENV{TESTDIR}/build/pg_finetune_engine' "\$@"
SH
chmod 0755, $engine;
$node->append_conf('postgresql.conf', "pg_finetune.engine_path = '$engine'\n");
{
	local $ENV{LD_PRELOAD} = $FaultShim::library;
	local $ENV{FAULT_CLOCK} = $clock;
	$node->start;
}
my $answer = sql(question());
my $server = engine_pid($node);
my $offset = log_end($node);

jump($year);
is(sql("SELECT now() > now_before + interval '300 days' FROM (SELECT '" . sql('SELECT created_on FROM finetune.jobs')
	  . "'::timestamptz AS now_before) t"), 't', 'a server can be told another time');
is(sql(question()), $answer, 'a completion after a jump');

# While a job trains
my $id = start_job($node, 'jumping', %long);
wait_for_status($node, $id, 'running');
for my $to (0, $year, -$year, 0)
{
	my $step = job($node, $id)->{step} // 0;
	jump($to);
	ok(wait_for_sql($node, "SELECT coalesce(step, 0) > $step OR status <> 'IN_PROGRESS' FROM finetune.jobs WHERE job_id = '$id'"),
		"it trains when the clock says $to s");
}
my $job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status},        'SUCCESS',                'the job ends well');
is($job->{attempts},      1,                        'in its first attempt');
is(digest_of('jumping'), digest_of('undisturbed'), 'with the same weights');

# While a failed attempt waits for the next one
hold_at($control, 45);
$id = start_job($node, 'killed', %long);
ok(is_held($control), 'an engine is at work');
ok(wait_for_sql($node, "SELECT count(*) > 0 FROM finetune.events WHERE job_id = '$id' AND type = 'checkpoint'"),
	'another job, with a checkpoint');
kill 'KILL', engine_of($node);
jump(-$year);
$job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status},        'SUCCESS',               'a job that is resumed in another year ends well');
is(digest_of('killed'), digest_of('undisturbed'), 'with the same weights');

# While a request waits for its answer
kill 'STOP', $server;
my ($out, $err) = ('', '');
my $waiting = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', question() ], '>', \$out, '2>', \$err);
ok(wait_for_sql($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE state = 'active' AND wait_event_type = 'Extension'"),
	'a completion waits');
jump($_) for $year, -$year, 0;
kill 'CONT', $server;
$waiting->finish;
is($out, "$answer\n", 'it is answered') or diag($err);

is(engine_pid($node), $server, 'the serving engine is the one it was');
is(log_count($node, qr/has said nothing|does not answer|did not come up/, $offset), 0, 'nobody thought it had taken too long');
$node->stop;

done_testing();
