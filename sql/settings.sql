-- Settings: who may set what, to what.
CREATE EXTENSION pg_finetune;
SELECT name, setting, unit, context, vartype, min_val, max_val, enumvals
FROM pg_settings
WHERE name LIKE 'pg\_finetune.%' AND name NOT IN ('pg_finetune.threads', 'pg_finetune.model_directory')
ORDER BY name;
SELECT name, context, min_val FROM pg_settings WHERE name IN ('pg_finetune.threads', 'pg_finetune.model_directory') ORDER BY name;

-- a session may set no more than how long it waits, and for how many rows
SET pg_finetune.request_timeout = '1min';
SHOW pg_finetune.request_timeout;
SET pg_finetune.request_timeout = -1;
SET pg_finetune.serve = off;
SET pg_finetune.model_directory = '/etc';
SET pg_finetune.engine_path = '/bin/sh';
SET pg_finetune.no_such_setting = 1;

-- values are checked
ALTER SYSTEM SET pg_finetune.device = 'gpu';
ALTER SYSTEM SET pg_finetune.device = 'cuda:';
ALTER SYSTEM SET pg_finetune.device = 'cuda:x';
ALTER SYSTEM SET pg_finetune.numerics = 'exact';
ALTER SYSTEM SET pg_finetune.threads = 0;
ALTER SYSTEM SET pg_finetune.max_running_jobs = 65;

-- directories are not for everybody to see
CREATE ROLE regress_finetune_reader;
SET ROLE regress_finetune_reader;
SHOW pg_finetune.model_directory;
SHOW pg_finetune.work_directory;
SHOW pg_finetune.engine_path;
SHOW pg_finetune.numerics;
RESET ROLE;
DROP ROLE regress_finetune_reader;
DROP EXTENSION pg_finetune;
