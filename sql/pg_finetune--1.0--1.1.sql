/* pg_finetune: what version 1.1 adds to 1.0 */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION pg_finetune UPDATE TO '1.1'" to load this file. \quit

/*
 * Rights and transactions
 */

-- The history of roles that are gone stays here: where a dump is restored,
-- their numbers may be those of others.
SELECT pg_catalog.pg_extension_config_dump('finetune.job',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) owner)');
SELECT pg_catalog.pg_extension_config_dump('finetune.metric',
	'WHERE EXISTS (SELECT FROM finetune.job j JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) j.owner WHERE j.id OPERATOR(pg_catalog.=) job_id)');
SELECT pg_catalog.pg_extension_config_dump('finetune.event',
	'WHERE EXISTS (SELECT FROM finetune.job j JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) j.owner WHERE j.id OPERATOR(pg_catalog.=) job_id)');
