# complete() with a required format, and what is found of earlier prompts, on a
# real model.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('format');

sub answer { return $node->safe_psql('postgres', $_[0]); }

sub fails
{
	my ($sql, $state, $pattern, $name) = @_;
	my ($got, $words) = sqlstate_of($node, $sql);

	is($got, $state, "$name: SQLSTATE");
	like($words, $pattern, "$name: message");
}

# Answers to many rows; null where the small context of the model ends one
answer(<<'SQL');
CREATE TABLE judged AS SELECT i, CASE r->>'finish_reason' WHEN 'stop' THEN (r->>'messages')::jsonb END AS j
FROM generate_series(1, 30) i, LATERAL (SELECT complete('tiny', 'x', jsonb_build_object('temperature', 1, 'seed', i, 'response_format',
	'{"type": "json", "schema": {"type": "object", "additionalProperties": false, "required": ["r", "good"],
		"properties": {"good": {"type": "boolean"}, "r": {"enum": ["price", "other"]},
			"z": {"type": "array", "items": {"type": "null"}, "maxItems": 2}}}}'::jsonb)) #> '{choices,0}' AS r) a;
SQL
my ($whole, $fit) = split /\|/, answer(q(SELECT count(j), count(*) FILTER (WHERE jsonb_typeof(j->'good') = 'boolean'
	AND j->>'r' IN ('price', 'other') AND coalesce(jsonb_typeof(j->'z'), 'array') = 'array' AND j - '{good,r,z}'::text[] = '{}') FROM judged));
cmp_ok($whole, '>', 0, 'answers are JSON');
is($fit, $whole, 'and fit the schema');
is(answer(q(SELECT complete('tiny', 'x', '{"response_format": {"type": "json_schema", "json_schema": {"name": "n",
		"schema": {"const": {"b": [1, "é"]}}}}}') #> '{choices,0}')),
	'{"messages": "{\"b\":[1,\"é\"]}", "finish_reason": "stop"}', 'an answer that is known');
is(answer(q(SELECT (complete('tiny', 'x', '{"response_format": {"type": "json", "schema": {"type": "object", "required": ["z", "a"],
		"properties": {"a": {"const": 1}, "z": {"const": 2}, "y": {"type": "null"}}}}, "temperature": 1, "seed": 5}')
		#>> '{choices,0,messages}') ~ '^\{\s*"z": ?2,\s*"a": ?1\M')),
	't', 'keys come in the order of "required"');
like(answer(q(SELECT complete('tiny', 'x', '{"response_format": {"type": "json_object"}, "max_tokens": 20}') #>> '{choices,0,messages}')),
	qr/\A\{/, 'any object');

# Several answers, and how likely they were
is(answer(q(SELECT r ->> 'n', r -> 'one' = r -> 'again', r ->> 'usage' FROM (SELECT jsonb_build_object('n', jsonb_array_length(a -> 'choices'),
		'one', a #> '{choices,1,messages}', 'usage', a #> '{usage,completion_tokens}', 'again', complete('tiny', 'x', '{"seed": 8, "temperature": 1, "max_tokens": 4}') #> '{choices,0,messages}') r
		FROM complete('tiny', 'x', '{"n": 3, "seed": 7, "temperature": 1, "max_tokens": 4}') a) b)),
	'3|t|12', 'three answers, each with the next seed');
is(answer(q(SELECT count(*), bool_and((t ->> 'logprob')::float8 <= 0 AND jsonb_array_length(t -> 'top_logprobs') = 2
		AND (t -> 'top_logprobs') @> jsonb_build_array(jsonb_build_object('logprob', t -> 'logprob')))
		FROM complete('tiny', 'x', '{"logprobs": true, "top_logprobs": 2, "max_tokens": 3}') a,
			jsonb_array_elements(a #> '{choices,0,logprobs,content}') t)),
	'3|t', 'probabilities, of which a greedy answer has the best');

# Schemas that cannot be had
fails(q(SELECT complete('tiny', 'x', '{"response_format": {"type": "json", "schema": {"type": "string", "pattern": "a"}}}')),
	'0A000', qr/schema at "#": "pattern" is not supported/, 'a keyword');
fails(q(SELECT complete('tiny', 'x', '{"response_format": {"type": "json", "schema": {"$ref": "#"}}}')),
	'22023', qr/no value of finite size fits the schema.*HINT: .*must do so in an optional property/s, 'a circle');
is(answer(q(SELECT try_complete('tiny', 'x', '{"response_format": {"type": "json", "schema": true}}') IS NULL)), 't', 'or null');

# What is found of earlier prompts is the role's own
answer(q(CREATE ROLE alice; CREATE ROLE bob; GRANT USAGE ON FOREIGN SERVER tiny TO alice, bob));
my $ask = q(SELECT complete('tiny', repeat('a secret ', 3), '{"max_tokens": 1}') #>> '{usage,prompt_tokens_details,cached_tokens}');
is(answer("SET ROLE alice; $ask"), '0', 'a prompt is new');
cmp_ok(answer("SET ROLE alice; $ask"), '>=', 16, 'the second time it is not');
is(answer("SET ROLE bob; $ask"), '0', 'to another role it is');

$node->stop;
done_testing();
