-- Everything that the extension makes has a comment.
SELECT plan(5);

CREATE TEMPORARY VIEW member AS
	SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS object
	FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
	WHERE d.deptype = 'e' AND e.extname = 'pg_finetune';

SELECT cmp_ok((SELECT count(*)::int FROM member), '>', 25, 'the extension has members');
SELECT is_empty($$SELECT object FROM member WHERE obj_description(objid, classid::regclass::name) IS NULL ORDER BY 1$$,
	'every object has a comment');
SELECT is_empty($$SELECT m.object, a.attname FROM member m
	JOIN pg_attribute a ON a.attrelid = m.objid AND a.attnum > 0 AND NOT a.attisdropped
	JOIN pg_class c ON c.oid = m.objid AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
	WHERE m.classid = 'pg_class'::regclass AND col_description(m.objid, a.attnum) IS NULL ORDER BY 1, a.attnum$$,
	'so has every column of its tables and views');
SELECT is_empty($$SELECT tgname FROM member m JOIN pg_trigger t ON t.tgrelid = m.objid
	WHERE m.classid = 'pg_class'::regclass AND NOT tgisinternal AND obj_description(t.oid, 'pg_trigger') IS NULL$$,
	'and every trigger');
SELECT isnt(obj_description(oid, 'pg_extension'), NULL, 'and the extension') FROM pg_extension WHERE extname = 'pg_finetune';

SELECT * FROM finish();
