-- Weights in and out: the functions, and what is checked before any file is looked at.
SELECT plan(19);

SELECT function_returns('public', 'finetune_export', ARRAY['text', 'text', 'text'], 'text');
SELECT function_returns('public', 'finetune_import', ARRAY['text', 'text', 'text'], 'void');
SELECT is(pg_get_function_arguments(p.oid), arguments, proname || ': names and defaults')
FROM (VALUES ('finetune_export', 'model text, directory text, format text DEFAULT ''peft''::text'),
			 ('finetune_import', 'model text, base_model text, directory text')) v (name, arguments)
	JOIN pg_proc p ON proname = name AND pronamespace = 'public'::regnamespace
ORDER BY proname;
SELECT isnt(obj_description(oid, 'pg_proc'), NULL, proname || ' has a comment')
FROM pg_proc WHERE proname IN ('finetune_export', 'finetune_import') ORDER BY proname;
SELECT col_type_is('finetune', 'models', 'storage', 'text', 'finetune.models.storage');

CREATE ROLE alice;
CREATE ROLE bob;
CREATE SERVER base TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'no/such.gguf');
CREATE SERVER tuned TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune;
ALTER SERVER tuned OWNER TO CURRENT_USER;
SELECT is(storage || ' ' || status, 'file ready', 'storage of a base') FROM finetune.models WHERE name = 'base';

-- rights
SET ROLE bob;
SELECT throws_ok($$SELECT finetune_export('tuned', '/x')$$, '42501', 'must be owner of foreign server tuned', 'export by a stranger');
SELECT throws_ok($$SELECT finetune_import('m', 'base', '/x')$$, '42501',
	'permission denied for foreign-data wrapper pg_finetune', 'import without USAGE on the wrapper');
RESET ROLE;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO bob;
SET ROLE bob;
SELECT throws_ok($$SELECT finetune_import('m', 'base', '/x')$$, '42501',
	'permission denied for foreign server base', 'import without USAGE on the base');
SELECT throws_ok($$CREATE SERVER mine TYPE 'base' FOREIGN DATA WRAPPER pg_finetune
	OPTIONS (file 'no/such.gguf', storage 'database')$$, '58P01', NULL, 'who may create a base may store one, if it is there');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER base TO bob;
SET ROLE bob;
SELECT throws_ok($$SELECT finetune_import('m', 'base', '/x')$$, '42501', 'permission denied for finetune_import',
	'import without the right to read files');
RESET ROLE;
GRANT pg_read_server_files TO bob;
SET ROLE bob;
SELECT throws_ok($$SELECT finetune_import('m', 'base', '/no/such/directory')$$, '58P01', NULL, 'import with all rights');
RESET ROLE;
GRANT bob TO alice;
ALTER SERVER tuned OWNER TO bob;
SET ROLE alice;
SELECT throws_ok($$SELECT finetune_export('tuned', '/x')$$, '42501', 'permission denied for finetune_export',
	'export by a member of the owner role, without the right to write files');
RESET ROLE;
GRANT pg_write_server_files TO alice;
SET ROLE alice;
SELECT throws_ok($$SELECT finetune_export('tuned', '/x')$$, '55000', 'model "tuned" has no weights', 'export with all rights');
RESET ROLE;

-- a dump is being loaded: its weights come later
SET check_function_bodies = off;
SELECT lives_ok($$CREATE SERVER dumped TYPE 'base' FOREIGN DATA WRAPPER pg_finetune
	OPTIONS (file 'no/such.gguf', storage 'database')$$, 'a dump creates bases before their weights');
SELECT is(storage || ' ' || status, 'database missing', 'which are missing') FROM finetune.models WHERE name = 'dumped';
RESET check_function_bodies;
SELECT throws_ok($$SELECT complete('dumped', 'x')$$, '55000', 'the file of base model "dumped" is not in the database',
	'and said to be');

SELECT * FROM finish();
