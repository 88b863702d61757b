# Options whose effect is seen from outside: what a job tells of itself is what it
# trained, found again by other ways; prompts are put into a prompt_template in
# training, evaluation and answers alike.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use JSON::PP;
use List::Util qw(sum);
use POSIX qw(ceil);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('options', "pg_finetune.numerics = reference\n");
$node->safe_psql('postgres', <<'SQL');
CREATE SERVER plain TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf', template 'plain');
-- of 43 rows two have a NULL, one is too long, one has nothing to train
CREATE TABLE training AS
	SELECT i AS id, 'item ' || i AS prompt, CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END AS completion, 1::real AS weight
	FROM generate_series(1, 39) i;
INSERT INTO training VALUES (40, NULL, 'x', 1), (41, 'x', NULL, 1), (42, repeat('long ', 100), 'odd', 2), (43, 'x', 'y', 0);
CREATE TABLE validation AS
	SELECT i AS id, 'item ' || i AS prompt, CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END AS completion
	FROM generate_series(100, 119) i;
SQL

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub json { return JSON::PP->new->decode(sql("SELECT $_[0]")); }

sub near
{
	my ($got, $expected, $what) = @_;
	my $scale = abs($expected) > 1e-9 ? abs($expected) : 1;
	return ok(defined $got && abs($got - $expected) <= 1e-5 * $scale, $what)
	  || diag('got ' . ($got // 'nothing') . ", expected $expected");
}

# --- Accounts

# 0 to the end by a line, from a warm-up of a fifth on
my %options = (max_epochs => 3, batch_size => 200, learning_rate => 0.01, lr_scheduler => 'linear', warmup_ratio => 0.2,
	min_lr_ratio => 0.1, lora_r => 4, lora_dropout => 0.1, max_seq_length => 64, n_evals => 3);
my $id = start_job($node, 'counted', query => 'TABLE training ORDER BY id', validation => 'TABLE validation ORDER BY id',
	options => \%options);
my $job = wait_for_status($node, $id, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'a job with every count');
is_deeply($job->{rows}, { read => 43, used => 40, skipped_null => 2, truncated => 1 }, 'its rows');
for my $name (sort keys %options)
{
	cmp_ok($job->{options}{$name}, ref $options{$name} || $options{$name} =~ /[a-z]/ ? 'eq' : '==', $options{$name},
		"DESCRIBE has the option $name");
}

my $estimate = json("finetune_estimate('tiny', 'TABLE training ORDER BY id', 'TABLE validation ORDER BY id', '"
	  . encode_json(\%options) . "')");
my @metrics = @{ json("jsonb_agg(m ORDER BY step) FROM finetune.metrics m WHERE job_id = '$id'") };
my $steps = $#metrics;
is(join(' ', map { $_->{step} } @metrics), join(' ', 0 .. $steps), 'a row of metrics for each step, and for the untouched base');
is($steps, $estimate->{total_steps}, 'as many as the estimate says');
is($metrics[-1]{tokens}, $estimate->{total_tokens}, 'tokens of all epochs');
is($metrics[-1]{tokens}, 3 * $estimate->{tokens}, 'three times those of one');
is($job->{trained_tokens}, $estimate->{trained_tokens}, 'trained tokens');
my $once = json("finetune_evaluate('tiny', 'TABLE training ORDER BY id')");
is($job->{trained_tokens}, 3 * $once->{trained_tokens}, 'three times those that an evaluation of the same rows finds');
is_deeply($once->{rows}, $job->{rows}, 'and the same rows');
my $grows = 1;
my $per_epoch = $steps / 3;
for my $step (1 .. $steps)
{
	my $m = $metrics[$step];
	my $warmup = ceil(0.2 * $steps);
	my $share = $step <= $warmup ? $step / $warmup : 0.1 + 0.9 * (1 - ($step - 1 - $warmup) / ($steps - $warmup));

	$grows &&= $m->{tokens} > $metrics[ $step - 1 ]{tokens} // 0;
	near($m->{learning_rate}, 0.01 * $share, "learning rate of step $step");
	near($m->{epoch}, $step / $per_epoch, "epoch of step $step");
	fail("norm of step $step") unless $m->{grad_norm} > 0;
}
ok($grows, 'tokens grow with each step');
my @evaluated = grep { defined $_->{validation_loss} } @metrics;
is(join(' ', map { $_->{step} } @evaluated), join(' ', 0, map { ceil($steps * $_ / 3) } 1 .. 3), 'three evaluations, evenly, and one of the base');
my $base = json("finetune_evaluate('tiny', 'TABLE validation ORDER BY id')");
my $tuned = json("finetune_evaluate('counted', 'TABLE validation ORDER BY id')");
near($metrics[0]{validation_loss}, $base->{loss}, 'the first evaluation is that of the base');
near($metrics[0]{validation_token_accuracy}, $base->{token_accuracy}, 'accuracy, too');
near($metrics[-1]{validation_loss}, $tuned->{loss}, 'the last evaluation is that of the model');
near($metrics[-1]{validation_token_accuracy}, $tuned->{token_accuracy}, 'accuracy, too');
near($job->{training_result}{validation_loss}, $tuned->{loss}, 'so is the result');
near($job->{training_result}{validation_token_accuracy}, $tuned->{token_accuracy}, 'and its accuracy');
near(sql("SELECT validation_loss FROM finetune.models WHERE name = 'counted'"), $tuned->{loss}, 'and what finetune.models says');
is(json("to_jsonb(count(*)) FROM finetune.events WHERE job_id = '$id' AND type = 'checkpoint'"), 3, 'events: a checkpoint after each evaluation');

# --- A step recomputed: all rows in each of three steps, at a rate that changes nothing, are the base's loss

$id = start_job($node, 'still', query => 'SELECT prompt, completion, 1 + id % 3 AS weight FROM training WHERE id < 40 ORDER BY id',
	options => { max_steps => 3, batch_size => 1000000, learning_rate => 1e-12, validation_fraction => 0, lr_scheduler => 'constant',
		warmup_ratio => 0 });
is(wait_for_status($node, $id, 'SUCCESS')->{status}, 'SUCCESS', 'a job that changes nothing');
my $loss = json("finetune_evaluate('tiny', 'SELECT prompt, completion, 1 + id % 3 AS weight FROM training WHERE id < 40 ORDER BY id')")->{loss};
@metrics = @{ json("jsonb_agg(m ORDER BY step) FROM finetune.metrics m WHERE job_id = '$id' AND step > 0") };
is(scalar @metrics, 3, 'three steps');
near($_->{training_loss}, $loss, "training loss of step $_->{step} is the loss of the rows, by their weights") for @metrics;
near($_->{grad_norm}, $metrics[0]{grad_norm}, "the same gradient at step $_->{step}") for @metrics;
near($_->{tokens}, $_->{step} * $metrics[0]{tokens}, "tokens at step $_->{step}") for @metrics;
near(job($node, $id)->{training_result}{training_loss}, $loss, 'so is the result');
is(job($node, $id)->{training_result}{validation_loss}, undef, 'without rows to validate there is no such loss');

# --- A prompt template: the same as prompts that were put into it by hand, over a base without a template

my $template = "Question {{1}}: {prompt}\nAnswer: ";
my $by_hand = "SELECT E'Question {1}: ' || prompt || E'\\nAnswer: ' AS prompt, completion";
%options = (max_steps => 24, batch_size => 256, learning_rate => 0.02, validation_fraction => 0.2);
my $templated = start_job($node, 'templated', query => 'SELECT prompt, completion FROM fact ORDER BY id',
	options => { %options, prompt_template => $template });
my $job_by_hand = sql("SELECT finetune('CREATE', 'by hand', 'plain', \$q\$$by_hand FROM fact ORDER BY id\$q\$, NULL, '"
	  . encode_json(\%options) . "')");
$job = wait_for_status($node, $templated, 'SUCCESS');
is($job->{options}{prompt_template}, $template, 'a job with a prompt template says which');
is(wait_for_status($node, $job_by_hand, 'SUCCESS')->{status}, 'SUCCESS', 'prompts put into it by hand');
is( sql("SELECT count(*) FROM finetune.metrics a JOIN finetune.metrics b USING (step, training_loss, grad_norm, tokens)
		 WHERE a.job_id = '$templated' AND b.job_id = '$job_by_hand' AND step > 0"),
	24, 'are trained on to the same losses and gradients');

my $questions = 'SELECT i, E\'item \' || i AS prompt FROM generate_series(201, 212) i';

sub same_answers
{
	my ($name, $what) = @_;
	my $pairs = sql("SELECT count(*), count(*) FILTER (WHERE complete('$name', prompt) =
			complete('by hand', E'Question {1}: ' || prompt || E'\\nAnswer: ')),
			count(*) FILTER (WHERE complete('$name', prompt) = complete('tiny', prompt)) FROM ($questions) q");

	my ($all, $same, $untuned) = split /\|/, $pairs;
	is($same, $all, "$what: answers are those to the prompt in its template");
	cmp_ok($untuned, '<', $all, "$what: and not the base's");
}

same_answers('templated', 'the model');
my $rows = "SELECT 'item ' || i AS prompt, CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END AS completion FROM generate_series(201, 230) i";
my $own = json("finetune_evaluate('templated', \$q\$$rows\$q\$)");
my $other = json("finetune_evaluate('by hand', \$q\$$by_hand FROM ($rows) r\$q\$)");
near($own->{$_}, $other->{$_}, "evaluation: $_") for qw(loss token_accuracy exact_match trained_tokens tokens);

is( json("complete('templated', messages => '[{\"role\": \"user\", \"content\": \"item 201\"}]')")->{choices}[0]{messages},
	sql("SELECT complete('templated', 'item 201')"), 'a conversation of one question is a prompt');
my $refused = qr/^22023: .*a model with a prompt template takes one prompt, neither a system message nor a conversation/;
like(error_of($node, "SELECT complete('templated', 'item 1', '{\"system\": \"Be brief.\"}')"), $refused, 'a system message is refused');
like(error_of($node, "SELECT complete('templated', messages => '[{\"role\": \"user\", \"content\": \"a\"},
	{\"role\": \"assistant\", \"content\": \"b\"}, {\"role\": \"user\", \"content\": \"c\"}]')"), $refused, 'so is a longer conversation');
is(sql("SELECT try_complete('templated', 'item 1', '{\"system\": \"Be brief.\"}') IS NULL"), 't', 'try_complete() is null then');
like(error_of($node, "SELECT finetune_evaluate('templated', \$q\$SELECT '[{\"role\": \"user\", \"content\": \"a\"},
	{\"role\": \"assistant\", \"content\": \"b\"}]'::jsonb AS messages\$q\$)"),
	qr/^22023: .*row has messages, which a prompt template has no place for/, 'rows of messages are refused in evaluation');

# It goes where the weights go: another name, another session, a file and back, a model that continues from it
sql('ALTER SERVER templated RENAME TO renamed');
same_answers('renamed', 'another name');
my $directory = PostgreSQL::Test::Utils::tempdir() . '/peft';
sql("SELECT finetune_export('renamed', '$directory')");
sql("SELECT finetune_import('imported', 'tiny', '$directory')");
same_answers('imported', 'out and in');
my $told = '';
$node->psql('postgres', "SELECT finetune_export('renamed', '$directory.merged', 'gguf')", stderr => \$told);
like($told, qr/NOTICE:  prompts to the exported model are to be put into the prompt template of "renamed"\n.*DETAIL: .*Question \{\{1\}\}: \{prompt\}/s,
	'a merged model knows no template: a notice');
$node->psql('postgres', "SELECT finetune_export('by hand', '$directory.without', 'gguf')", stderr => \$told);
is($told, '', 'nothing is said of one without');
$node->restart;
same_answers('renamed', 'after a restart');
my $more = start_job($node, 'continued', query => 'SELECT prompt, completion FROM fact ORDER BY id',
	options => { %options, learning_rate => 1e-12, from_model => 'renamed' });
my $wrong = start_job($node, 'wrong', query => 'SELECT prompt, completion FROM fact',
	options => { %options, from_model => 'renamed', prompt_template => 'Q: {prompt}' });
my $messages = start_job($node, 'talk', query => q(SELECT '[{"role": "user", "content": "a"},
	{"role": "assistant", "content": "b"}]'::jsonb AS messages), options => { %options, from_model => 'renamed' });
$job = wait_for_status($node, $more, 'SUCCESS');
is($job->{status}, 'SUCCESS', 'a model that continues from it');
is($job->{options}{prompt_template}, $template, 'has its template');
same_answers('continued', 'continued');
$job = wait_for_status($node, $wrong, 'ERROR');
is("$job->{error}{code}: $job->{error}{message}",
	'22023: option "prompt_template" is not that of the adapter to continue from', 'another one is refused');
$job = wait_for_status($node, $messages, 'ERROR');
like("$job->{error}{code}: $job->{error}{message}", qr/^22023: .*row has messages, which a prompt template has no place for/,
	'so are rows of messages');

$node->stop;
done_testing();
