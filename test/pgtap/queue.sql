-- Places in the queue, as DESCRIBE (finetune.job_detail) counts them for one job
-- and finetune.jobs for all at once.
SELECT plan(8);

CREATE SERVER base TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'no/such.gguf');

-- Two priorities, two ages of which many are the same, ids in any order
INSERT INTO finetune.job (id, model_id, model_name, base_id, base_name, owner, search_path, training_query,
						  options, priority, created_at, home)
	SELECT md5(i::text)::uuid, md5(i::text)::uuid, 'waits ' || i, b.id, 'base', current_user::regrole, '', '',
		   '{}', i % 2, '2026-01-01'::timestamptz + (i % 3) * interval '1 second', finetune.here()
	FROM finetune.model b, generate_series(1, 30) i;
CREATE TEMP VIEW expected AS
	SELECT id, row_number() OVER (ORDER BY priority DESC, created_at, id) AS place
	FROM finetune.job WHERE model_name LIKE 'waits%';

SELECT results_eq('SELECT id, queue_position FROM finetune.job_detail ORDER BY id',
	'SELECT id, place FROM expected ORDER BY id', 'by priority, age and id, each place once');
SELECT is((SELECT max(queue_position) FROM finetune.job_detail), 30::bigint, 'to the last one');

-- Jobs from elsewhere before and among them, one that runs, one that waits for a place again, one that has ended
INSERT INTO finetune.job (id, model_id, model_name, base_id, base_name, owner, search_path, training_query,
						  options, priority, created_at, phase, attempt, finished_at, home)
	SELECT md5(v.name)::uuid, md5(v.name)::uuid, v.name, b.id, 'base', current_user::regrole, '', '', '{}', priority,
		   '2026-01-01'::timestamptz, phase, attempt, CASE WHEN phase = 'completed' THEN now() END, home
	FROM finetune.model b,
		(VALUES ('lower', 2, 'pending', 0, '!'), ('higher', 1, 'pending', 0, '~'), ('nowhere', 2, 'pending', 0, NULL),
				('low priority elsewhere', -1, 'pending', 0, '!'),
				('runs', 2, 'running', 1, finetune.here()), ('again', 2, 'pending', 1, finetune.here()),
				('ended', 2, 'completed', 1, finetune.here())) v (name, priority, phase, attempt, home);
SELECT results_eq($$SELECT id, queue_position FROM finetune.job_detail WHERE model LIKE 'waits%' ORDER BY id$$,
	'SELECT id, place FROM expected ORDER BY id', 'those that wait here count, and no others');
SELECT is((SELECT count(queue_position) FROM finetune.job_detail WHERE model NOT LIKE 'waits%'), 0::bigint,
	'which have no place');
SELECT results_eq('SELECT job_id, queue_position FROM finetune.jobs ORDER BY job_id',
	'SELECT job_id, queue_position FROM finetune.job_detail ORDER BY job_id', 'finetune.jobs says the same');

-- Rows in several versions, in the index or beside it, and rows that are gone, in a queue of some pages
INSERT INTO finetune.job (id, model_id, model_name, base_id, base_name, owner, search_path, training_query,
						  options, priority, created_at, home)
	SELECT md5(i::text)::uuid, md5(i::text)::uuid, 'waits ' || i, b.id, 'base', current_user::regrole, '', '',
		   '{}', i % 2, '2026-01-01'::timestamptz + (i % 700) * interval '1 second', finetune.here()
	FROM finetune.model b, generate_series(31, 2500) i;
UPDATE finetune.job SET options = '{"seed": 1}' WHERE model_name LIKE 'waits%' AND created_at < '2026-01-01 00:03:00+00';
UPDATE finetune.job SET priority = priority + 1 WHERE model_name LIKE 'waits %7';
UPDATE finetune.job SET priority = priority - 1 WHERE model_name LIKE 'waits %7';
UPDATE finetune.job SET priority = priority + 2 WHERE model_name LIKE 'waits %8';
DELETE FROM finetune.job WHERE model_name LIKE 'waits %9';
UPDATE finetune.job SET attempt = 1, phase = 'running' WHERE model_name LIKE 'waits 1_';
CREATE TEMP VIEW expected_now AS
	SELECT id, row_number() OVER (ORDER BY priority DESC, created_at, id) AS place
	FROM finetune.job WHERE model_name LIKE 'waits%' AND phase = 'pending';
SELECT results_eq($$SELECT id, queue_position FROM finetune.job_detail
		WHERE model LIKE 'waits%' AND phase = 'pending' AND id < '08000000-0000-0000-0000-000000000000' ORDER BY id$$,
	$$SELECT id, place FROM expected_now WHERE id < '08000000-0000-0000-0000-000000000000' ORDER BY id$$,
	'a job counts once, in its last version, wherever its rows are');
SELECT is((SELECT queue_position FROM finetune.job_detail WHERE id = (SELECT id FROM expected_now ORDER BY place DESC LIMIT 1)),
	(SELECT count(*) FROM expected_now), 'to the last of a long queue');
SELECT is(finetune.queue_position('nowhere', 0, '2026-01-01', md5('1')::uuid), NULL::bigint,
	'what does not wait has no place');
SELECT * FROM finish();
