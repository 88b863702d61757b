/* pg_finetune: what version 1.1 adds to 1.0 */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION pg_finetune UPDATE TO '1.1'" to load this file. \quit

/*
 * Copies of a database: dumps are quiet, and a job runs only where it was created
 */

-- In the order in which sessions and workers of running jobs lock them.
LOCK TABLE finetune.job, finetune.model, finetune.weights, finetune.metric, finetune.event;

-- This cluster, database and table; another one in every copy of them.  Null
-- where no job is at home: on a standby, and without the library preloaded.
CREATE FUNCTION finetune.here()
	RETURNS pg_catalog.text
	LANGUAGE C STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_here';
COMMENT ON FUNCTION finetune.here() IS 'where jobs are at home that are created now: cluster, database, table; null on a standby';

-- pg_restore loads an extension's tables in any order, several at a time, with
-- their constraints in place, and pg_dump warns of a table that refers to
-- itself.  So triggers take away what goes with a row.  A base stays while
-- models are tuned from it, for servers depend on each other.
ALTER TABLE finetune.model DROP CONSTRAINT model_base_id_fkey;
ALTER TABLE finetune.weights DROP CONSTRAINT weights_model_id_fkey;
ALTER TABLE finetune.metric DROP CONSTRAINT metric_job_id_fkey;
ALTER TABLE finetune.event DROP CONSTRAINT event_job_id_fkey;

CREATE FUNCTION finetune.row_deleted()
	RETURNS pg_catalog.trigger
	LANGUAGE C SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_row_deleted';
COMMENT ON FUNCTION finetune.row_deleted()
	IS 'deletes the weights of a model, the metrics and events of a job, with its row';

CREATE TRIGGER cascade AFTER DELETE ON finetune.model
	FOR EACH ROW EXECUTE FUNCTION finetune.row_deleted();
ALTER TABLE finetune.model ENABLE ALWAYS TRIGGER cascade;
COMMENT ON TRIGGER cascade ON finetune.model IS 'weights go with their model';
CREATE TRIGGER cascade AFTER DELETE ON finetune.job
	FOR EACH ROW EXECUTE FUNCTION finetune.row_deleted();
ALTER TABLE finetune.job ENABLE ALWAYS TRIGGER cascade;
COMMENT ON TRIGGER cascade ON finetune.job IS 'metrics and events go with their job';

-- A row that is renamed where it comes from may meet a server of that name.
CREATE TRIGGER record_renamed AFTER UPDATE OF name ON finetune.model
	FOR EACH ROW EXECUTE FUNCTION finetune.model_row();
ALTER TABLE finetune.model ENABLE ALWAYS TRIGGER record_renamed;
COMMENT ON TRIGGER record_renamed ON finetune.model IS 'has servers depend on each other';

-- Written at CREATE.  No default: what is restored from a dump of 1.0 has none.
ALTER TABLE finetune.job ADD COLUMN home pg_catalog.text;
COMMENT ON COLUMN finetune.job.home IS 'where the job was created, and may run; anywhere else it is paused';
UPDATE finetune.job SET home = finetune.here();

-- A queue of any length: places in it are counted in the one, jobs from elsewhere
-- are found by the other.
CREATE INDEX job_waiting ON finetune.job (home, priority DESC, created_at, id)
	WHERE phase = 'pending' AND attempt = 0;
COMMENT ON INDEX finetune.job_waiting IS 'places in the queue';
CREATE INDEX job_home ON finetune.job (home)
	WHERE phase IN ('pending', 'queued', 'running', 'uploading');
COMMENT ON INDEX finetune.job_home IS 'unfinished jobs by where they were created';

CREATE FUNCTION finetune.queue_position(home pg_catalog.text, priority pg_catalog.int4,
										created_at pg_catalog.timestamptz, id pg_catalog.uuid)
	RETURNS pg_catalog.int8
	LANGUAGE C STABLE STRICT PARALLEL SAFE COST 10000 SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_queue_position';
REVOKE ALL ON FUNCTION finetune.queue_position(pg_catalog.text, pg_catalog.int4, pg_catalog.timestamptz, pg_catalog.uuid) FROM PUBLIC;
COMMENT ON FUNCTION finetune.queue_position(pg_catalog.text, pg_catalog.int4, pg_catalog.timestamptz, pg_catalog.uuid)
	IS 'how many jobs that were created there wait up to this one; null when it does not wait';

-- Of a tuned model where its weights are, null being in the database; of a full
-- one also what the option of its base's server was.
ALTER TABLE finetune.model
	ADD COLUMN storage pg_catalog.text,
	ADD COLUMN template pg_catalog.text,
	ADD CONSTRAINT model_storage_check CHECK (storage IN ('database', 'file'));

ALTER TABLE finetune.job
	DROP CONSTRAINT job_phase_check,
	ADD CONSTRAINT job_phase_check
		CHECK (phase IN ('pending', 'queued', 'running', 'uploading', 'paused',
						 'completed', 'failed', 'cancelled'));

-- As in 1.0, but that a copy of an unfinished job is paused, and that a server
-- of the same name is a model only when it is of this wrapper.
CREATE OR REPLACE VIEW finetune.job_detail AS
	SELECT 'ft_'::pg_catalog.text OPERATOR(pg_catalog.||) j.id::pg_catalog.text AS job_id,
		   j.id,
		   CASE p.phase WHEN 'pending' THEN 'PENDING'
						WHEN 'completed' THEN 'SUCCESS'
						WHEN 'failed' THEN 'ERROR'
						WHEN 'cancelled' THEN 'CANCELLED'
						WHEN 'paused' THEN 'PAUSED'
						ELSE 'IN_PROGRESS' END AS status,
		   p.phase,
		   COALESCE(m.name, j.model_name) AS model,
		   COALESCE(b.name, j.base_name) AS base_model,
		   COALESCE(s.srvowner, j.owner::pg_catalog.oid) AS owner,
		   j.created_at,
		   j.started_at,
		   j.finished_at,
		   CASE WHEN j.phase OPERATOR(pg_catalog.=) 'completed' THEN 1.0
				WHEN j.total_steps OPERATOR(pg_catalog.>) 0
				THEN COALESCE(j.step, 0)::pg_catalog.float8
					 OPERATOR(pg_catalog./) j.total_steps
				ELSE 0.0 END AS progress,
		   j.step,
		   j.total_steps,
		   j.training_query,
		   j.validation_query,
		   j.options OPERATOR(pg_catalog.||)
			   COALESCE(j.resolved_options, '{}') AS options,
		   j.rows,
		   j.trained_tokens,
		   j.training_loss,
		   j.validation_loss,
		   j.validation_token_accuracy,
		   j.tokens_per_second,
		   CASE WHEN j.finished_at IS NULL
					 AND p.phase OPERATOR(pg_catalog.<>) 'paused'
				THEN j.estimated_finish END AS estimated_finish,
		   CASE WHEN p.phase OPERATOR(pg_catalog.=) 'pending'
					 AND j.attempt OPERATOR(pg_catalog.=) 0
					 AND j.home IS NOT NULL
				THEN finetune.queue_position(j.home, j.priority, j.created_at, j.id)
				END AS queue_position,
		   j.attempt AS attempts,
		   j.device,
		   j.data_hash,
		   j.error
	FROM finetune.job j
		CROSS JOIN LATERAL (
			SELECT CASE WHEN j.finished_at IS NULL
							 AND j.home IS DISTINCT FROM COALESCE((SELECT finetune.here()), j.home)
						THEN 'paused' ELSE j.phase END AS phase) p
		LEFT JOIN finetune.model m ON m.id OPERATOR(pg_catalog.=) j.model_id
		LEFT JOIN finetune.model b ON b.id OPERATOR(pg_catalog.=) j.base_id
		LEFT JOIN (pg_catalog.pg_foreign_server s
			JOIN pg_catalog.pg_foreign_data_wrapper f
				ON f.oid OPERATOR(pg_catalog.=) s.srvfdw
					AND f.fdwname OPERATOR(pg_catalog.=) 'pg_finetune')
			ON s.srvname OPERATOR(pg_catalog.=) m.name;

-- What a role may see: its own jobs, and those of roles that it is a member of.
CREATE OR REPLACE VIEW finetune.jobs WITH (security_barrier) AS
	SELECT d.job_id, d.status, d.phase, d.model, d.base_model,
		   pg_catalog.pg_get_userbyid(d.owner) AS owner,
		   d.created_at AS created_on, d.started_at AS started_on,
		   d.finished_at AS finished_on, d.progress, d.step, d.total_steps, q.queue_position,
		   d.attempts, d.device, d.rows, d.trained_tokens, d.training_loss, d.validation_loss,
		   d.validation_token_accuracy, d.tokens_per_second, d.estimated_finish, d.data_hash,
		   d.training_query AS training_data, d.validation_query AS validation_data, d.options,
		   d.error
	FROM finetune.job_detail d
		LEFT JOIN (	-- all places at once: job_detail counts for each job anew
			SELECT j.id, pg_catalog.row_number()
				   OVER (ORDER BY j.priority DESC, j.created_at, j.id) AS queue_position
			FROM finetune.job j
			WHERE j.phase OPERATOR(pg_catalog.=) 'pending'
				AND j.attempt OPERATOR(pg_catalog.=) 0
				AND j.home OPERATOR(pg_catalog.=)
					COALESCE((SELECT finetune.here()), j.home)) q
			ON q.id OPERATOR(pg_catalog.=) d.id
	WHERE pg_catalog.pg_has_role(d.owner, 'USAGE');

-- As in 1.0, with where the weights are, whether they are there, and whether
-- anybody trains the model.
CREATE OR REPLACE VIEW finetune.models WITH (security_barrier) AS
	SELECT s.srvname AS name,
		   m.kind,
		   CASE WHEN m.weights_digest IS NOT NULL
				THEN CASE WHEN m.kind OPERATOR(pg_catalog.=) 'full' AND NOT k.stored
							   AND finetune.base_size(s.oid) IS NULL
						  THEN 'missing' ELSE 'ready' END
				WHEN m.kind OPERATOR(pg_catalog.=) 'base'
				THEN CASE WHEN k.stored THEN 'missing' ELSE 'ready' END
				WHEN m.job IS NULL
					 OR j.phase IN ('paused', 'failed', 'cancelled') THEN 'untrained'
				ELSE 'training' END AS status,
		   b.name AS base,
		   pg_catalog.pg_get_userbyid(s.srvowner) AS owner,
		   m.architecture,
		   m.parameters,
		   m.context_length,
		   CASE WHEN k.stored
				THEN (SELECT pg_catalog.sum(pg_catalog.octet_length(w.data))
					  FROM finetune.weights w
					  WHERE w.model_id OPERATOR(pg_catalog.=) m.id)
				ELSE finetune.base_size(s.oid) END AS size,
		   m.created_at,
		   CASE WHEN m.job IS NOT NULL THEN 'ft_' OPERATOR(pg_catalog.||) m.job::pg_catalog.text
				END AS job_id,
		   m.training_loss,
		   m.validation_loss,
		   m.validation_token_accuracy,
		   CASE WHEN k.stored THEN 'database'
				WHEN EXISTS (SELECT FROM pg_catalog.unnest(s.srvoptions) o
							 WHERE pg_catalog.starts_with(o, 'endpoint=')) THEN 'endpoint'
				ELSE 'file' END AS storage
	FROM finetune.model m
		JOIN pg_catalog.pg_foreign_server s
			ON s.srvname::pg_catalog.text OPERATOR(pg_catalog.=) m.name
		JOIN pg_catalog.pg_foreign_data_wrapper f
			ON f.oid OPERATOR(pg_catalog.=) s.srvfdw
				AND f.fdwname OPERATOR(pg_catalog.=) 'pg_finetune'
		CROSS JOIN LATERAL (
			SELECT CASE WHEN m.kind OPERATOR(pg_catalog.=) 'base'
						THEN COALESCE('storage=database' OPERATOR(pg_catalog.=) ANY (s.srvoptions),
									  false)
						ELSE m.storage IS DISTINCT FROM 'file' END
				   AS stored) k
		LEFT JOIN finetune.model b ON b.id OPERATOR(pg_catalog.=) m.base_id
		LEFT JOIN finetune.job_detail j ON j.id OPERATOR(pg_catalog.=) m.job
	WHERE pg_catalog.has_server_privilege(s.oid, 'USAGE');

/*
 * Rights and transactions
 */

-- The history of roles that are gone stays here: where a dump is restored,
-- their numbers may be those of others.
SELECT pg_catalog.pg_extension_config_dump('finetune.job',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) owner)');
SELECT pg_catalog.pg_extension_config_dump('finetune.metric',
	'WHERE EXISTS (SELECT FROM finetune.job j JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) j.owner WHERE j.id OPERATOR(pg_catalog.=) job_id)');
SELECT pg_catalog.pg_extension_config_dump('finetune.event',
	'WHERE EXISTS (SELECT FROM finetune.job j JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) j.owner WHERE j.id OPERATOR(pg_catalog.=) job_id)');

/*
 * Training data from files
 */

CREATE FUNCTION finetune.read_jsonl(path pg_catalog.text)
	RETURNS SETOF pg_catalog.jsonb
	LANGUAGE C VOLATILE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_read_jsonl';
REVOKE EXECUTE ON FUNCTION finetune.read_jsonl(pg_catalog.text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION finetune.read_jsonl(pg_catalog.text) TO pg_read_server_files;
COMMENT ON FUNCTION finetune.read_jsonl(pg_catalog.text)
	IS 'the lines of a JSONL file on the server, one row each';

/*
 * Weights in and out, and bases in the database
 */

CREATE FUNCTION @extschema@.finetune_export(model pg_catalog.text, directory pg_catalog.text,
											format pg_catalog.text DEFAULT 'peft')
	RETURNS pg_catalog.text
	LANGUAGE C VOLATILE PARALLEL UNSAFE COST 10000
	AS 'MODULE_PATHNAME', 'pgft_export';

CREATE FUNCTION @extschema@.finetune_import(model pg_catalog.text, base_model pg_catalog.text,
											directory pg_catalog.text)
	RETURNS pg_catalog.void
	LANGUAGE C VOLATILE PARALLEL UNSAFE COST 10000
	AS 'MODULE_PATHNAME', 'pgft_import';

COMMENT ON FUNCTION @extschema@.finetune_export(pg_catalog.text, pg_catalog.text, pg_catalog.text)
	IS 'write a tuned model into a new directory on the server: an adapter, or merged with its base';
COMMENT ON FUNCTION @extschema@.finetune_import(pg_catalog.text, pg_catalog.text, pg_catalog.text)
	IS 'make a model out of a PEFT adapter in a directory on the server';
COMMENT ON COLUMN finetune.models.storage IS 'where the weights are: file, database, or endpoint: on another server';
COMMENT ON COLUMN finetune.model.base_digest
	IS 'SHA-256 of the base''s file: what a tuned model was trained on; of a base, what it has to be';
COMMENT ON COLUMN finetune.model.weights_digest
	IS 'digest of the weights, in finetune.weights or in files; null while there are none';

/*
 * Functions: answers without errors, tokens
 */

-- The three forms of complete(), with null where it would raise an error.
CREATE FUNCTION @extschema@.try_complete(model pg_catalog.text, prompt pg_catalog.text)
	RETURNS pg_catalog.text
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 10000
	AS 'MODULE_PATHNAME', 'pgft_try_complete';

CREATE FUNCTION @extschema@.try_complete(model pg_catalog.text, prompt pg_catalog.text,
										 options pg_catalog.jsonb)
	RETURNS pg_catalog.jsonb
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 10000
	AS 'MODULE_PATHNAME', 'pgft_try_complete_options';

CREATE FUNCTION @extschema@.try_complete(model pg_catalog.text, messages pg_catalog.jsonb,
										 options pg_catalog.jsonb DEFAULT '{}')
	RETURNS pg_catalog.jsonb
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 10000
	AS 'MODULE_PATHNAME', 'pgft_try_complete_messages';

CREATE FUNCTION @extschema@.tokenize(model pg_catalog.text, input pg_catalog.text)
	RETURNS pg_catalog.int4[]
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 1000
	AS 'MODULE_PATHNAME', 'pgft_tokenize';

CREATE FUNCTION @extschema@.detokenize(model pg_catalog.text, tokens pg_catalog.int4[])
	RETURNS pg_catalog.text
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 1000
	AS 'MODULE_PATHNAME', 'pgft_detokenize';

COMMENT ON FUNCTION @extschema@.try_complete(pg_catalog.text, pg_catalog.text)
	IS 'answer of a model to a prompt; null instead of an error';
COMMENT ON FUNCTION @extschema@.try_complete(pg_catalog.text, pg_catalog.text, pg_catalog.jsonb)
	IS 'answer of a model to a prompt, with options; null instead of an error';
COMMENT ON FUNCTION @extschema@.try_complete(pg_catalog.text, pg_catalog.jsonb, pg_catalog.jsonb)
	IS 'answer of a model to a conversation, with options; null instead of an error';
COMMENT ON FUNCTION @extschema@.tokenize(pg_catalog.text, pg_catalog.text)
	IS 'tokens of a text, as the model reads it';
COMMENT ON FUNCTION @extschema@.detokenize(pg_catalog.text, pg_catalog.int4[])
	IS 'text of tokens of a model';

/*
 * Estimates and evaluations: run at once, as the caller
 */

CREATE FUNCTION @extschema@.finetune_estimate(base_model pg_catalog.text,
											  training_query pg_catalog.text,
											  validation_query pg_catalog.text DEFAULT NULL,
											  options pg_catalog.jsonb DEFAULT '{}')
	RETURNS pg_catalog.jsonb
	LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000000
	AS 'MODULE_PATHNAME', 'pgft_finetune_estimate';

CREATE FUNCTION @extschema@.finetune_evaluate(model pg_catalog.text, query pg_catalog.text)
	RETURNS pg_catalog.jsonb
	LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000000
	AS 'MODULE_PATHNAME', 'pgft_finetune_evaluate';

COMMENT ON FUNCTION @extschema@.finetune_estimate(pg_catalog.text, pg_catalog.text,
												  pg_catalog.text, pg_catalog.jsonb)
	IS 'what finetune(''CREATE'') with these arguments would do: steps, tokens, time and memory; runs the queries, trains nothing';
COMMENT ON FUNCTION @extschema@.finetune_evaluate(pg_catalog.text, pg_catalog.text)
	IS 'how well a model knows the rows of a query: loss, token accuracy, exact matches';

/*
 * Full models
 */

-- A full model needs its base until it is trained, and no longer.
CREATE TRIGGER release_base AFTER UPDATE OF weights_digest ON finetune.model
	FOR EACH ROW WHEN (NEW.kind OPERATOR(pg_catalog.=) 'full')
	EXECUTE FUNCTION finetune.model_row();
ALTER TABLE finetune.model ENABLE ALWAYS TRIGGER release_base;
COMMENT ON TRIGGER release_base ON finetune.model
	IS 'the server of a full model that is trained depends on none';
COMMENT ON COLUMN finetune.model.storage
	IS 'where a tuned model''s weights are: database (or null), or file';
COMMENT ON COLUMN finetune.model.template
	IS 'chat template that a full model was trained with, where its base''s server names one';

CREATE FUNCTION finetune.model_files(OUT directory pg_catalog.text, OUT size pg_catalog.int8,
									 OUT written pg_catalog.timestamptz, OUT model pg_catalog.text)
	RETURNS SETOF pg_catalog.record
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_model_files';
REVOKE EXECUTE ON FUNCTION finetune.model_files() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION finetune.model_files() TO pg_monitor;
COMMENT ON FUNCTION finetune.model_files()
	IS 'directories of full models in pg_finetune.model_directory, each with a model of this database that needs it';

/*
 * Usage: what the answers to each role by each model have taken
 */

-- Of this database, from shared memory; the caller's own, and that of roles whose
-- rights it has; of every role for pg_read_all_stats.
CREATE FUNCTION finetune.usage_counters(
		OUT role_id pg_catalog.oid, OUT model_id pg_catalog.uuid, OUT model pg_catalog.text,
		OUT requests pg_catalog.int8, OUT failed pg_catalog.int8, OUT cancelled pg_catalog.int8,
		OUT prompt_tokens pg_catalog.int8, OUT cached_tokens pg_catalog.int8,
		OUT completion_tokens pg_catalog.int8, OUT total_time pg_catalog.float8,
		OUT since pg_catalog.timestamptz, OUT last_request pg_catalog.timestamptz)
	RETURNS SETOF pg_catalog.record
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_usage_counters';
COMMENT ON FUNCTION finetune.usage_counters() IS 'what is behind the view finetune.usage';

CREATE VIEW finetune.usage AS
	SELECT pg_catalog.pg_get_userbyid(u.role_id) AS role,
		   COALESCE(m.name, u.model) AS model,
		   u.model_id, u.requests, u.failed, u.cancelled, u.prompt_tokens, u.cached_tokens,
		   u.completion_tokens, u.total_time, u.since, u.last_request
	FROM finetune.usage_counters() u
		LEFT JOIN finetune.model m ON m.id OPERATOR(pg_catalog.=) u.model_id;
GRANT SELECT ON finetune.usage TO PUBLIC;
COMMENT ON VIEW finetune.usage IS 'what answers have taken, by role and model';
COMMENT ON COLUMN finetune.usage.role IS 'role that asked; null: of pairs that were longest unused when there was room for no more';
COMMENT ON COLUMN finetune.usage.model IS 'name of the model, the last one if it was dropped; null as role is';
COMMENT ON COLUMN finetune.usage.model_id IS 'id of the model, which stays when it is renamed';
COMMENT ON COLUMN finetune.usage.requests IS 'calls of complete(), try_complete() and complete_stream() that have ended, however they did';
COMMENT ON COLUMN finetune.usage.failed IS 'of these, calls that ended with an error; also where try_complete() returned null';
COMMENT ON COLUMN finetune.usage.cancelled IS 'of these, calls that were given up before their answer was there';
COMMENT ON COLUMN finetune.usage.prompt_tokens IS 'tokens of prompts';
COMMENT ON COLUMN finetune.usage.cached_tokens IS 'of these, tokens that did not have to be computed again';
COMMENT ON COLUMN finetune.usage.completion_tokens IS 'tokens of answers';
COMMENT ON COLUMN finetune.usage.total_time IS 'milliseconds from calls to their ends; those of calls side by side add up';
COMMENT ON COLUMN finetune.usage.since IS 'when counting began: at the first call after the last reset';
COMMENT ON COLUMN finetune.usage.last_request IS 'when the last call ended';

CREATE FUNCTION finetune.usage_reset()
	RETURNS pg_catalog.void
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_usage_reset';
REVOKE EXECUTE ON FUNCTION finetune.usage_reset() FROM PUBLIC;
COMMENT ON FUNCTION finetune.usage_reset() IS 'set the counters of finetune.usage to zero, in this database';

/*
 * Answers in pieces
 */
CREATE FUNCTION @extschema@.complete_stream(model pg_catalog.text, prompt pg_catalog.text,
											options pg_catalog.jsonb DEFAULT '{}')
	RETURNS SETOF pg_catalog.text
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 10000 ROWS 100
	AS 'MODULE_PATHNAME', 'pgft_complete_stream';
COMMENT ON FUNCTION @extschema@.complete_stream(pg_catalog.text, pg_catalog.text, pg_catalog.jsonb)
	IS 'answer of a model to a prompt, in pieces as they are made';

/*
 * Comments on what 1.0 made
 */
COMMENT ON SCHEMA finetune IS 'models and fine-tuning jobs of the extension pg_finetune';
COMMENT ON FOREIGN DATA WRAPPER pg_finetune IS 'its servers are language models; USAGE: may register and fine-tune models';
COMMENT ON FUNCTION finetune.validator(pg_catalog.text[], pg_catalog.oid)
	IS 'checks the options of models';
COMMENT ON EVENT TRIGGER pg_finetune_server_changed
	IS 'keeps finetune.model in step with CREATE SERVER and ALTER SERVER';
COMMENT ON EVENT TRIGGER pg_finetune_server_dropped
	IS 'removes weights and ends jobs of models that are dropped';
COMMENT ON FUNCTION finetune.server_changed()
	IS 'event trigger: keeps finetune.model in step with CREATE SERVER and ALTER SERVER';
COMMENT ON FUNCTION finetune.server_dropped()
	IS 'event trigger: removes weights and ends jobs of models that are dropped';
COMMENT ON FUNCTION finetune.model_row()
	IS 'trigger: has rows that a restore or a subscription brings take their place';
COMMENT ON TRIGGER replace_placeholder ON finetune.model
	IS 'a row that a restore or a subscription brings replaces that of CREATE SERVER';
COMMENT ON TRIGGER record_dependency ON finetune.model
	IS 'a tuned model''s server depends on that of its base';
COMMENT ON FUNCTION finetune.base_size(pg_catalog.oid)
	IS 'bytes of a base model''s file, for who may use it';
COMMENT ON FUNCTION @extschema@.complete(pg_catalog.text, pg_catalog.text)
	IS 'answer of a model to a prompt';
COMMENT ON FUNCTION @extschema@.complete(pg_catalog.text, pg_catalog.text, pg_catalog.jsonb)
	IS 'answer of a model to a prompt, with options';
COMMENT ON FUNCTION @extschema@.complete(pg_catalog.text, pg_catalog.jsonb, pg_catalog.jsonb)
	IS 'answer of a model to a conversation, with options';
COMMENT ON FUNCTION @extschema@.count_tokens(pg_catalog.text, pg_catalog.text)
	IS 'number of tokens of a text, as the model reads it';

COMMENT ON TABLE finetune.model IS 'identity of models; see the view finetune.models';
COMMENT ON COLUMN finetune.model.id IS 'identity, which no rename changes';
COMMENT ON COLUMN finetune.model.name IS 'name of the model''s foreign server';
COMMENT ON COLUMN finetune.model.kind IS 'base, lora or full';
COMMENT ON COLUMN finetune.model.base_id IS 'base of a tuned model';
COMMENT ON COLUMN finetune.model.job IS 'job that trains or trained the model';
COMMENT ON COLUMN finetune.model.architecture IS 'family of models, as the file names it';
COMMENT ON COLUMN finetune.model.parameters IS 'number of parameters';
COMMENT ON COLUMN finetune.model.context_length IS 'tokens of prompt and answer together, at most';
COMMENT ON COLUMN finetune.model.training_loss IS 'training loss at the end';
COMMENT ON COLUMN finetune.model.validation_loss IS 'validation loss at the end';
COMMENT ON COLUMN finetune.model.validation_token_accuracy IS 'share of the validation tokens that the model predicts';
COMMENT ON COLUMN finetune.model.created_at IS 'when the model was created';

COMMENT ON TABLE finetune.weights IS 'weights of tuned models, in parts of at most 1 MiB';
COMMENT ON COLUMN finetune.weights.model_id IS 'the model';
COMMENT ON COLUMN finetune.weights.part IS 'number of the part, from 0 on';
COMMENT ON COLUMN finetune.weights.file IS 'file of the adapter that the part belongs to';
COMMENT ON COLUMN finetune.weights.crc IS 'CRC-32C of the data';
COMMENT ON COLUMN finetune.weights.data IS 'the bytes';

COMMENT ON VIEW finetune.models IS 'models that you may use';
COMMENT ON COLUMN finetune.models.name IS 'name, also of the foreign server';
COMMENT ON COLUMN finetune.models.kind IS 'base, lora or full';
COMMENT ON COLUMN finetune.models.status IS 'ready, training, untrained, or missing: a base whose file should stand in the database, a full model whose directory is not there';
COMMENT ON COLUMN finetune.models.base IS 'base of a tuned model';
COMMENT ON COLUMN finetune.models.owner IS 'role that owns the foreign server';
COMMENT ON COLUMN finetune.models.architecture IS 'family of models, as the file names it';
COMMENT ON COLUMN finetune.models.parameters IS 'number of parameters';
COMMENT ON COLUMN finetune.models.context_length IS 'tokens of prompt and answer together, at most';
COMMENT ON COLUMN finetune.models.size IS 'bytes of a base''s file or of a tuned model''s weights';
COMMENT ON COLUMN finetune.models.created_at IS 'when the model was created';
COMMENT ON COLUMN finetune.models.job_id IS 'job that trains or trained the model';
COMMENT ON COLUMN finetune.models.training_loss IS 'training loss at the end';
COMMENT ON COLUMN finetune.models.validation_loss IS 'validation loss at the end';
COMMENT ON COLUMN finetune.models.validation_token_accuracy IS 'share of the validation tokens that the model predicts';

COMMENT ON COLUMN finetune.job.id IS 'the job''s id, without ft_';
COMMENT ON COLUMN finetune.job.model_id IS 'model that the job makes';
COMMENT ON COLUMN finetune.job.model_name IS 'its name when the job was created';
COMMENT ON COLUMN finetune.job.base_id IS 'base model';
COMMENT ON COLUMN finetune.job.base_name IS 'its name when the job was created';
COMMENT ON COLUMN finetune.job.owner IS 'role that created the job';
COMMENT ON COLUMN finetune.job.search_path IS 'search_path that the queries run with';
COMMENT ON COLUMN finetune.job.training_query IS 'query of the training rows';
COMMENT ON COLUMN finetune.job.validation_query IS 'query of the validation rows';
COMMENT ON COLUMN finetune.job.options IS 'options, checked, with the defaults filled in';
COMMENT ON COLUMN finetune.job.priority IS 'higher ones run first';
COMMENT ON COLUMN finetune.job.phase IS 'pending, queued, running, uploading, paused, completed, failed or cancelled';
COMMENT ON COLUMN finetune.job.created_at IS 'when the job was created';
COMMENT ON COLUMN finetune.job.started_at IS 'when its first attempt began';
COMMENT ON COLUMN finetune.job.finished_at IS 'when it ended';
COMMENT ON COLUMN finetune.job.attempt IS 'number of the attempt, from 1 on; 0 before the first';
COMMENT ON COLUMN finetune.job.fruitless IS 'attempts since the last checkpoint';
COMMENT ON COLUMN finetune.job.has_directory IS 'whether there may be a directory to clean up';
COMMENT ON COLUMN finetune.job.resolved_options IS 'options that the engine chose';
COMMENT ON COLUMN finetune.job.step IS 'optimizer steps done';
COMMENT ON COLUMN finetune.job.total_steps IS 'optimizer steps of the whole job';
COMMENT ON COLUMN finetune.job.checkpoint_step IS 'step of the last checkpoint';
COMMENT ON COLUMN finetune.job.rows IS 'training rows: read, used, skipped_null, truncated';
COMMENT ON COLUMN finetune.job.trained_tokens IS 'tokens that the loss was taken at';
COMMENT ON COLUMN finetune.job.training_loss IS 'training loss, the last that is known';
COMMENT ON COLUMN finetune.job.validation_loss IS 'validation loss, the last that is known';
COMMENT ON COLUMN finetune.job.validation_token_accuracy IS 'share of the validation tokens that the model predicts';
COMMENT ON COLUMN finetune.job.tokens_per_second IS 'tokens trained in a second';
COMMENT ON COLUMN finetune.job.estimated_finish IS 'when the job may end';
COMMENT ON COLUMN finetune.job.device IS 'device that it runs on';
COMMENT ON COLUMN finetune.job.base_digest IS 'SHA-256 of the base file';
COMMENT ON COLUMN finetune.job.data_hash IS 'digest of the training data';
COMMENT ON COLUMN finetune.job.architecture IS 'family of models of the base';
COMMENT ON COLUMN finetune.job.parameters IS 'number of parameters of the base';
COMMENT ON COLUMN finetune.job.error IS 'code, message and hint of a job that failed, or was paused by an error';

COMMENT ON COLUMN finetune.metric.job_id IS 'the job';
COMMENT ON COLUMN finetune.metric.step IS 'optimizer step; 0 is the untouched base';
COMMENT ON COLUMN finetune.metric.epoch IS 'epochs done, in fractions';
COMMENT ON COLUMN finetune.metric.training_loss IS 'loss of the step''s batch';
COMMENT ON COLUMN finetune.metric.validation_loss IS 'validation loss, where it was evaluated';
COMMENT ON COLUMN finetune.metric.validation_token_accuracy IS 'share of the validation tokens that the model predicts, where it was evaluated';
COMMENT ON COLUMN finetune.metric.learning_rate IS 'learning rate of the step';
COMMENT ON COLUMN finetune.metric.grad_norm IS 'norm of the gradient before clipping';
COMMENT ON COLUMN finetune.metric.tokens IS 'tokens read so far';
COMMENT ON COLUMN finetune.metric.elapsed IS 'seconds of training so far';

COMMENT ON COLUMN finetune.event.job_id IS 'the job';
COMMENT ON COLUMN finetune.event.number IS 'number of the event, in order';
COMMENT ON COLUMN finetune.event.at IS 'when it happened';
COMMENT ON COLUMN finetune.event.level IS 'info, warning or error';
COMMENT ON COLUMN finetune.event.type IS 'kind of event';
COMMENT ON COLUMN finetune.event.message IS 'what happened';
COMMENT ON COLUMN finetune.event.data IS 'its figures';

COMMENT ON COLUMN finetune.job_detail.job_id IS 'the job''s id, as finetune() returns it';
COMMENT ON COLUMN finetune.job_detail.id IS 'the same without ft_';
COMMENT ON COLUMN finetune.job_detail.status IS 'PENDING, IN_PROGRESS, PAUSED, SUCCESS, ERROR or CANCELLED';
COMMENT ON COLUMN finetune.job_detail.phase IS 'pending, queued, running, uploading, paused, completed, failed or cancelled';
COMMENT ON COLUMN finetune.job_detail.model IS 'present name of the model, or the last that is known';
COMMENT ON COLUMN finetune.job_detail.base_model IS 'present name of the base, or the last that is known';
COMMENT ON COLUMN finetune.job_detail.owner IS 'owner of the model, or who created the job';
COMMENT ON COLUMN finetune.job_detail.created_at IS 'when the job was created';
COMMENT ON COLUMN finetune.job_detail.started_at IS 'when its first attempt began';
COMMENT ON COLUMN finetune.job_detail.finished_at IS 'when it ended';
COMMENT ON COLUMN finetune.job_detail.progress IS 'share of the steps that is done, 0 to 1';
COMMENT ON COLUMN finetune.job_detail.step IS 'optimizer steps done';
COMMENT ON COLUMN finetune.job_detail.total_steps IS 'optimizer steps of the whole job';
COMMENT ON COLUMN finetune.job_detail.training_query IS 'query of the training rows';
COMMENT ON COLUMN finetune.job_detail.validation_query IS 'query of the validation rows';
COMMENT ON COLUMN finetune.job_detail.options IS 'options as resolved';
COMMENT ON COLUMN finetune.job_detail.rows IS 'training rows: read, used, skipped_null, truncated';
COMMENT ON COLUMN finetune.job_detail.trained_tokens IS 'tokens that the loss was taken at';
COMMENT ON COLUMN finetune.job_detail.training_loss IS 'training loss, the last that is known';
COMMENT ON COLUMN finetune.job_detail.validation_loss IS 'validation loss, the last that is known';
COMMENT ON COLUMN finetune.job_detail.validation_token_accuracy IS 'share of the validation tokens that the model predicts';
COMMENT ON COLUMN finetune.job_detail.tokens_per_second IS 'tokens trained in a second';
COMMENT ON COLUMN finetune.job_detail.estimated_finish IS 'when the job may end';
COMMENT ON COLUMN finetune.job_detail.queue_position IS 'place in the queue, 1 being next; null when it is not in it';
COMMENT ON COLUMN finetune.job_detail.attempts IS 'attempts so far';
COMMENT ON COLUMN finetune.job_detail.device IS 'device that it runs on';
COMMENT ON COLUMN finetune.job_detail.data_hash IS 'digest of the training data';
COMMENT ON COLUMN finetune.job_detail.error IS 'code, message and hint of a job that failed, or was paused by an error';

COMMENT ON COLUMN finetune.jobs.job_id IS 'the job''s id, as finetune() returns it';
COMMENT ON COLUMN finetune.jobs.status IS 'PENDING, IN_PROGRESS, PAUSED, SUCCESS, ERROR or CANCELLED';
COMMENT ON COLUMN finetune.jobs.phase IS 'pending, queued, running, uploading, paused, completed, failed or cancelled';
COMMENT ON COLUMN finetune.jobs.model IS 'present name of the model, or the last that is known';
COMMENT ON COLUMN finetune.jobs.base_model IS 'present name of the base, or the last that is known';
COMMENT ON COLUMN finetune.jobs.owner IS 'owner of the model, or who created the job';
COMMENT ON COLUMN finetune.jobs.created_on IS 'when the job was created';
COMMENT ON COLUMN finetune.jobs.started_on IS 'when its first attempt began';
COMMENT ON COLUMN finetune.jobs.finished_on IS 'when it ended';
COMMENT ON COLUMN finetune.jobs.progress IS 'share of the steps that is done, 0 to 1';
COMMENT ON COLUMN finetune.jobs.step IS 'optimizer steps done';
COMMENT ON COLUMN finetune.jobs.total_steps IS 'optimizer steps of the whole job';
COMMENT ON COLUMN finetune.jobs.queue_position IS 'place in the queue, 1 being next; null when it is not in it';
COMMENT ON COLUMN finetune.jobs.attempts IS 'attempts so far';
COMMENT ON COLUMN finetune.jobs.device IS 'device that it runs on';
COMMENT ON COLUMN finetune.jobs.rows IS 'training rows: read, used, skipped_null, truncated';
COMMENT ON COLUMN finetune.jobs.trained_tokens IS 'tokens that the loss was taken at';
COMMENT ON COLUMN finetune.jobs.training_loss IS 'training loss, the last that is known';
COMMENT ON COLUMN finetune.jobs.validation_loss IS 'validation loss, the last that is known';
COMMENT ON COLUMN finetune.jobs.validation_token_accuracy IS 'share of the validation tokens that the model predicts';
COMMENT ON COLUMN finetune.jobs.tokens_per_second IS 'tokens trained in a second';
COMMENT ON COLUMN finetune.jobs.estimated_finish IS 'when the job may end';
COMMENT ON COLUMN finetune.jobs.data_hash IS 'digest of the training data';
COMMENT ON COLUMN finetune.jobs.training_data IS 'query of the training rows';
COMMENT ON COLUMN finetune.jobs.validation_data IS 'query of the validation rows';
COMMENT ON COLUMN finetune.jobs.options IS 'options as resolved';
COMMENT ON COLUMN finetune.jobs.error IS 'code, message and hint of a job that failed, or was paused by an error';

COMMENT ON COLUMN finetune.metrics.job_id IS 'the job''s id, as finetune() returns it';
COMMENT ON COLUMN finetune.metrics.step IS 'optimizer step; 0 is the untouched base';
COMMENT ON COLUMN finetune.metrics.epoch IS 'epochs done, in fractions';
COMMENT ON COLUMN finetune.metrics.training_loss IS 'loss of the step''s batch';
COMMENT ON COLUMN finetune.metrics.validation_loss IS 'validation loss, where it was evaluated';
COMMENT ON COLUMN finetune.metrics.validation_token_accuracy IS 'share of the validation tokens that the model predicts, where it was evaluated';
COMMENT ON COLUMN finetune.metrics.learning_rate IS 'learning rate of the step';
COMMENT ON COLUMN finetune.metrics.grad_norm IS 'norm of the gradient before clipping';
COMMENT ON COLUMN finetune.metrics.tokens IS 'tokens read so far';
COMMENT ON COLUMN finetune.metrics.elapsed IS 'seconds of training so far';

COMMENT ON COLUMN finetune.events.job_id IS 'the job''s id, as finetune() returns it';
COMMENT ON COLUMN finetune.events.at IS 'when it happened';
COMMENT ON COLUMN finetune.events.level IS 'info, warning or error';
COMMENT ON COLUMN finetune.events.type IS 'kind of event';
COMMENT ON COLUMN finetune.events.message IS 'what happened';
COMMENT ON COLUMN finetune.events.data IS 'its figures';

COMMENT ON COLUMN finetune.progress.pid IS 'process ID of the job''s worker';
COMMENT ON COLUMN finetune.progress.datid IS 'OID of the database';
COMMENT ON COLUMN finetune.progress.datname IS 'name of the database';
COMMENT ON COLUMN finetune.progress.job_id IS 'the job''s id, as finetune() returns it';
COMMENT ON COLUMN finetune.progress.phase IS 'what it is doing now';
COMMENT ON COLUMN finetune.progress.steps_total IS 'optimizer steps of the whole job';
COMMENT ON COLUMN finetune.progress.steps_done IS 'optimizer steps done';
COMMENT ON COLUMN finetune.progress.training_loss IS 'loss of the last step';
COMMENT ON COLUMN finetune.progress.tokens_per_second IS 'tokens trained in a second';
COMMENT ON COLUMN finetune.progress.time_left IS 'time until the job may end';
COMMENT ON FUNCTION @extschema@.finetune(pg_catalog.text, pg_catalog.text)
	IS 'a fine-tuning job: finetune(''DESCRIBE'' | ''CANCEL'' | ''PAUSE'' | ''RESUME'' | ''DELETE'', job_id)';

/*
 * What calls cost
 */
CREATE FUNCTION finetune.complete_support(pg_catalog.internal)
	RETURNS pg_catalog.internal
	LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
	AS 'MODULE_PATHNAME', 'pgft_complete_support';
COMMENT ON FUNCTION finetune.complete_support(pg_catalog.internal)
	IS 'planner support: what a call of complete(), try_complete() or complete_stream() costs';

ALTER FUNCTION @extschema@.complete(pg_catalog.text, pg_catalog.text)
	SUPPORT finetune.complete_support;
ALTER FUNCTION @extschema@.complete(pg_catalog.text, pg_catalog.text, pg_catalog.jsonb)
	SUPPORT finetune.complete_support;
ALTER FUNCTION @extschema@.complete(pg_catalog.text, pg_catalog.jsonb, pg_catalog.jsonb)
	SUPPORT finetune.complete_support;
ALTER FUNCTION @extschema@.try_complete(pg_catalog.text, pg_catalog.text)
	SUPPORT finetune.complete_support;
ALTER FUNCTION @extschema@.try_complete(pg_catalog.text, pg_catalog.text, pg_catalog.jsonb)
	SUPPORT finetune.complete_support;
ALTER FUNCTION @extschema@.try_complete(pg_catalog.text, pg_catalog.jsonb, pg_catalog.jsonb)
	SUPPORT finetune.complete_support;
ALTER FUNCTION @extschema@.complete_stream(pg_catalog.text, pg_catalog.text, pg_catalog.jsonb)
	SUPPORT finetune.complete_support;
