-- The functions that ask a model: what they take and return, and their properties.
SELECT plan(25);

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

SELECT * FROM finish();
