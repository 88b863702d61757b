#!/bin/bash
# export_demo_data.sh DIR: the demo's rows as train.jsonl and validation.jsonl,
# from a cluster that is made for it and removed again.
set -euo pipefail
[ $# = 1 ] || {
	echo "usage: $0 DIR" >&2
	exit 2
}
mkdir -p "$1"
target=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
bin=$(pg_config --bindir)
scratch=$(mktemp -d "${TMPDIR:-/tmp}/pg_finetune_export.XXXXXX")
cp scripts/demo/data.sql "$scratch"
as_user=(env)
if [ "$(id -u)" = 0 ]; then
	chown -R postgres: "$scratch"
	as_user=(runuser -u postgres -- env "HOME=$scratch")
fi
trap '"${as_user[@]}" "$bin/pg_ctl" -s -D "$scratch/data" -m immediate stop; rm -rf "$scratch"' EXIT

cd "$scratch"
"${as_user[@]}" "$bin/initdb" -D data -A trust -E UTF8 --locale=C.UTF-8 -N >/dev/null
"${as_user[@]}" "$bin/pg_ctl" -s -w -D data -l log -o "-c listen_addresses='' -k $scratch" start
psql=("${as_user[@]}" "$bin/psql" -XqAt -v ON_ERROR_STOP=1 -h "$scratch" -d postgres)
"${psql[@]}" -f data.sql
for part in train:NOT validation:; do
	"${psql[@]}" -c "SELECT json_build_object('prompt', prompt, 'completion', completion)
		FROM setting WHERE ${part#*:} validation ORDER BY name" >"$target/${part%%:*}.jsonl"
done
