# Training data through SQL: every set of columns, what becomes of each row, and
# what is said of data that only the reader or the engine can tell is wrong.
# Columns that CREATE refuses: sql/finetune_errors.sql.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('training_data');

# A short job over a query; what DESCRIBE says of it when it has ended.
my $made = 0;

sub train
{
	my ($query, %with) = @_;
	my $options = { max_steps => 2, lora_r => 2, max_seq_length => 64, validation_fraction => 0, %{ $with{options} // {} } };

	return wait_for_status($node,
		start_job($node, 'm' . ++$made, %with, query => $query, options => $options),
		$with{status} // 'SUCCESS');
}

sub counts
{
	my ($rows) = @_;
	return join ' ', map { $_ . '=' . ($rows->{$_} // 'none') } qw(read used skipped_null truncated);
}

# --- Every set of columns: what is read, used, skipped and cut

for my $case (
	[
		'prompt, completion', 'read=4 used=2 skipped_null=2 truncated=1',
		q{VALUES ('a', 'b'), ('c', NULL), (NULL, 'd'), (repeat('0123456789', 20), 'e')},
		'prompt, completion'
	],
	[
		'messages', 'read=5 used=2 skipped_null=2 truncated=1',
		q{VALUES ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'::jsonb),
			('[{"role": "user", "content": "nobody answers"}]'),
			(NULL), ('null'),
			(format('[{"role": "user", "content": "%s"}, {"role": "assistant", "content": "b"}]', repeat('0123456789', 20))::jsonb)},
		'messages'
	],
	[
		'messages as json, with weights', 'read=3 used=1 skipped_null=0 truncated=0',
		q{VALUES ('[{"role": "user", "content": "a"},
			{"role": "assistant", "content": "b", "weight": 0},
			{"role": "user", "content": "c"},
			{"role": "assistant", "content": "d", "weight": 2.5}]'::json),
			('[{"role": "assistant", "content": "b", "weight": 0}]'),
			('[{"role": "user", "content": "a", "weight": 1}, {"role": "assistant", "content": "b", "weight": 0}]')},
		'messages'
	],
	[
		'text', 'read=3 used=2 skipped_null=1 truncated=1',
		q{VALUES ('the end'::varchar), (NULL), (repeat('0123456789', 20))},
		'text'
	],
	[
		'input_ids', 'read=3 used=2 skipped_null=1 truncated=1',
		q{VALUES (ARRAY[70, 71, 72]), (NULL), (array_fill(70, ARRAY[65]))},
		'input_ids'
	],
	[
		'input_ids, labels, attention_mask', 'read=7 used=2 skipped_null=3 truncated=1',
		q{VALUES (ARRAY[70, 71, 0], ARRAY[70, 71, -100], ARRAY[1, 1, 0]),
			(ARRAY[70, 71, 0], ARRAY[-100, -100, -100], ARRAY[1, 1, 1]),
			(NULL, ARRAY[1], ARRAY[1, 1]), (ARRAY[70, 71], NULL, ARRAY[1, 1]), (ARRAY[70, 71], ARRAY[70, 71], NULL),
			(array_fill(70, ARRAY[65]), array_fill(71, ARRAY[65]), array_fill(1, ARRAY[65])),
			(ARRAY[70, 71], ARRAY[70, 71], ARRAY[0, 0])},
		'input_ids, labels, attention_mask'
	],
	[
		'arrays of other integers', 'read=1 used=1 skipped_null=0 truncated=0',
		q{VALUES ('[5:7]={70,71,72}'::bigint[], '{-100,71,72}'::smallint[], '{1,1,1}'::bigint[])},
		'input_ids, labels, attention_mask'
	],
	[
		'weight', 'read=4 used=2 skipped_null=1 truncated=0',
		q{VALUES ('a', 'b', 2.5), ('a', 'c', 0), ('a', 'd', NULL), ('a', 'e', 0.1)},
		'prompt, completion, weight'
	],
	[
		'weight beside text, as real', 'read=2 used=1 skipped_null=0 truncated=0',
		q{VALUES ('the end', 1e-3::real), ('x', 0)}, 'text, weight'
	])
{
	my ($name, $expected, $values, $columns) = @$case;
	my $job = train("SELECT *, 'ignored' AS note FROM ($values) v ($columns)");

	is($job->{status}, 'SUCCESS', "$name: trains");
	is(counts($job->{rows}), $expected, "$name: rows");
	ok($job->{trained_tokens} > 0, "$name: trained tokens");
}

# --- What is trained: figures of the untouched model tell

# Training loss of the first step, before anything was learned.
sub first_loss
{
	my ($query) = @_;
	my $job = train($query, options => { max_steps => 1 });

	return $node->safe_psql('postgres',
		"SELECT training_loss FROM finetune.metrics WHERE job_id = '$job->{id}' AND step = 1");
}

# Σ weight · loss / Σ weight of rows that train one token each
my $a = first_loss('SELECT ARRAY[70, 71] AS input_ids');
my $b = first_loss('SELECT ARRAY[70, 90] AS input_ids');
my $weighed = first_loss('SELECT * FROM (VALUES (ARRAY[70, 71], 3), (ARRAY[70, 90], 1), (ARRAY[5, 6], 0)) v (input_ids, weight)');
ok(abs($a - $b) > 1e-3, 'two rows differ');
ok(abs($weighed - (3 * $a + $b) / 4) < 1e-5, 'the loss is the mean by weight');
is(first_loss('SELECT ARRAY[70, 90] AS input_ids, ARRAY[-100, 71] AS labels'), $a, 'a label is the target');
is(first_loss('SELECT ARRAY[9, 70, 71, 9] AS input_ids, ARRAY[0, 1, 1, 0] AS attention_mask'),
	$a, 'what is hidden counts for nothing');

my $one = train("SELECT 'a' AS prompt, 'b' AS completion, 1.0 AS weight");
my $two = train("SELECT 'a' AS prompt, 'b' AS completion, 2.0 AS weight");
isnt($one->{data_hash}, $two->{data_hash}, 'the hash of the data knows the weight');
is(train("SELECT 'a' AS prompt, 'b' AS completion, 2 AS weight")->{data_hash},
	$two->{data_hash}, 'whatever its type');

# --- Wrong data: the row and the column, and nothing of what stands there

my $good = "SELECT ARRAY[70, 71] AS input_ids, ARRAY[70, 71] AS labels, ARRAY[1, 1] AS attention_mask, 1::float8 AS weight";

for my $case (
	[ '2202E', q{'{}', '{}', '{}', 1},                          qr/: column "input_ids" is an empty array$/ ],
	[ '2202E', q{'{70,71}', '{}', '{1,1}', 1},                  qr/: column "labels" is an empty array$/ ],
	[ '2202E', q{'{{4711,71},{4711,73}}', '{70,71}', '{1,1}', 1}, qr/: column "input_ids" has 2 dimensions, expected 1$/ ],
	[ '22004', q{'{4711,NULL}', '{70,71}', '{1,1}', 1},         qr/: column "input_ids" has an element that is NULL$/ ],
	[ '22004', q{'{70,71}', '{70,71}', '{1,NULL}', 1},          qr/: column "attention_mask" has an element that is NULL$/ ],
	[ '2202E', q{'{70,71}', '{4711}', '{1,1}', 1},              qr/: column "labels" has 1 elements, "input_ids" has 2$/ ],
	[ '2202E', q{'{70,71}', '{70,71}', '{1,1,1}', 1},           qr/: column "attention_mask" has 3 elements, "input_ids" has 2$/ ],
	[ '22003', q{'{70,71}', '{70,71}', '{1,1}', -4711},         qr/: column "weight" is negative$/ ],
	[ '22003', q{'{70,71}', '{70,71}', '{1,1}', 'NaN'},         qr/: column "weight" is NaN$/ ],
	[ '22003', q{'{70,71}', '{70,71}', '{1,1}', 'Infinity'},    qr/: column "weight" is infinite$/ ],
	[ '22003', q{'{70,71}', '{70,71}', '{1,1}', '-Infinity'},   qr/: column "weight" is infinite$/ ])
{
	my ($code, $row, $message) = @$case;
	my $job = train("$good UNION ALL SELECT $row", status => 'ERROR');

	is($job->{error}{code}, $code, "$row: code");
	like($job->{error}{message}, qr/^row 2 of the training query$message/, "$row: row and column");
	unlike($job->{error}{message}, qr/4711/, "$row: no value");
}
for my $case (
	[ q{'{70,4711}', '{70,71}', '{1,1}', 1},       qr/element 2 of column "input_ids" is outside of the vocabulary of \d+ tokens$/ ],
	[ q{'{70,-1}', '{70,71}', '{1,1}', 1},         qr/element 2 of column "input_ids" is outside of the vocabulary/ ],
	[ q{'{70,71}', '{70,-4711}', '{1,1}', 1},      qr/element 2 of column "labels" is neither -100 nor in the vocabulary of \d+ tokens$/ ],
	[ q{'{70,71}', '{70,71}', '{1,4711}', 1},      qr/element 2 of column "attention_mask" is neither 0 nor 1$/ ],
	[ q{'{70,71,72}', '{70,71,72}', '{1,0,1}', 1}, qr/element 2 of column "attention_mask" is 0 between elements that are 1$/ ],
	[ q{'{70,71}', '{70,71}', '{1,1}', 4711e300},  qr/column "weight" is neither 0 nor a number from 1e-12 to 1e\+12$/ ])
{
	my ($row, $message) = @$case;
	my $job = train("$good UNION ALL SELECT $row", status => 'ERROR');

	is($job->{error}{code}, '22023', "$row: code");
	like($job->{error}{message}, qr/^row 2 of train\.jsonl: $message/, "$row: row and column");
	unlike($job->{error}{message}, qr/4711/, "$row: no value");
}
{
	my $job = train(q{SELECT ('[{"role": "assistant", "content": "CAN' || 'ARY", "weight": -1}]')::jsonb AS messages},
		status => 'ERROR');
	is($job->{error}{code}, '22023', "a turn's weight: code");
	like($job->{error}{message}, qr/^row 1 of train\.jsonl: "weight" of message 1 is neither 0 nor/, "a turn's weight");

	$job = train("SELECT 'CAN' || 'ARY' AS text, 0 AS weight", status => 'ERROR');
	is($job->{error}{code}, '22023', 'no row with a weight: code');
	like($job->{error}{message}, qr/^no usable rows: 1 read, 0 with a null$/, 'no row with a weight');

	$job = train($good, validation => "$good UNION ALL SELECT '{70}', '{70,71}', '{1}', 1", status => 'ERROR');
	like($job->{error}{message}, qr/^row 2 of the validation query: column "labels"/, 'the validation query is named');
}

# --- From files, and from another model, by the queries that README shows

my $readme = slurp_file("$ENV{TESTDIR}/README.md");
my ($file_lesson) = $readme =~ /\$\$(SELECT [^\$]*finetune\.read_jsonl\([^\$]*)\$\$/ or die 'no example of read_jsonl';
my ($lesson) = $readme =~ /\$\$(SELECT [^\$]*complete\('teacher'[^\$]*)\$\$/ or die 'no example of distillation';
$file_lesson =~ s{'/[^']*\.jsonl'}{'votes.jsonl'} or die 'no file in the example';
write_file($node->data_dir . '/votes.jsonl', <<'JSONL');
{"question": "item 1", "answer": "odd", "votes": 3}
{"question": "item 2", "answer": "even", "votes": 0}
{"question": "item 3", "answer": "odd"}
JSONL

write_file($node->data_dir . '/rows.jsonl', <<'JSONL');
{"prompt": "item 1", "completion": "odd"}

{"prompt": "item 2", "completion": "even"}
{"prompt": "item 3", "completion": null}
JSONL
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE reader;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO reader;
GRANT USAGE ON FOREIGN SERVER tiny TO reader;
CREATE ROLE plain;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO plain;
GRANT USAGE ON FOREIGN SERVER tiny TO plain;
GRANT pg_read_server_files TO reader;
SQL
my $file_query = q{SELECT j->>'prompt' AS prompt, j->>'completion' AS completion FROM finetune.read_jsonl('rows.jsonl') AS j};

# A job as a role that may not log in.
sub train_as
{
	my ($role, $query, $status) = @_;
	my $id = $node->safe_psql('postgres',
		"SET ROLE $role; SELECT finetune('CREATE', 'm" . ++$made . "', 'tiny', \$q\$$query\$q\$, NULL, '{\"max_steps\": 2}')");

	return wait_for_status($node, $id, $status // 'SUCCESS');
}

my $job = train_as('reader', $file_query);
is($job->{status}, 'SUCCESS', 'a file is training data');
is(counts(train_as('reader', $file_lesson)->{rows}), 'read=3 used=1 skipped_null=1 truncated=0', 'with weights');
is(counts($job->{rows}), 'read=3 used=2 skipped_null=1 truncated=0', 'line by line');
like(error_of($node, "SET ROLE plain; SELECT finetune('CREATE', 'm', 'tiny', \$q\$$file_query\$q\$)"),
	qr/^42501: permission denied for function read_jsonl/, 'not without the right to read files');
write_file($node->data_dir . '/broken.jsonl', qq({"text": "x"}\n{"text": CANARY}\n));
$job = train_as('reader', q{SELECT j->>'text' AS text FROM finetune.read_jsonl('broken.jsonl') j}, 'ERROR');
is($job->{error}{code}, '22P02', 'a broken file: code');
is($job->{error}{message}, 'line 2 of file "broken.jsonl" is not valid JSON', 'a broken file: its line');
$job = train_as('reader', q{SELECT j->>'text' AS text FROM finetune.read_jsonl('gone.jsonl') j}, 'ERROR');
is($job->{error}{code}, '58P01', 'a file that is not there is one of the job, not of CREATE');

# Distillation: a model that has learned says what its pupil shall say
my $teacher = wait_for_status($node,
	start_job($node, 'teacher', options => { max_steps => 60, learning_rate => 0.01, lora_r => 8, batch_size => 256 }), 'SUCCESS');
is($teacher->{status}, 'SUCCESS', 'a teacher');
$node->safe_psql('postgres', 'GRANT USAGE ON FOREIGN SERVER teacher TO reader');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE faq AS SELECT id, prompt AS question FROM fact WHERE id <= 10;
GRANT SELECT ON faq TO reader;
SQL
$job = train_as('reader', $lesson);
is($job->{status}, 'SUCCESS', 'a training query may ask a model');
is(counts($job->{rows}), 'read=10 used=10 skipped_null=0 truncated=0', 'row by row');
$node->safe_psql('postgres', "CREATE TABLE answer AS $lesson");
is(train('SELECT prompt, completion FROM answer')->{data_hash},
	train($lesson)->{data_hash}, 'and learns what the model said');
ok($node->safe_psql('postgres', "SELECT count(*) FROM answer WHERE completion <> ''") > 0, 'which is something');
$node->safe_psql('postgres', 'REVOKE USAGE ON FOREIGN SERVER teacher FROM reader');
$job = train_as('reader', $lesson, 'ERROR');
is($job->{error}{code}, '42501', 'not without USAGE on the teacher');
like($job->{error}{message}, qr/permission denied for foreign server teacher/, 'which is named');

my $reading = q{FROM pg_stat_activity WHERE backend_type = 'pg_finetune reader' AND state = 'active'};
my $endless = start_job($node, 'endless',
	query => q{SELECT 'x' AS prompt, complete('teacher', 'item ' || i) AS completion FROM generate_series(1, 1000000) i});
ok(wait_for_sql($node, "SELECT count(*) = 1 $reading"), 'a query that asks for long');
is($node->safe_psql('postgres', "SELECT finetune('CANCEL', '$endless')->>'status'"), 'CANCELLED', 'is cancelled');
ok(wait_for_sql($node, "SELECT count(*) = 0 $reading"), 'and its reader ends');

$node->stop;
unlike(slurp_file($node->logfile), qr/CANARY/, 'no text of a row in the log');

done_testing();
