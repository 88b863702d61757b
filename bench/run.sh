#!/bin/bash
# run.sh: run every benchmark and write bench/results/latest.tsv.
#
# Each program build/bench/bench_*, and bench_jobs.sh and bench_rows.sh after them, prints
# "metric<TAB>value<TAB>unit", with the name of a metric of the same run as a
# fourth field where there is one to compare with.  bench_peak runs first and
# measures the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
results=bench/results/latest.tsv
measured=$(mktemp)
trap 'rm -f "$measured"' EXIT

for program in build/bench/bench_peak $(find build/bench -type f -perm -u+x -name 'bench_*' ! -name bench_peak | sort); do
	echo "# ${program##*/}" >&2
	"$program" | tee -a "$measured" >&2
done
for script in bench_jobs.sh bench_rows.sh; do
	echo "# $script" >&2
	"bench/$script" | tee -a "$measured" >&2
done

mkdir -p "${results%/*}"
awk -f bench/ratios.awk "$measured" "$measured" >"$results.new"
mv "$results.new" "$results"
column -t -s "$(printf '\t')" "$results" 2>/dev/null || cat "$results"
