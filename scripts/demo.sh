#!/bin/bash
# demo.sh: a language model learns from a table, on a private cluster.
#
# Called by `make demo` once everything is built, installed and fetched.  The
# cluster lies in a scratch folder, listens on a Unix socket there and nowhere
# else, and runs as whoever calls, or as user postgres for root, whom PostgreSQL
# refuses.  KEEP=1 leaves it running.
set -euo pipefail

if [ -z "${DEMO_SCRATCH-}" ]; then
	# The outer half: a scratch folder that whoever runs the cluster can use.
	cd "$(dirname "$0")/.."
	DEMO_SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/pg_finetune_demo.XXXXXX")
	export DEMO_SCRATCH
	mkdir "$DEMO_SCRATCH/models"
	cp -r scripts/demo scripts/demo.sh "$DEMO_SCRATCH"
	model=SmolLM2-135M-Instruct.Q4_1.gguf
	ln "cache/$model" "$DEMO_SCRATCH/models/$model" 2>/dev/null ||
		cp "cache/$model" "$DEMO_SCRATCH/models/$model"
	cd "$DEMO_SCRATCH"
	if [ "$(id -u)" = 0 ]; then
		chown -R postgres: "$DEMO_SCRATCH"
		exec runuser -u postgres -- bash "$DEMO_SCRATCH/demo.sh"
	fi
	exec bash "$DEMO_SCRATCH/demo.sh"
fi

cd "$DEMO_SCRATCH"
started=$SECONDS
bin=$(pg_config --bindir)
data=$DEMO_SCRATCH/data
for variable in $(compgen -e PG); do unset "$variable"; done
export HOME=$DEMO_SCRATCH PGHOST=$DEMO_SCRATCH PGDATABASE=postgres LC_ALL=C.UTF-8
cores=$(nproc)
base=smollm2-135m-instruct
tuned=settings

clean_up()
{
	local status=$?
	trap - EXIT INT TERM HUP
	if [ $status != 0 ] && [ -f postmaster.log ]; then
		echo "--- the end of the server's log" >&2
		tail -n 30 postmaster.log >&2
	fi
	if [ -n "${KEEP-}" ] && [ $status = 0 ]; then
		return
	fi
	if [ -f "$data/postmaster.pid" ]; then
		"$bin/pg_ctl" -s -w -D "$data" -m immediate stop || true
	fi
	rm -rf "$DEMO_SCRATCH"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

title()
{
	printf '\n== %s\n' "$*"
}

sql() # [PSQL OPTION…] <<<STATEMENTS
{
	"$bin/psql" -X -q -v ON_ERROR_STOP=1 "$@"
}

title "A private cluster in $DEMO_SCRATCH ($cores threads)"
"$bin/initdb" -D "$data" -A trust -E UTF8 --locale=C.UTF-8 -N >initdb.log
cat >>"$data/postgresql.conf" <<-EOF
	listen_addresses = ''
	unix_socket_directories = '$DEMO_SCRATCH'
	shared_preload_libraries = 'pg_finetune'
	pg_finetune.model_directory = '$DEMO_SCRATCH/models'
	pg_finetune.threads = $cores
EOF
"$bin/pg_ctl" -s -w -D "$data" -l postmaster.log start

title "A base model, and a table to learn from"
sql -a -f demo/model.sql -f demo/data.sql
sql -c "SELECT CASE WHEN validation THEN 'validation' ELSE 'training' END AS split,
	count(*) AS rows, count(DISTINCT completion) AS categories FROM setting GROUP BY 1 ORDER BY 1"

title "finetune('CREATE', …), typed in a session that disconnects"
cat demo/create.sql
job=$(sql -At -f demo/create.sql)
echo "job $job"

title "Training goes on in processes of its own"
line='' shown='' status=
while true; do
	IFS='|' read -r status line < <(sql -At -v job="$job" -f demo/progress.sql)
	if [ "$line" != "$shown" ]; then
		shown=$line
		if [ -t 1 ]; then printf '\r\033[K%s' "$line"; else echo "$line"; fi
	fi
	case $status in SUCCESS | ERROR | CANCELLED) break ;; esac
	sleep 1
done
[ -t 1 ] && echo
if [ "$status" != SUCCESS ]; then
	sql -At -v job="$job" <<<"SELECT jsonb_pretty(finetune('DESCRIBE', :'job') -> 'error')" >&2
	exit 1
fi
sql -v job="$job" -f demo/evaluations.sql

title "Every validation row, answered by the base and by the tuned model"
sql -v model=$base -v answer=base_answer -f demo/answer.sql &
base_session=$!
sql -v model=$tuned -v answer=tuned_answer -f demo/answer.sql
wait $base_session
sql -f demo/examples.sql

title "How often each is exactly right"
echo "naive Bayes on the words of the prompt: $(sql -At -f demo/naive_bayes.sql)"
echo "the whole demo took $((SECONDS - started)) s"
if [ -n "${KEEP-}" ]; then
	cat <<-EOF
		The cluster is still running.
		  connect:   $([ "$(id -un)" = postgres ] && echo 'runuser -u postgres -- ')psql -h $DEMO_SCRATCH postgres
		  try:       SELECT complete('$tuned', 'work_mem: Sets the maximum memory to be used for query workspaces.');
		  stop:      $([ "$(id -un)" = postgres ] && echo 'runuser -u postgres -- ')$bin/pg_ctl -D $data stop && rm -rf $DEMO_SCRATCH
	EOF
fi
sql -At -f demo/accuracy.sql
