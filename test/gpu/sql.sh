#!/bin/bash
# sql.sh: finetune() and complete() on the GPU, through SQL, on a private cluster.
#
#   test/gpu/sql.sh SCRATCH MODEL.gguf ROOT LIBRARIES
#
# ROOT: where PostgreSQL was unpacked (may be missing: then the installed one).
# Called by check.sh after `make install`.  DEVICE (cuda) is what must compute.
set -euo pipefail
scratch=$1
model=$2
root=$3
libraries=$4
device=${DEVICE-cuda}

if [ -z "${INSIDE-}" ]; then
	# PostgreSQL refuses root, and an ordinary user may not see where the checkout lies.
	scratch=$(mktemp -d "${TMPDIR:-/tmp}/pg_finetune_gpu.XXXXXX")
	trap 'rm -rf "$scratch"' EXIT
	mkdir "$scratch/models"
	cp "$model" "$scratch/models/base.gguf"
	cp "$0" scripts/demo/data.sql "$scratch"
	if [ -d "$root" ]; then
		cp -r "$root" "$scratch/root"
		libraries=${libraries//$root/$scratch/root}
		PATH=$scratch/root/usr/lib/postgresql/15/bin:$PATH
	else
		PATH=$(pg_config --bindir):$PATH
	fi
	export PATH INSIDE=1 DEVICE=$device
	as=()
	if [ "$(id -u)" = 0 ]; then
		chown -R 65534:65534 "$scratch"
		as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
	fi
	cd "$scratch"
	HOME=$scratch "${as[@]}" bash "$scratch/$(basename "$0")" "$scratch" "$scratch/models/base.gguf" \
		"$scratch/root" "$libraries"
	exit
fi

cd "$scratch"
unset PG_FINETUNE_CUDA_BACKEND
export LD_LIBRARY_PATH=$libraries PGHOST=$scratch PGDATABASE=postgres PGUSER=tester LC_ALL=C
trap 'pg_ctl -s -D data -m immediate stop 2>/dev/null || true; tail -n 40 postmaster.log' EXIT

sql()
{
	psql -X -q -v ON_ERROR_STOP=1 "$@"
}

initdb -D data -U tester -A trust -E UTF8 --locale=C -N >initdb.log
cat >>data/postgresql.conf <<-END
	listen_addresses = ''
	unix_socket_directories = '$scratch'
	shared_preload_libraries = 'pg_finetune'
	pg_finetune.model_directory = '$scratch/models'
	pg_finetune.device = '$device'
END
pg_ctl -s -w -D data -l postmaster.log start

sql -c "CREATE EXTENSION pg_finetune" \
	-c "CREATE SERVER base TYPE 'base' FOREIGN DATA WRAPPER pg_finetune OPTIONS (file 'base.gguf')"
sql -f data.sql
job=$(sql -At -c "SELECT finetune('CREATE', 'tuned', 'base',
	'SELECT prompt, completion FROM setting WHERE NOT validation ORDER BY name',
	'SELECT prompt, completion FROM setting WHERE validation ORDER BY name',
	'{\"max_steps\": 20, \"learning_rate\": 1e-3}')")
for _ in $(seq 240); do
	status=$(sql -At -v job="$job" <<<"SELECT status FROM finetune.jobs WHERE job_id = :'job'")
	case $status in SUCCESS | ERROR | CANCELLED) break ;; esac
	sleep 0.5
done
sql -x -v job="$job" <<<"SELECT * FROM finetune.jobs WHERE job_id = :'job'"
[ "$status" = SUCCESS ]
used=$(sql -At -v job="$job" <<<"SELECT finetune('DESCRIBE', :'job') ->> 'device'")
echo "trained on $used"
[[ $used == "$device"* ]]
ask="SELECT complete('tuned', 'work_mem: memory', '{\"max_tokens\": 12}') -> 'choices'"
answer=$(sql -At -c "$ask")
again=$(sql -At -c "$ask")
echo "answer: $answer"
[ -n "$answer" ] && [ "$answer" = "$again" ]
sql -At -c "SELECT count(complete('base', prompt, '{\"max_tokens\": 4}')) FROM (SELECT left(prompt, 20) AS prompt FROM setting LIMIT 20) s"
