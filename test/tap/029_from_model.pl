# Jobs that continue from a tuned model, with option "from_model".
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('from_model');
$node->safe_psql('postgres', <<'SQL');
CREATE SERVER other TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf');
CREATE ROLE alice LOGIN;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO alice;
GRANT USAGE ON FOREIGN SERVER tiny TO alice;
GRANT SELECT ON fact TO alice;
SQL
my %options = (max_steps => 12, learning_rate => 0.01, batch_size => 256);

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub create
{
	my ($base, $options) = @_;
	return "SELECT finetune('CREATE', 'new', '$base', 'SELECT prompt, completion FROM fact', NULL, '$options')";
}

my $job = wait_for_status($node, start_job($node, 'first', options => { %options, lora_r => 4, lora_alpha => 6 }), 'SUCCESS');
is($job->{status}, 'SUCCESS', 'a model');
my $digest = sql("SELECT weights_digest FROM finetune.model WHERE name = 'first'");

# Continued from, while it is renamed and then dropped
sql("ALTER SYSTEM SET pg_finetune.max_running_jobs = 0");
$node->reload;
my $second = start_job($node, 'second', options => { %options, from_model => 'first' });
my $third  = start_job($node, 'third',  options => { %options, from_model => 'first', from_weights => $digest, lora_r => 4 });
my $wrong  = start_job($node, 'wrong',  options => { %options, from_model => 'first', lora_r => 8 });
sql('ALTER SERVER first RENAME TO renamed');
sql('ALTER SYSTEM SET pg_finetune.max_running_jobs = 1');
$node->reload;
$job = wait_for_status($node, $second, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'a job continues from it, though it was renamed');
is($job->{options}{from_model},   'first',  'DESCRIBE says from which');
is($job->{options}{from_weights}, $digest, 'and from which weights');
is($job->{options}{lora_r},       4,       'with their rank');
is($job->{options}{lora_alpha},   6,       'and alpha');
my $untouched = sql("SELECT round(validation_loss::numeric, 6) FROM finetune.metrics WHERE job_id = '$second' AND step = 0");
is($untouched, sql("SELECT round(validation_loss::numeric, 6) FROM finetune.models WHERE name = 'renamed'"),
	'before its first step it is as good as the other was');
is(wait_for_status($node, $third, 'SUCCESS')->{status}, 'SUCCESS', 'one that says the same in more words');
is(sql("SELECT count(DISTINCT weights_digest) FROM finetune.model WHERE name IN ('second', 'third')"), 1, 'has the same weights');
$job = wait_for_status($node, $wrong, 'ERROR');
is($job->{error}{code}, '22023', 'another rank is an error');
is($job->{error}{message}, 'option "lora_r" is 8, but the adapter to continue from has 4', 'that says so');

sql('ALTER SYSTEM SET pg_finetune.max_running_jobs = 0');
$node->reload;
my $orphan = start_job($node, 'orphan', options => { %options, from_model => 'renamed' });
sql("DROP SERVER $_") for 'renamed';
sql('ALTER SYSTEM SET pg_finetune.max_running_jobs = 1');
$node->reload;
$job = wait_for_status($node, $orphan, 'ERROR');
is($job->{error}{code}, '42704', 'a model that is dropped before the job begins is an error');
is($job->{error}{message}, 'the model to continue from does not exist any more', 'that says so');

# A job that has begun needs it no more
my %long = (max_steps => 200, learning_rate => 0.001, batch_size => 256, from_model => 'second');
my $whole = start_job($node, 'whole', options => \%long);
wait_for_status($node, $whole, 'SUCCESS');
my $control = hold_engines($node);
hold_at($control, 45);
my $id = start_job($node, 'killed', options => \%long);
ok(is_held($control), 'a job at work');
ok(wait_for_sql($node, "SELECT count(*) > 0 FROM finetune.events WHERE job_id = '$id' AND type = 'checkpoint'"), 'it has a checkpoint');
sql('DROP SERVER second');
sql('DROP SERVER third');
kill 'KILL', engine_of($node);
let_go($control);
$job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'it survives its engine when the model is gone');
is(sql("SELECT count(DISTINCT weights_digest) FROM finetune.model WHERE name IN ('whole', 'killed')"), 1, 'to the same weights');

# Errors at CREATE
like(error_of($node, create('tiny', '{"from_model": "nobody"}')), qr/^42704: /, 'no such model');
is(error_of($node, create('tiny', '{"from_model": "other"}')),
	'42809: model "other" is not an adapter that could be continued from', 'a base');
is(error_of($node, create('other', '{"from_model": "whole"}')),
	'22023: model "whole" is not tuned from base model "other"', 'another base');
like(error_of($node, create('tiny', '{"from_model": "wrong"}')), qr/^(42704|55000): /, 'one without weights');
is(error_of($node, create('tiny', '{"from_model": "whole", "from_weights": "0123"}')),
	'22023: the weights of model "whole" are not those of option "from_weights"', 'other weights');
is(error_of($node, create('tiny', '{"from_weights": "0123"}')),
	'22023: option "from_weights" is given without "from_model"', 'weights of nobody');
like(error_of($node, create('tiny', '{"from_model": "whole"}'), 'alice'), qr/^42501: /, 'no rights');
is(sql("SELECT count(*) FROM finetune.jobs WHERE model = 'new'"), 0, 'no job came of that');
like(error_of($node, "SELECT finetune_estimate('tiny', 'SELECT prompt, completion FROM fact', NULL, '{\"from_model\": \"whole\"}')", 'alice'),
	qr/^42501: /, 'nor an estimate');
is(sql("SELECT finetune_estimate('tiny', 'SELECT prompt, completion FROM fact', NULL, '{\"from_model\": \"whole\"}')->'options'->>'lora_r'"),
	4, 'an estimate knows the shape');
$node->stop;

done_testing();
