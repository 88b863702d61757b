#!/bin/bash
# bench_estimate.sh: how near an estimate comes to the run that follows it.
#
#   bench/bench_estimate.sh [NAME…]      names: lora lora_long full dpo; all
#
# `estimate`, then `train`, on the same job over the real model: what the first says that the second takes, beside
# what it takes.  Prints "metric<TAB>value<TAB>unit[<TAB>reference]".
#
#   THREADS   half of the cores, as pg_finetune.threads has it
set -euo pipefail
cd "$(dirname "$0")/.."
engine=$PWD/build/pg_finetune_engine
model=$PWD/cache/SmolLM2-135M-Instruct.Q4_1.gguf
rows=$PWD/test/golden/curves/rows.jsonl
threads=${THREADS:-$((($(nproc) + 1) / 2))}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/pg_finetune_estimate.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# Rows of a kind: as they are, some twenty in one, or pairs of right and wrong answers.
data() # KIND
{
	case $1 in
	short) cat "$rows" ;;
	long) sed -E 's/.*"prompt": "(.*)", "completion": "(.*)"\}/\1 = \2. /' "$rows" | tr -d '\n' | fold -w 2500 |
		sed -E 's/(.*)(.{40})/{"prompt": "\1", "completion": "\2"}/' && echo ;;
	pairs) sed -E 's/(.*), "completion": (".*")\}/\1, "chosen": \2, "rejected": "Preset Options"}/' "$rows" ;;
	esac
}

measure() # NAME KIND OPTIONS
{
	local name=$1 kind=$2 options=$3 program begun

	for program in estimate train; do
		mkdir "$scratch/$name.$program"
		data "$kind" >"$scratch/$name.$program/train.jsonl"
		cat >"$scratch/$name.$program/job.json" <<-END
			{"version": 1, "base": {"path": "$model", "name": "base"}, "device": "cpu", "threads": $threads,
			 "numerics": "fast", "options": $options}
		END
		begun=$EPOCHREALTIME
		"$engine" "$program" "$scratch/$name.$program" >"$scratch/$name.$program.log" 2>"$scratch/errors" || {
			cat "$scratch/errors" >&2
			exit 1
		}
		if [ "$program" = train ]; then
			awk -v a="$begun" -v b="$EPOCHREALTIME" -v n="$name" \
				'BEGIN { printf "estimate/%s/run\t%.1f\ts\n", n, b - a }'
		fi
		rm -rf "$scratch/$name.$program"
	done
	sed -nE 's/.*"event": ?"estimate".*"seconds": ?([0-9.e+]+).*/\1/p' "$scratch/$name.estimate.log" |
		awk -v n="$name" '{ printf "estimate/%s\t%.1f\ts\testimate/%s/run\n", n, $1, n }'
}

[ $# -gt 0 ] || set -- lora lora_long full dpo
for name; do
	case $name in
	lora) measure lora short '{"max_steps": 60, "batch_size": 256}' ;;
	lora_long) measure lora_long long '{"max_steps": 12, "batch_size": 2048}' ;;
	full) measure full short '{"method": "full", "max_steps": 16, "batch_size": 512}' ;;
	dpo) measure dpo pairs '{"method": "dpo", "max_steps": 20, "batch_size": 512}' ;;
	*)
		echo "no job \"$name\"" >&2
		exit 2
		;;
	esac
done
