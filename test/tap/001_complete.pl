# What complete() and count_tokens() ask of the engine and what they return,
# with an engine that echoes.
use strict;
use warnings;

use FinetuneCluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($node, $models) = new_echo_cluster('complete');

# Runs SQL that must succeed; its last row
sub answer { return $node->safe_psql('postgres', $_[0]); }

sub fails
{
	my ($sql, $state, $pattern, $name) = @_;
	my ($got, $words) = sqlstate_of($node, $sql);

	is($got, $state, "$name: SQLSTATE");
	like($words, $pattern, "$name: message");
}

# The three forms
is(answer(q(SELECT complete('one', 'hello world'))), 'echo: hello world', 'an answer as text');
is(answer(q(SELECT pg_typeof(complete('one', 'a literal')))), 'text', 'a literal is text');
is( answer(q(SELECT complete('one', 'hello big world', '{"max_tokens": 2}') - 'created')),
	'{"model": "one", "usage": {"total_tokens": 5, "prompt_tokens": 3, "completion_tokens": 2}, '
	  . '"choices": [{"messages": "echo: hello", "finish_reason": "length"}]}',
	'an answer with options');
is( answer(q(SELECT jsonb_typeof(complete('one', 'x', '{}')->'created'))),
	'number', 'it has a time');
is( answer(
		q(SELECT complete('one', messages => '[{"role": "user", "content": "hi"}]') #>> '{choices,0,messages}')
	),
	'echo: hi',
	'an answer to messages');
is(answer(q(SELECT complete('one', NULL) IS NULL)), 't', 'NULL in, NULL out');
is( answer(
		q(SELECT complete('one', '[{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
			{"role": "user", "content": "show messages"}]'::jsonb) #>> '{choices,0,messages}')),
	'[[{"content":"s","role":"system"},{"content":"a","role":"user"},{"content":"b","role":"assistant"},{"content":"show messages","role":"user"}]]',
	'a conversation');
is(answer(q(SELECT count_tokens('one', 'a b  c'))), '3', 'tokens are counted');
is(answer(q(SELECT tokenize('one', 'a b  c'), detokenize('one', '{7,8}'))), '{1,2,3}|word7 word8', 'and named');

# What the engine is asked
is( answer(q(SELECT complete('one', 'show temperature') || complete('one', 'show max_tokens'))),
	'[0][null]', 'defaults');
is( answer(
		q(SELECT complete('one', 'show messages', '{"system": "be \"brief\""}') #>> '{choices,0,messages}')
	),
	'[[{"content":"be \"brief\"","role":"system"},{"content":"show messages","role":"user"}]]',
	'option system');
my $options = q({"temperature": 0.5, "top_p": 0.25, "top_k": 5, "min_p": 0.125, "seed": -3, "stop": ["a", "b"], "max_tokens": 9,
	"presence_penalty": -2, "frequency_penalty": 1.5, "repetition_penalty": 1.25});
for my $pair ([ temperature => '[0.5]' ], [ top_p => '[0.25]' ], [ top_k => '[5]' ],
	[ min_p => '[0.125]' ], [ seed => '[-3]' ], [ stop => '[["a","b"]]' ], [ max_tokens => '[9]' ],
	[ presence_penalty => '[-2]' ], [ frequency_penalty => '[1.5]' ], [ repetition_penalty => '[1.25]' ])
{
	is( answer(qq(SELECT complete('one', 'show $pair->[0]', '$options') #>> '{choices,0,messages}')),
		$pair->[1], "option $pair->[0]");
}

my $off = q({"n": 1, "logprobs": false, "response_format": {"type": "text"}, "top_p": null, "stop": null, "system": null});
is( answer(qq(SELECT complete('one', 'show stop', '$off') #>> '{choices,0,messages}' || (complete('one', 'x', '$off') - 'created')::text)),
	'[null]' . answer(q(SELECT complete('one', 'x', '{}') - 'created')), 'options that ask for nothing, and null');

# A format, in OpenAI's words and in Snowflake's
for my $pair ([ '{"type": "json_object"}', '{"type":"json_object"}' ], [ '{"type": "json"}', '{"type":"json_object"}' ],
	[ '{"type": "json", "schema": {"type": "null"}}', '{"json_schema":{"required_first":true,"schema":{"type":"null"}},"type":"json_schema"}' ],
	[ '{"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"type": "null"}}}',
		'{"json_schema":{"required_first":true,"schema":{"type":"null"}},"type":"json_schema"}' ])
{
	is( answer(qq(SELECT complete('one', 'show response_format', '{"response_format": $pair->[0]}') #>> '{choices,0,messages}')),
		"[$pair->[1]]", "response_format $pair->[0]");
}

# Who asks: the engine shares nothing between roles, or between databases
my $salt = answer(q(SELECT complete('one', 'show cache_salt')));
is($salt, answer(q(SELECT format('["%s/%s"]', d.oid, r.oid) FROM pg_database d, pg_roles r
	WHERE datname = current_database() AND rolname = current_user)), 'the engine is told the database and the role');
$node->safe_psql('postgres', q(CREATE ROLE asks; GRANT USAGE ON FOREIGN SERVER one TO asks));
isnt(answer(q(SET ROLE asks; SELECT complete('one', 'show cache_salt'))), $salt, 'another role is another one');

# Every option is checked, before anything is asked
for my $case (
	[ '{"temp": 1}', qr/unrecognized option "temp".*Valid options are: temperature, .*system/s ],
	[ '{"temperature": 5}', qr/option "temperature" must be between 0 and 2, not 5/ ],
	[ '{"temperature": "1"}', qr/option "temperature" must be a number, not a string/ ],
	[ '{"temperature": NaN}', qr/invalid input syntax for type json/, '22P02' ],
	[ '{"top_p": 0}', qr/option "top_p" must be greater than 0 and at most 1, not 0/ ],
	[ '{"top_p": [0.5]}', qr/option "top_p" must be a number, not an array/ ],
	[ '{"top_k": -1}', qr/option "top_k" must be between 0 and 2147483647, not -1/ ],
	[ '{"min_p": 1.5}', qr/option "min_p" must be between 0 and 1, not 1.5/ ],
	[ '{"max_tokens": 0}', qr/option "max_tokens" must be between 1 and 2147483647, not 0/ ],
	[ '{"max_tokens": 1.5}', qr/option "max_tokens" must be an integer, not 1.5/ ],
	[ '{"max_tokens": true}', qr/option "max_tokens" must be an integer, not a boolean/ ],
	[ '{"seed": 1e300}', qr/option "seed" must be between -9007199254740991 and 9007199254740991, not 1e\+300/ ],
	[ '{"stop": [""]}', qr/option "stop" must be a string that is not empty, or an array of such/ ],
	[ '{"stop": {"a": 1}}', qr/option "stop" must be a string that is not empty, or an array of such, not an object/ ],
	[ '{"stop": ["1","2","3","4","5","6","7","8","9","0","a","b","c","d","e","f","g"]}',
		qr/option "stop" must have at most 16 strings, not 17/ ],
	[ '{"presence_penalty": 2.5}', qr/option "presence_penalty" must be between -2 and 2, not 2.5/ ],
	[ '{"frequency_penalty": -3}', qr/option "frequency_penalty" must be between -2 and 2, not -3/ ],
	[ '{"repetition_penalty": 0}', qr/option "repetition_penalty" must be between 0.01 and 100, not 0/ ],
	[ '{"n": 0}', qr/option "n" must be between 1 and 128, not 0/ ],
	[ '{"logprobs": 5}', qr/option "logprobs" must be a boolean, not 5/ ],
	[ '{"top_logprobs": 21, "logprobs": true}', qr/option "top_logprobs" must be between 0 and 20, not 21/ ],
	[ '{"top_logprobs": 2}', qr/option "top_logprobs" needs option "logprobs"/ ],
	[ '{"response_format": "json"}', qr/option "response_format" must be an object with the string "type", not a string/ ],
	[ '{"response_format": {"type": "text", "schema": {}}}', qr/option "response_format" of type "text" must have no other member/ ],
	[ '{"response_format": {"type": "json_object", "schema": {}}}', qr/option "response_format" of type "json_object" must have no other member/ ],
	[ '{"response_format": {"type": "json", "shema": {}}}', qr/option "response_format" of type "json" must have no member but "schema"/ ],
	[ '{"response_format": {"type": "json_schema"}}', qr/option "response_format" must have a "schema" in "json_schema"/ ],
	[ '{"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}', qr/option "response_format" must have a "schema" in "json_schema"/ ],
	[ '{"response_format": {"type": "xml"}}',
		qr/option "response_format" must have the type "text", "json_object", "json_schema" or "json"/ ],
	[ '{"system": 1}', qr/option "system" must be a string, not 1/ ],
	[ '[]', qr/options must be a JSON object, not an array/ ],
	[ '"text"', qr/options must be a JSON object, not a scalar/ ])
{
	fails(qq(SELECT complete('one', 'x', '$case->[0]')), $case->[2] // '22023', $case->[1], "options $case->[0]");
}
for my $case (
	[ '[]', qr/messages must be a JSON array with at least one message/ ],
	[ '{}', qr/messages must be a JSON array/ ],
	[ '"text"', qr/messages must be a JSON array/ ],
	[ '["text"]', qr/message 1 must be an object with the strings "role" and "content"/ ],
	[ '[{"role": "user", "content": "x"}, {"role": "user"}]', qr/message 2 must be an object/ ],
	[ '[{"role": "user", "content": "x", "name": "y"}]', qr/message 1 must be an object/ ],
	[ '[{"role": "tool", "content": "x"}]',
		qr/message 1 must have the role "system", "user" or "assistant", not "tool"/ ],
	[ '[{"role": "my 1st role", "content": "x"}]', qr/message 1 must have the role "system", "user" or "assistant"$/m ],
	[ '[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]',
		qr/message 2 must have the role "user", because it is the last one/ ],
	[ '[{"role": "system", "content": "x"}]', qr/message 1 must have the role "user", because it is the last one/ ])
{
	fails(qq(SELECT complete('one', '$case->[0]'::jsonb)), '22023', $case->[1], "messages $case->[0]");
}
fails(
	q(SELECT complete('one', messages => '[{"role": "system", "content": "a"}]', options => '{"system": "b"}')),
	'22023', qr/message 1 has the role "system"/, 'two system messages');

# Errors of models and of the engine
fails(q(SELECT complete('two', 'x')), '42704', qr/model "two" does not exist/, 'unknown model');
for my $case ([ invalid => '22023' ], [ no_space => '53100' ], [ no_memory => '53200' ],
	[ busy => '53000' ], [ corrupt => 'XX001' ], [ unsupported => '0A000' ], [ device => '58000' ],
	[ cancelled => '57P03' ], [ internal => 'XX000' ])
{
	fails(qq(SELECT complete('one', 'fail $case->[0]')), $case->[1], qr/as asked for/,
		"the engine's $case->[0]");
}

# Replies that are none
fails(q(SELECT complete('one', 'broken no_choices')), 'XX000', qr/the engine's reply is not a chat completion/,
	'a reply without an answer');
fails(q(SELECT complete('one', 'broken garbage')), 'XX000', qr/the engine's reply is malformed or too long/,
	'a reply that is none');
fails(q(SELECT complete('one', 'broken no_json')), 'XX000', qr/the engine's reply is not valid JSON that this database can hold/,
	'a reply that is no JSON');
for my $kind (qw(garbage head status no_length negative too_long encoding chunk_size chunk_end
	chunk_huge cut_head cut_body empty html no_json array no_choices no_text zero surrogate not_utf8 deep))
{
	my ($state, $words) = sqlstate_of($node, qq(SELECT complete('one', 'broken $kind')));

	my %other = (cut_head => '57P03', cut_body => '57P03', not_utf8 => '22021', zero => '22P05');

	is($state, $other{$kind} // 'XX000', "broken reply: $kind");
	unlike($words, qr/JSON data|choices|0xff/, 'nothing of it is quoted');
	is(answer(q(SELECT complete('one', 'x'))), 'echo: x', 'the next one is answered');
}

for my $call (q(count_tokens('one', 'broken no_text')), q(tokenize('one', 'broken no_text')))
{
	fails("SELECT $call", 'XX000', qr/the engine's reply does not hold the tokens of a text/, $call);
}
fails(q(SELECT detokenize('one', '{666}')), 'XX000', qr/the engine's reply does not hold the text of the tokens/,
	'a reply without text');

# Files of models
write_file("$models/bad.gguf", 'bad');
symlink '/etc/passwd', "$models/outside.gguf";
my ($rc, $out, $err) = $node->psql('postgres',
	q(CREATE SERVER bad TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'bad.gguf')));
is($rc, 0, 'a server for a damaged file');
like($err, qr/WARNING:  bad.gguf is truncated/, 'a warning when the file is damaged');
($rc, $out, $err) = $node->psql('postgres',
	q(CREATE SERVER gone TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'gone.gguf')));
like($err, qr/WARNING:  could not find model file "gone.gguf"/, 'a warning when it is not there');
$node->psql('postgres',
	q(CREATE SERVER outside TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'outside.gguf')));
fails(q(SELECT complete('bad', 'x')), 'XX001', qr/ERROR:  XX001: bad.gguf is truncated/,
	'damaged file');
fails(q(SELECT complete('gone', 'x')), '58P01', qr/model file "gone.gguf".*HINT:.*model_directory/s,
	'missing file');
fails(q(SELECT complete('outside', 'x')), '42501', qr/model file "outside.gguf" is outside of pg_finetune.model_directory/,
	'link out of the model directory');
is( answer(q(SELECT architecture, parameters, context_length, size FROM finetune.models WHERE name = 'one')),
	'echo|7|512|3', 'what is known of a base');

# Many requests over one connection, replies whole and in chunks
is( answer(q(SELECT count(DISTINCT complete('one', 'row ' || i)) FROM generate_series(1, 200) i)),
	'200', 'many requests of one session');
is(logged_times($node, qr/loaded a base/, 1), 1, 'the base was loaded once');
is( answer(q(SELECT complete('one', repeat('word', 500000)) = 'echo: ' || repeat('word', 500000))),
	't', 'a long prompt and a long answer');

# In a parallel query
is( answer(q(SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
		CREATE TABLE big AS SELECT i FROM generate_series(1, 20000) i; ANALYZE big;
		SELECT string_agg(complete('one', i::text), ',' ORDER BY i) FROM big WHERE i % 5000 = 0)),
	'echo: 5000,echo: 10000,echo: 15000,echo: 20000', 'a call beside parallel workers');

# A file with other bytes is refused until its owner says that it was replaced on purpose
append_to_file("$models/one.gguf", ' more');
fails(q(SELECT complete('one', 'again')), '55000',
	qr/base model "one" has changed\n.*DETAIL:  Its file "one.gguf".*HINT:.*ALTER SERVER one OPTIONS \(SET file 'one.gguf'\)/s,
	'a replaced file');
answer(q(ALTER SERVER one OPTIONS (ADD context_length '512')));
fails(q(SELECT complete('one', 'again')), '55000', qr/base model "one" has changed/,
	'another option accepts no file');
answer(q(ALTER SERVER one OPTIONS (DROP context_length)));
answer(q(ALTER SERVER one OPTIONS (SET file 'one.gguf')));
is(answer(q(SELECT complete('one', 'again'))), 'echo: again', 'an answer of a replaced file');
is(logged_times($node, qr/loaded a base/, 2), 2, 'it was loaded');
write_file("$models/one.gguf", 'one');
answer(q(ALTER SERVER one OPTIONS (SET file 'one.gguf')));

# Other encodings
$node->safe_psql('postgres',
	q(CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'));
$node->safe_psql('latin', 'CREATE EXTENSION pg_finetune');
$node->safe_psql('latin',
	q(CREATE SERVER one TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf')));
is( $node->safe_psql('latin', q(SELECT complete('one', chr(233)) = 'echo: ' || chr(233))),
	't', 'a prompt in LATIN1');
$node->safe_psql('postgres',
	q(CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'));
$node->safe_psql('bytes', 'CREATE EXTENSION pg_finetune');
$node->safe_psql('bytes',
	q(CREATE SERVER one TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf')));
is((sqlstate_of($node, q(SELECT complete('one', E'\xff')), db => 'bytes'))[0],
	'22021', 'a prompt that is no UTF-8');

# Tuned models: weights from the catalog to the engine
store_adapter($node, 'tuned', { prefix => 'tuned ', 'adapter_config.json' => '{}' });
is(answer(q(SELECT complete('tuned', 'x'))), 'tuned echo: x', 'an answer by an adapter');
is(answer(q(SELECT complete('one', 'x'))), 'echo: x', 'the base beside it is untouched');
store_adapter($node, 'large', { a => 'x' x 2500000, empty => '', prefix => 'large ' });
is(answer(q(SELECT count(*) FROM finetune.weights JOIN finetune.model ON model_id = id WHERE name = 'large')),
	5, 'large files are stored in parts');
is(answer(q(SELECT complete('large', 'x'))), 'large echo: x', 'an answer by a large adapter');
answer(q(BEGIN; ALTER SERVER tuned RENAME TO t; ALTER SERVER large RENAME TO tuned; ALTER SERVER t RENAME TO large; COMMIT));
is( answer(q(SELECT complete('tuned', 'x') || ', ' || complete('large', 'x'))),
	'large echo: x, tuned echo: x', 'two models swap names');
answer(q(CREATE SERVER bare TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune));
fails(q(SELECT complete('bare', 'x')), '55000', qr/model "bare" has no weights/, 'no weights');
answer(q(INSERT INTO finetune.model (id, name, kind, base_id, job) SELECT gen_random_uuid(), 'bare', 'lora', id, gen_random_uuid() FROM finetune.model WHERE name = 'one'));
fails(q(SELECT complete('bare', 'x')), '55000', qr/model "bare" is still being trained/,
	'not trained yet');

# Weights that are not what was stored are never served
for my $case (
	[ changed => q(UPDATE finetune.weights SET data = 'other' WHERE part = 1), qr/part 1 of the model's weights is damaged/ ],
	[ missing => q(DELETE FROM finetune.weights WHERE part = 1), qr/part 1 of the model's weights is missing/ ],
	[ cut => q(DELETE FROM finetune.weights WHERE part = 2), qr/not those that were stored/ ],
	[ swapped => q(UPDATE finetune.weights SET file = 'z' WHERE part = 2), qr/not those that were stored/ ],
	[ named => q(UPDATE finetune.weights SET file = repeat('z', 300) WHERE part = 0), qr/could not create file ".*": File name too long/, 'XX000' ],
	[ renamed => q(UPDATE finetune.weights SET file = '../z' WHERE part = 0), qr/part 0 of the model's weights has a bad file name/ ])
{
	my ($name, $damage, $pattern, $state) = @$case;

	store_adapter($node, $name, { a => "$name a", b => 'b', prefix => $name });
	answer("$damage AND model_id = (SELECT id FROM finetune.model WHERE name = '$name')");
	fails(qq(SELECT complete('$name', 'x')), $state // 'XX001', $pattern, "weights $name");
}
store_adapter($node, 'strange', { prefix => 'strange ' });
answer(q(UPDATE finetune.model SET weights_digest = '../' || weights_digest WHERE name = 'strange'));
fails(q(SELECT complete('strange', 'x')), 'XX001', qr/the digest of the model's weights is damaged/, 'a digest that is none');
is(scalar(() = glob($node->data_dir . '/pgsql_tmp_finetune/cache/*tmp*')),
	0, 'nothing is left of them in the cache');

# A damaged cache is replaced
my $digest = store_adapter($node, 'cached', { prefix => 'cached ' });
is(answer(q(SELECT complete('cached', 'x'))), 'cached echo: x', 'an adapter in the cache');
$node->stop;
my $cache = $node->data_dir . '/pgsql_tmp_finetune/cache';
write_file("$cache/$digest/prefix", 'wrong ');
for my $entry ("$cache/unused", "$cache/killed.tmp.1", "$cache/new")
{
	mkdir $entry;
	my $age = $entry =~ /unused/ ? 8 * 24 * 3600 : $entry =~ /killed/ ? 2 * 3600 : 0;
	utime time - $age, time - $age, $entry;
}
$node->start;
chmod 0, "$cache/$digest/prefix" or die;
fails(q(SELECT complete('cached', 'x')), '42501', qr/could not open file ".*prefix": Permission denied/,
	'a file of the cache that cannot be read');
chmod 0600, "$cache/$digest/prefix" or die;
is(answer(q(SELECT complete('cached', 'x'))), 'cached echo: x', 'is written again when damaged');
is(join(' ', map { -e "$cache/$_" ? 1 : 0 } qw(unused killed.tmp.1 new)),
	'0 0 1', 'what is old or was left unfinished is removed');

# A base with other bytes is refused by name
store_adapter($node, 'older', { prefix => 'older ' }, base_digest => 'zero');
fails(q(SELECT complete('older', 'x')), '55000',
	qr/base model "one" has changed since "older" was trained.*HINT/s, 'a changed base');

# A statement that ends takes its request along.  Its time is long enough for the
# request to be sent, and the session has the catalog in its caches.
my $offset = -s $node->logfile;
fails(q(SELECT complete('one', 'x'); SET statement_timeout = '3s'; SELECT complete('one', 'sleep')),
	'57014', qr/statement timeout/, 'statement_timeout');
ok(wait_until(sub { log_count($node, qr/a request was dropped/, $offset) == 1 }),
	'the engine was told of it');
fails(q(SET pg_finetune.request_timeout = '300ms'; SELECT complete('one', 'sleep')),
	'57P03', qr/the engine did not answer in time/, 'request_timeout');
ok(wait_until(sub { log_count($node, qr/a request was dropped/, $offset) == 2 }),
	'the engine was told of that');
my $session = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $session->query(q(SELECT pg_backend_pid()));
$session->query_until(qr/asleep/, "\\echo asleep\nSELECT complete('one', 'sleep');\n");
ok(wait_until(
	sub { answer("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND wait_event_type = 'Extension'") eq '1' }),
	'a request waits');
answer("SELECT pg_terminate_backend($pid)");
ok(wait_until(sub { log_count($node, qr/a request was dropped/, $offset) == 3 }),
	'pg_terminate_backend ends it');
$session->{run}->finish;

# No text of a prompt, read from a table, in any error
my $canary = 'canary' . 4711;
answer("CREATE TABLE secret AS SELECT '$canary'::text AS p");
$offset = -s $node->logfile;
for my $call (
	"'two', p", "'one', 'fail internal ' || p", "'gone', p", "'bad', p",
	"'one', 'die ' || p", "'one', p, '{\"temp\": 1}'",
	"'one', 'x', jsonb_build_object('system', p, 'top_p', 9)",
	"'one', 'x', jsonb_build_object('stop', ARRAY[p, ''])",
	"'one', jsonb_build_array(p)",
	"'one', 'x', jsonb_build_object('response_format', jsonb_build_object('type', p))",
	"'one', 'x', jsonb_build_object('temperature', p)",
	"'one', jsonb_build_array(jsonb_build_object('role', p, 'content', p))")
{
	my ($state, $words) = sqlstate_of($node, "SELECT complete($call) FROM secret");

	like($state, qr/^(42704|XX000|58P01|XX001|57P03|22023|0A000)$/, "an error of $call");
	unlike($words, qr/$canary/, "without its prompt");
}
is(log_count($node, qr/$canary/, $offset), 0, 'nor is it in the server log');

# The engine's end is that of its requests
my $engine = engine_pid($node);
fails(q(SELECT complete('one', 'die')), '57P03', qr/the engine ended while it worked on a request/, 'an engine that dies');
ok(wait_until(sub { engine_pid($node) != $engine }), 'is started again');
is(answer(q(SELECT complete('one', 'x'))), 'echo: x', 'the next one answers');
$engine = engine_pid($node);
fails(q(SELECT complete('one', p) FROM (VALUES ('x'), ('die')) t (p)), '57P03',
	qr/the engine ended while it worked on a request/,
	'over a connection that served before');
ok(wait_until(sub { engine_pid($node) != $engine }), 'another one is started');
$engine = engine_pid($node);
is(answer(q(SELECT complete('one', 'x'))), 'echo: x', 'and answers');
is(engine_pid($node), $engine, 'what killed one is not given to the next');

# The engine can be turned off, and on again
$node->append_conf('postgresql.conf', 'pg_finetune.serve = off');
$node->reload;
$engine = engine_pid($node);
ok(wait_until(sub { !is_running($engine) }), 'the engine ends when it is turned off');
fails(q(SELECT complete('one', 'x')), '57P03', qr/the engine is turned off.*HINT:.*pg_finetune.serve/s,
	'turned off');
$node->append_conf('postgresql.conf', "pg_finetune.serve = on\npg_finetune.threads = 3");
$node->reload;
ok(wait_until(sub { engine_pid($node) != $engine }), 'it starts when it is turned on');
is(answer(q(SELECT complete('one', 'x'))), 'echo: x', 'and answers');
is(logged_times($node, qr/listening, threads 3/, 1), 1, 'with the settings of now');

$node->stop;
done_testing();
