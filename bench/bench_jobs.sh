#!/bin/bash
# bench_jobs.sh: what a queue of 10,000 jobs costs, how soon a job's data is read,
# and what an idle cluster does, as lines "metric<TAB>value<TAB>unit[<TAB>reference]".
#
# On a private cluster in a scratch folder, with the module that pg_config's
# PostgreSQL has; as whoever calls, or as user postgres for root.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(${PG_CONFIG:-pg_config} --bindir)
seconds=${IDLE_SECONDS:-20}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/pg_finetune_bench.XXXXXX")
mkdir "$scratch/models"
cp test/golden/tiny_llama/tied/base.gguf "$scratch/models/tiny.gguf"
cp bench/bench_jobs.sql "$scratch"
. bench/cluster.sh
cat >>"$data/postgresql.conf" <<-END
	pg_finetune.threads = 1
	track_commit_timestamp = on
	autovacuum = off
END
psql=("${as_user[@]}" "$bin/psql" -XqAt -v ON_ERROR_STOP=1 -h "$scratch" -d postgres)
"${as_user[@]}" "$bin/pg_ctl" -s -w -D "$data" -l log start
"${psql[@]}" -f bench_jobs.sql

# A cluster at rest, with all that history: how often is any thread of the
# extension's processes woken?  They are the postmaster's children of our names,
# and theirs.
"${as_user[@]}" "$bin/pg_ctl" -s -w -D "$data" -l log restart
"${psql[@]}" -c "SELECT count_tokens('tiny', 'wait for the engine')" >/dev/null
sleep 3
children() # PID
{
	grep -lsx "PPid:[[:space:]]*$1" /proc/[0-9]*/status | cut -d / -f 3
}
processes=
for pid in $(children "$(head -n 1 data/postmaster.pid)"); do
	if grep -aqs ': pg_finetune' "/proc/$pid/cmdline"; then
		processes+=" $pid $(children "$pid" || true)"
	fi
done
wakeups()
{
	local pid
	for pid in $processes; do
		cat /proc/"$pid"/task/*/status
	done | awk '/^voluntary_ctxt_switches/ { n += $2 } END { print n }'
}
before=$(wakeups)
sleep "$seconds"
after=$(wakeups)
awk -v n=$((after - before)) -v s="$seconds" -v processes="$(wc -w <<<"$processes")" \
	'BEGIN { printf "idle/processes\t%d\tprocesses\nidle/wakeups_per_second\t%.2f\t1/s\n", processes, n / s }'
