# What stands in rows and prompts is nobody's but their owner's: whatever goes
# right or wrong, no line of the server log that is ours holds any of it, no file
# is left, and no other role sees it.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Statements are the server's to log, and hold no canary: it is read from a table.
my $node = new_node('secrets', <<'CONF');
log_statement = none
log_min_messages = debug1
log_min_error_statement = log
log_error_verbosity = verbose
CONF
my $canary = 'kanarie' . 'nvogel';

$node->safe_psql('postgres', <<"SQL");
CREATE ROLE alice LOGIN;
CREATE ROLE stranger LOGIN;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO alice;
GRANT USAGE ON FOREIGN SERVER tiny TO alice;
CREATE TABLE secret AS SELECT i AS id, '$canary ' || i AS p, '$canary' AS word FROM generate_series(1, 60) i;
GRANT SELECT ON secret TO alice;
CREATE FUNCTION raises(p text) RETURNS text LANGUAGE plpgsql AS
	\$\$ BEGIN RAISE EXCEPTION 'no %', p USING DETAIL = p, HINT = p; END \$\$;
SQL

# Run as alice; what she is told may be hers, what is logged may not.
sub quietly { return ($node->psql('postgres', $_[0], extra_params => [ '-U', 'alice' ]))[2]; }

sub is_silent
{
	my ($what) = @_;

	is(log_count($node, $canary, 0), 0, "$what: nothing of it in the log");
}

# --- Jobs

my $made = 0;

sub job_of
{
	my ($query, $status, $what, %with) = @_;
	my $id = start_job($node, 'm' . ++$made, user => 'alice', query => $query, options => { max_steps => 3 }, %with);
	my $job = wait_for_status($node, $id, $status);

	is($job->{status}, $status, "$what: $status");
	return $job;
}

my $chat = q({"role": "user", "content": "x"});
job_of('SELECT p AS prompt, p AS completion FROM secret', 'SUCCESS', 'a good job');
job_of('SELECT p AS text FROM secret', 'SUCCESS', 'plain text');
for my $case (
	[ 'SELECT p AS prompt, raises(p) AS completion FROM secret', 'an error of a function' ],
	[ 'SELECT p AS prompt, p::int::text AS completion FROM secret', 'an error that quotes' ],
	[ "SELECT p AS prompt, (p::xml)::text AS completion FROM secret WHERE raises(p) = ''", 'an error in WHERE' ],
	[ q(SELECT jsonb_build_array(jsonb_build_object('role', p, 'content', p)) AS messages FROM secret), 'a role that is none' ],
	[ q(SELECT jsonb_build_array(jsonb_build_object('role', 'assistant', p, p)) AS messages FROM secret), 'a turn without content' ],
	[ q(SELECT jsonb_build_object(p, p) AS messages FROM secret), 'messages that are no array' ],
	[ q(SELECT jsonb_build_array(p) AS messages FROM secret), 'turns that are no objects' ])
{
	my $job = job_of($case->[0], 'ERROR', $case->[1]);
	ok(length $job->{error}{message}, "$case->[1]: said to the owner");
}
job_of('SELECT p AS prompt, p AS completion FROM secret', 'ERROR', 'a validation query that fails',
	validation => 'SELECT raises(p) AS prompt, p AS completion FROM secret');
job_of('SELECT repeat(p, 10000) AS prompt, repeat(p, 10000) AS completion FROM secret', 'SUCCESS', 'rows that are cut');
is_silent('jobs');

# with an engine that dies, a worker that is ended, and a job that is cancelled
my $id = start_job($node, 'interrupted', user => 'alice', query => 'SELECT p AS prompt, p AS completion FROM secret, generate_series(1, 300)',
	options => { max_epochs => 50, batch_size => 64, validation_fraction => 0 });
wait_for_status($node, $id, 'running');
kill 'SEGV', engine_of($node);
ok(wait_for_sql($node, "SELECT attempts > 1 AND phase = 'running' FROM finetune.jobs WHERE job_id = '$id'"), 'another attempt');
$node->safe_psql('postgres', 'SELECT pg_terminate_backend(pid) FROM finetune.progress');
ok(wait_for_sql($node, "SELECT attempts > 2 AND phase = 'running' FROM finetune.jobs WHERE job_id = '$id'"), 'and another');
$node->safe_psql('postgres', "SELECT finetune('CANCEL', '$id')");
ok(wait_for_sql($node, 'SELECT count(*) = 0 FROM finetune.job WHERE has_directory'), 'no directory is left');
is_silent('an engine that died');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_ls_dir('pgsql_tmp_finetune/jobs')"), 0, 'nor a file with rows');

# --- Answers

my $ask = sub { return "SELECT complete($_[0]) IS NOT NULL FROM secret LIMIT 1"; };
is(quietly($ask->(q('m1', p, '{"max_tokens": 3}'))), '', 'an answer');
is(quietly($ask->(q('tiny', messages => jsonb_build_array(jsonb_build_object('role', 'user', 'content', p)), options => '{"max_tokens": 3}'))), '',
	'an answer in a chat');
for my $call (
	q('m1', repeat(p, 100000)), q('no such model', p), q('m1', p, jsonb_build_object('temperature', word)),
	q('m1', p, jsonb_build_object('stop', jsonb_build_array(word, 7))), q('m1', p, jsonb_build_object('system', 7, 'seed', word)),
	q('m1', jsonb_build_array(p)), q('m1', jsonb_build_array(jsonb_build_object('role', word, 'content', p))),
	q('m1', jsonb_build_array(jsonb_build_object('role', 'user', word, p))), q('m1', jsonb_build_object(word, p)), q('m1', p, jsonb_build_object('response', word)))
{
	my $words = quietly($ask->($call));

	like($words, qr/ERROR: /, "complete($call) fails");
	unlike($words, qr/$canary/, 'and quotes nothing of it');
}
like(quietly('SELECT count_tokens($$none$$, p) FROM secret'), qr/does not exist/, 'count_tokens of no model');
is(quietly('SELECT count_tokens($$m1$$, p) FROM secret'), '', 'count_tokens');

# the engine dies while it answers
my $offset = -s $node->logfile;
my $session = $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'alice' ]);
$session->query_until(qr/asked/, "\\echo asked\nSELECT count(length(complete('m1', p || id || n, '{\"max_tokens\": 200}')::text)) FROM secret, generate_series(1, 1000) n;\n");
ok(wait_for_sql($node, "SELECT count(*) > 0 FROM pg_stat_activity WHERE usename = 'alice' AND wait_event_type = 'Extension'"), 'answers are made');
my $engine = engine_pid($node);
kill 'SEGV', $engine;
ok(wait_until(sub { log_count($node, qr/engine started with process ID/, $offset) > 0 }), 'the engine is started again');
$node->safe_psql('postgres', q(SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'alice' AND state = 'active'));
$session->quit;

# --- Nobody else sees it

for my $view (qw(jobs metrics events models progress))
{
	is( $node->safe_psql('postgres', "SELECT count(*) FROM finetune.$view t WHERE t::text ~ '$canary'",
			extra_params => [ '-U', 'stranger' ]),
		0, "finetune.$view of a stranger");
}
$node->stop;
is_silent('all of it');

done_testing();
