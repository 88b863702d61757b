/* pg_finetune: fine-tune and serve language models, in SQL */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pg_finetune" to load this file. \quit

/*
 * Part 1: models and inference
 */

CREATE SCHEMA finetune;
GRANT USAGE ON SCHEMA finetune TO PUBLIC;

-- A model's identity.  Name, owner and rights stand at its foreign server;
-- this row is what its owner cannot rewrite.
CREATE TABLE finetune.model (
	id pg_catalog.uuid PRIMARY KEY,
	name pg_catalog.text COLLATE pg_catalog."C" NOT NULL UNIQUE,
	kind pg_catalog.text NOT NULL CHECK (kind IN ('base', 'lora', 'full')),
	base_id pg_catalog.uuid REFERENCES finetune.model,
	base_digest pg_catalog.text,		-- SHA-256 of the base file a tuned model was trained on
	weights_digest pg_catalog.text,		-- null until the weights are stored
	job pg_catalog.uuid,
	architecture pg_catalog.text,
	parameters pg_catalog.int8,
	context_length pg_catalog.int4,
	training_loss pg_catalog.float8,
	validation_loss pg_catalog.float8,
	validation_token_accuracy pg_catalog.float8,
	created_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
	CHECK ((kind = 'base') = (base_id IS NULL))
);
CREATE INDEX model_base_id ON finetune.model (base_id);

-- Weights of tuned models, in parts of at most 1 MiB.
CREATE TABLE finetune.weights (
	model_id pg_catalog.uuid NOT NULL REFERENCES finetune.model ON DELETE CASCADE,
	part pg_catalog.int4 NOT NULL,
	file pg_catalog.text NOT NULL,
	crc pg_catalog.int8 NOT NULL,
	data pg_catalog.bytea NOT NULL,
	PRIMARY KEY (model_id, part)
);
ALTER TABLE finetune.weights ALTER COLUMN data SET STORAGE EXTERNAL;

SELECT pg_catalog.pg_extension_config_dump('finetune.model', '');
SELECT pg_catalog.pg_extension_config_dump('finetune.weights', '');

-- The wrapper whose foreign servers are the models.
CREATE FUNCTION finetune.validator(pg_catalog.text[], pg_catalog.oid)
	RETURNS pg_catalog.void
	LANGUAGE C STRICT SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_validator';

CREATE FOREIGN DATA WRAPPER pg_finetune VALIDATOR finetune.validator;

-- Keep rows and servers in step.
CREATE FUNCTION finetune.server_changed()
	RETURNS pg_catalog.event_trigger
	LANGUAGE C SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_server_changed';

CREATE EVENT TRIGGER pg_finetune_server_changed ON ddl_command_end
	WHEN TAG IN ('CREATE SERVER', 'ALTER SERVER')
	EXECUTE FUNCTION finetune.server_changed();
ALTER EVENT TRIGGER pg_finetune_server_changed ENABLE ALWAYS;

CREATE FUNCTION finetune.server_dropped()
	RETURNS pg_catalog.event_trigger
	LANGUAGE C SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_server_dropped';

CREATE EVENT TRIGGER pg_finetune_server_dropped ON sql_drop
	WHEN TAG IN ('DROP SERVER', 'DROP FOREIGN DATA WRAPPER', 'DROP EXTENSION', 'DROP OWNED')
	EXECUTE FUNCTION finetune.server_dropped();
ALTER EVENT TRIGGER pg_finetune_server_dropped ENABLE ALWAYS;

-- Rows that a restore or a subscription brings replace those that CREATE
-- SERVER made a moment before, and depend on their base like all others.
CREATE FUNCTION finetune.model_row()
	RETURNS pg_catalog.trigger
	LANGUAGE C SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_model_row';

CREATE TRIGGER replace_placeholder BEFORE INSERT ON finetune.model
	FOR EACH ROW EXECUTE FUNCTION finetune.model_row();
ALTER TABLE finetune.model ENABLE ALWAYS TRIGGER replace_placeholder;
CREATE TRIGGER record_dependency AFTER INSERT ON finetune.model
	FOR EACH ROW EXECUTE FUNCTION finetune.model_row();
ALTER TABLE finetune.model ENABLE ALWAYS TRIGGER record_dependency;

-- Inference
CREATE FUNCTION @extschema@.complete(model pg_catalog.text, prompt pg_catalog.text)
	RETURNS pg_catalog.text
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 10000
	AS 'MODULE_PATHNAME', 'pgft_complete';

CREATE FUNCTION @extschema@.complete(model pg_catalog.text, prompt pg_catalog.text,
									 options pg_catalog.jsonb)
	RETURNS pg_catalog.jsonb
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 10000
	AS 'MODULE_PATHNAME', 'pgft_complete_options';

CREATE FUNCTION @extschema@.complete(model pg_catalog.text, messages pg_catalog.jsonb,
									 options pg_catalog.jsonb DEFAULT '{}')
	RETURNS pg_catalog.jsonb
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 10000
	AS 'MODULE_PATHNAME', 'pgft_complete_messages';

CREATE FUNCTION @extschema@.count_tokens(model pg_catalog.text, input pg_catalog.text)
	RETURNS pg_catalog.int4
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 1000
	AS 'MODULE_PATHNAME', 'pgft_count_tokens';

-- Bytes of a base model's file, for who may use it; null when it cannot be seen.
CREATE FUNCTION finetune.base_size(server pg_catalog.oid)
	RETURNS pg_catalog.int8
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_base_size';

-- What the caller may use.
CREATE VIEW finetune.models WITH (security_barrier) AS
	SELECT s.srvname AS name,
		   m.kind,
		   CASE WHEN m.kind = 'base' OR m.weights_digest IS NOT NULL THEN 'ready'
				ELSE 'training' END AS status,
		   b.name AS base,
		   pg_catalog.pg_get_userbyid(s.srvowner) AS owner,
		   m.architecture,
		   m.parameters,
		   m.context_length,
		   CASE WHEN m.kind = 'base' THEN finetune.base_size(s.oid)
				ELSE (SELECT pg_catalog.sum(pg_catalog.octet_length(w.data))
					  FROM finetune.weights w
					  WHERE w.model_id OPERATOR(pg_catalog.=) m.id) END AS size,
		   m.created_at,
		   CASE WHEN m.job IS NOT NULL THEN 'ft_' OPERATOR(pg_catalog.||) m.job::pg_catalog.text
				END AS job_id,
		   m.training_loss,
		   m.validation_loss,
		   m.validation_token_accuracy
	FROM finetune.model m
		JOIN pg_catalog.pg_foreign_server s
			ON s.srvname::pg_catalog.text OPERATOR(pg_catalog.=) m.name
		LEFT JOIN finetune.model b ON b.id OPERATOR(pg_catalog.=) m.base_id
	WHERE pg_catalog.has_server_privilege(s.oid, 'USAGE');
GRANT SELECT ON finetune.models TO PUBLIC;

/*
 * Part 2: jobs
 */

-- A job.  Written by finetune() and by the worker that runs it, never by users;
-- every write of a worker names the attempt, so that a late one changes nothing.
-- The history outlives the model, so nothing here refers to finetune.model.
CREATE TABLE finetune.job (
	id pg_catalog.uuid PRIMARY KEY,
	model_id pg_catalog.uuid NOT NULL,
	model_name pg_catalog.text NOT NULL,	-- when it was created
	base_id pg_catalog.uuid NOT NULL,
	base_name pg_catalog.text NOT NULL,
	owner pg_catalog.regrole NOT NULL,
	search_path pg_catalog.text NOT NULL,	-- for the queries
	training_query pg_catalog.text NOT NULL,
	validation_query pg_catalog.text,
	options pg_catalog.jsonb NOT NULL,		-- checked, documented defaults filled in
	priority pg_catalog.int4 NOT NULL DEFAULT 0,
	phase pg_catalog.text NOT NULL DEFAULT 'pending'
		CHECK (phase IN ('pending', 'queued', 'running', 'uploading',
						 'completed', 'failed', 'cancelled')),
	created_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	started_at pg_catalog.timestamptz,
	finished_at pg_catalog.timestamptz,
	attempt pg_catalog.int4 NOT NULL DEFAULT 0,
	fruitless pg_catalog.int4 NOT NULL DEFAULT 0,	-- attempts since the last checkpoint
	has_directory pg_catalog.bool NOT NULL DEFAULT false,
	resolved_options pg_catalog.jsonb,		-- as the engine's plan says
	step pg_catalog.int8,
	total_steps pg_catalog.int8,
	checkpoint_step pg_catalog.int8,
	rows pg_catalog.jsonb,
	trained_tokens pg_catalog.int8,
	training_loss pg_catalog.float8,
	validation_loss pg_catalog.float8,
	validation_token_accuracy pg_catalog.float8,
	tokens_per_second pg_catalog.float8,
	estimated_finish pg_catalog.timestamptz,
	device pg_catalog.text,
	base_digest pg_catalog.text,
	data_hash pg_catalog.text,
	architecture pg_catalog.text,
	parameters pg_catalog.int8,
	error pg_catalog.jsonb,					-- code, message, hint
	CHECK ((phase IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL))
) WITH (fillfactor = 50);
-- The queue
CREATE INDEX job_unfinished ON finetune.job (priority DESC, created_at, id)
	WHERE phase IN ('pending', 'queued', 'running', 'uploading');
CREATE INDEX job_model_id ON finetune.job (model_id);
CREATE INDEX job_created_at ON finetune.job (created_at);
CREATE INDEX job_has_directory ON finetune.job (id) WHERE has_directory;

CREATE TABLE finetune.metric (
	job_id pg_catalog.uuid NOT NULL REFERENCES finetune.job ON DELETE CASCADE,
	step pg_catalog.int8 NOT NULL,
	epoch pg_catalog.float8,
	training_loss pg_catalog.float8,
	validation_loss pg_catalog.float8,
	validation_token_accuracy pg_catalog.float8,
	learning_rate pg_catalog.float8,
	grad_norm pg_catalog.float8,
	tokens pg_catalog.int8,
	elapsed pg_catalog.float8,
	PRIMARY KEY (job_id, step)
);
-- as the view shows it, and users ask for it
CREATE INDEX metric_job ON finetune.metric
	(('ft_'::pg_catalog.text OPERATOR(pg_catalog.||) job_id::pg_catalog.text));

CREATE TABLE finetune.event (
	job_id pg_catalog.uuid NOT NULL REFERENCES finetune.job ON DELETE CASCADE,
	number pg_catalog.int4 NOT NULL,
	at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	level pg_catalog.text NOT NULL CHECK (level IN ('info', 'warning', 'error')),
	type pg_catalog.text NOT NULL,
	message pg_catalog.text NOT NULL,
	data pg_catalog.jsonb,
	PRIMARY KEY (job_id, number)
);
CREATE INDEX event_job ON finetune.event
	(('ft_'::pg_catalog.text OPERATOR(pg_catalog.||) job_id::pg_catalog.text));

SELECT pg_catalog.pg_extension_config_dump('finetune.job', '');
SELECT pg_catalog.pg_extension_config_dump('finetune.metric', '');
SELECT pg_catalog.pg_extension_config_dump('finetune.event', '');

-- Jobs as they are shown, everybody's.  Models go by their present names and
-- owners; what is gone by the last that was known.
CREATE VIEW finetune.job_detail AS
	SELECT 'ft_'::pg_catalog.text OPERATOR(pg_catalog.||) j.id::pg_catalog.text AS job_id,
		   j.id,
		   CASE j.phase WHEN 'pending' THEN 'PENDING'
						WHEN 'completed' THEN 'SUCCESS'
						WHEN 'failed' THEN 'ERROR'
						WHEN 'cancelled' THEN 'CANCELLED'
						ELSE 'IN_PROGRESS' END AS status,
		   j.phase,
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
		   CASE WHEN j.finished_at IS NULL THEN j.estimated_finish END AS estimated_finish,
		   CASE WHEN j.phase OPERATOR(pg_catalog.=) 'pending'
					 AND j.attempt OPERATOR(pg_catalog.=) 0
				THEN (SELECT pg_catalog.count(*)
					  FROM finetune.job a
					  WHERE a.phase IN ('pending', 'queued', 'running', 'uploading')
						AND a.phase OPERATOR(pg_catalog.=) 'pending'
						AND a.attempt OPERATOR(pg_catalog.=) 0
						AND (a.priority OPERATOR(pg_catalog.>) j.priority
							 OR (a.priority OPERATOR(pg_catalog.=) j.priority
								 AND ROW(a.created_at, a.id)
									 OPERATOR(pg_catalog.<=) ROW(j.created_at, j.id))))
				END AS queue_position,
		   j.attempt AS attempts,
		   j.device,
		   j.data_hash,
		   j.error
	FROM finetune.job j
		LEFT JOIN finetune.model m ON m.id OPERATOR(pg_catalog.=) j.model_id
		LEFT JOIN finetune.model b ON b.id OPERATOR(pg_catalog.=) j.base_id
		LEFT JOIN pg_catalog.pg_foreign_server s
			ON s.srvname::pg_catalog.text OPERATOR(pg_catalog.=) m.name;

-- What a role may see: its own jobs, and those of roles that it is a member of.
CREATE VIEW finetune.jobs WITH (security_barrier) AS
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
				AND j.attempt OPERATOR(pg_catalog.=) 0) q
			ON q.id OPERATOR(pg_catalog.=) d.id
	WHERE pg_catalog.pg_has_role(d.owner, 'USAGE');

CREATE VIEW finetune.metrics WITH (security_barrier) AS
	SELECT 'ft_'::pg_catalog.text OPERATOR(pg_catalog.||) t.job_id::pg_catalog.text AS job_id,
		   t.step, t.epoch, t.training_loss, t.validation_loss, t.validation_token_accuracy,
		   t.learning_rate, t.grad_norm, t.tokens, t.elapsed
	FROM finetune.metric t
		JOIN finetune.job_detail d ON d.id OPERATOR(pg_catalog.=) t.job_id
	WHERE pg_catalog.pg_has_role(d.owner, 'USAGE');

CREATE VIEW finetune.events WITH (security_barrier) AS
	SELECT 'ft_'::pg_catalog.text OPERATOR(pg_catalog.||) e.job_id::pg_catalog.text AS job_id,
		   e.at, e.level, e.type, e.message, e.data
	FROM finetune.event e
		JOIN finetune.job_detail d ON d.id OPERATOR(pg_catalog.=) e.job_id
	WHERE pg_catalog.pg_has_role(d.owner, 'USAGE');

-- Jobs being run in this database, from shared memory: the caller's only.
CREATE FUNCTION finetune.running_jobs(
		OUT pid pg_catalog.int4, OUT job_id pg_catalog.text, OUT phase pg_catalog.text,
		OUT steps_done pg_catalog.int8, OUT steps_total pg_catalog.int8,
		OUT training_loss pg_catalog.float8, OUT tokens_per_second pg_catalog.float8,
		OUT seconds_left pg_catalog.float8)
	RETURNS SETOF pg_catalog.record
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_running_jobs_table';

CREATE VIEW finetune.progress AS
	SELECT r.pid, d.oid AS datid, d.datname, r.job_id, r.phase, r.steps_total, r.steps_done,
		   r.training_loss, r.tokens_per_second,
		   pg_catalog.make_interval(secs => pg_catalog.round(r.seconds_left)) AS time_left
	FROM finetune.running_jobs() r
		JOIN pg_catalog.pg_database d
			ON d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database();

GRANT SELECT ON finetune.jobs, finetune.metrics, finetune.events, finetune.progress TO PUBLIC;

-- The forms differ in their number of arguments; so does what they return.
CREATE FUNCTION @extschema@.finetune(action pg_catalog.text)
	RETURNS pg_catalog.jsonb
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pgft_finetune_show';

CREATE FUNCTION @extschema@.finetune(action pg_catalog.text, job_id pg_catalog.text)
	RETURNS pg_catalog.jsonb
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pgft_finetune_job';

CREATE FUNCTION @extschema@.finetune(action pg_catalog.text, model pg_catalog.text,
									 base_model pg_catalog.text)
	RETURNS pg_catalog.text
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pgft_finetune_incomplete';

CREATE FUNCTION @extschema@.finetune(action pg_catalog.text, model pg_catalog.text,
									 base_model pg_catalog.text, training_query pg_catalog.text,
									 validation_query pg_catalog.text DEFAULT NULL,
									 options pg_catalog.jsonb DEFAULT '{}')
	RETURNS pg_catalog.text
	LANGUAGE C VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'pgft_finetune_create';

COMMENT ON FUNCTION @extschema@.finetune(pg_catalog.text)
	IS 'your fine-tuning jobs: finetune(''SHOW'')';
COMMENT ON FUNCTION @extschema@.finetune(pg_catalog.text, pg_catalog.text)
	IS 'a fine-tuning job: finetune(''DESCRIBE'' | ''CANCEL'' | ''DELETE'', job_id)';
COMMENT ON FUNCTION @extschema@.finetune(pg_catalog.text, pg_catalog.text, pg_catalog.text)
	IS 'says which arguments are missing';
COMMENT ON FUNCTION @extschema@.finetune(pg_catalog.text, pg_catalog.text, pg_catalog.text,
										 pg_catalog.text, pg_catalog.text, pg_catalog.jsonb)
	IS 'fine-tune a model: finetune(''CREATE'', model, base_model, training_query), returns the job''s id';
COMMENT ON TABLE finetune.job IS 'fine-tuning jobs; see the view finetune.jobs';
COMMENT ON TABLE finetune.metric IS 'figures of training, step by step; see the view finetune.metrics';
COMMENT ON TABLE finetune.event IS 'what happened to jobs; see the view finetune.events';
COMMENT ON VIEW finetune.job_detail IS 'jobs as they are shown, everybody''s';
COMMENT ON VIEW finetune.jobs IS 'your fine-tuning jobs';
COMMENT ON VIEW finetune.metrics IS 'figures of your jobs'' training, step by step';
COMMENT ON VIEW finetune.events IS 'what happened to your jobs';
COMMENT ON VIEW finetune.progress IS 'your jobs that are being run now';
COMMENT ON FUNCTION finetune.running_jobs() IS 'your jobs that are being run now, from shared memory';
