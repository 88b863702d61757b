-- What is wrong with a call of finetune() is said at once, with what would be right.
-- Files and data that are bad: test/tap/012_bad_input.pl.
SET client_min_messages = error;	-- the base's file is not there, and nothing here looks for it
CREATE EXTENSION pg_finetune;
CREATE SERVER base TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'absent.gguf');
RESET client_min_messages;
CREATE TABLE t (prompt text, completion text, n int, doc jsonb);
CREATE FUNCTION try(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
	detail text;
BEGIN
	EXECUTE query;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT, detail = PG_EXCEPTION_DETAIL;
	RETURN format(E'%s %s%s%s', SQLSTATE, SQLERRM,
				  coalesce(E'\n  detail: ' || nullif(detail, ''), ''),
				  coalesce(E'\n  hint: ' || nullif(hint, ''), ''));
END
$$;
CREATE FUNCTION try_create(query text, validation text DEFAULT NULL, options jsonb DEFAULT '{}',
						   model text DEFAULT 'm', base text DEFAULT 'base')
	RETURNS text LANGUAGE sql
	RETURN try(format('SELECT finetune(''CREATE'', %L, %L, %L, %L, %L)', model, base, query,
					  validation, options));
\pset format unaligned
\pset tuples_only on

-- Actions, and how many arguments they take
SELECT try('SELECT finetune(''TRAIN'')');
SELECT try('SELECT finetune('''', ''ft_x'')');
SELECT try('SELECT finetune(''train'', ''m'', ''base'')');
SELECT try('SELECT finetune(''train'', ''m'', ''base'', ''TABLE t'')');
SELECT try('SELECT finetune(NULL)');
SELECT try('SELECT finetune(''CREATE'')');
SELECT try('SELECT finetune(''CREATE'', ''m'')');
SELECT try('SELECT finetune(''create'', ''m'', ''base'')');
SELECT try('SELECT finetune(''SHOW'', ''x'')');
SELECT try('SELECT finetune(''Show'', ''x'', ''y'')');
SELECT try('SELECT finetune(''SHOW'', ''x'', ''y'', ''z'')');
SELECT try('SELECT finetune(''DESCRIBE'')');
SELECT try('SELECT finetune(''cancel'')');
SELECT try('SELECT finetune(''DESCRIBE'', NULL)');
SELECT try('SELECT finetune(''DESCRIBE'', ''x'')');
SELECT try('SELECT finetune(''DESCRIBE'', ''ft_0'')');
SELECT try('SELECT finetune(''DESCRIBE'', ''00000000-0000-0000-0000-000000000000'')');
SELECT try('SELECT finetune(''DESCRIBE'', ''ft_00000000-0000-0000-0000-000000000000'')');
SELECT try('SELECT finetune(''CANCEL'', ''ft_00000000-0000-0000-0000-000000000000'')');
SELECT try('SELECT finetune(''DELETE'', ''ft_00000000-0000-0000-0000-000000000000'')');
SELECT try('SELECT finetune(''PAUSE'', ''ft_00000000-0000-0000-0000-000000000000'')');
SELECT try('SELECT finetune(''RESUME'', ''ft_00000000-0000-0000-0000-000000000000'')');
SELECT finetune('SHOW');
SELECT finetune('show');

-- Names
SELECT try_create('TABLE t', base => 'nosuch');
SELECT try_create('TABLE t', base => NULL);
SELECT try_create('TABLE t', model => NULL);
SELECT try_create('TABLE t', model => '');
SELECT try_create('TABLE t', model => repeat('x', 64));
SELECT try_create('TABLE t', model => 'base');
SELECT try_create(NULL);

-- Queries
SELECT try_create('');
SELECT try_create('-- nothing');
SELECT try_create('selct');
SELECT try_create('SELECT 1; SELECT 2');
SELECT try_create('DELETE FROM t');
SELECT try_create('INSERT INTO t VALUES (1) RETURNING prompt, completion');
SELECT try_create('CREATE TABLE x (prompt text)');
SELECT try_create('EXPLAIN SELECT 1');
SELECT try_create('WITH x AS (DELETE FROM t RETURNING *) SELECT prompt, completion FROM x');
SELECT try_create('SELECT prompt, completion FROM t FOR UPDATE');
SELECT try_create('SELECT * FROM (SELECT prompt, completion FROM t FOR SHARE) x');
SELECT try_create('SELECT prompt, completion INTO x FROM t');
SELECT try_create('SELECT prompt, completion INTO x FROM t UNION SELECT prompt, completion FROM t');
SELECT try_create('SELECT prompt, completion FROM t WHERE n = $1');
SELECT try_create('SELECT prompt, completion FROM nosuch');
SELECT try_create('SELECT prompt, nosuch FROM t');
CREATE TEMPORARY TABLE fleeting (prompt text, completion text);
SELECT try_create('TABLE fleeting');
SELECT try_create('SELECT prompt, (SELECT max(f.completion) FROM fleeting f) AS completion FROM t');
SELECT try_create('TABLE t', 'DELETE FROM t');
SELECT try_create('TABLE t', 'SELECT n FROM t');

-- Columns
SELECT try_create('SELECT prompt FROM t');
SELECT try_create('SELECT completion FROM t');
SELECT try_create('SELECT n FROM t');
SELECT try_create('SELECT FROM t');
SELECT try_create('SELECT prompt, n AS completion FROM t');
SELECT try_create('SELECT n AS prompt, completion FROM t');
SELECT try_create('SELECT n AS text FROM t');
SELECT try_create('SELECT prompt AS messages FROM t');
SELECT try_create('SELECT prompt, completion, prompt AS text FROM t');
SELECT try_create('SELECT prompt, completion, doc AS messages FROM t');
SELECT try_create('SELECT prompt, completion, completion FROM t');
SELECT try_create('SELECT prompt, prompt AS text FROM t');
SELECT try_create('SELECT prompt, completion, completion AS chosen FROM t');
SELECT try_create('SELECT doc AS messages, ARRAY[1] AS input_ids FROM t');
SELECT try_create('SELECT prompt AS text, n AS labels FROM t');
SELECT try_create('SELECT prompt, completion AS chosen, completion AS rejected FROM t');
SELECT try_create('SELECT completion AS chosen FROM t');
SELECT try_create('SELECT ARRAY[1] AS labels FROM t');
SELECT try_create('SELECT ARRAY[1] AS attention_mask, 1.0 AS weight FROM t');
SELECT try_create('SELECT 1.0 AS weight FROM t');
SELECT try_create('SELECT n AS input_ids FROM t');
SELECT try_create('SELECT ARRAY[''1''] AS input_ids FROM t');
SELECT try_create('SELECT ARRAY[1.0] AS input_ids FROM t');
SELECT try_create('SELECT ARRAY[1] AS input_ids, prompt AS labels FROM t');
SELECT try_create('SELECT ARRAY[1] AS input_ids, ARRAY[true] AS attention_mask FROM t');
SELECT try_create('SELECT prompt, completion, prompt AS weight FROM t');
SELECT try_create('SELECT prompt, completion, ARRAY[1.0] AS weight FROM t');
SELECT try_create('SELECT prompt, completion, 1 AS weight, 2 AS weight FROM t');

-- What is a query passes all of this, and ends at the file
SELECT try_create('TABLE t') ~ 'absent.gguf';
SELECT try_create('VALUES (1)');
SELECT try_create('SELECT * FROM (VALUES (''a'', ''b'')) v (prompt, completion)') ~ 'absent.gguf';
SELECT try_create('WITH x AS (TABLE t) SELECT * FROM x ORDER BY n LIMIT 3;') ~ 'absent.gguf';
SELECT try_create('SELECT doc AS messages FROM t') ~ 'absent.gguf';
SELECT try_create('SELECT ARRAY[1] AS input_ids FROM t') ~ 'absent.gguf';
CREATE DOMAIN ids AS bigint[];
SELECT try_create('SELECT ARRAY[1]::ids AS input_ids, ARRAY[1]::smallint[] AS labels, ARRAY[1] AS attention_mask,
	n AS weight FROM t') ~ 'absent.gguf';
SELECT type, try_create(format('SELECT prompt, completion, 1::%s AS weight FROM t', type)) ~ 'absent.gguf'
	FROM unnest('{smallint,integer,bigint,real,double precision,numeric}'::text[]) type;
SELECT try_create('SELECT prompt::varchar(10) AS text, n FROM t', 'SELECT ''x'' AS text') ~ 'absent.gguf';

-- Preference pairs, for the method that trains on them
SELECT try_create('SELECT prompt, completion AS chosen, prompt AS rejected, n AS weight FROM t',
	options => '{"method": "dpo", "dpo_beta": 0.2}') ~ 'absent.gguf';
SELECT try_create('TABLE t', options => '{"method": "dpo"}');
SELECT try_create('SELECT doc AS messages FROM t', options => '{"method": "dpo"}');
SELECT try_create('SELECT prompt, completion AS chosen FROM t', options => '{"method": "dpo"}');
SELECT try_create('SELECT prompt, completion AS chosen, n AS rejected FROM t', options => '{"method": "dpo"}');
SELECT try_create('SELECT prompt, completion AS chosen, prompt AS rejected FROM t', 'TABLE t', '{"method": "dpo"}');
SELECT try_create('TABLE t', 'SELECT prompt, completion AS chosen, prompt AS rejected FROM t');
SELECT try_create('TABLE t', options => '{"dpo_beta": 0.2}');
SELECT try_create('TABLE t', options => '{"method": "dpo", "dpo_beta": 0}');
SELECT try_create('TABLE t', options => '{"method": "dpo", "dpo_beta": "auto"}');
SELECT try_create('TABLE t', options => '{"method": "dpo", "train_on_inputs": true}');

-- Options
SELECT try_create('TABLE t', options => '[]');
SELECT try_create('TABLE t', options => '"lora_r"');
SELECT try_create('TABLE t', options => '{"lora_rank": 3}');
SELECT try_create('TABLE t', options => '{"lora_r": 0}');
SELECT try_create('TABLE t', options => '{"lora_r": 1.5}');
SELECT try_create('TABLE t', options => '{"lora_r": "16"}');
SELECT try_create('TABLE t', options => '{"lora_r": "auto"}');
SELECT try_create('TABLE t', options => '{"lora_alpha": 0}');
SELECT try_create('TABLE t', options => '{"max_epochs": 51}');
SELECT try_create('TABLE t', options => '{"max_epochs": "many"}');
SELECT try_create('TABLE t', options => '{"max_steps": -1}');
SELECT try_create('TABLE t', options => '{"learning_rate": -1e-4}');
SELECT try_create('TABLE t', options => '{"learning_rate": true}');
SELECT try_create('TABLE t', options => '{"lora_dropout": 1}');
SELECT try_create('TABLE t', options => '{"lora_dropout": 0.1}') ~ 'absent.gguf';
SELECT try_create('TABLE t', options => '{"packing": "yes"}');
SELECT try_create('TABLE t', options => '{"lr_scheduler": "step"}');
SELECT try_create('TABLE t', options => '{"method": "prefix"}');
SELECT try_create('TABLE t', options => '{"method": "full", "prompt_template": "{prompt}"}');
SELECT try_create('TABLE t', options => '{"method": ["lora"]}');
SELECT try_create('TABLE t', options => '{"lora_target_modules": "all"}');
SELECT try_create('TABLE t', options => '{"lora_target_modules": []}');
SELECT try_create('TABLE t', options => '{"lora_target_modules": ["q_proj", "lm_head"]}');
SELECT try_create('TABLE t', options => '{"lora_target_modules": ["q_proj", "q_proj"]}');
SELECT try_create('TABLE t', options => '{"validation_fraction": 1}');
SELECT try_create('TABLE t', options => '{"seed": {"a": 1}}');
SELECT try_create('TABLE t', options => '{"from_model": 1}');
SELECT try_create('TABLE t', options => '{"prompt_template": "m"}');
SELECT try_create('TABLE t', options => '{"dpo_beta": 0.1}');
SELECT try_create('TABLE t', options => '{"early_stopping_patience": 0}');
SELECT try_create('TABLE t', options => '{"early_stopping_patience": 2, "validation_fraction": 0}');
SELECT try_create('TABLE t', options => '{"method": "full", "lora_r": 8}');
SELECT try_create('TABLE t', options => '{"method": "full", "lora_alpha": "auto"}');
SELECT try_create('TABLE t', options => '{"method": "full", "lora_dropout": 0}');
SELECT try_create('TABLE t', options => '{"method": "full", "lora_target_modules": "all-linear"}');
SELECT try_create('TABLE t', options => '{"method": "full", "use_rslora": false}');
SELECT try_create('TABLE t', options => '{"method": "full", "storage": "disk"}');
SELECT try_create('TABLE t', options => '{"storage": "file"}');
SELECT try_create('TABLE t', options => '{"method": "full", "lora_r": null, "storage": "database"}') ~ 'absent.gguf';
SELECT try_create('TABLE t', options => '{"lora_r": 16.0, "lora_alpha": "auto", "max_epochs": "auto",
	"learning_rate": null, "lora_target_modules": ["q_proj", "v_proj"], "method": "lora"}') ~ 'absent.gguf';
SELECT try_create('TABLE t', options => NULL) ~ 'absent.gguf';

-- Rights
CREATE ROLE regress_finetune;
SET ROLE regress_finetune;
SELECT try_create('TABLE t');
RESET ROLE;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO regress_finetune;
SET ROLE regress_finetune;
SELECT try_create('TABLE t');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER base TO regress_finetune;
SET ROLE regress_finetune;
SELECT try_create('TABLE t');
RESET ROLE;
GRANT SELECT (prompt, completion) ON t TO regress_finetune;
SET ROLE regress_finetune;
SELECT try_create('TABLE t');
SELECT try_create('SELECT prompt, completion FROM t') ~ 'absent.gguf';
RESET ROLE;
CREATE FUNCTION hidden(n int) RETURNS text LANGUAGE sql RETURN 'x';
REVOKE EXECUTE ON FUNCTION hidden FROM PUBLIC;
SET ROLE regress_finetune;
SELECT try_create('SELECT prompt AS text FROM t WHERE completion = hidden(1)');
SELECT try_create('SELECT j->>''text'' AS text FROM finetune.read_jsonl(''absent.jsonl'') j');
RESET ROLE;
GRANT pg_read_server_files TO regress_finetune;
SET ROLE regress_finetune;
SELECT try_create('SELECT j->>''text'' AS text FROM finetune.read_jsonl(''absent.jsonl'') j') ~ 'absent.gguf';
RESET ROLE;

-- A transaction that may not write
BEGIN READ ONLY;
SELECT try_create('TABLE t');
SELECT finetune('SHOW');
COMMIT;

SELECT count(*) FROM finetune.jobs;
SELECT srvname FROM pg_foreign_server;
DROP TABLE t;
DROP DOMAIN ids;
DROP FUNCTION hidden;
DROP OWNED BY regress_finetune;
DROP ROLE regress_finetune;
DROP EXTENSION pg_finetune CASCADE;
