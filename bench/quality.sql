-- quality.sql: the tasks of quality.sh, from PostgreSQL's own catalogs.
--
-- settings: which category does a setting belong to?  functions: what type does a function return?  Its
-- arguments are not told, and a name that stands for several types is left out.

CREATE EXTENSION pg_finetune;
CREATE SERVER base TYPE 'base' FOREIGN DATA WRAPPER pg_finetune
	OPTIONS (file :'file');

CREATE VIEW settings AS
SELECT name, name || ': ' || short_desc AS prompt, category AS completion
FROM pg_settings
WHERE name NOT LIKE '%.%';

CREATE VIEW functions AS
WITH described AS (
	SELECT proname::text AS name, min(description) AS description, min(prorettype) AS type
	FROM pg_proc
	JOIN pg_description d ON d.classoid = 'pg_proc'::regclass AND d.objoid = pg_proc.oid
	WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f'
	  AND description !~ '^(implementation of|I/O|internal|for use by)'
	GROUP BY proname
	HAVING min(prorettype) = max(prorettype)
), frequent AS (
	SELECT type
	FROM described JOIN pg_type ON pg_type.oid = type
	WHERE typtype <> 'p'
	GROUP BY type
	HAVING count(*) >= 10
)
SELECT name, name || ': ' || description AS prompt, format_type(type, NULL) AS completion
FROM described
WHERE type IN (SELECT type FROM frequent)
ORDER BY hashtext(name)
LIMIT 400;

-- A task's rows, a fifth of them, drawn by the seed, for validation.  With `most`, only so many in all.
CREATE TABLE example (name text, prompt text, completion text, validation boolean);

CREATE PROCEDURE draw(task text, seed bigint, most bigint)
	LANGUAGE plpgsql AS $$
BEGIN
	TRUNCATE example;
	EXECUTE format(
		'INSERT INTO example
		 SELECT name, prompt, completion, rank() OVER (ORDER BY hashtextextended(name, $1)) <= count(*) OVER () / 5
		 FROM (SELECT * FROM %I ORDER BY hashtextextended(name, 0) LIMIT $2) t', task)
		USING seed, most;
END $$;
