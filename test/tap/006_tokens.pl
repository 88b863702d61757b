# tokenize() and detokenize() with a real tokenizer: any text comes back, in any
# encoding, and what is no token is refused.
use strict;
use warnings;

use FinetuneCluster;
use FinetuneJob;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('tokens');

sub answer { return $node->safe_psql($_[1] // 'postgres', $_[0]); }

sub fails
{
	my ($sql, $state, $pattern, $name, $db) = @_;
	my ($got, $words) = sqlstate_of($node, $sql, db => $db // 'postgres');

	is($got, $state, "$name: SQLSTATE");
	like($words, $pattern, "$name: message");
}

# Round trips
is( answer(<<'SQL'), '', 'any text comes back, and as many tokens as were counted');
SELECT i FROM (VALUES (1, ''), (2, ' '), (3, 'Hello, world'), (4, E'a\tb\n\n  c'), (5, 'Grüße, мир, 世界'),
	(6, '🙂👩‍👩‍👧'), (7, E'\u0301e\u200b'), (8, '<|im_start|>user<|im_end|><|endoftext|>'), (9, '''"\'),
	(10, repeat('long ', 20000)), (11, (SELECT string_agg(chr(c), '') FROM generate_series(1, 5000) c WHERE c NOT BETWEEN 55296 AND 57343))) t (i, s)
WHERE detokenize('tiny', tokenize('tiny', s)) <> s OR cardinality(tokenize('tiny', s)) <> count_tokens('tiny', s)
SQL
is(answer(q(SELECT tokenize('tiny', ''), detokenize('tiny', '{}'), pg_typeof(tokenize('tiny', 'x')), array_lower(tokenize('tiny', 'x'), 1))),
	'{}||integer[]|1', 'nothing, and types');
is(answer(q(SELECT tokenize('tiny', NULL) IS NULL, detokenize('tiny', NULL) IS NULL)), 't|t', 'NULL in, NULL out');

# A special token is no text, but has one
ok(answer(q(SELECT cardinality(tokenize('tiny', '<|im_end|>')) > 1)) eq 't', 'text never becomes a special token');
is(answer(q(SELECT detokenize('tiny', tokenize('tiny', 'a') || tokenize('tiny', 'b')))), 'ab', 'tokens add up');

# Tokens that end inside a character
is(answer(q(SELECT detokenize('tiny', (tokenize('tiny', chr(128578)))[:1]) = chr(65533))),
	't', 'bytes that are no character become U+FFFD');
is(answer(q(SELECT detokenize('tiny', tokenize('tiny', 'x') || (tokenize('tiny', chr(128578)))[2:]) LIKE 'x' || chr(65533) || '%')),
	't', 'so do those that miss their beginning');

# What is no token
fails(q(SELECT detokenize('tiny', '{0,1000000}')), '22023', qr/"tokens" has the token id 1000000, the model's are 0 to \d+/,
	'too high');
fails(q(SELECT detokenize('tiny', '{-1}')), '22023', qr/"tokens" has the token id -1, the model's are 0 to/, 'negative');
fails(q(SELECT detokenize('tiny', '{1,NULL}')), '22004', qr/array of tokens must not contain nulls/, 'NULL element');
fails(q(SELECT detokenize('tiny', '{{1,2},{3,4}}')), '2202E', qr/tokens must be an array of one dimension, not 2/,
	'two dimensions');
is(answer(q(SELECT detokenize('tiny', ('[5:6]=' || tokenize('tiny', 'ab')::text)::int[]) IS NOT NULL FROM (SELECT 1) x WHERE cardinality(tokenize('tiny', 'ab')) = 2
	UNION ALL SELECT true LIMIT 1)), 't', 'bounds of an array do not matter');
fails(q(SELECT tokenize('none', 'x')), '42704', qr/model "none" does not exist/, 'no such model');
fails(q(SELECT detokenize('none', '{1}')), '42704', qr/model "none" does not exist/, 'no such model');
answer('CREATE ROLE stranger LOGIN');
for my $call (q(tokenize('tiny', 'x')), q(detokenize('tiny', '{1}')), q(count_tokens('tiny', 'x')))
{
	my ($state, $words) = sqlstate_of($node, "SELECT $call", user => 'stranger');

	is($state, '42501', "$call without a right");
	like($words, qr/permission denied for foreign server tiny/, 'says so');
}

# Penalties, asked of a real engine
is( answer(q(SELECT (complete('tiny', 'x', '{"max_tokens": 12, "frequency_penalty": 2, "presence_penalty": 1, "repetition_penalty": 1.5}')
			-> 'choices' -> 0 ->> 'messages')
		<> complete('tiny', 'x', '{"max_tokens": 12}') -> 'choices' -> 0 ->> 'messages')),
	't', 'penalties change an answer');

# More than the engine takes at once
for my $call (q(count_tokens('tiny', repeat('x', 17000000))), q(complete('tiny', repeat('x', 17000000))),
	q(detokenize('tiny', array_fill(100000, ARRAY[3000000]))))
{
	fails("SELECT $call", '54000', qr/a request of \d+ bytes is too long for the engine, which takes 16777216/, $call);
}
is(answer(q(SELECT try_complete('tiny', repeat('x', 17000000)) IS NULL, count_tokens('tiny', 'x') > 0)), 't|t',
	'nor does it hurt');

# Other encodings
for my $encoding (qw(LATIN1 SQL_ASCII EUC_JP))
{
	answer(qq(CREATE DATABASE "$encoding" TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'));
	answer(q(CREATE EXTENSION pg_finetune;
		CREATE SERVER tiny TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf')), $encoding);
}
my $tokens = answer(q(SELECT tokenize('tiny', 'Gr' || chr(252) || chr(223) || 'e')));
is(answer(q(SELECT tokenize('tiny', 'Gr' || chr(252) || chr(223) || 'e')), 'LATIN1'), $tokens, 'LATIN1: the same tokens');
is(answer(qq(SELECT detokenize('tiny', '$tokens') = 'Gr' || chr(252) || chr(223) || 'e'), 'LATIN1'), 't', 'and the same text');
my $smile = answer('SELECT tokenize(\'tiny\', chr(128578))');
fails(qq(SELECT detokenize('tiny', '$smile')), '22P05', qr/not valid JSON that this database can hold/,
	'LATIN1: a character that it does not have', 'LATIN1');
fails(q(SELECT detokenize('tiny', (tokenize('tiny', chr(252)))[:1])), '22P05', qr/not valid JSON that this database can hold/,
	'LATIN1: half of a character', 'LATIN1')
  if answer(q(SELECT cardinality(tokenize('tiny', chr(252))))) > 1;
is(answer(qq(SELECT tokenize('tiny', E'Gr\\xc3\\xbc\\xc3\\x9fe')), 'SQL_ASCII'), $tokens, 'SQL_ASCII: UTF-8 as it is');
is(answer(qq(SELECT detokenize('tiny', '$tokens') = E'Gr\\xc3\\xbc\\xc3\\x9fe'), 'SQL_ASCII'), 't', 'and back');
fails(q(SELECT tokenize('tiny', E'\xff')), '22021', qr/invalid byte sequence for encoding "UTF8"/,
	'SQL_ASCII: bytes that are no UTF-8', 'SQL_ASCII');
is(answer(q(SELECT detokenize('tiny', tokenize('tiny', convert_from('\xc6fccbdc', 'EUC_JP'))) = convert_from('\xc6fccbdc', 'EUC_JP')), 'EUC_JP'),
	't', 'EUC_JP');
is(answer(q(SELECT tokenize('tiny', convert_from('\xc6fccbdc', 'EUC_JP'))), 'EUC_JP'),
	answer(q(SELECT tokenize('tiny', convert_from('\xe697a5e69cac', 'UTF8')))), 'and the same tokens');

$node->stop;
done_testing();
