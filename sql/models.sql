-- Models as foreign servers: what a server of the wrapper may be.
CREATE EXTENSION pg_finetune;
SELECT fdwname, fdwhandler::regproc, fdwvalidator::regproc, fdwoptions, fdwacl FROM pg_foreign_data_wrapper;

-- options are checked, as far as that goes without looking at any file
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (path 'a');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file '');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file '/etc/passwd');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file '..');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a/../b');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a//b');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a/');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a', template '');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a', context_length '0');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a', context_length '1k');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a', storage 'disk');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a', storage 'database');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (endpoint 'http://localhost:8000');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (remote_model 'm', file 'a');
ALTER FOREIGN DATA WRAPPER pg_finetune OPTIONS (ADD file 'a');

-- so is the type, and that there is a file
CREATE SERVER m FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a');
CREATE SERVER m TYPE 'model' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a');
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune;
CREATE SERVER m TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a');
SELECT count(*) FROM finetune.model;

-- a file that is not there is a warning, for it may come later
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune
	OPTIONS (file 'no/such.gguf', template 'chatml', context_length '1024', storage 'file');
SELECT name, kind, status, base, architecture, size FROM finetune.models;
SELECT complete('m', 'x');
ALTER SERVER m OPTIONS (DROP file);
ALTER SERVER m OPTIONS (SET context_length '-1');
ALTER SERVER m OPTIONS (SET file 'no/other.gguf', DROP context_length);
SELECT srvname, srvtype, srvversion, srvoptions, srvacl FROM pg_foreign_server;
CREATE FOREIGN TABLE t (a int) SERVER m;
CREATE USER MAPPING FOR CURRENT_USER SERVER m OPTIONS (password 'k');

-- names are unique, and follow
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a');
CREATE SERVER IF NOT EXISTS m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'a');
ALTER SERVER m RENAME TO "M 2";
SELECT name FROM finetune.model;
SELECT complete('m', 'x');
COMMENT ON SERVER "M 2" IS 'a model';
DROP EXTENSION pg_finetune;
DROP SERVER "M 2";
SELECT count(*) FROM finetune.model;
SELECT complete('M 2', 'x');

-- what is wrong with a request is said before any model is loaded
CREATE SERVER m TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'no/such.gguf');
SELECT complete('m', 'x', '{"tempreature": 1}');
SELECT complete('m', 'x', '{"max_tokens": "many"}');
SELECT complete('m', messages => '[]');
SELECT complete('m', messages => '[{"role": "user"}]');
SELECT complete('m', NULL) IS NULL, complete(NULL, 'x') IS NULL, count_tokens('m', NULL) IS NULL;
DROP SERVER m;
DROP EXTENSION pg_finetune;
