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

-- Estimates and evaluations: run at once, as the caller

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
