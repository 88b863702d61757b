-- The functions that ask a model: what they take and return, and their properties.
SELECT plan(46);

SELECT has_function('public', 'try_complete', ARRAY['text', 'text']);
SELECT has_function('public', 'try_complete', ARRAY['text', 'text', 'jsonb']);
SELECT has_function('public', 'try_complete', ARRAY['text', 'jsonb', 'jsonb']);
SELECT function_returns('public', 'try_complete', ARRAY['text', 'text'], 'text');
SELECT function_returns('public', 'try_complete', ARRAY['text', 'text', 'jsonb'], 'jsonb');
SELECT function_returns('public', 'try_complete', ARRAY['text', 'jsonb', 'jsonb'], 'jsonb');
SELECT function_returns('public', 'tokenize', ARRAY['text', 'text'], 'integer[]');
SELECT function_returns('public', 'detokenize', ARRAY['text', 'integer[]'], 'text');

-- try_complete() is complete() in all but its name and its errors
SELECT results_eq($$SELECT pg_get_function_arguments(oid), prorettype, provolatile, proparallel, proisstrict, procost
		FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname = 'try_complete' ORDER BY 1$$,
	$$SELECT pg_get_function_arguments(oid), prorettype, provolatile, proparallel, proisstrict, procost
		FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname = 'complete' ORDER BY 1$$,
	'try_complete() has the forms and properties of complete()');
SELECT is(format('%s %s %s %s', provolatile, proparallel, proisstrict, prosecdef), 'v r t f',
		  p.oid::regprocedure || ' is volatile, parallel restricted, strict, and runs as its caller')
FROM pg_proc p
WHERE pronamespace = 'public'::regnamespace
	AND proname IN ('complete', 'try_complete', 'count_tokens', 'tokenize', 'detokenize')
ORDER BY p.oid::regprocedure::text;
SELECT ok(has_function_privilege('public', f, 'EXECUTE'), f || ' is for everybody')
FROM unnest(ARRAY['try_complete(text, text)', 'tokenize(text, text)', 'detokenize(text, integer[])', 'complete(text, text)',
				  'count_tokens(text, text)']) f;

-- a literal in second place is a prompt, also where the model is not known
SELECT throws_ok($$SELECT complete('no such', '[]')$$, '42704', 'model "no such" does not exist', 'complete() says what is wrong');
SELECT is(try_complete('no such', '[]'), NULL, 'try_complete() does not');

-- which plans have many rows in flight: shown by EXPLAIN, in text and in JSON
CREATE TABLE question (id int, m text, p text);
CREATE FUNCTION plan_of(query text, form text DEFAULT 'TEXT') RETURNS text LANGUAGE plpgsql AS $$
	DECLARE line text; lines text := '';
	BEGIN
		FOR line IN EXECUTE format('EXPLAIN (VERBOSE, COSTS OFF, FORMAT %s) %s', form, query) LOOP lines := lines || line; END LOOP;
		RETURN lines;
	END $$;
SELECT matches(plan_of(q), 'Custom Scan \(Rows in Flight\)', q)
FROM unnest(ARRAY['SELECT complete(m, p) FROM question', 'SELECT id, try_complete(m, p, ''{}'')->>''model'' FROM question ORDER BY id LIMIT 3',
				  'INSERT INTO question SELECT id, m, complete(m, p) FROM question', 'SELECT count(c) FROM (SELECT complete(m, p) AS c FROM question) s',
				  'WITH w AS (SELECT complete(m, p) FROM question) TABLE w']) q;
SELECT doesnt_match(plan_of(q), 'Rows in Flight', q)
FROM unnest(ARRAY['SELECT CASE WHEN id > 1 THEN complete(m, p) END FROM question', 'SELECT complete(m, p) FROM question ORDER BY 1',
				  'SELECT DISTINCT complete(m, p) FROM question', 'SELECT complete(m, p) FROM question FOR UPDATE',
				  'SELECT complete(m, p), row_number() OVER () FROM question', 'SELECT count(complete(m, p)) FROM question',
				  'SELECT complete(''m'', ''p'')', 'UPDATE question SET p = complete(m, p)']) q;
SELECT is(plan_of('SELECT complete(m, p) FROM question', 'JSON')::jsonb #>> '{0,Plan,Custom Plan Provider}', 'Rows in Flight', 'in JSON');
SELECT is(plan_of('SELECT id, complete(m, p) FROM question', 'JSON')::jsonb #> '{0,Plan,Output}', '["id", "(complete(m, p))"]', 'with its output');

-- what a call costs: as long as its answer may get, when that is known
CREATE FUNCTION cost_of(expr text) RETURNS int LANGUAGE plpgsql AS $$
	DECLARE plan json;
	BEGIN
		EXECUTE format('EXPLAIN (FORMAT JSON) SELECT %s FROM (SELECT FROM question LIMIT 1000) s, (VALUES (''m'', ''p'')) v (m, p)', expr) INTO plan;
		RETURN round((plan #>> '{0,Plan,Total Cost}')::numeric / 1000);
	END $$;
INSERT INTO question SELECT i FROM generate_series(1, 1000) i;
ANALYZE question;
SELECT is(cost_of(expr), 25, expr)
FROM unnest(ARRAY['complete(m, p)', 'try_complete(m, p, ''{"max_tokens": 4096}'')', 'complete(m, p, ''{"max_tokens": "x"}'')']) expr;
SELECT cmp_ok(cost_of(expr), '<', 2, expr)
FROM unnest(ARRAY['complete(m, p, ''{"max_tokens": 1}'')', 'try_complete(m, messages => ''[]'', options => ''{"max_tokens": 1}'')']) expr;
SELECT matches(plan_of($$SELECT FROM question WHERE complete(m, p, '{"max_tokens": 90}') IS NULL AND complete(m, p, '{"max_tokens": 3}') IS NULL$$),
	'Filter: .*"max_tokens": 3}.*"max_tokens": 90}', 'what is answered sooner is asked first');

SELECT * FROM finish();
