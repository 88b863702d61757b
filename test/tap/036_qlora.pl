# Method qlora through SQL: it is estimated, trained, interrupted, described, evaluated and asked as method lora is;
# its loss is that of a base in few bits, and the adapter is served over the base as it is on disk.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('qlora', <<'CONF');
pg_finetune.numerics = reference
CONF
$node->safe_psql('postgres', <<'SQL');
CREATE VIEW unseen AS SELECT 'item ' || i AS prompt,
	CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END AS completion FROM generate_series(201, 230) i;
SQL
my $unseen = 'SELECT prompt, completion FROM unseen';
my %options = (max_steps => 20, n_evals => 2, learning_rate => 1e-2);

sub evaluated
{
	my ($model) = @_;

	return JSON::PP->new->decode($node->safe_psql('postgres', "SELECT finetune_evaluate('$model', '$unseen')"));
}

sub metrics
{
	my ($id) = @_;

	return $node->safe_psql('postgres',
		"SELECT step, training_loss, validation_loss, grad_norm, tokens FROM finetune.metrics WHERE job_id = '$id' ORDER BY step");
}

sub first_validation
{
	my ($id) = @_;

	return $node->safe_psql('postgres', "SELECT validation_loss FROM finetune.metrics WHERE job_id = '$id' AND step = 0");
}

# --- An estimate

my $estimate = JSON::PP->new->decode($node->safe_psql('postgres', <<"SQL"));
SELECT finetune_estimate('tiny', 'SELECT prompt, completion FROM fact', '$unseen', '@{[ encode_json({ %options, method => 'qlora' }) ]}')
SQL
is($estimate->{options}{method}, 'qlora', 'an estimate of the method');
is($estimate->{total_steps}, 20, '... counts its steps');
cmp_ok($estimate->{memory}{host}, '>', 0, '... and plans its memory');

# --- Jobs that differ in nothing but the method, and one that is interrupted

my %jobs = map {
	my $method = $_ =~ /lora/ ? $_ : 'qlora';
	$_ => start_job($node, $_, validation => $unseen, options => { %options, method => $method });
} qw(lora qlora again);
my %described = map { $_ => wait_for_status($node, $jobs{$_}, 'SUCCESS', 'ERROR') } qw(lora qlora again);

is($described{$_}{status}, 'SUCCESS', "job of model $_ succeeds") for qw(lora qlora again);
is($described{qlora}{options}{method}, 'qlora', 'DESCRIBE says the method');
is($described{$_}{trained_tokens}, $estimate->{trained_tokens}, "$_: trained tokens as estimated") for qw(lora qlora);
is($node->safe_psql('postgres', "SELECT kind, status FROM finetune.models WHERE name = 'qlora'"), 'lora|ready',
	'the model is an adapter');

is(metrics($jobs{again}), metrics($jobs{qlora}), 'the same job twice: the same metrics');
isnt(metrics($jobs{lora}), metrics($jobs{qlora}), 'other metrics than with method lora');
my @weights = map {
	$node->safe_psql('postgres', "SELECT m.weights_digest FROM finetune.model m WHERE m.name = '$_'")
} qw(qlora again lora);
is($weights[1], $weights[0], '... and the same weights');
isnt($weights[2], $weights[0], '... which are not those of method lora');

# --- What was trained over, and what is served

my $base = evaluated('tiny')->{loss};
cmp_ok(abs(first_validation($jobs{lora}) - $base), '<', 1e-5 * $base, 'lora begins with the loss of the base');
cmp_ok(abs(first_validation($jobs{qlora}) - $base), '>', 1e-4 * $base, 'qlora with that of the base in NF4');
cmp_ok(abs(first_validation($jobs{qlora}) - $base), '<', 0.1 * $base, '... which is about the same');
my $before = first_validation($jobs{qlora});
my $after = $described{qlora}{training_result}{validation_loss};
my $served = evaluated('qlora')->{loss};
cmp_ok($after, '<', 0.5 * $before, 'the validation loss falls');
cmp_ok($served, '<', 0.5 * $base, '... and so does that of the model as it is served');
cmp_ok(abs($served - $after), '>', 1e-5 * $after, '... over the base on disk');

my $answer = $node->safe_psql('postgres', "SELECT complete('qlora', 'item 7', '{\"max_tokens\": 8}')->'choices'->0->>'finish_reason'");
like($answer, qr/^(stop|length)$/, 'the model answers');

# --- An interrupted job ends with the same weights

my $control = hold_engines($node);
hold_at($control, 8);
my $killed = start_job($node, 'killed', validation => $unseen, options => { %options, method => 'qlora', n_checkpoints => 20 });
ok(is_held($control), 'a job is in the middle of its training');
my $engine = engine_of($node);
kill 'KILL', $engine;
let_go($control);
is(wait_for_status($node, $killed, 'SUCCESS', 'ERROR')->{status}, 'SUCCESS', 'a job whose engine is killed goes on');
is($node->safe_psql('postgres', "SELECT weights_digest FROM finetune.model WHERE name = 'killed'"), $weights[0],
	'... and ends with the same weights');

# --- It can be gone on with, by either method

my $next = start_job($node, 'next', validation => $unseen, options => { max_steps => 2, from_model => 'qlora' });
is(wait_for_status($node, $next, 'SUCCESS', 'ERROR')->{status}, 'SUCCESS', 'method lora continues from its model');
cmp_ok(abs(first_validation($next) - $served), '<', 1e-5 * $served, '... from what is served');

$node->stop;
done_testing();
