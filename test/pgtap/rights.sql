-- Who may do what: every action by every kind of role.
--
-- Each line of the table "cell" is an action, each column a role; what stands
-- there is the SQLSTATE that the role gets, "ok", or "none" when nothing fails
-- and nothing is seen or changed.  A loop runs each of them in a
-- subtransaction that is rolled back; so is the whole.
SET client_min_messages = error;

CREATE ROLE rights_super SUPERUSER;
CREATE ROLE rights_owner LOGIN;			-- owns the models and jobs "owner_..."
CREATE ROLE rights_usage LOGIN;			-- was granted USAGE on them
CREATE ROLE rights_granter LOGIN;		-- the same, WITH GRANT OPTION
CREATE ROLE rights_stranger LOGIN;
CREATE ROLE rights_member LOGIN IN ROLE rights_owner;
CREATE ROLE rights_noinherit LOGIN NOINHERIT IN ROLE rights_owner;
CREATE ROLE rights_team NOLOGIN;		-- owns the models and jobs "team_..."
CREATE ROLE rights_person LOGIN NOINHERIT IN ROLE rights_team;
CREATE ROLE rights_heir;				-- somebody else, to give things to
GRANT pg_write_server_files TO rights_owner, rights_team;

-- Who acts: logged in as whom, after which SET ROLE; who is granted rights for
-- it; whose objects it acts upon.
CREATE TABLE actor (name text PRIMARY KEY, login name, set_role name, grantee name, target text);
INSERT INTO actor VALUES
	('super',		'rights_super',		NULL,			'rights_super',		'owner'),
	('owner',		'rights_owner',		NULL,			'rights_owner',		'owner'),
	('usage',		'rights_usage',		NULL,			'rights_usage',		'owner'),
	('granter',		'rights_granter',	NULL,			'rights_granter',	'owner'),
	('stranger',	'rights_stranger',	NULL,			'rights_stranger',	'owner'),
	('member',		'rights_member',	NULL,			'rights_owner',		'owner'),
	('noinherit',	'rights_noinherit',	NULL,			'rights_owner',		'owner'),
	('set role',	'rights_person',	'rights_team',	'rights_team',		'team');

-- Preparation, by a superuser, in the same subtransaction.
CREATE TABLE preparation (name text PRIMARY KEY, command text);
INSERT INTO preparation VALUES
	('wrapper and base', 'GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO {grantee};
						  GRANT USAGE ON FOREIGN SERVER tiny TO {grantee}'),
	('wrapper',			'GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO {grantee}'),
	('base',			'GRANT USAGE ON FOREIGN SERVER tiny TO {grantee}'),
	('heir',			'GRANT rights_heir TO {grantee}; GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO rights_heir'),
	('poor heir',		'GRANT rights_heir TO {grantee}'),
	('rich heir',		'GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO rights_heir'),
	('running',			'ALTER SERVER owner_long OWNER TO rights_{target}');

CREATE TABLE cell (part text, action text, super text, owner text, usage text, granter text, stranger text,
				   member text, noinherit text, "set role" text, prepare text, command text,
				   effect text DEFAULT 'true');	-- what is true afterwards

INSERT INTO cell VALUES
--						super	owner	usage	granter	stranger member	noinherit set role
('create', 'CREATE',	'ok',	'ok',	'ok',	'ok',	'ok',	'ok',	'42501', 'ok', 'wrapper and base',
	$$SELECT finetune('CREATE', 'created', 'tiny', 'SELECT $q$a$q$ AS text')$$),
('create', 'CREATE without USAGE on the base',
						'ok',	'42501', '42501', '42501', '42501', '42501', '42501', '42501', 'wrapper',
	$$SELECT finetune('CREATE', 'created', 'tiny', 'SELECT $q$a$q$ AS text')$$),
('create', 'CREATE without USAGE on the wrapper',
						'ok',	'42501', '42501', '42501', '42501', '42501', '42501', '42501', 'base',
	$$SELECT finetune('CREATE', 'created', 'tiny', 'SELECT $q$a$q$ AS text')$$),
('create', 'CREATE without either',
						'ok',	'42501', '42501', '42501', '42501', '42501', '42501', '42501', NULL,
	$$SELECT finetune('CREATE', 'created', 'tiny', 'SELECT $q$a$q$ AS text')$$),
('create', 'CREATE of a full model without either',
						'ok',	'42501', '42501', '42501', '42501', '42501', '42501', '42501', NULL,
	$$SELECT finetune('CREATE', 'created', 'tiny', 'SELECT $q$a$q$ AS text', NULL, '{"method": "full"}')$$),
('create', 'CREATE SERVER',
						'ok',	'ok',	'ok',	'ok',	'ok',	'ok',	'42501', 'ok', 'wrapper',
	$$CREATE SERVER created TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf')$$),
('create', 'CREATE SERVER without USAGE on the wrapper',
						'ok',	'42501', '42501', '42501', '42501', '42501', '42501', '42501', NULL,
	$$CREATE SERVER created TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf')$$),
('create', 'CREATE SERVER of a tuned model',
						'ok',	'42501', '42501', '42501', '42501', '42501', '42501', '42501', 'wrapper',
	$$CREATE SERVER created TYPE 'lora' FOREIGN DATA WRAPPER pg_finetune$$),

('ask', 'complete',		'ok',	'ok',	'ok',	'ok',	'42501', 'ok',	'42501', 'ok', NULL,
	$$SELECT complete('{target}_model', 'item 1', '{"max_tokens": 1}')$$),
('ask', 'complete, chat', 'ok',	'ok',	'ok',	'ok',	'42501', 'ok',	'42501', 'ok', NULL,
	$$SELECT complete('{target}_model', messages => '[{"role": "user", "content": "item"}]', options => '{"max_tokens": 1}')$$),
('ask', 'count_tokens',	'ok',	'ok',	'ok',	'ok',	'42501', 'ok',	'42501', 'ok', NULL,
	$$SELECT count_tokens('{target}_model', 'item 1')$$),
('ask', 'complete by its base',
						'ok',	'42501', '42501', '42501', '42501', '42501', '42501', '42501', NULL,
	$$SELECT complete('tiny', 'item 1', '{"max_tokens": 1}')$$),
('ask', 'complete by its base with USAGE on that',
						'ok',	'ok',	'ok',	'ok',	'ok',	'ok',	'42501', 'ok', 'base',
	$$SELECT complete('tiny', 'item 1', '{"max_tokens": 1}')$$),
('ask', 'finetune.models', 'ok', 'ok',	'ok',	'ok',	'none',	'ok',	'none',	'ok', NULL,
	$$SELECT FROM finetune.models WHERE name = '{target}_model'$$),
('ask', 'size of the base',
						'ok',	'none',	'none',	'none',	'none',	'none',	'none',	'none', NULL,
	$$SELECT FROM finetune.base_size((SELECT oid FROM pg_foreign_server WHERE srvname = 'tiny')) s WHERE s > 0$$),

('ask', 'directories of full models',
						'none',	'42501', '42501', '42501', '42501', '42501', '42501', '42501', NULL,
	$$SELECT finetune.model_files()$$),

('job', 'SHOW',			'ok',	'ok',	'none',	'none',	'none',	'ok',	'none',	'ok', NULL,
	$$SELECT FROM jsonb_array_elements(finetune('SHOW')) j WHERE j->>'id' = '{completed}'$$),
('job', 'DESCRIBE',		'ok',	'ok',	'42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$SELECT finetune('DESCRIBE', '{completed}')$$),
('job', 'CANCEL, pending', 'ok', 'ok',	'42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$SELECT FROM finetune('CANCEL', '{pending}') j WHERE j->>'status' = 'CANCELLED'$$),
('job', 'CANCEL, queued', 'ok',	'ok',	'42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$SELECT FROM finetune('CANCEL', '{queued}') j WHERE j->>'status' = 'CANCELLED'$$),
('job', 'CANCEL, running', 'ok', 'ok',	'42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$SELECT FROM finetune('CANCEL', '{running}') j WHERE j->>'status' = 'CANCELLED'$$),
('job', 'CANCEL, uploading', 'ok', 'ok', '42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$SELECT FROM finetune('CANCEL', '{uploading}') j WHERE j->>'status' = 'CANCELLED'$$),
('job', 'CANCEL, completed', 'ok', 'ok', '42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$SELECT FROM finetune('CANCEL', '{completed}') j WHERE j->>'status' = 'SUCCESS'$$),
('job', 'CANCEL, failed', 'ok',	'ok',	'42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$SELECT FROM finetune('CANCEL', '{failed}') j WHERE j->>'status' = 'ERROR'$$),
('job', 'CANCEL, cancelled', 'ok', 'ok', '42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$SELECT FROM finetune('CANCEL', '{cancelled}') j WHERE j->>'status' = 'CANCELLED'$$),
('job', 'DELETE, pending', '55000', '55000', '42501', '42501', '42501', '55000', '42501', '55000', NULL,
	$$SELECT finetune('DELETE', '{pending}')$$),
('job', 'DELETE, queued', '55000', '55000', '42501', '42501', '42501', '55000', '42501', '55000', NULL,
	$$SELECT finetune('DELETE', '{queued}')$$),
('job', 'DELETE, running', '55000', '55000', '42501', '42501', '42501', '55000', '42501', '55000', NULL,
	$$SELECT finetune('DELETE', '{running}')$$),
('job', 'DELETE, uploading', '55000', '55000', '42501', '42501', '42501', '55000', '42501', '55000', NULL,
	$$SELECT finetune('DELETE', '{uploading}')$$),
('job', 'DELETE, completed', 'ok', 'ok', '42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$SELECT finetune('DELETE', '{completed}')$$),
('job', 'DELETE, failed', 'ok',	'ok',	'42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$SELECT finetune('DELETE', '{failed}')$$),
('job', 'DELETE, cancelled', 'ok', 'ok', '42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$SELECT finetune('DELETE', '{cancelled}')$$),
('job', 'DESCRIBE of no job', '42704', '42704', '42704', '42704', '42704', '42704', '42704', '42704', NULL,
	$$SELECT finetune('DESCRIBE', 'ft_00000000-0000-0000-0000-000000000000')$$),

('view', 'finetune.jobs', 'ok',	'ok',	'none',	'none',	'none',	'ok',	'none',	'ok', NULL,
	$$SELECT FROM finetune.jobs WHERE job_id = '{completed}'$$),
('view', 'finetune.metrics', 'ok', 'ok', 'none', 'none', 'none', 'ok',	'none',	'ok', NULL,
	$$SELECT FROM finetune.metrics WHERE job_id = '{completed}'$$),
('view', 'finetune.events', 'ok', 'ok',	'none',	'none',	'none',	'ok',	'none',	'ok', NULL,
	$$SELECT FROM finetune.events WHERE job_id = '{completed}'$$),
('view', 'finetune.progress', 'ok', 'ok', 'none', 'none', 'none', 'ok',	'none',	'ok', 'running',
	$$SELECT FROM finetune.progress WHERE job_id = '{long}'$$),
('view', 'finetune.running_jobs', 'ok', 'ok', 'none', 'none', 'none', 'ok', 'none', 'ok', 'running',
	$$SELECT FROM finetune.running_jobs() WHERE job_id = '{long}'$$),
('view', 'all at once by a function that tells',
						'ok',	'ok',	'none',	'none',	'none',	'ok',	'none',	'ok', NULL,
	$$SELECT FROM finetune.jobs WHERE rights_tell(training_data) AND job_id = '{completed}'$$),
('view', 'the tables',	'ok',	'42501', '42501', '42501', '42501', '42501', '42501', '42501', NULL,
	$$SELECT FROM finetune.job j, finetune.metric, finetune.event, finetune.model, finetune.weights LIMIT 1$$),
('view', 'the view behind', 'ok', '42501', '42501', '42501', '42501', '42501', '42501', '42501', NULL,
	$$SELECT FROM finetune.job_detail$$),

('server', 'DROP SERVER', 'ok',	'ok',	'42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$DROP SERVER {target}_model$$),
('server', 'DROP SERVER, in training', 'ok', 'ok', '42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$DROP SERVER {target}_running$$),
('server', 'DROP SERVER of the base', '2BP01', '42501', '42501', '42501', '42501', '42501', '42501', '42501', NULL,
	$$DROP SERVER tiny$$),
('server', 'RENAME',	'ok',	'ok',	'42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$ALTER SERVER {target}_model RENAME TO renamed$$),
('server', 'RENAME of the base', 'ok', '42501', '42501', '42501', '42501', '42501', '42501', '42501', NULL,
	$$ALTER SERVER tiny RENAME TO renamed$$),
('server', 'OWNER TO oneself and others', 'ok', 'ok', '42501', '42501', '42501', 'ok', '42501', 'ok', 'heir',
	$$ALTER SERVER {target}_model OWNER TO rights_heir$$),
('server', 'OWNER TO somebody else', 'ok', '42501', '42501', '42501', '42501', '42501', '42501', '42501', 'rich heir',
	$$ALTER SERVER {target}_model OWNER TO rights_heir$$),
('server', 'OWNER TO who may not have models', 'ok', '42501', '42501', '42501', '42501', '42501', '42501', '42501', 'poor heir',
	$$ALTER SERVER {target}_model OWNER TO rights_heir$$),
('server', 'options of a tuned model', 'HV00D', 'HV00D', '42501', '42501', '42501', 'HV00D', '42501', 'HV00D', NULL,
	$$ALTER SERVER {target}_model OPTIONS (ADD file 'tiny.gguf')$$),
('server', 'options of the base', 'ok', '42501', '42501', '42501', '42501', '42501', '42501', '42501', NULL,
	$$ALTER SERVER tiny OPTIONS (ADD context_length '64')$$),
('server', 'COMMENT',	'ok',	'ok',	'42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$COMMENT ON SERVER {target}_model IS 'mine'$$);

INSERT INTO cell VALUES	-- GRANT by who has no grant option is a warning
--						super	owner	usage	granter	stranger member	noinherit set role
('server', 'GRANT',		'ok',	'ok',	'none',	'ok',	'42501', 'ok',	'42501', 'ok', NULL,
	$$GRANT USAGE ON FOREIGN SERVER {target}_model TO rights_heir$$,
	$$has_server_privilege('rights_heir', '{target}_model', 'USAGE')$$),
('server', 'REVOKE what others granted',
						'ok',	'ok',	'none',	'none',	'42501', 'ok',	'42501', 'ok', NULL,
	$$REVOKE USAGE ON FOREIGN SERVER {target}_model FROM rights_usage$$,
	$$NOT has_server_privilege('rights_usage', '{target}_model', 'USAGE')$$);

-- Functions that belong to the weights themselves
INSERT INTO cell VALUES
--						super	owner	usage	granter	stranger member	noinherit set role
('evaluate', 'evaluate', 'ok',	'ok',	'ok',	'ok',	'42501', 'ok',	'42501', 'ok', NULL,
	$$SELECT finetune_evaluate('{target}_model', 'SELECT $q$item 1$q$ AS prompt, $q$odd$q$ AS completion')$$),
('evaluate', 'evaluate its base', 'ok',	'42501', '42501', '42501', '42501', '42501', '42501', '42501', NULL,
	$$SELECT finetune_evaluate('tiny', 'SELECT $q$item 1$q$ AS prompt, $q$odd$q$ AS completion')$$),
('export', 'export',	'ok',	'ok',	'42501', '42501', '42501', 'ok', '42501', 'ok', NULL,
	$$SELECT finetune_export('{target}_model', '{directory}')$$),
('export', 'export by who may write files, but is not the owner',
						'ok',	'ok',	'42501', '42501', '42501', 'ok', '42501', 'ok', 'writer',
	$$SELECT finetune_export('{target}_model', '{directory}')$$),
('export', 'export by the owner who may not write files',
						'ok',	'42501', '42501', '42501', '42501', '42501', '42501', '42501', 'no writer',
	$$SELECT finetune_export('{target}_model', '{directory}')$$);
INSERT INTO preparation VALUES
	('writer', 'GRANT pg_write_server_files TO {grantee}'),
	('no writer', 'REVOKE pg_write_server_files FROM rights_owner, rights_team');

-- Which parts are run
\set parts '{create,ask,job,view,server,export,evaluate}'

/*
 * What is acted upon
 */

CREATE SERVER tiny TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf');
CREATE TABLE target (name text, phase text, job text);
GRANT SELECT ON target TO PUBLIC;
GRANT INSERT ON target TO rights_owner, rights_team;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO rights_owner, rights_team;
GRANT USAGE ON FOREIGN SERVER tiny TO rights_owner, rights_team;

CREATE FUNCTION rights_tell(what text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$
BEGIN
	IF what LIKE '%from the other%' THEN
		RAISE EXCEPTION 'told %', what USING ERRCODE = 'RT000';
	END IF;
	RETURN true;
END
$$;

-- As the current role; "long" is a job that does not end by itself before the test does
CREATE FUNCTION make_job(owner text, phase text, options jsonb) RETURNS text LANGUAGE sql AS $$
	INSERT INTO target SELECT owner, phase,
		finetune('CREATE', owner || CASE phase WHEN 'completed' THEN '_model' ELSE '_' || phase END, 'tiny',
				 'SELECT ''item '' || i AS prompt, ''odd'' AS completion FROM generate_series(1, ' ||
				 CASE phase WHEN 'long' THEN 20000 ELSE 20 END || ') i', NULL, options)
	RETURNING job;
$$;

CREATE FUNCTION wait_for(query text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	found boolean;
BEGIN
	FOR i IN 1 .. 1800 LOOP
		EXECUTE query INTO found;
		EXIT WHEN found;
		PERFORM pg_sleep(0.1);
	END LOOP;
	RETURN found;
END
$$;

-- Two models that are ready, and a job that runs
SET ROLE rights_owner;
SELECT make_job('owner', 'completed', '{"max_steps": 1}') IS NOT NULL AS created \gset
SET ROLE rights_team;
SELECT make_job('team', 'completed', '{"max_steps": 1}') IS NOT NULL AS created \gset
RESET ROLE;
SELECT wait_for('SELECT count(*) = 2 FROM finetune.models WHERE kind = $$lora$$ AND status = $$ready$$') AS ready \gset
SET ROLE rights_owner;
SELECT make_job('owner', 'long', '{"max_epochs": 50, "batch_size": 64, "validation_fraction": 0}') AS long \gset
RESET ROLE;
SELECT wait_for('SELECT steps_done > 0 FROM finetune.progress') AS running \gset
REVOKE ALL ON FOREIGN DATA WRAPPER pg_finetune FROM rights_owner, rights_team;
REVOKE ALL ON FOREIGN SERVER tiny FROM rights_owner, rights_team;
GRANT USAGE ON FOREIGN SERVER owner_model TO rights_usage;
GRANT USAGE ON FOREIGN SERVER owner_model TO rights_granter WITH GRANT OPTION;
GRANT USAGE ON FOREIGN SERVER team_model TO rights_usage;

-- Jobs in every phase.  From here on nothing is committed, so nobody runs them.
BEGIN;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO rights_owner, rights_team;
GRANT USAGE ON FOREIGN SERVER tiny TO rights_owner, rights_team;
SET LOCAL ROLE rights_owner;
SELECT count(make_job('owner', p, '{}')) AS created
FROM unnest('{pending,queued,running,uploading,failed,cancelled}'::text[]) p \gset
SET LOCAL ROLE rights_team;
SELECT count(make_job('team', p, '{}')) AS created
FROM unnest('{pending,queued,running,uploading,failed,cancelled}'::text[]) p \gset
RESET ROLE;
REVOKE ALL ON FOREIGN DATA WRAPPER pg_finetune FROM rights_owner, rights_team;
REVOKE ALL ON FOREIGN SERVER tiny FROM rights_owner, rights_team;
UPDATE finetune.job SET phase = t.phase,
	finished_at = CASE WHEN t.phase IN ('failed', 'cancelled') THEN now() END
FROM target t WHERE t.job = 'ft_' || id AND t.phase NOT IN ('completed', 'long');

/*
 * The loop
 */

-- Run an action by an actor; what comes of it.
CREATE FUNCTION outcome(actor, prepare text, command text, effect text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	words text[];
	i int;
	rows int;
	seen boolean;
BEGIN
	words := ARRAY['{target}', $1.target, '{grantee}', $1.grantee, '{directory}',
		format('%s_%s_%s', current_setting('data_directory'), $1.login, md5(format('%s %s', prepare, command)))]
		|| (SELECT array_agg(w) FROM target t, unnest(ARRAY['{' || t.phase || '}', t.job]) w
			WHERE t.name = $1.target OR t.phase = 'long');
	FOR i IN 1 .. cardinality(words) BY 2 LOOP
		prepare := replace(prepare, words[i], words[i + 1]);
		command := replace(command, words[i], words[i + 1]);
		effect := replace(effect, words[i], words[i + 1]);
	END LOOP;
	IF prepare IS NOT NULL THEN
		EXECUTE prepare;
	END IF;
	EXECUTE format('SET LOCAL SESSION AUTHORIZATION %I', $1.login);
	IF $1.set_role IS NOT NULL THEN
		EXECUTE format('SET LOCAL ROLE %I', $1.set_role);
	END IF;
	EXECUTE command;
	GET DIAGNOSTICS rows = ROW_COUNT;
	EXECUTE 'SELECT ' || effect INTO seen;
	RAISE EXCEPTION USING ERRCODE = 'RB000',
		MESSAGE = CASE WHEN seen AND (rows > 0 OR command NOT LIKE 'SELECT%') THEN 'ok' ELSE 'none' END;
EXCEPTION
	WHEN SQLSTATE 'RB000' THEN RETURN SQLERRM;
	WHEN OTHERS THEN RETURN SQLSTATE;
END
$$;

-- Functions that the extension's own tables call
CREATE TEMP VIEW trigger_function AS SELECT p.oid::regprocedure AS f FROM pg_proc p
	JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_finetune'
WHERE prorettype = 'trigger'::regtype;
CREATE TEMP VIEW moment AS
	SELECT * FROM unnest('{BEFORE INSERT,AFTER INSERT,BEFORE UPDATE,AFTER UPDATE,BEFORE DELETE,AFTER DELETE}'::text[]) m;
GRANT SELECT ON trigger_function, moment TO PUBLIC;

SELECT plan(1 + (SELECT count(*)::int FROM cell WHERE part = ANY (:'parts')) * (SELECT count(*)::int FROM actor)
	+ 16 + (SELECT count(*)::int FROM trigger_function, moment) + 2);
SELECT is(ARRAY[:'ready', :'running'], ARRAY['t', 't'], 'two models are ready, a job runs');
SELECT is(outcome(a, p.command, c.command, c.effect), to_jsonb(c)->>a.name, a.name || ': ' || c.action)
FROM cell c CROSS JOIN actor a LEFT JOIN preparation p ON p.name = c.prepare
WHERE c.part = ANY (:'parts')
ORDER BY c.part, c.action, a.name;

/*
 * Rights that change act on the next call, whatever was planned before
 */

PREPARE ask(text) AS SELECT length(complete('owner_model', $1)) >= 0;
PREPARE see AS SELECT count(*) FROM finetune.models WHERE name = 'owner_model';
PREPARE jobs AS SELECT count(*) > 0 FROM finetune.jobs;
PREPARE describe AS SELECT finetune('DESCRIBE', job) IS NOT NULL FROM target WHERE phase = 'completed' AND name = 'owner';
SET plan_cache_mode = force_generic_plan;
SET ROLE rights_usage;
SELECT results_eq('EXECUTE ask($$item$$)', 'VALUES (true)', 'a prepared call is answered');
SELECT results_eq('EXECUTE see', 'VALUES (1::bigint)', 'the model is seen');
RESET ROLE;
REVOKE USAGE ON FOREIGN SERVER owner_model FROM rights_usage;
SET ROLE rights_usage;
SELECT throws_ok('EXECUTE ask($$item$$)', '42501', 'permission denied for foreign server owner_model', 'not after REVOKE');
SELECT results_eq('EXECUTE see', 'VALUES (0::bigint)', 'nor is the model seen');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER owner_model TO PUBLIC;
SET ROLE rights_usage;
SELECT results_eq('EXECUTE ask($$item$$)', 'VALUES (true)', 'granted again, to all');
RESET ROLE;
REVOKE USAGE ON FOREIGN SERVER owner_model FROM PUBLIC;
SET ROLE rights_usage;
SELECT throws_ok('EXECUTE ask($$item$$)', '42501', NULL, 'and revoked');

-- membership
SET SESSION AUTHORIZATION rights_member;
SELECT results_eq('EXECUTE describe', 'VALUES (true)', 'a member of the owner may describe');
SELECT results_eq('EXECUTE jobs', 'VALUES (true)', 'and see');
RESET SESSION AUTHORIZATION;
REVOKE rights_owner FROM rights_member;
SET SESSION AUTHORIZATION rights_member;
SELECT throws_ok('EXECUTE describe', '42501', NULL, 'not when no member any more');
SELECT results_eq('EXECUTE jobs', 'VALUES (false)', 'nor see');
RESET SESSION AUTHORIZATION;
ALTER ROLE rights_noinherit INHERIT;
SET SESSION AUTHORIZATION rights_noinherit;
SELECT results_eq('EXECUTE describe', 'VALUES (true)', 'a member that inherits from now on');
RESET SESSION AUTHORIZATION;
ALTER ROLE rights_noinherit NOINHERIT;
SET SESSION AUTHORIZATION rights_noinherit;
SELECT throws_ok('EXECUTE describe', '42501', NULL, 'and no longer');
SET ROLE rights_owner;
SELECT results_eq('EXECUTE describe', 'VALUES (true)', 'but by SET ROLE');
RESET ROLE;
RESET SESSION AUTHORIZATION;

-- jobs follow their models
ALTER SERVER owner_model OWNER TO rights_team;
SET ROLE rights_owner;
SELECT throws_ok('EXECUTE describe', '42501', NULL, 'a job goes with its model to another owner');
SET ROLE rights_team;
SELECT results_eq('EXECUTE describe', 'VALUES (true)', 'who may describe it');
RESET ROLE;
DROP SERVER owner_model;
SET ROLE rights_team;
SELECT results_eq('EXECUTE describe', 'VALUES (true)', 'also when the model is gone');
RESET ROLE;

/*
 * Functions that the extension needs are of no use to others
 */

-- A trigger function of the extension's on a table of the owner's; what comes of it
CREATE FUNCTION bite(trigger_function regprocedure, moment text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('CREATE TRIGGER bite %s ON bait FOR EACH ROW EXECUTE FUNCTION %s', moment, trigger_function);
	INSERT INTO bait SELECT gen_random_uuid(), 'tiny', gen_random_uuid();
	UPDATE bait SET name = 'owner_model';
	DELETE FROM bait;
	RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END
$$;
GRANT CREATE ON SCHEMA public TO rights_owner;
SET ROLE rights_owner;
CREATE TABLE bait (id uuid, name text, base_id uuid);
CREATE TABLE wrong_bait (name int, base_id int);
CREATE TRIGGER bite BEFORE INSERT ON wrong_bait FOR EACH ROW EXECUTE FUNCTION finetune.model_row();
SELECT is(bite(f, m), '39P01', f || ' ' || m) FROM trigger_function, moment;
SELECT throws_like('INSERT INTO wrong_bait VALUES (1, 2)', 'not called by %trigger on finetune.model', 'and says so');
RESET ROLE;
SELECT is(count(*), 1::bigint, 'the base is still there') FROM finetune.model WHERE name = 'tiny';

SELECT * FROM finish();
ROLLBACK;

-- leave nothing behind
DROP SERVER tiny CASCADE;
DROP OWNED BY rights_owner, rights_team, rights_usage, rights_granter, rights_heir;
DROP ROLE rights_super, rights_owner, rights_usage, rights_granter, rights_stranger, rights_member,
	rights_noinherit, rights_team, rights_person, rights_heir;
