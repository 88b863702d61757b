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

-- The extension's own view of 1.0, with what is known of bases in the database.
CREATE OR REPLACE VIEW finetune.models WITH (security_barrier) AS
	SELECT s.srvname AS name,
		   m.kind,
		   CASE WHEN m.weights_digest IS NOT NULL THEN 'ready'
				WHEN m.kind OPERATOR(pg_catalog.<>) 'base' THEN 'training'
				WHEN 'storage=database' OPERATOR(pg_catalog.=) ANY (s.srvoptions) THEN 'missing'
				ELSE 'ready' END AS status,
		   b.name AS base,
		   pg_catalog.pg_get_userbyid(s.srvowner) AS owner,
		   m.architecture,
		   m.parameters,
		   m.context_length,
		   CASE WHEN m.kind OPERATOR(pg_catalog.=) 'base' AND NOT COALESCE('storage=database' OPERATOR(pg_catalog.=) ANY (s.srvoptions), false)
				THEN finetune.base_size(s.oid)
				ELSE (SELECT pg_catalog.sum(pg_catalog.octet_length(w.data))
					  FROM finetune.weights w
					  WHERE w.model_id OPERATOR(pg_catalog.=) m.id) END AS size,
		   m.created_at,
		   CASE WHEN m.job IS NOT NULL THEN 'ft_' OPERATOR(pg_catalog.||) m.job::pg_catalog.text
				END AS job_id,
		   m.training_loss,
		   m.validation_loss,
		   m.validation_token_accuracy,
		   CASE WHEN m.kind OPERATOR(pg_catalog.=) 'base' AND NOT COALESCE('storage=database' OPERATOR(pg_catalog.=) ANY (s.srvoptions), false)
				THEN 'file' ELSE 'database' END AS storage
	FROM finetune.model m
		JOIN pg_catalog.pg_foreign_server s
			ON s.srvname::pg_catalog.text OPERATOR(pg_catalog.=) m.name
		LEFT JOIN finetune.model b ON b.id OPERATOR(pg_catalog.=) m.base_id
	WHERE pg_catalog.has_server_privilege(s.oid, 'USAGE');

COMMENT ON FUNCTION @extschema@.finetune_export(pg_catalog.text, pg_catalog.text, pg_catalog.text)
	IS 'write a tuned model into a new directory on the server, as a PEFT adapter';
COMMENT ON FUNCTION @extschema@.finetune_import(pg_catalog.text, pg_catalog.text, pg_catalog.text)
	IS 'make a model out of a PEFT adapter in a directory on the server';
COMMENT ON COLUMN finetune.models.storage IS 'where the weights are: file or database';
COMMENT ON COLUMN finetune.model.base_digest
	IS 'SHA-256 of the base''s file: what a tuned model was trained on; of a base, what it has to be';
COMMENT ON COLUMN finetune.model.weights_digest
	IS 'digest of the weights in finetune.weights; null while there are none';
