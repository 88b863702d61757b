-- What CREATE EXTENSION makes: names, types, properties and rights.
SELECT plan(48);

SELECT has_schema('finetune');
SELECT ok(NOT has_schema_privilege('public', 'finetune', 'CREATE'), 'nobody may create in the schema');
SELECT ok(has_schema_privilege('public', 'finetune', 'USAGE'), 'everybody may look into the schema');

-- tables
SELECT has_table('finetune', t, 'table finetune.' || t) FROM unnest(ARRAY['model', 'weights', 'job']) t;
SELECT ok(NOT has_table_privilege('public', 'finetune.' || t, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER'),
		  'nobody may do anything to finetune.' || t)
FROM unnest(ARRAY['model', 'weights']) t;
SELECT col_is_pk('finetune', 'model', 'id', 'key of models');
SELECT col_is_unique('finetune', 'model', 'name', 'names of models are unique');
SELECT col_is_pk('finetune', 'weights', ARRAY['model_id', 'part'], 'key of weights');
SELECT trigger_is('finetune', 'model', 'cascade', 'finetune', 'row_deleted', 'weights go with their model');
SELECT is_empty($$SELECT conname FROM pg_constraint WHERE contype = 'f' AND conrelid::regclass::text LIKE 'finetune.%'$$,
	'no foreign keys, which pg_restore -j would violate');
SELECT is(attstorage::text, 'e', 'weights are stored uncompressed, out of line')
FROM pg_attribute WHERE attrelid = 'finetune.weights'::regclass AND attname = 'data';
SELECT ok('finetune.model'::regclass = ANY (extconfig) AND 'finetune.weights'::regclass = ANY (extconfig),
		  'pg_dump takes models and weights along')
FROM pg_extension WHERE extname = 'pg_finetune';

-- views
SELECT has_view('finetune', 'models', 'view finetune.models');
SELECT columns_are('finetune', 'models', ARRAY['name', 'kind', 'status', 'base', 'owner', 'architecture',
	'parameters', 'context_length', 'size', 'created_at', 'job_id', 'training_loss', 'validation_loss',
	'validation_token_accuracy', 'storage']);
SELECT ok(has_table_privilege('public', 'finetune.models', 'SELECT'), 'everybody may read finetune.models');

-- functions that ask a model
SELECT has_function('public', 'complete', ARRAY['text', 'text']);
SELECT has_function('public', 'complete', ARRAY['text', 'text', 'jsonb']);
SELECT has_function('public', 'complete', ARRAY['text', 'jsonb', 'jsonb']);
SELECT function_returns('public', 'complete', ARRAY['text', 'text'], 'text');
SELECT function_returns('public', 'complete', ARRAY['text', 'text', 'jsonb'], 'jsonb');
SELECT function_returns('public', 'complete', ARRAY['text', 'jsonb', 'jsonb'], 'jsonb');
SELECT function_returns('public', 'count_tokens', ARRAY['text', 'text'], 'integer');
SELECT is(format('%s %s %s', provolatile, proparallel, proisstrict), 'v r t',
		  p.oid::regprocedure || ' is volatile, parallel restricted and strict')
FROM pg_proc p
WHERE pronamespace = 'public'::regnamespace AND proname IN ('complete', 'count_tokens')
ORDER BY p.oid::regprocedure::text;
SELECT ok(bool_and(procost >= 1000), 'and costly')
FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname IN ('complete', 'count_tokens');

-- nothing runs with more rights than its caller's, or depends on a search path
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p
	JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_finetune'
	WHERE prosecdef$$, 'no SECURITY DEFINER');
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p
	JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_finetune'
	JOIN pg_language l ON l.oid = prolang
	WHERE lanname <> 'c' AND NOT coalesce(proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false)$$,
	'no function but in C without a search path of its own');

-- the wrapper and its triggers
SELECT is(fdwhandler, 0::oid, 'the wrapper has no handler') FROM pg_foreign_data_wrapper WHERE fdwname = 'pg_finetune';
SELECT is(fdwvalidator, 'finetune.validator(text[],oid)'::regprocedure::oid, 'the wrapper has a validator')
FROM pg_foreign_data_wrapper WHERE fdwname = 'pg_finetune';
SELECT ok(NOT has_foreign_data_wrapper_privilege('public', 'pg_finetune', 'USAGE'), 'not everybody may use the wrapper');
SELECT is(evtenabled::text, 'A', evtname || ' is always enabled')
FROM pg_event_trigger WHERE evtname LIKE 'pg\_finetune%' ORDER BY evtname;
SELECT is(tgenabled::text, 'A', tgname || ' is always enabled')
FROM pg_trigger WHERE tgrelid = 'finetune.model'::regclass AND NOT tgisinternal ORDER BY tgname;

-- rows of servers
CREATE SERVER base TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'no/such.gguf');
SELECT results_eq('SELECT name, kind, base_id IS NULL, weights_digest IS NULL FROM finetune.model',
	$$VALUES ('base' COLLATE "C", 'base', true, true)$$, 'CREATE SERVER makes a row');
INSERT INTO finetune.model (id, name, kind, base_id) SELECT gen_random_uuid(), 'tuned', 'lora', id FROM finetune.model;
CREATE SERVER tuned TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune;
SELECT throws_ok('DROP SERVER base', '2BP01', NULL, 'a server that comes after its row depends on its base');
SELECT throws_ok($$INSERT INTO finetune.model (id, name, kind) VALUES (gen_random_uuid(), 'x', 'lora')$$, '23514',
	NULL, 'a tuned model has a base');
SELECT throws_ok($$CREATE SERVER tuned TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a')$$, '42710',
	NULL, 'a name is taken');
SELECT lives_ok('DROP SERVER base CASCADE', 'a base goes with what depends on it');
SELECT is_empty('SELECT * FROM finetune.model', 'and so do the rows');

SELECT * FROM finish();
