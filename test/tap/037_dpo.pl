# Preference pairs through SQL: jobs of method dpo, what is told of them, kills,
# models that are gone on with, estimates, and what is refused.  Options and
# columns that CREATE refuses: sql/finetune_errors.sql.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('dpo');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE preference AS
	SELECT 'item ' || i AS prompt, 'yes ' || i % 7 AS chosen, 'no ' || i % 5 AS rejected, 1 + i % 2 AS weight
	FROM generate_series(1, 60) i;
INSERT INTO preference VALUES (NULL, 'a', 'b', 1), ('a', NULL, 'b', 1), ('a', 'b', NULL, 1), ('a', 'b', 'c', NULL),
	(repeat('0123456789', 20), 'a', 'b', 1), ('off', 'a', 'b', 0);
CREATE TABLE held_out AS
	SELECT 'item ' || i AS prompt, 'yes ' || i % 7 AS chosen, 'no ' || i % 5 AS rejected FROM generate_series(61, 70) i;
SQL
my $query = 'SELECT prompt, chosen, rejected, weight FROM preference';
my %options = (method => 'dpo', max_steps => 12, learning_rate => 0.003, batch_size => 512, max_seq_length => 64, n_evals => 2);

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub start
{
	my ($model, %more) = @_;
	return start_job($node, $model, query => $query, validation => 'TABLE held_out', options => { %options, %more });
}

# --- A job

my $id = start('preferring');
my $job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'a job over preference pairs');
is_deeply($job->{rows}, { read => 66, used => 61, skipped_null => 4, truncated => 1 },
	'a pair is a row: those with a null are skipped, long ones cut, those of weight 0 not used');
is($job->{options}{method}, 'dpo', 'DESCRIBE says the method');
is($job->{options}{dpo_beta}, 0.1, 'and its beta');
is(sql("SELECT validation_loss, validation_token_accuracy FROM finetune.metrics WHERE job_id = '$id' AND step = 0"),
	'0.693147181|0', 'before the first step nothing is preferred: the loss is ln 2');
is(sql("SELECT message FROM finetune.events WHERE job_id = '$id' AND type = 'reference'"),
	'computing the reference of 71 pairs', 'and what it is compared with is said to be made');
cmp_ok($job->{training_result}{validation_loss}, '<', 0.6, 'the validation loss falls');
cmp_ok($job->{training_result}{training_loss}, '<', 0.69, 'and the training loss');
is($job->{training_result}{validation_token_accuracy}, 1, 'every chosen answer is preferred at last');
is(sql("SELECT kind, status FROM finetune.models WHERE name = 'preferring'"), 'lora|ready', 'its model is an adapter');
cmp_ok(length sql(q(SELECT complete('preferring', 'item 3', '{"max_tokens": 4}')->'usage'->>'completion_tokens')), '>', 0,
	'that answers');
$job = wait_for_status($node, start('stiff', dpo_beta => 0.5), 'SUCCESS');
is($job->{options}{dpo_beta}, 0.5, 'another beta');
is(sql("SELECT count(DISTINCT weights_digest) FROM finetune.model WHERE name IN ('preferring', 'stiff')"), 2, 'makes another model');

# --- Gone on with: the model is its own reference

$id = start('more', from_model => 'preferring');
$job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'a job that continues from it');
is(sql("SELECT validation_loss FROM finetune.metrics WHERE job_id = '$id' AND step = 0"), '0.693147181', 'begins at ln 2 again');

# --- Killed

my %long = (max_steps => 200, max_epochs => 50, n_evals => 20);
wait_for_status($node, start('whole', %long), 'SUCCESS');
$id = start('killed', %long);
ok(wait_for_sql($node, "SELECT count(*) > 0 FROM finetune.events WHERE job_id = '$id' AND type = 'checkpoint'"), 'a job at work');
kill 'KILL', engine_of($node);
$job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'its engine is killed, and it goes on');
is(sql("SELECT count(DISTINCT weights_digest) FROM finetune.model WHERE name IN ('whole', 'killed')"), 1, 'to the same weights');

# --- Estimated

my $json = encode_json(\%options);
my $estimate = decode_json(sql("SELECT finetune_estimate('tiny', '$query', 'TABLE held_out', '$json')"));
is($estimate->{total_steps}, 12, 'an estimate says how many steps');
is_deeply($estimate->{rows}, { read => 66, used => 61, skipped_null => 4, truncated => 1 }, 'and what becomes of the rows');
is(error_of($node, "SELECT finetune_estimate('tiny', 'SELECT prompt, completion FROM fact', NULL, '$json')"),
	'42703: training query yields no columns "chosen" and "rejected"', 'and refuses answers as CREATE does');
is(error_of($node, "SELECT finetune_estimate('tiny', 'SELECT prompt, completion FROM fact', '$query', '{}')"),
	'22023: validation query yields preference pairs ("chosen", "rejected"), which only method dpo trains on',
	'and pairs without their method');
is(error_of($node, "SELECT finetune_evaluate('preferring', '$query')"),
	'0A000: preference pairs ("chosen", "rejected") cannot be evaluated', 'no evaluation of pairs');

# --- A query whose columns are others by the time it is read

stop_jobs($node);
sql("CREATE VIEW pairs AS $query");
$id = start_job($node, 'changed', query => 'TABLE pairs', options => \%options);
my $other = start_job($node, 'changed_too', query => 'SELECT * FROM fact', options => { max_steps => 2 });
sql('DROP VIEW pairs; CREATE VIEW pairs AS TABLE fact');
sql('ALTER TABLE fact RENAME completion TO chosen; ALTER TABLE fact ADD rejected text');
sql(q(CREATE OR REPLACE VIEW pairs AS SELECT id, prompt, chosen AS completion FROM fact));
let_jobs_run($node);
$job = wait_for_status($node, $id, 'ERROR');
is("$job->{error}{code}: $job->{error}{message}", '42703: training query yields no columns "chosen" and "rejected"',
	'a query that no longer yields pairs is an error of its job');
$job = wait_for_status($node, $other, 'ERROR');
is("$job->{error}{code}: $job->{error}{message}",
	'22023: training query yields preference pairs ("chosen", "rejected"), which only method dpo trains on', 'and one that does now');

done_testing();
