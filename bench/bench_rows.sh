#!/bin/bash
# bench_rows.sh: answers to 256 rows, asked for by one query with rows in flight, by 32 sessions one row
# at a time, and by one session with the setting off, as lines "metric<TAB>value<TAB>unit[<TAB>reference]".
#
#   ROWS        rows, a multiple of 32; 256
#   TOKENS      of each answer, at most; 32
#   ROUNDS      in flight and in sessions by turns, so that neither has the better minutes; 2
#   BATCH_ROWS  pg_finetune.batch_rows, as it is by default
#   MODEL       another GGUF file than cache/SmolLM2-135M-Instruct.Q4_1.gguf
#
# On a private cluster in a scratch folder, with the module that pg_config's PostgreSQL has; as whoever
# calls, or as user postgres for root.  Fails when rows in flight have other answers than calls one by one.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(${PG_CONFIG:-pg_config} --bindir)
sessions=32
rows=${ROWS:-256}
rounds=${ROUNDS:-2}
. bench/real_model.sh
. bench/cluster.sh
cat >>"$data/postgresql.conf" <<-END
	pg_finetune.threads = $(nproc)
	${BATCH_ROWS:+pg_finetune.batch_rows = $BATCH_ROWS}
	max_connections = 50
	autovacuum = off
END
"${as_user[@]}" "$bin/pg_ctl" -s -w -D "$data" -l log start
sql() # [PSQL OPTION…] <<<STATEMENTS
{
	"${as_user[@]}" "$bin/psql" -XqAt -v ON_ERROR_STOP=1 -h "$scratch" -d postgres "$@"
}

# Each run has prompts of its own, from their first word on: none is answered with what is kept of another.
sql <<-END
	CREATE EXTENSION pg_finetune;
	CREATE SERVER base TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'base.gguf');
	CREATE TABLE topic AS SELECT i AS id, 'number ' || i AS topic FROM generate_series(1, $rows) i;
	ANALYZE topic;
	CREATE FUNCTION prompt(run text, topic text) RETURNS text LANGUAGE sql IMMUTABLE
		RETURN run || ': tell me a very long story about a house with the ' || topic || ' on its door.';
	CREATE TABLE answer (run text, id int, place int GENERATED ALWAYS AS IDENTITY, reply jsonb);
	SELECT FROM complete('base', 'warm up');
END
ask="complete('base', prompt(:'run', topic), '{\"max_tokens\": ${TOKENS:-32}}')"

flight() # RUN
{
	sql -v run="$1" <<<"INSERT INTO answer (run, id, reply) SELECT :'run', id, $ask FROM topic"
}
cat >sessions.sql <<-END
	\set n :n + 1
	INSERT INTO answer (run, id, reply) SELECT :run, id, $(sed "s/:'run'/:run/" <<<"$ask")
		FROM topic WHERE id = :client_id * $((rows / sessions)) + :n;
END
together() # RUN
{
	PGOPTIONS='-c pg_finetune.batch_rows=0' "${as_user[@]}" "$bin/pgbench" -n -h "$scratch" -c "$sessions" -j 2 \
		-t $((rows / sessions)) -D n=0 -D run="'$1'" -f sessions.sql postgres >pgbench.log 2>&1 || {
		cat pgbench.log >&2
		exit 1
	}
}
off() # RUN
{
	sql -v run="$1" <<<"SET pg_finetune.batch_rows = 0;
		INSERT INTO answer (run, id, reply) SELECT :'run', id, $ask FROM topic"
}

declare -A took
timed() # FUNCTION RUN
{
	local start=${EPOCHREALTIME/./}
	"$1" "$2"
	took[$1]=$((${took[$1]-0} + ${EPOCHREALTIME/./} - start))
}
for ((round = 1; round <= rounds; round++)); do
	timed flight "F$round"
	timed together "S$round"
done
timed off O1

# Tokens of all runs of a kind over their time
rate() # METRIC FUNCTION LETTER [REFERENCE]
{
	printf '%s\t%s\ttokens/s%s\n' "$1" "$(sql <<<"SELECT round(sum((reply #>> '{usage,completion_tokens}')::int)
		/ (${took[$2]} / 1e6), 1) FROM answer WHERE starts_with(run, '$3')")" "${4:+	$4}"
}
rate rows_sessions together S
rate rows_off off O
rate rows_in_flight_vs_sessions flight F rows_sessions
rate rows_in_flight_vs_off flight F rows_off

# The prompts of the last run once more, in flight: the same answers, in the same order
sql -v run=O1 <<<"INSERT INTO answer (run, id, reply) SELECT 'again', id, $ask FROM (SELECT * FROM topic LIMIT 64) t"
differ=$(sql <<-'END'
	SELECT count(*) FROM (SELECT id, row_number() OVER (ORDER BY place) AS n, reply -> 'choices' AS c FROM answer WHERE run = 'again') a
		LEFT JOIN (SELECT id, row_number() OVER (ORDER BY place) AS n, reply -> 'choices' AS c FROM answer WHERE run = 'O1') b USING (id, n)
	WHERE a.c IS DISTINCT FROM b.c
END
)
[ "$differ" = 0 ] || {
	echo "$differ rows in flight have other answers than calls one by one" >&2
	exit 1
}
