-- The triggers that keep rows in step: what they do, and that nobody can have
-- them do it for a table of his own.
SELECT plan(13);

CREATE SERVER base TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'no/such.gguf');
INSERT INTO finetune.model (id, name, kind, base_id)
	SELECT gen_random_uuid(), 'tuned', 'lora', id FROM finetune.model;
INSERT INTO finetune.weights SELECT id, 0, 'f', 0, 'x' FROM finetune.model WHERE name = 'tuned';
INSERT INTO finetune.job (id, model_id, model_name, base_id, base_name, owner, search_path, training_query, options)
	SELECT id, id, 'tuned', base_id, 'base', current_user::regrole, '', '', '{}' FROM finetune.model WHERE name = 'tuned';
INSERT INTO finetune.metric (job_id, step) SELECT id, 1 FROM finetune.job;
INSERT INTO finetune.event (job_id, number, level, type, message) SELECT id, 1, 'info', 'created', '' FROM finetune.job;

-- a job from elsewhere
SELECT results_eq('SELECT status, phase, queue_position FROM finetune.jobs', $$VALUES ('PAUSED', 'paused', NULL::bigint)$$,
	'a job without a home is paused');
SELECT is((SELECT string_agg(name || ' ' || status, ',') FROM finetune.models), 'base ready',
	'a row without a server is no model');
UPDATE finetune.job SET home = finetune.here();
SELECT results_eq('SELECT status, phase, queue_position FROM finetune.jobs', $$VALUES ('PENDING', 'pending', 1::bigint)$$,
	'one that is at home is in the queue');

-- an ordinary role's table of the same columns, and ids and names of what is not its own
CREATE ROLE finetune_thief;
GRANT CREATE ON SCHEMA public TO finetune_thief;
CREATE TABLE public.stolen AS SELECT id, name::text, kind, base_id FROM finetune.model;
ALTER TABLE public.stolen OWNER TO finetune_thief;
SET ROLE finetune_thief;
CREATE TRIGGER steal AFTER DELETE ON public.stolen FOR EACH ROW EXECUTE FUNCTION finetune.row_deleted();
CREATE TRIGGER steal_before BEFORE INSERT ON public.stolen FOR EACH ROW EXECUTE FUNCTION finetune.model_row();
CREATE TRIGGER steal_after AFTER UPDATE ON public.stolen FOR EACH ROW EXECUTE FUNCTION finetune.model_row();
SELECT throws_ok('DELETE FROM public.stolen', '39P01', 'not called by its trigger on finetune.model or finetune.job',
	'weights are not deleted for the trigger of another table');
SELECT throws_ok($$INSERT INTO public.stolen (name) VALUES ('base')$$, '39P01', 'not called by its trigger on finetune.model',
	'nor are models');
SELECT throws_ok($$UPDATE public.stolen SET name = 'x'$$, '39P01', 'not called by its trigger on finetune.model',
	'nor is anything else done');
RESET ROLE;
SELECT results_eq('SELECT count(*) FROM finetune.model', 'VALUES (2::bigint)', 'models are there');
SELECT results_eq('SELECT count(*) FROM finetune.weights', 'VALUES (1::bigint)', 'weights are there');
DROP TABLE public.stolen;
REVOKE CREATE ON SCHEMA public FROM finetune_thief;
DROP ROLE finetune_thief;

-- what goes with a row, also for a replica
SET session_replication_role = replica;
SELECT lives_ok($$DELETE FROM finetune.model WHERE name = 'tuned'$$, 'the row of a model is deleted');
SELECT is_empty('SELECT * FROM finetune.weights', 'with its weights');
SELECT lives_ok('DELETE FROM finetune.job', 'the row of a job is deleted');
SELECT is_empty('SELECT job_id FROM finetune.metric UNION ALL SELECT job_id FROM finetune.event',
	'with its metrics and events');
RESET session_replication_role;
SELECT lives_ok('DROP SERVER base', 'a base that nothing is tuned from can be dropped');

SELECT * FROM finish();
