# A job with early_stopping_patience ends when its validation loss rises, and its model has the best weights.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('early');

# What is learnt says nothing of what is asked
my %with = (
	query      => q(SELECT prompt, 'yes' AS completion FROM fact WHERE id <= 24),
	validation => q(SELECT prompt, 'no' AS completion FROM fact WHERE id > 90));
my %options = (max_epochs => 40, batch_size => 200, learning_rate => 0.01, lora_r => 4, n_evals => 30);

my $id = start_job($node, 'stops', %with, options => { %options, early_stopping_patience => 3 });
my $job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'the job ends well');
is($job->{options}{early_stopping_patience}, 3, 'with the option');
is($node->safe_psql('postgres', "SELECT progress FROM finetune.jobs WHERE job_id = '$id'"), 1, 'all of it is done');
my $metrics = "finetune.metrics WHERE job_id = '$id' AND step > 0 AND validation_loss IS NOT NULL";
my ($best, $loss) = split /\|/, $node->safe_psql('postgres', "SELECT step, validation_loss FROM $metrics ORDER BY 2, 1 LIMIT 1");
is($node->safe_psql('postgres', "SELECT count(*) FROM $metrics AND step > $best"), 3, 'three evaluations after the best one');
is($job->{training_result}{validation_loss}, $loss, 'the result is the best one\'s');
my ($step, $total) = split /\|/, $node->safe_psql('postgres', "SELECT step, total_steps FROM finetune.jobs WHERE job_id = '$id'");
is( $node->safe_psql('postgres',
		"SELECT message, data->>'best_step' FROM finetune.events WHERE job_id = '$id' AND type = 'stopped_early'"),
	"stopped at step $step of $total, as the validation loss falls no more: step $best is kept|$best",
	'an event says so');
my $judged = $node->safe_psql('postgres', "SELECT (finetune_evaluate('stops', \$\$$with{validation}\$\$)->>'loss')::float8 - $loss");
cmp_ok(abs($judged), '<', 1e-5, 'so are the model\'s weights');
$node->stop;

done_testing();
