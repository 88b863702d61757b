# FinetuneCopy.pm: models and jobs that are worth copying, and what must be the
# same in a copy of their database.
package FinetuneCopy;

use strict;
use warnings;

use Exporter 'import';
use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(make_models start_endless state_of is_same is_whole is_paused);

# The name of the second tuned model, as a string and as an identifier.
our $odd        = q(odd 'one' ü);
my $odd_literal = q($$odd 'one' ü$$);
my $odd_ident   = q("odd 'one' ü");

# In a cluster of new_node: two tuned models with owners, grants and comments,
# and a failed and a cancelled job.
sub make_models
{
	my ($node) = @_;

	$node->safe_psql('postgres', <<'SQL');
CREATE ROLE alice LOGIN;
CREATE ROLE bob LOGIN;
CREATE ROLE carol LOGIN;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO alice WITH GRANT OPTION;
GRANT USAGE ON FOREIGN SERVER tiny TO alice;
GRANT SELECT ON fact TO alice;
COMMENT ON SERVER tiny IS 'the base';
SQL
	my %short = (user => 'alice', options => { max_steps => 10, learning_rate => 0.01 });
	my $id = start_job($node, 'parity', %short);
	is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'a model is trained');
	$id = start_job($node, 'second', %short, options => { max_steps => 5, seed => 7 });
	is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'and another one');
	$id = start_job($node, 'failing', query => 'SELECT prompt, (1 / (id - 50))::text AS completion FROM fact');
	is(wait_for_status($node, $id, 'ERROR')->{status}, 'ERROR', 'a job fails');
	$id = start_job($node, 'unwanted', endless_job());
	$node->safe_psql('postgres', "SELECT finetune('CANCEL', '$id')");
	$node->safe_psql('postgres', <<"SQL");
SET ROLE alice;
GRANT USAGE ON FOREIGN SERVER parity TO bob WITH GRANT OPTION;
SET ROLE bob;
GRANT USAGE ON FOREIGN SERVER parity TO carol;
RESET ROLE;
COMMENT ON SERVER parity IS 'even or odd?';
ALTER SERVER second RENAME TO $odd_ident;
ALTER SERVER $odd_ident OWNER TO carol;
SQL
	return;
}

# A job that is being trained, and will be for as long as any test lasts.
sub start_endless
{
	my ($node) = @_;
	my $id = start_job($node, 'endless', endless_job());

	is(wait_for_status($node, $id, 'running')->{phase}, 'running', 'a job that does not end is running');
	return $id;
}

# Columns that version 1.0 had, for what is compared may have been updated between
my %query = (
	models => <<'SQL',
SELECT s.srvname, srvtype, srvoptions, srvowner::regrole, obj_description(s.oid, 'pg_foreign_server'),
	(SELECT array_agg(a::text ORDER BY a::text) FROM unnest(srvacl) a),
	m.id, m.kind, m.base_id, m.base_digest, m.weights_digest, m.job, m.architecture, m.parameters,
	m.context_length, m.training_loss, m.validation_loss, m.validation_token_accuracy, m.created_at,
	v.status, v.base,
	(SELECT md5(string_agg(row(part, file, crc, md5(data))::text, ',' ORDER BY part))
	 FROM finetune.weights w WHERE model_id = m.id)
FROM pg_foreign_server s JOIN finetune.model m ON m.name = s.srvname
	JOIN finetune.models v ON v.name = s.srvname
WHERE s.srvname <> 'endless' ORDER BY 1
SQL
	wrapper => <<'SQL',
SELECT array_agg(a::text ORDER BY a::text) FROM pg_foreign_data_wrapper, unnest(fdwacl) a
SQL
	jobs => <<'SQL',
SELECT job_id, status, phase, model, base_model, owner, created_on, started_on, finished_on, progress, step,
	total_steps, queue_position, attempts, device, rows, trained_tokens, training_loss, validation_loss,
	validation_token_accuracy, tokens_per_second, estimated_finish, data_hash, training_data, validation_data,
	options, error
FROM finetune.jobs j WHERE model <> 'endless' ORDER BY created_on
SQL
	metrics => <<'SQL',
SELECT job_id, step, epoch, training_loss, validation_loss, validation_token_accuracy, learning_rate, grad_norm,
	tokens, elapsed
FROM finetune.metrics m WHERE job_id NOT IN (SELECT job_id FROM finetune.jobs WHERE model = 'endless')
ORDER BY job_id, step
SQL
	events => <<'SQL',
SELECT job_id, at, level, type, message, data
FROM finetune.events e WHERE job_id NOT IN (SELECT job_id FROM finetune.jobs WHERE model = 'endless')
ORDER BY job_id, at
SQL
	completions => <<'SQL',
SELECT name, complete(name, 'item 4', '{"max_tokens": 8}') ->> 'choices'
FROM finetune.models WHERE status = 'ready' AND name <> 'endless' ORDER BY name
SQL
);

# All that a copy must have, as texts: of every model and job but those named
# "endless".
sub state_of
{
	my ($node, $db) = @_;
	my @what = sort keys %query;
	my @texts = split /^--\n/m, $node->safe_psql($db, join "\\echo --\n", map { s/\n*\z/;\n/r } @query{@what}), -1;
	my %state;

	@state{@what} = @texts;
	return \%state;
}

sub is_same
{
	my ($node, $db, $wanted, $what) = @_;
	my $state = state_of($node, $db);

	is($state->{$_}, $wanted->{$_}, "$what: $_") for sort keys %$wanted;
	return;
}

# What a database with those models must refuse and allow; nothing is changed.
sub is_whole
{
	my ($node, $db, $what) = @_;
	my ($state, $words) = sqlstate_of($node, 'DROP SERVER tiny', db => $db);

	is($state, '2BP01', "$what: the base is still needed");
	like($words, qr/DETAIL: .*server parity depends on server tiny/s, "$what: by its tuned models' servers");
	my $before = q(SELECT complete('tiny', 'item 4', '{"max_tokens": 8}') ->> 'choices';
		SELECT complete('parity', 'item 4', '{"max_tokens": 8}') ->> 'choices';);
	my ($base, $answer) = split /\n/, $node->safe_psql($db, $before);
	is( $node->safe_psql($db, <<"SQL"),
BEGIN;
ALTER SERVER tiny RENAME TO base2;
ALTER SERVER parity RENAME TO parity2;
ALTER SERVER $odd_ident RENAME TO parity;
SELECT complete('base2', 'item 4', '{"max_tokens": 8}') ->> 'choices';
SELECT complete('parity2', 'item 4', '{"max_tokens": 8}') ->> 'choices';
SELECT name, base FROM finetune.models WHERE kind = 'lora' AND name <> 'endless' ORDER BY name COLLATE "C";
DROP SERVER parity2;
SELECT count(DISTINCT name) FROM finetune.weights w LEFT JOIN finetune.model m ON m.id = model_id
WHERE name IS DISTINCT FROM 'endless';
ROLLBACK;
SQL
		"$base\n$answer\nparity|base2\nparity2|base2\n1", "$what: models can be renamed and dropped");
	is( $node->safe_psql($db, 'BEGIN; SET LOCAL client_min_messages = warning; DROP SERVER tiny CASCADE;'
			  . ' SELECT (SELECT count(*) FROM finetune.model) + (SELECT count(*) FROM finetune.weights); ROLLBACK'),
		0, "$what: a base goes with what is tuned from it");
	return;
}

# A job that had not ended when its database was copied is paused in the copy:
# it is shown so, the next one is run, and it can be cancelled and forgotten.
sub is_paused
{
	my ($node, $db, $id, $what) = @_;
	my $sql = sub { $node->safe_psql($db, $_[0]) };

	is($sql->("SELECT status, phase, queue_position FROM finetune.jobs WHERE job_id = '$id'"),
		'PAUSED|paused|', "$what: an unfinished job is paused");
	is($sql->(q(SELECT status FROM finetune.models WHERE name = 'endless')), 'untrained', "$what: so its model says");
	my ($state, $words) = sqlstate_of($node, q(SELECT complete('endless', 'x')), db => $db);
	is($state, '55000', "$what: a model without weights: SQLSTATE");
	like($words, qr/model "endless" has no weights.*HINT:.*Cancel the job/s, "$what: a model without weights: message");

	my $attempts = "SELECT finetune('DESCRIBE', '$id')->>'attempts'";
	my $before   = $sql->($attempts);
	my $next     = $sql->(q(SELECT finetune('CREATE', 'next', 'tiny', 'SELECT prompt, completion FROM fact', NULL,
		'{"max_steps": 2}')));
	ok( wait_until(sub { $sql->("SELECT phase IN ('completed', 'failed') FROM finetune.jobs WHERE job_id = '$next'") eq 't' }),
		"$what: the next job is run");
	is($sql->("SELECT finetune('DESCRIBE', '$next')->>'status'"), 'SUCCESS', "$what: and ends well");
	is($sql->($attempts), $before, "$what: the paused one was not touched");

	is($sql->("SELECT finetune('CANCEL', '$id')->>'status'"), 'CANCELLED', "$what: it can be cancelled");
	is($sql->(q(SELECT count(*) FROM finetune.models WHERE name = 'endless')), 0, "$what: with its model");
	is($sql->("SELECT finetune('DELETE', '$id')->>'id'"), $id, "$what: and forgotten");
	$sql->("DROP SERVER next; SELECT finetune('DELETE', '$next')");
	return;
}

1;
