-- What CREATE EXTENSION makes for jobs: names, types, properties and rights.
SELECT plan(45);

-- tables
SELECT has_table('finetune', t, 'table finetune.' || t) FROM unnest(ARRAY['job', 'metric', 'event']) t;
SELECT ok(NOT has_table_privilege('public', 'finetune.' || t, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER'),
		  'nobody may do anything to finetune.' || t)
FROM unnest(ARRAY['job', 'metric', 'event', 'job_detail']) t;
SELECT col_is_pk('finetune', 'job', 'id', 'key of jobs');
SELECT col_is_pk('finetune', 'metric', ARRAY['job_id', 'step'], 'key of metrics');
SELECT col_is_pk('finetune', 'event', ARRAY['job_id', 'number'], 'key of events');
SELECT trigger_is('finetune', 'job', 'cascade', 'finetune', 'row_deleted', 'metrics and events go with their job');
SELECT is(tgenabled::text, 'A', 'whoever deletes it')
FROM pg_trigger WHERE tgrelid = 'finetune.job'::regclass AND tgname = 'cascade';
SELECT ok(ARRAY['finetune.job', 'finetune.metric', 'finetune.event']::regclass[]::oid[] <@ extconfig,
		  'pg_dump takes jobs, metrics and events along')
FROM pg_extension WHERE extname = 'pg_finetune';
SELECT is_empty($$SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
	WHERE attrelid IN ('finetune.job'::regclass, 'finetune.metric'::regclass, 'finetune.event'::regclass)
	AND atttypid IN ('regproc'::regtype, 'regprocedure'::regtype, 'regoper'::regtype, 'regoperator'::regtype,
					 'regconfig'::regtype, 'regdictionary'::regtype, 'regnamespace'::regtype, 'regcollation'::regtype)$$,
	'no column that pg_upgrade refuses');

-- views
SELECT has_view('finetune', v, 'view finetune.' || v) FROM unnest(ARRAY['jobs', 'metrics', 'events', 'progress']) v;
SELECT ok(has_table_privilege('public', 'finetune.' || v, 'SELECT'), 'everybody may read finetune.' || v)
FROM unnest(ARRAY['jobs', 'metrics', 'events', 'progress']) v;
SELECT ok(NOT has_table_privilege('public', 'finetune.' || v, 'INSERT, UPDATE, DELETE'), 'and not write finetune.' || v)
FROM unnest(ARRAY['jobs', 'metrics', 'events', 'progress']) v;
SELECT ok('security_barrier=true' = ANY (reloptions) OR 'security_barrier' = ANY (reloptions),
		  oid::regclass || ' is a security barrier')
FROM pg_class
WHERE oid IN ('finetune.jobs'::regclass, 'finetune.metrics'::regclass, 'finetune.events'::regclass)
ORDER BY oid;
SELECT columns_are('finetune', 'metrics', ARRAY['job_id', 'step', 'epoch', 'training_loss', 'validation_loss',
	'validation_token_accuracy', 'learning_rate', 'grad_norm', 'tokens', 'elapsed']);
SELECT columns_are('finetune', 'events', ARRAY['job_id', 'at', 'level', 'type', 'message', 'data']);
SELECT columns_are('finetune', 'progress', ARRAY['pid', 'datid', 'datname', 'job_id', 'phase', 'steps_total',
	'steps_done', 'training_loss', 'tokens_per_second', 'time_left']);
SELECT col_type_is('finetune', v, 'job_id', 'text', v || '.job_id is text')
FROM unnest(ARRAY['jobs', 'metrics', 'events', 'progress']) v;

-- finetune(), by number of arguments
SELECT function_returns('public', 'finetune', ARRAY['text'], 'jsonb');
SELECT function_returns('public', 'finetune', ARRAY['text', 'text'], 'jsonb');
SELECT function_returns('public', 'finetune', ARRAY['text', 'text', 'text'], 'text');
SELECT function_returns('public', 'finetune', ARRAY['text', 'text', 'text', 'text', 'text', 'jsonb'], 'text');
SELECT is(format('%s %s %s', string_agg(DISTINCT provolatile::text, ''), string_agg(DISTINCT proparallel::text, ''),
				 bool_or(proisstrict)), 'v u f', 'finetune is volatile, parallel unsafe and not strict')
FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname = 'finetune';

-- comments
SELECT is_empty($$SELECT p.oid::regprocedure FROM pg_proc p
	WHERE pronamespace = 'public'::regnamespace AND proname = 'finetune'
	AND obj_description(p.oid, 'pg_proc') IS NULL$$, 'every form of finetune has a comment');
SELECT is_empty($$SELECT c.oid::regclass FROM pg_class c
	WHERE relnamespace = 'finetune'::regnamespace AND relkind IN ('r', 'v')
	AND relname IN ('job', 'metric', 'event', 'job_detail', 'jobs', 'metrics', 'events', 'progress')
	AND obj_description(c.oid, 'pg_class') IS NULL$$, 'every table and view of jobs has one');

-- what a row may hold
SELECT throws_ok($$INSERT INTO finetune.job (id, model_id, model_name, base_id, base_name, owner, search_path,
	training_query, options, phase) VALUES (gen_random_uuid(), gen_random_uuid(), 'm', gen_random_uuid(), 'b',
	current_user::regrole, '', '', '{}', 'completed')$$, '23514', NULL, 'a job that has ended has ended at some time');
SELECT throws_ok($$INSERT INTO finetune.job (id, model_id, model_name, base_id, base_name, owner, search_path,
	training_query, options, phase) VALUES (gen_random_uuid(), gen_random_uuid(), 'm', gen_random_uuid(), 'b',
	current_user::regrole, '', '', '{}', 'dreaming')$$, '23514', NULL, 'there are no other phases');

SELECT * FROM finish();
