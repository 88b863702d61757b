#!/bin/bash
# run.sh: run every benchmark and write bench/results/latest.tsv.
#
# Each program build/bench/bench_*, and the scripts bench_*.sh after them, print
# "metric<TAB>value<TAB>unit", with the name of a metric of the same run as a
# fourth field where there is one to compare with.  bench_peak runs first and
# measures the machine.  BENCH_PYTHON and LLAMA_CPP name who else is measured
# (bench/README.md).
set -euo pipefail
cd "$(dirname "$0")/.."
results=bench/results/latest.tsv
measured=$(mktemp)
trap 'rm -f "$measured"' EXIT

for program in build/bench/bench_peak $(find build/bench -type f -perm -u+x -name 'bench_*' ! -name bench_peak | sort); do
	echo "# ${program##*/}" >&2
	"$program" | tee -a "$measured" >&2
done
if [ -n "${BENCH_PYTHON:-}" ]; then
	echo "# train_pytorch.py" >&2
	"$BENCH_PYTHON" bench/train_pytorch.py | tee -a "$measured" >&2
fi
for script in bench_llama_cpp.sh bench_estimate.sh bench_jobs.sh bench_serve.sh bench_rows.sh; do
	echo "# $script" >&2
	"bench/$script" | tee -a "$measured" >&2
done

mkdir -p "${results%/*}"
awk -f bench/ratios.awk "$measured" "$measured" >"$results.new"
mv "$results.new" "$results"
column -t -s "$(printf '\t')" "$results" 2>/dev/null || cat "$results"
