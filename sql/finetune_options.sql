-- Each option of finetune('CREATE', ...): what it may not be, and what it may be at its bounds.
SET client_min_messages = error;	-- the base's file is not there, and nothing here looks for it
CREATE EXTENSION pg_finetune;
CREATE SERVER base TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'absent.gguf');
RESET client_min_messages;
CREATE TABLE t (prompt text, completion text, doc jsonb);
-- What an option with a value is told; with good ones all goes well up to the missing file.
CREATE FUNCTION try_option(option text, value jsonb, query text DEFAULT 'SELECT prompt, completion FROM t',
					validation text DEFAULT NULL)
	RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	PERFORM finetune('CREATE', 'm', 'base', query, validation, jsonb_build_object(option, value));
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN CASE WHEN SQLERRM ~ 'absent.gguf' THEN 'good'
				ELSE format(E'%s %s%s', SQLSTATE, SQLERRM, E'\n  hint: ' || nullif(hint, '')) END;
END
$$;
\pset format unaligned
\pset tuples_only on

-- Numbers: of another type, beyond the bounds, at them, and unset
CREATE TABLE number_option (name text, least jsonb, most jsonb, below jsonb, above jsonb, is_integer bool, auto bool);
INSERT INTO number_option VALUES
	('max_epochs', '1', '50', '0', '51', true, true),
	('max_steps', '1', '2147483647', '0', '2147483648', true, true),
	('lora_r', '1', '512', '0', '513', true, false),
	('lora_alpha', '0.000001', '65536', '0', '65536.5', false, true),
	('lora_dropout', '0', '0.999', '-0.1', '1', false, false),
	('learning_rate', '1e-12', '1', '0', '1.01', false, true),
	('min_lr_ratio', '0', '1', '-0.01', '1.01', false, true),
	('warmup_ratio', '0', '1', '-0.01', '1.01', false, false),
	('weight_decay', '0', '1', '-0.01', '1.01', false, false),
	('max_grad_norm', '1e-6', '1e6', '0', '1000001', false, false),
	('batch_size', '1', '2147483647', '0', '2147483648', true, true),
	('gradient_accumulation_steps', '1', '4096', '0', '4097', true, true),
	('max_seq_length', '16', '1048576', '15', '1048577', true, true),
	('n_evals', '0', '10000', '-1', '10001', true, false),
	('validation_fraction', '0', '0.9', '-0.1', '0.91', false, false),
	('seed', '0', '9007199254740991', '-1', '9007199254740992', true, false),
	('priority', '-1000', '1000', '-1001', '1001', true, false),
	('n_checkpoints', '1', '10000', '0', '10001', true, false),
	('early_stopping_patience', '1', '10000', '0', '10001', true, false);
SELECT try_option(name, below) FROM number_option;
SELECT try_option(name, above) FROM number_option;
SELECT try_option(name, '"3"') FROM number_option;
SELECT try_option(name, '1.5') FROM number_option WHERE is_integer;
-- nothing but "good" from here on
SELECT name, try_option(name, least), try_option(name, most) FROM number_option WHERE (try_option(name, least), try_option(name, most)) <> ('good', 'good');
SELECT name, try_option(name, 'null') FROM number_option WHERE try_option(name, 'null') <> 'good';
SELECT name, try_option(name, '"auto"') FROM number_option WHERE (try_option(name, '"auto"') = 'good') <> auto;
SELECT name FROM number_option WHERE is_integer AND try_option(name, (least::text || '.0')::jsonb) <> 'good';

-- Switches and choices
SELECT try_option(name, '"on"') FROM unnest('{packing,train_on_inputs,use_rslora}'::text[]) name;
SELECT try_option(name, '1') FROM unnest('{packing,train_on_inputs,use_rslora}'::text[]) name;
SELECT name, try_option(name, value) FROM unnest('{packing,train_on_inputs,use_rslora}'::text[]) name,
	unnest('{true,false,null}'::jsonb[]) value WHERE try_option(name, value) <> 'good';
SELECT try_option('lr_scheduler', '"Cosine"');
SELECT value, try_option('lr_scheduler', value) FROM unnest('{"\"cosine\"","\"linear\"","\"constant\"","null"}'::jsonb[]) value;
SELECT try_option('storage', '"ram"');
SELECT try_option('storage', '"database"');
SELECT try_option('lora_target_modules', '["q_proj", 1]');
SELECT try_option('lora_target_modules', '{"q_proj": true}');
SELECT try_option('lora_target_modules', '["down_proj", "q_proj"]');

-- Templates of prompts
SELECT try_option('prompt_template', value) FROM unnest(ARRAY['3', 'true', '["{prompt}"]', '""', '"auto"', '"no place"',
	'"{prompt} {prompt}"', '"{{prompt}}"']::jsonb[]) value;
SELECT try_option('prompt_template', value) FROM unnest(ARRAY['"{prompt} of {system}"', '"{ prompt }"', '"{prompt"',
	'"é {prompt}}"', '"{prompt}{"', '"{}{prompt}"']::jsonb[]) value;
SELECT try_option('prompt_template', to_jsonb('{prompt}' || repeat('x', 4088)));
SELECT try_option('prompt_template', to_jsonb('{prompt}' || repeat('x', 4087)));
SELECT try_option('prompt_template', value) FROM unnest(ARRAY['"{prompt}"', '"Question: {prompt}\nAnswer: "', '"{{{prompt}}} é"',
	'null']::jsonb[]) value;
SELECT try_option('prompt_template', '"Q: {prompt}"', query)
	FROM unnest(ARRAY['SELECT doc AS messages FROM t', 'SELECT prompt AS text FROM t', 'SELECT ARRAY[1] AS input_ids FROM t']) query;
SELECT try_option('prompt_template', '"Q: {prompt}"', validation => 'SELECT prompt AS text FROM t');
SELECT try_option('prompt_template', 'null', 'SELECT prompt AS text FROM t');
CREATE FUNCTION try_estimate(query text, validation text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM finetune_estimate('base', query, validation, '{"prompt_template": "Q: {prompt}"}');
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	RETURN format('%s %s', SQLSTATE, SQLERRM);
END
$$;
SELECT try_estimate('SELECT doc AS messages FROM t', NULL);
SELECT try_estimate('SELECT prompt, completion FROM t', 'SELECT doc AS messages FROM t');

-- A model to continue from may have any name, "auto" too
SELECT try_option('from_model', '"auto"');
SELECT try_option('from_model', '"nosuch"');
SELECT try_option('from_model', '["m"]');
SELECT try_option('from_weights', '"0"');
SELECT try_option('from_weights', '0');

DROP FUNCTION try_option, try_estimate;
DROP TABLE t, number_option;
DROP EXTENSION pg_finetune CASCADE;
