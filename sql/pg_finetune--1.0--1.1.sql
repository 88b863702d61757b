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
