#!/bin/bash
# bench_serve.sh: what sessions get of the serving engine, as lines "metric<TAB>value<TAB>unit[<TAB>reference]".
#
#   SESSIONS    at once; 32
#   CALLS       of each session and run; 4
#   TOKENS      of each answer; 64
#   ADAPTERS    tuned models over the one base; 16
#   ROUNDS      of one adapter and of all by turns, so that neither has the better minutes; 2
#   MODEL       another GGUF file than cache/SmolLM2-135M-Instruct.Q4_1.gguf
#
# On a private cluster in a scratch folder, with the module that pg_config's PostgreSQL has; as whoever
# calls, or as user postgres for root.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(${PG_CONFIG:-pg_config} --bindir)
sessions=${SESSIONS:-32}
calls=${CALLS:-4}
tokens=${TOKENS:-64}
adapters=${ADAPTERS:-16}
rounds=${ROUNDS:-2}
. bench/real_model.sh
cp bench/ask_engine.pl "$scratch"
. bench/cluster.sh
cat >>"$data/postgresql.conf" <<-END
	pg_finetune.threads = $(nproc)
	max_connections = $((sessions + 20))
	autovacuum = off
END
"${as_user[@]}" "$bin/pg_ctl" -s -w -D "$data" -l log start
sql() # [PSQL OPTION…] <<<STATEMENTS
{
	"${as_user[@]}" "$bin/psql" -XqAt -v ON_ERROR_STOP=1 -h "$scratch" -d postgres "$@"
}
median() # numbers, a line each
{
	sort -n | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'
}

sql <<-SQL
	CREATE EXTENSION pg_finetune;
	CREATE SERVER base TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'base.gguf');
	CREATE TABLE answer (run text, client int, reply jsonb);
	CREATE TABLE call (ms float8);
	CREATE PROCEDURE ask(n int) LANGUAGE plpgsql AS \$\$
		DECLARE start timestamptz;
		BEGIN
			FOR i IN 1 .. n LOOP
				start := clock_timestamp();
				PERFORM complete('base', 'Say yes.', '{"max_tokens": 1}');
				INSERT INTO call VALUES (extract(epoch FROM clock_timestamp() - start) * 1000);
			END LOOP;
		END
	\$\$;
SQL

# The first call after a start of the server, the model's file in the page cache: the engine's own start, the
# model's load and the answer, all of it in one session's eyes.
cold()
{
	local start
	"${as_user[@]}" "$bin/pg_ctl" -s -w -D "$data" -l log restart
	cat models/base.gguf >/dev/null
	start=${EPOCHREALTIME/./}
	sql <<<"SELECT FROM complete('base', 'hello', '{\"max_tokens\": 1}')"
	echo $((${EPOCHREALTIME/./} - start))
}
for _ in 1 2 3; do cold; done | median | awk '{ printf "cold_first_call_s\t%.3f\ts\n", $1 / 1e6 }'

# What complete() adds: the same requests by SQL and over the engine's socket, twenty each by turns
socket=$(find "$data" -name engine.sock -type s)
served=$("${as_user[@]}" perl ask_engine.pl "$socket" models | head -n 1)
for _ in {1..25}; do
	sql <<<"CALL ask(20)"
	"${as_user[@]}" perl ask_engine.pl "$socket" "$served" 20 >>engine.ms
done
in_sql=$(sql <<<'SELECT ms FROM call' | median)
in_engine=$(median <engine.ms)
printf 'serve/complete\t%s\tms\nserve/engine\t%s\tms\n' "$in_sql" "$in_engine"
awk -v a="$in_sql" -v b="$in_engine" 'BEGIN { printf "complete_overhead_ms\t%.3f\tms\n", a - b }'

# Adapters that differ; how good they are is of no interest
sql <<-END
	CREATE TABLE fact AS SELECT 'item ' || i AS prompt, (ARRAY['red', 'green', 'blue'])[i % 3 + 1] AS completion
		FROM generate_series(1, 8) i;
	SELECT finetune('CREATE', 'adapter' || i, 'base', 'SELECT prompt, completion FROM fact', NULL,
			jsonb_build_object('max_steps', 1, 'seed', i, 'validation_fraction', 0))
		FROM generate_series(0, $adapters - 1) i \g /dev/null
END
while [ "$(sql <<<"SELECT count(*) FROM finetune.models WHERE kind = 'lora' AND status = 'ready'")" != "$adapters" ]; do
	[ "$(sql <<<"SELECT count(*) FROM finetune.jobs WHERE status IN ('failed', 'cancelled')")" = 0 ] || exit 1
	sleep 1
done

cat >sessions.sql <<-END
	\set n :n + 1
	INSERT INTO answer SELECT :run, :client_id, complete(CASE WHEN :adapters = 0 THEN 'base' ELSE 'adapter' || :client_id % :adapters END,
		:run || :client_id || '-' || :n || ': tell me a very long story about a house.',
		'{"max_tokens": $tokens}');
END
# Tokens a second that all sessions get together
together() # RUN ADAPTERS
{
	local start=${EPOCHREALTIME/./}
	"${as_user[@]}" "$bin/pgbench" -n -h "$scratch" -c "$sessions" -j 2 -t "$calls" -D n=0 -D adapters="$2" -D run="'$1'" \
		-f sessions.sql postgres >pgbench.log 2>&1 || {
		cat pgbench.log >&2
		exit 1
	}
	sql <<<"SELECT sum((reply #>> '{usage,completion_tokens}')::int) / ($((${EPOCHREALTIME/./} - start)) / 1e6)
		FROM answer WHERE run = '$1'"
}
for ((round = 1; round <= rounds; round++)); do
	together "B$round" 0 >>base.rate
	together "O$round" 1 >>one.rate
	together "M$round" "$adapters" >>many.rate
done
printf 'sessions_%s_share_of_ceiling\t%.1f\ttokens/s\tops/serve/q4_1/rows_32\n' "$sessions" "$(median <base.rate)"
printf 'serve/adapters_1\t%.1f\ttokens/s\nadapters_%s_vs_1\t%.1f\ttokens/s\tserve/adapters_1\n' \
	"$(median <one.rate)" "$adapters" "$(median <many.rate)"
