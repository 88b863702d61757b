/* pg_finetune: what version 1.1 adds to 1.0 */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION pg_finetune UPDATE TO '1.1'" to load this file. \quit

-- Training data from files

CREATE FUNCTION finetune.read_jsonl(path pg_catalog.text)
	RETURNS SETOF pg_catalog.jsonb
	LANGUAGE C VOLATILE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_read_jsonl';
REVOKE EXECUTE ON FUNCTION finetune.read_jsonl(pg_catalog.text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION finetune.read_jsonl(pg_catalog.text) TO pg_read_server_files;
COMMENT ON FUNCTION finetune.read_jsonl(pg_catalog.text)
	IS 'the lines of a JSONL file on the server, one row each';

/*
 * Jobs that pause, and that stay in their cluster
 */

ALTER TABLE finetune.job
	ADD COLUMN waiting pg_catalog.bool NOT NULL DEFAULT true,	-- for a worker
	ADD COLUMN paused_in pg_catalog.text,	-- the phase that a paused job goes on in
	ADD COLUMN instance pg_catalog.uuid,	-- cluster and database in which it runs;
	ADD COLUMN database pg_catalog.oid,		-- null: wherever it is found
	DROP CONSTRAINT job_phase_check,
	ADD CONSTRAINT job_phase_check
		CHECK (phase IN ('pending', 'queued', 'running', 'uploading', 'paused',
						 'completed', 'failed', 'cancelled')),
	ADD CONSTRAINT job_paused_in_check
		CHECK ((phase OPERATOR(pg_catalog.=) 'paused')
			   OPERATOR(pg_catalog.=) (paused_in IS NOT NULL));
UPDATE finetune.job SET waiting = attempt OPERATOR(pg_catalog.=) 0;

CREATE OR REPLACE VIEW finetune.job_detail AS
	SELECT 'ft_'::pg_catalog.text OPERATOR(pg_catalog.||) j.id::pg_catalog.text AS job_id,
		   j.id,
		   CASE j.phase WHEN 'pending' THEN 'PENDING'
						WHEN 'completed' THEN 'SUCCESS'
						WHEN 'failed' THEN 'ERROR'
						WHEN 'cancelled' THEN 'CANCELLED'
						WHEN 'paused' THEN 'PAUSED'
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
		   CASE WHEN j.waiting
					 AND j.phase IN ('pending', 'queued', 'running', 'uploading')
				THEN (SELECT pg_catalog.count(*)
					  FROM finetune.job a
					  WHERE a.phase IN ('pending', 'queued', 'running', 'uploading')
						AND a.waiting
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
			WHERE j.phase IN ('pending', 'queued', 'running', 'uploading')
				AND j.waiting) q
			ON q.id OPERATOR(pg_catalog.=) d.id
	WHERE pg_catalog.pg_has_role(d.owner, 'USAGE');
