#!/bin/bash
# bench_llama_cpp.sh: answers beside llama.cpp's, on the same files, in alternation.
#
# LLAMA_CPP names a folder with llama.cpp's llama-bench and llama-batched-bench,
# built elsewhere for this machine; without it they are looked for in PATH, and
# where they are not our figures stand alone.  Each of ROUNDS rounds (3) runs
# both programs on both files; the medians count.  Files of SmolLM2 in Q8_0 and
# BF16 are exported from the one of the tests.
#
# Prints "metric<TAB>value<TAB>unit[<TAB>reference]".
set -euo pipefail
cd "$(dirname "$0")/.."
engine=build/pg_finetune_engine
ours=build/bench/bench_decode
model=cache/SmolLM2-135M-Instruct.Q4_1.gguf
threads=$(nproc)
rounds=${ROUNDS:-3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -f "$model" ]; then
	echo "bench_llama_cpp.sh: skip: $model is not there" >&2
	exit 0
fi

export_as() # FORMAT NAME
{
	mkdir "$work/job_$2"
	cat >"$work/job_$2/job.json" <<-END
		{"version": 1, "base": {"path": "$PWD/$model", "name": "smollm2"}, "device": "cpu", "threads": $threads,
		 "export": {"path": "$work/$2", "format": "$1"}}
	END
	$engine export "$work/job_$2" >/dev/null
	mv "$work/$2"/*.gguf "$work/$2.gguf"
}

ln -s "$PWD/$model" "$work/q4_1.gguf"
export_as gguf-q8_0 q8_0
export_as gguf-bf16 bf16

if [ -n "${LLAMA_CPP:-}" ]; then
	PATH=$LLAMA_CPP:$PATH
fi
peer=
if command -v llama-bench >/dev/null && command -v llama-batched-bench >/dev/null; then
	peer=yes
	# once, so that the line with its commit and its processor's features is seen
	llama-bench -m "$work/q4_1.gguf" -t "$threads" -p 0 -n 1 -r 1 2>&1 | tail -n 1 >&2
fi

# one figure a line: file, what, tokens a second
measure_ours() # FILE
{
	PG_FINETUNE_BENCH_MODEL=$work/$1.gguf $ours |
		awk -F '\t' -v file="$1" '$1 ~ /^(prefill_512|decode_[0-9]+)$/ { print file, $1, $2 }' >>"$work/ours"
}
measure_peer() # FILE
{
	llama-bench -m "$work/$1.gguf" -t "$threads" -p 512 -n 0 -r 1 -o jsonl 2>/dev/null |
		sed -n 's/.*"avg_ts": *\([0-9.]*\).*/'"$1"' prefill_512 \1/p' >>"$work/peer"
	llama-bench -m "$work/$1.gguf" -t "$threads" -p 0 -n 128 -r 1 -o jsonl 2>/dev/null |
		sed -n 's/.*"avg_ts": *\([0-9.]*\).*/'"$1"' decode_1 \1/p' >>"$work/peer"
	llama-batched-bench -m "$work/$1.gguf" -t "$threads" -c 4096 -npp 128 -ntg 32 -npl 8,16 \
		--output-format jsonl 2>/dev/null |
		sed -n 's/.*"pl": *\([0-9]*\).*"speed_tg": *\([0-9.]*\).*/'"$1"' decode_\1 \2/p' >>"$work/peer"
}

: >"$work/ours"
: >"$work/peer"
for _ in $(seq "$rounds"); do
	for file in q4_1 q8_0 bf16; do
		measure_ours $file
		[ -z "$peer" ] || measure_peer $file
	done
done

median() # LIST FILE WHAT
{
	awk -v file="$2" -v what="$3" '$1 == file && $2 == what { print $3 }' "$work/$1" | sort -g |
		awk '{ v[NR] = $1 } END { if (NR > 0) print v[int((NR + 1) / 2)] }'
}
report() # METRIC OURS THE_PEER'S NAME_OF_THE_PEER'S
{
	[ -z "$3" ] || printf '%s\t%s\ttokens/s\n' "$4" "$3"
	printf '%s\t%s\ttokens/s\t%s\n' "$1" "$2" "$4"
}

best=
for file in q4_1 q8_0 bf16; do
	value=$(median peer $file prefill_512)
	[ -z "$value" ] || best=$(printf '%s\n%s\n' "${best:-0}" "$value" | sort -g | tail -n 1)
done
for file in q4_1 q8_0 bf16; do
	report decode_${file}_vs_llama_cpp "$(median ours $file decode_1)" "$(median peer $file decode_1)" llama_cpp/decode_$file
done
report prompt_512_vs_llama_cpp "$(median ours q4_1 prefill_512)" "$best" llama_cpp/prompt_512
for n in 8 16; do
	report batch_${n}_vs_llama_cpp "$(median ours q4_1 decode_$n)" "$(median peer q4_1 decode_$n)" llama_cpp/batch_$n
done
