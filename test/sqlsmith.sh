#!/bin/bash
# sqlsmith.sh: random queries with calls of complete(), by sqlsmith, against the echoing engine.
#
#   SECONDS_OF_IT=600 SEED=1 BATCH_ROWS=16 test/sqlsmith.sh
#
# Not part of `make test`: it needs Debian's package sqlsmith, and takes ten minutes.  The module that
# pg_config's PostgreSQL has serves a private cluster.  sqlsmith takes from the catalog what it can call, so
# there are many functions that are inlined into calls of complete(), and views that have calls in them.
# Fails when a process crashes, or when a statement ends with an internal error (XX…) and does not do so
# with the setting off.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v sqlsmith >/dev/null || {
	echo "sqlsmith is missing (Debian's package sqlsmith)" >&2
	exit 1
}
bin=$(${PG_CONFIG:-pg_config} --bindir)
duration=${SECONDS_OF_IT:-600}
seed=${SEED:-$((RANDOM + 1))}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/pg_finetune_sqlsmith.XXXXXX")
mkdir "$scratch/models"
cp test/tap/echo_engine.pl "$scratch/engine"
echo one >"$scratch/models/one.gguf"
. bench/cluster.sh
cat >>"$data/postgresql.conf" <<-END
	pg_finetune.engine_path = '$scratch/engine'
	pg_finetune.batch_rows = ${BATCH_ROWS:-16}
	log_line_prefix = '%e [%p] '
	auto_explain.sample_rate = 0.05
	auto_explain.log_min_duration = 0
	jit = off
END
"${as_user[@]}" "$bin/pg_ctl" -s -w -D "$data" -l log start
sql() # [PSQL OPTION…] <<<STATEMENTS
{
	"${as_user[@]}" "$bin/psql" -XqAt -v ON_ERROR_STOP=1 -h "$scratch" -d postgres "$@"
}
sql <<-'END'
	CREATE EXTENSION pg_finetune;
	CREATE SERVER one TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'one.gguf');
	CREATE ROLE smith LOGIN;
	ALTER ROLE smith SET statement_timeout = '1s';
	ALTER ROLE smith SET session_preload_libraries = 'auto_explain';
	GRANT USAGE ON FOREIGN SERVER one TO smith;
	CREATE TABLE t AS SELECT i, 'p' || i AS p, nullif(i % 7, 3) AS n, i % 2 = 0 AS b, '{"max_tokens": 3}'::jsonb AS o
		FROM generate_series(1, 60) i;
	CREATE TABLE bad AS SELECT i, CASE i WHEN 40 THEN 'fail corrupt' ELSE p END AS p, b FROM t;
	CREATE TABLE part (i int, p text, n int) PARTITION BY RANGE (i);
	CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (30);
	CREATE TABLE part2 PARTITION OF part FOR VALUES FROM (30) TO (1000);
	INSERT INTO part SELECT i, p, n FROM t;
	CREATE VIEW answers AS SELECT i, complete('one', p) AS a, b FROM t;
	CREATE VIEW later AS SELECT i, complete('one', 'later 2 ' || i) AS a, random() AS r FROM t;
	CREATE VIEW errors AS SELECT i, try_complete('one', p) AS a, complete('one', p) AS c FROM bad ORDER BY p;
	CREATE VIEW details AS SELECT i, complete('one', p, o) AS a, try_complete('one', p, o)->>'model' AS m FROM t WHERE n IS NOT NULL;
	CREATE VIEW parts AS SELECT i, complete('one', p) AS a, n FROM part;
	CREATE VIEW either AS SELECT i, a FROM parts UNION ALL SELECT i, complete('one', 'b' || i) FROM t;
	CREATE VIEW few AS WITH w AS (SELECT i, complete('one', p) AS a FROM t) SELECT * FROM w LIMIT 5;
	DO $$ BEGIN FOR k IN 1 .. 100 LOOP
		EXECUTE format('CREATE FUNCTION ask%s(p text) RETURNS text LANGUAGE sql VOLATILE RETURN complete(''one'', p)', k);
		EXECUTE format('CREATE FUNCTION try%s(p text) RETURNS text LANGUAGE sql VOLATILE RETURN try_complete(''one'', p)', k);
		EXECUTE format('CREATE FUNCTION ask_json%s(p text) RETURNS jsonb LANGUAGE sql VOLATILE RETURN complete(''one'', p, ''{}'')', k);
	END LOOP; END $$;
	-- sqlsmith asks what it may read: half of that has calls in it
	REVOKE SELECT ON ALL TABLES IN SCHEMA finetune FROM PUBLIC;
	GRANT SELECT ON t, bad, part, answers, later, errors, details, parts, either, few TO smith;
	ANALYZE;
END
tally() { sql <<<"SELECT (regexp_match(complete('one', 'tally'), 'echo: (\d+)'))[1]"; }

echo "sqlsmith, seed $seed, for $duration s"
status=0
timeout "$duration" sqlsmith --target="host=$scratch dbname=postgres user=smith" --exclude-catalog --verbose \
	--seed="$seed" >sqlsmith.out 2>&1 || status=$?
[ $status = 124 ] || {
	tail -n 20 sqlsmith.out >&2
	echo "sqlsmith ended with status $status" >&2
	exit 1
}
grep -aoE 'queries: [0-9]+' sqlsmith.out | tail -n 1 || true
echo "requests: $(tally)"
count() { grep -ac "$1" log || true; }
echo "plans: $(count ' plan:$') looked at, $(count 'Custom Scan (Rows in Flight)') nodes of rows in flight in them"
echo "errors by SQLSTATE:"
grep -aoE '^[0-9A-Z]{5} \[[0-9]+\] (ERROR|FATAL|PANIC):' log | awk '{ n[$1]++ } END { for (s in n) printf "  %s %d\n", s, n[s] }' | sort

failed=0
if grep -aE 'PANIC:|TRAP:|was terminated by signal|WARNING:.*(leak|not closed)' log; then
	failed=1
fi

# Is it PostgreSQL's own?  The statement once more, with the setting off
mkdir internal
awk '/^XX... \[[0-9]+\] ERROR:/ { wanted = 1; error = $0; next }
	/^..... \[[0-9]+\] / { if (file) close(file); file = "" }
	/^..... \[[0-9]+\] STATEMENT:/ && wanted { file = sprintf("internal/%d.sql", ++n); print "-- " error >file; sub(/^.*STATEMENT: */, ""); wanted = 0 }
	file { print >file }' log
chmod -R a+rX internal
for file in internal/*.sql; do
	[ -e "$file" ] || continue
	message=$(sed -n '1s/.*ERROR: *//p' "$file")
	off=$({ echo "SET pg_finetune.batch_rows = 0; SET statement_timeout = 0;"; cat "$file"; echo ';'; } |
		sql -U smith 2>&1 >/dev/null || true)
	if [[ "$off" == *"$message"* ]]; then
		echo "an internal error with the setting off, too: $message"
	else
		echo "an internal error: $message"
		cat "$file"
		failed=1
	fi
done
exit $failed
