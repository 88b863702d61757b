-- README's reference names all that there is, and nothing that there is not.
-- What there is comes from the catalog and from the hints that list valid options.
\set readme `cat README.md`
SELECT no_plan();
SET client_min_messages = error;	-- the base's file is not there
CREATE TEMPORARY TABLE readme AS SELECT line FROM regexp_split_to_table(:'readme', E'\n') line;
SELECT cmp_ok((SELECT count(*)::int FROM readme), '>', 100, 'README was read');

-- a row of a table whose first cell says what it is about
CREATE FUNCTION pg_temp.row_of(what text) RETURNS text LANGUAGE sql
	RETURN (SELECT string_agg(line, E'\n') FROM readme WHERE starts_with(line, '| `' || what || '`'));

-- functions, with the names of their arguments in order
CREATE FUNCTION pg_temp.signature(p pg_proc) RETURNS text LANGUAGE sql
	RETURN '`' || CASE WHEN p.pronamespace = 'finetune'::regnamespace THEN 'finetune\.' ELSE '' END || p.proname || '\('
		|| coalesce((SELECT string_agg(
				CASE WHEN coalesce(p.proargnames[i], '') <> '' THEN p.proargnames[i] || '( [a-z0-9]+(\[\])?)?'
					 ELSE replace(replace(format_type(p.proargtypes[i - 1], NULL), '[', '\['), ']', '\]') END
				|| '( DEFAULT [^,)]+)?', '[], []+' ORDER BY i)
			FROM generate_series(1, p.pronargs) i), '') || '[] ]*\)';
SELECT ok(:'readme' ~ pg_temp.signature(p), 'README has ' || p.oid::regprocedure)
FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_finetune'
ORDER BY p.oid::regprocedure::text;

-- views and their columns
SELECT ok(pg_temp.row_of('finetune.' || c.relname) LIKE '%`' || a.attname || '`%',
		  format('README has %s.%s', c.relname, a.attname))
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'finetune'::regnamespace AND c.relkind = 'v'
ORDER BY c.relname, a.attnum;
SELECT is_empty(format($$SELECT name[1] FROM regexp_matches(%L, '`finetune\.([a-z_]+)[`(]', 'g') name
	WHERE name[1] NOT IN (SELECT relname FROM pg_class WHERE relnamespace = 'finetune'::regnamespace
		UNION SELECT proname FROM pg_proc WHERE pronamespace = 'finetune'::regnamespace)$$, :'readme'),
	'README names nothing in the schema that is not there');

-- settings
SELECT ok(pg_temp.row_of(name) IS NOT NULL, 'README has ' || name)
FROM pg_settings WHERE name LIKE 'pg\_finetune.%' ORDER BY name;
SELECT is_empty(format($$SELECT name[1] FROM regexp_matches(%L, '`(pg_finetune\.[a-z_]+)`', 'g') name
	WHERE name[1] NOT IN (SELECT name FROM pg_settings)$$, :'readme'),
	'README names no setting that is not there');

-- options, of servers, of CREATE and of complete()
CREATE SERVER base TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'absent.gguf');
CREATE FUNCTION pg_temp.valid_options(statement text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	hint text;
BEGIN
	EXECUTE statement;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
	RETURN QUERY SELECT option[1] FROM regexp_matches(hint, '[:,] (\w+)', 'g') option;
END
$$;
CREATE TEMPORARY TABLE option AS
	SELECT kind, pg_temp.valid_options(statement) AS name FROM (VALUES
		('a server', $$CREATE SERVER other TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (nosuch 'x')$$),
		('CREATE', $$SELECT finetune('CREATE', 'm', 'base', 'SELECT '''' AS text', NULL, '{"nosuch": 1}')$$),
		('complete()', $$SELECT complete('base', 'x', '{"nosuch": 1}')$$)) s (kind, statement);
SELECT cmp_ok(count(*)::int, '>', least, 'valid options of ' || kind)
FROM option JOIN (VALUES ('a server', 3), ('CREATE', 20), ('complete()', 10)) l (kind, least) USING (kind) GROUP BY kind, least;
SELECT ok(EXISTS (SELECT FROM readme WHERE line ~ ('^\|[^|]*`' || name || '`')),
		  format('README has the option %s of %s', name, kind))
FROM option ORDER BY kind, name;

SELECT * FROM finish();
