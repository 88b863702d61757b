-- What psql shows of the extension reads well.
CREATE EXTENSION pg_finetune;
SET client_min_messages = error;	-- the bases' files are not there
CREATE ROLE regress_finetune_owner;
CREATE ROLE regress_finetune_user;
GRANT USAGE ON FOREIGN DATA WRAPPER pg_finetune TO regress_finetune_owner;
SET ROLE regress_finetune_owner;
CREATE SERVER "small-1b" TYPE 'base' FOREIGN DATA WRAPPER pg_finetune
	OPTIONS (file 'small/small-1b.gguf', template 'chatml', context_length '4096');
COMMENT ON SERVER "small-1b" IS 'a small model for all';
GRANT USAGE ON FOREIGN SERVER "small-1b" TO regress_finetune_user;
RESET ROLE;
RESET client_min_messages;

-- models
\des+
-- functions
\df finetune*
\df *complete*
\df public.*token*
SELECT p.oid::regprocedure AS function, obj_description(p.oid, 'pg_proc') AS description
FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_finetune'
WHERE p.pronamespace = 'public'::regnamespace
ORDER BY p.oid::regprocedure::text COLLATE "C";
-- the views, their columns and what these mean
\d+ finetune.(models|jobs|metrics|events|progress|usage)
-- everything else
SELECT pg_describe_object(d.classid, d.objid, 0) AS object,
	   obj_description(d.objid, d.classid::regclass::name) AS description
FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
WHERE d.deptype = 'e' AND e.extname = 'pg_finetune' AND d.classid <> 'pg_proc'::regclass
ORDER BY pg_describe_object(d.classid, d.objid, 0) COLLATE "C";

DROP SERVER "small-1b";
DROP OWNED BY regress_finetune_owner, regress_finetune_user;
DROP ROLE regress_finetune_owner, regress_finetune_user;
DROP EXTENSION pg_finetune;
