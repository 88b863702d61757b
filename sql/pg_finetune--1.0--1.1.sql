/* pg_finetune: what version 1.1 adds to 1.0 */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION pg_finetune UPDATE TO '1.1'" to load this file. \quit

/*
 * Copies of a database: dumps are quiet, and a job runs only where it was created
 */

-- In the order in which sessions and workers of running jobs lock them.
LOCK TABLE finetune.job, finetune.model, finetune.weights, finetune.metric, finetune.event;

-- This cluster, database and table; another one in every copy of them.
CREATE FUNCTION finetune.here()
	RETURNS pg_catalog.text
	LANGUAGE C STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_here';
COMMENT ON FUNCTION finetune.here() IS 'where jobs are at home that are created now: cluster, database, table';

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

-- As in 1.0, but that a copy of an unfinished job is paused.
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
				THEN (SELECT pg_catalog.count(*)
					  FROM finetune.job a
					  WHERE a.phase IN ('pending', 'queued', 'running', 'uploading')
						AND a.phase OPERATOR(pg_catalog.=) 'pending'
						AND a.attempt OPERATOR(pg_catalog.=) 0
						AND a.home OPERATOR(pg_catalog.=) j.home
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
		CROSS JOIN LATERAL (
			SELECT CASE WHEN j.finished_at IS NULL
							 AND j.home IS DISTINCT FROM (SELECT finetune.here())
						THEN 'paused' ELSE j.phase END AS phase) p
		LEFT JOIN finetune.model m ON m.id OPERATOR(pg_catalog.=) j.model_id
		LEFT JOIN finetune.model b ON b.id OPERATOR(pg_catalog.=) j.base_id
		LEFT JOIN pg_catalog.pg_foreign_server s
			ON s.srvname::pg_catalog.text OPERATOR(pg_catalog.=) m.name;

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
				AND j.home OPERATOR(pg_catalog.=) (SELECT finetune.here())) q
			ON q.id OPERATOR(pg_catalog.=) d.id
	WHERE pg_catalog.pg_has_role(d.owner, 'USAGE');

-- As in 1.0, but that a model which nobody trains says so.
CREATE OR REPLACE VIEW finetune.models WITH (security_barrier) AS
	SELECT s.srvname AS name,
		   m.kind,
		   CASE WHEN m.kind OPERATOR(pg_catalog.=) 'base'
					 OR m.weights_digest IS NOT NULL THEN 'ready'
				WHEN m.job IS NULL
					 OR j.phase IN ('paused', 'failed', 'cancelled') THEN 'untrained'
				ELSE 'training' END AS status,
		   b.name AS base,
		   pg_catalog.pg_get_userbyid(s.srvowner) AS owner,
		   m.architecture,
		   m.parameters,
		   m.context_length,
		   CASE WHEN m.kind OPERATOR(pg_catalog.=) 'base' THEN finetune.base_size(s.oid)
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
		LEFT JOIN finetune.job_detail j ON j.id OPERATOR(pg_catalog.=) m.job
	WHERE pg_catalog.has_server_privilege(s.oid, 'USAGE');
