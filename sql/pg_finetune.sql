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
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 1000000
	AS 'MODULE_PATHNAME', 'pgft_complete';

CREATE FUNCTION @extschema@.complete(model pg_catalog.text, prompt pg_catalog.text,
									 options pg_catalog.jsonb)
	RETURNS pg_catalog.jsonb
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 1000000
	AS 'MODULE_PATHNAME', 'pgft_complete_options';

CREATE FUNCTION @extschema@.complete(model pg_catalog.text, messages pg_catalog.jsonb,
									 options pg_catalog.jsonb DEFAULT '{}')
	RETURNS pg_catalog.jsonb
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 1000000
	AS 'MODULE_PATHNAME', 'pgft_complete_messages';

CREATE FUNCTION @extschema@.count_tokens(model pg_catalog.text, input pg_catalog.text)
	RETURNS pg_catalog.int4
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 10000
	AS 'MODULE_PATHNAME', 'pgft_count_tokens';

-- Bytes of a base model's file; null when it cannot be seen.
CREATE FUNCTION finetune.base_size(server pg_catalog.oid)
	RETURNS pg_catalog.int8
	LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
	AS 'MODULE_PATHNAME', 'pgft_base_size';
REVOKE ALL ON FUNCTION finetune.base_size(pg_catalog.oid) FROM PUBLIC;

-- What the caller may use.
CREATE VIEW finetune.models AS
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
