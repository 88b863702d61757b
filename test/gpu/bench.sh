#!/bin/bash
# bench.sh: how fast the GPU is used (`make gpu-bench`), after check.sh's build step.
#
# Prints, and writes to $OUT/gpu.tsv (build/gpu/gpu.tsv), the columns of bench/README.md:
# tokens/s of training and decoding, the share of the peaks measured in the same
# run, the most memory seen, and transformers + PEFT on a model of the same shape.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$PWD/build/gpu
out=${OUT:-$work}
mkdir -p "$work" "$out"
measured=$work/measured.tsv
root=$work/root
export PG_FINETUNE_CUDA_BACKEND=$PWD/build/pg_finetune_cuda.so
export PG_FINETUNE_BENCH_DEVICE=cuda
export LC_ALL=C

[ -x build/gpu/peak ] && [ -x build/bench/bench_train ] || test/gpu/check.sh build
model=cache/SmolLM2-135M-Instruct.Q4_1.gguf
[ -f "$work/model.gguf" ] && model=$work/model.gguf
[ -f cache/gpu/model.gguf ] && model=cache/gpu/model.gguf
export PG_FINETUNE_BENCH_MODEL=$model

cublas=$(ldconfig -p | sed -n 's/.*libcublasLt\.so\.13 .* => //p' | head -n 1)
[ -n "$cublas" ] || cublas=$(find / -xdev -name 'libcublasLt.so.13' 2>/dev/null | head -n 1)
libraries=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu:$(dirname "$cublas")

# The most device memory that is in use while a command runs, in MiB, as a metric.
watching() # METRIC COMMAND…
{
	local metric=$1 watcher most
	shift
	nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 100 >"$work/memory" &
	watcher=$!
	"$@"
	kill $watcher
	wait $watcher 2>/dev/null || true
	most=$(sort -n "$work/memory" | tail -n 1)
	printf '%s\t%s\tMiB\n' "$metric" "$most"
}

ours()
{
	LD_LIBRARY_PATH=$libraries "$@"
}

layers=$(ours build/pg_finetune_engine inspect "$model" | sed -n 's/.*"layers": \([0-9]*\).*/\1/p')
{
	ours build/gpu/peak
	watching gpu_train_memory ours build/bench/bench_train | sed 's/^train/gpu_train/; s/peak_f32/gpu_peak_bf16/'
	watching gpu_decode_memory ours build/bench/bench_decode |
		sed 's/^\(load\|prefill\|decode\)/gpu_\1/; s/peak_memory_read/gpu_peak_copy/'
	python3 test/gpu/peft_train.py "$layers" || echo "skip: transformers + PEFT" >&2
} | tee "$measured" >&2

awk -f bench/ratios.awk "$measured" "$measured" >"$out/gpu.tsv"
{
	echo "# $(date -u +%F), $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1), $layers layers"
	cat "$out/gpu.tsv"
}
