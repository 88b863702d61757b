-- Errors that no other test provokes, each with its SQLSTATE.
\pset format unaligned
\pset tuples_only on
CREATE FUNCTION try(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
	detail text;
BEGIN
	EXECUTE query;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT, detail = PG_EXCEPTION_DETAIL;
	RETURN format(E'%s %s%s%s', SQLSTATE, SQLERRM,
				  coalesce(E'\n  detail: ' || nullif(detail, ''), ''),
				  coalesce(E'\n  hint: ' || nullif(hint, ''), ''));
END
$$;
SET client_min_messages = error;	-- the bases' files are not there

-- Functions of the library in a database without the extension
CREATE FUNCTION bare_complete(text, text) RETURNS text LANGUAGE c STRICT AS 'pg_finetune', 'pgft_complete';
CREATE FUNCTION bare_try_complete(text, text) RETURNS text LANGUAGE c STRICT AS 'pg_finetune', 'pgft_try_complete';
SELECT try('SELECT bare_complete(''m'', ''x'')');
SELECT bare_try_complete('m', 'x') IS NULL;
DROP FUNCTION bare_complete, bare_try_complete;
CREATE EXTENSION pg_finetune;

-- Triggers that are called
SELECT try('SELECT finetune.server_changed()');
SELECT try('SELECT finetune.server_dropped()');
SELECT try('SELECT finetune.model_row()');

-- Options of a server
CREATE FUNCTION try_server(options text, type text DEFAULT 'base', name text DEFAULT 'm') RETURNS text LANGUAGE sql
	RETURN try(format('CREATE SERVER %I %s FOREIGN DATA WRAPPER pg_finetune %s', name,
					  'TYPE ' || quote_literal(type), 'OPTIONS (' || options || ')'));
SELECT try_server('path ''a''');
SELECT try_server('file ''''');
SELECT try_server('file ''/etc/passwd''');
SELECT try_server('file ''a/../b''');
SELECT try_server('file ''a'', template ''''');
SELECT try_server('file ''a'', context_length ''0''');
SELECT try_server('file ''a'', storage ''disk''');
SELECT try_server('file ''a'', storage ''database''');
SELECT try_server('endpoint ''http://localhost:8000''');
SELECT try_server('endpoint ''localhost:8000'', remote_model ''m''');
SELECT try_server('endpoint ''https://'', remote_model ''m''');
SELECT try_server('endpoint ''https://a b'', remote_model ''m''');
SELECT try_server('endpoint ''https://u:p@host'', remote_model ''m''');
SELECT try_server('endpoint ''https://host/v1?key=k'', remote_model ''m''');
SELECT try_server(format('endpoint ''https://%s'', remote_model ''m''', repeat('h', 2048)));
SELECT try_server(format('endpoint ''http://%s'', remote_model ''m''', host))
	FROM unnest('{example.com:80,127.0.0.1.example.com,10.0.0.1/v1,[fe80::1]:80}'::text[]) host;
SELECT try_server('endpoint ''https://host'', remote_model ''''');
SELECT try_server('endpoint ''https://host'', remote_model ''m'', file ''a''');
SELECT try_server('endpoint ''https://host'', remote_model ''m'', storage ''database''');
SELECT try_server('endpoint ''https://host'', remote_model ''m'', sslrootcert ''/etc/ca.crt''');
SELECT try_server('endpoint ''https://host'', remote_model ''m'', sslrootcert ''../ca.crt''');
SELECT try_server('endpoint ''https://host'', remote_model ''m'', allow_http ''perhaps''');
SELECT try_server('allow_http ''on'', file ''a''');
SELECT try_server('endpoint ''https://host'', remote_model ''m''', 'lora');
SELECT try_server('file ''a''', NULL);
SELECT try_server('file ''a''', 'model');
SELECT try_server(NULL);
SELECT try_server('file ''a''', 'lora');
SELECT try('ALTER FOREIGN DATA WRAPPER pg_finetune OPTIONS (ADD file ''a'')');

-- Models that are no use
CREATE SERVER base TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'no/such.gguf');
SELECT try_server('file ''a''', name => 'base');
SELECT try('CREATE FOREIGN TABLE t (a int) SERVER base');
SELECT try('CREATE USER MAPPING FOR CURRENT_USER SERVER base OPTIONS (password ''k'')');
SELECT try('CREATE USER MAPPING FOR CURRENT_USER SERVER base OPTIONS (api_key ''two words'')');
SELECT try('CREATE USER MAPPING FOR CURRENT_USER SERVER base OPTIONS (api_key '''')');
SELECT try('ALTER SERVER base OPTIONS (ADD endpoint ''https://host'', ADD remote_model ''m'', DROP file)');
SELECT try('SELECT complete(''base'', ''x'')');
INSERT INTO finetune.model (id, name, kind, base_id) SELECT gen_random_uuid(), 'tuned', 'lora', id FROM finetune.model;
SELECT try_server(NULL, 'full', 'tuned');
CREATE SERVER tuned TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune;
SELECT try('SELECT complete(''tuned'', ''x'')');
SELECT try('SELECT finetune(''CREATE'', ''m'', ''tuned'', ''SELECT '''''''' AS text'')');

-- A full model needs its base until it has weights; its files are named by a digest
BEGIN;
UPDATE finetune.model SET kind = 'full', storage = 'file' WHERE name = 'tuned';
SELECT try('DROP SERVER base');
UPDATE finetune.model SET weights_digest = '../x' WHERE name = 'tuned';
SELECT try('SELECT complete(''tuned'', ''x'')');
SELECT status, size FROM finetune.models WHERE name = 'tuned';
DROP SERVER base;
SELECT base_id IS NULL, base FROM finetune.model m JOIN finetune.models USING (name) WHERE name = 'tuned';
ROLLBACK;
UPDATE finetune.model SET weights_digest = 'x' WHERE name = 'tuned';

-- A dependency that a restore has not recorded
BEGIN;
DELETE FROM pg_depend WHERE classid = 'pg_foreign_server'::regclass AND refclassid = 'pg_foreign_server'::regclass;
SELECT try('DROP SERVER base');
ROLLBACK;

-- A base whose server or file has gone
BEGIN;
INSERT INTO finetune.model (id, name, kind) VALUES ('00000000-0000-0000-0000-000000000001', 'lost', 'base');
INSERT INTO finetune.model (id, name, kind, base_id, weights_digest)
	VALUES (gen_random_uuid(), 'orphan', 'lora', '00000000-0000-0000-0000-000000000001', 'x');
CREATE SERVER orphan TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune;
SELECT try('SELECT complete(''orphan'', ''x'')');
SELECT try_complete('orphan', 'x') IS NULL;
UPDATE pg_foreign_server SET srvoptions = '{file=/etc/passwd}' WHERE srvname = 'base';
SELECT try('SELECT complete(''base'', ''x'')');
UPDATE pg_foreign_server SET srvoptions = NULL WHERE srvname = 'base';
SELECT try('SELECT complete(''base'', ''x'')');
ROLLBACK;

DROP SERVER base CASCADE;
DROP EXTENSION pg_finetune;
DROP FUNCTION try_server, try;
