-- bench_jobs.sql: the part of bench_jobs.sh that runs in the database.
--
-- No job is let run while sessions are measured, and the queries of all sleep, so
-- the queue stands still.  Every figure is the median of several.

\set ON_ERROR_STOP on
SET client_min_messages = warning;
CREATE EXTENSION pg_finetune;
CREATE SERVER tiny TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'tiny.gguf');
CREATE TABLE fact (prompt text, completion text);
INSERT INTO fact SELECT 'item ' || i, 'odd' FROM generate_series(1, 100) i;
CREATE TABLE sample (metric text, ms float8);

CREATE FUNCTION since(start timestamptz) RETURNS float8
	LANGUAGE sql AS 'SELECT 1000 * extract(epoch FROM clock_timestamp() - start)';

-- A job whose query takes longer than the benchmark.
CREATE FUNCTION create_job(model text) RETURNS text
	LANGUAGE sql AS
	$$ SELECT finetune('CREATE', model, 'tiny', 'SELECT prompt, completion FROM fact, pg_sleep(3600)') $$;

-- The running job's worker; waits until there is one, and it is not this one.
CREATE FUNCTION next_worker(last int) RETURNS int
	LANGUAGE plpgsql AS $$
DECLARE
	worker int;
BEGIN
	FOR i IN 1 .. 60000 LOOP
		SELECT pid INTO worker FROM finetune.progress WHERE pid IS DISTINCT FROM last;
		EXIT WHEN worker IS NOT NULL;
		PERFORM pg_sleep(0.001);
	END LOOP;
	IF worker IS NULL THEN
		RAISE EXCEPTION 'no job was started';
	END IF;
	RETURN worker;
END $$;

-- A transaction sees one state of the server's activity: forget it first.
CREATE FUNCTION started(pid int) RETURNS timestamptz
	LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_stat_clear_snapshot();
	RETURN (SELECT a.backend_start FROM pg_stat_activity a WHERE a.pid = started.pid);
END $$;

CREATE FUNCTION running_job() RETURNS text
	LANGUAGE sql AS 'SELECT job_id FROM finetune.progress';

-- CREATE, SHOW and DESCRIBE beside a queue; what was created is cancelled again.
CREATE PROCEDURE measure_sessions(suffix text, rounds int)
	LANGUAGE plpgsql AS $$
DECLARE
	start timestamptz;
	middle text;
	last text;
	id text;
BEGIN
	SELECT job_id INTO last FROM finetune.jobs
		ORDER BY queue_position DESC NULLS LAST LIMIT 1;
	SELECT job_id INTO middle FROM finetune.jobs
		WHERE queue_position = (SELECT count(queue_position) / 2 FROM finetune.jobs);
	COMMIT;
	FOR i IN 1 .. rounds LOOP
		start := clock_timestamp();
		id := create_job('new');
		COMMIT;
		INSERT INTO sample VALUES ('create_' || suffix, since(start));
		PERFORM finetune('CANCEL', id);
		COMMIT;
		start := clock_timestamp();
		PERFORM finetune('DESCRIBE', middle);
		INSERT INTO sample VALUES ('describe_' || suffix, since(start));
		start := clock_timestamp();
		PERFORM finetune('DESCRIBE', last);
		INSERT INTO sample VALUES ('describe_last_' || suffix, since(start));
		COMMIT;
	END LOOP;
	FOR i IN 1 .. 3 LOOP
		start := clock_timestamp();
		PERFORM finetune('SHOW');
		INSERT INTO sample VALUES ('show_' || suffix, since(start));
		COMMIT;
	END LOOP;
END $$;

-- The running job is cancelled: how long does the next worker take, from its
-- start, to have looked through the database and claimed the next job?
CREATE PROCEDURE measure_pick(suffix text, rounds int)
	LANGUAGE plpgsql AS $$
DECLARE
	worker int := next_worker(NULL);
	claimed timestamptz;
BEGIN
	FOR i IN 1 .. rounds LOOP
		PERFORM create_job('another');
		EXECUTE format('ALTER SERVER another RENAME TO %I', 'another_' || suffix || i);
		COMMIT;
		PERFORM finetune('CANCEL', running_job());
		COMMIT;
		worker := next_worker(worker);
		COMMIT;
		SELECT started_at INTO claimed FROM finetune.job
			WHERE id = replace(running_job(), 'ft_', '')::uuid;
		INSERT INTO sample VALUES ('pick_' || suffix,
			1000 * extract(epoch FROM claimed - started(worker)));
		COMMIT;
	END LOOP;
END $$;

-- Jobs at the end of the queue, as CREATE leaves them.
CREATE PROCEDURE fill(jobs int)
	LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO finetune.model (id, name, kind, base_id, base_digest, job)
		SELECT gen_random_uuid(), 'queued_' || i, 'lora', b.id, b.base_digest, gen_random_uuid()
		FROM finetune.model b, generate_series(1, jobs) i WHERE b.name = 'tiny';
	INSERT INTO finetune.job (id, model_id, model_name, base_id, base_name, owner, search_path,
							  training_query, options, priority, home)
		SELECT m.job, m.id, m.name, m.base_id, 'tiny', current_user::regrole, j.search_path,
			   j.training_query, j.options, j.priority, finetune.here()
		FROM finetune.model m,
			(SELECT * FROM finetune.job WHERE phase = 'pending' LIMIT 1) j
		WHERE m.name LIKE 'queued\_%';
	INSERT INTO finetune.event (job_id, number, level, type, message)
		SELECT job, 1, 'info', 'created', 'job created' FROM finetune.model
		WHERE name LIKE 'queued\_%';
	COMMIT;
	FOR i IN 1 .. jobs LOOP
		EXECUTE format('CREATE SERVER %I TYPE ''lora'' FOREIGN DATA WRAPPER pg_finetune', 'queued_' || i);
		IF i % 500 = 0 THEN
			COMMIT;
		END IF;
	END LOOP;
END $$;

-- As many that have ended.
CREATE PROCEDURE add_history(jobs int)
	LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO finetune.job (id, model_id, model_name, base_id, base_name, owner, search_path,
							  training_query, options, priority, home, phase, attempt, started_at, finished_at)
		SELECT gen_random_uuid(), gen_random_uuid(), 'ended_' || i, j.base_id, 'tiny', current_user::regrole,
			   j.search_path, j.training_query, j.options, j.priority, finetune.here(), 'cancelled', 1, now(), now()
		FROM generate_series(1, jobs) i,
			(SELECT * FROM finetune.job WHERE phase = 'pending' LIMIT 1) j;
END $$;

-- From the commit of CREATE to the start of the transaction in which the reader
-- runs the job's query, with nothing else in the queue.
CREATE PROCEDURE measure_reader(rounds int)
	LANGUAGE plpgsql AS $$
DECLARE
	name text;
	commit_time timestamptz;
	reading timestamptz;
BEGIN
	FOR i IN 1 .. rounds LOOP
		name := create_job('reader_' || i);
		COMMIT;
		SELECT pg_xact_commit_timestamp(xmin) INTO commit_time FROM finetune.event
			WHERE job_id = replace(name, 'ft_', '')::uuid AND type = 'created';
		reading := NULL;
		WHILE reading IS NULL LOOP
			PERFORM pg_sleep(0.005);
			PERFORM pg_stat_clear_snapshot();
			SELECT xact_start INTO reading FROM pg_stat_activity
				WHERE backend_type = 'pg_finetune reader' AND wait_event = 'PgSleep';
		END LOOP;
		INSERT INTO sample VALUES ('commit_to_reader', 1000 * extract(epoch FROM reading - commit_time));
		PERFORM finetune('CANCEL', name);
		COMMIT;
		CALL wait_for_quiet();
	END LOOP;
END $$;

-- Until no worker is left, nor one that looks for a job.
CREATE PROCEDURE wait_for_quiet()
	LANGUAGE plpgsql AS $$
DECLARE
	quiet int := 0;
BEGIN
	WHILE quiet < 5 LOOP
		PERFORM pg_sleep(0.02);
		PERFORM pg_stat_clear_snapshot();
		PERFORM FROM pg_stat_activity WHERE backend_type IN ('pg_finetune job', 'pg_finetune reader');
		quiet := CASE WHEN FOUND THEN 0 ELSE quiet + 1 END;
	END LOOP;
END $$;

-- No job runs any more, once none may start.
CREATE PROCEDURE end_running()
	LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_sleep(0.5);
	PERFORM finetune('CANCEL', job_id) FROM finetune.progress;
	COMMIT;
	CALL wait_for_quiet();
END $$;

-- How soon a job's data is read
CALL measure_reader(3);
DELETE FROM sample;
CALL measure_reader(25);

-- Ten wait
ALTER SYSTEM SET pg_finetune.max_running_jobs = 0;
SELECT pg_reload_conf() \g /dev/null
CALL end_running();
DO $$ BEGIN FOR i IN 1 .. 10 LOOP PERFORM create_job('waits_' || i); COMMIT; END LOOP; END $$;
VACUUM ANALYZE;
CALL measure_sessions('warm', 5);
CALL measure_sessions('10', 20);
ALTER SYSTEM SET pg_finetune.max_running_jobs = 1;
SELECT pg_reload_conf() \g /dev/null
CALL measure_pick('10', 10);
ALTER SYSTEM SET pg_finetune.max_running_jobs = 0;
SELECT pg_reload_conf() \g /dev/null
CALL end_running();

-- 10,000 wait, and as many have ended; before and after a vacuum
CALL fill(9990);
CALL add_history(10000);
CALL measure_sessions('10000_fresh', 20);
VACUUM ANALYZE;
CALL measure_sessions('warm', 5);
CALL measure_sessions('10000', 20);
ALTER SYSTEM SET pg_finetune.max_running_jobs = 1;
SELECT pg_reload_conf() \g /dev/null
CALL measure_pick('10000', 10);

-- The medians, with what they are compared with
SELECT format(E'jobs/%s\t%s\tms%s', metric,
			  round(percentile_cont(0.5) WITHIN GROUP (ORDER BY ms)::numeric, 3),
			  CASE WHEN metric ~ '_10000' THEN E'\tjobs/' || regexp_replace(metric, '_10000.*', '_10') END)
FROM sample WHERE metric !~ 'warm' GROUP BY metric ORDER BY metric;
SELECT format(E'jobs/commit_to_reader_longest\t%s\tms', round(max(ms)::numeric, 3))
FROM sample WHERE metric = 'commit_to_reader';
SELECT format(E'jobs/shared_memory\t%s\tbytes', sum(allocated_size)) FROM pg_shmem_allocations
WHERE name = 'pg_finetune';

-- Nothing is left to do
UPDATE finetune.job SET phase = 'cancelled', finished_at = now() WHERE finished_at IS NULL;
