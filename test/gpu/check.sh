#!/bin/bash
# check.sh: everything that needs a GPU, in one command (`make gpu-check`).
#
#   test/gpu/check.sh [STEP]…        (all: build ops engine sanitizer train sql)
#
# For a bare CUDA machine: CUDA 13, a driver of release 580 or later, gcc, make;
# what else is needed lies in cache/gpu (bring.sh).  Prints a line a check and
# `N passed, N failed` last; logs are left in $OUT, or build/gpu/log.
#
# BACKEND=emulated runs the steps' machinery with the emulator in place of the
# GPU: that is how this script itself is tried.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
steps=${*:-build ops engine sanitizer train sql}
work=$PWD/build/gpu
root=$work/root
log=${OUT:-$work/log}
build=build
passed=0
failed=0
mkdir -p "$work" "$log"

ok() # NAME COMMAND…
{
	local name=$1 file start=$SECONDS
	shift
	file=$log/$(tr -c 'a-z0-9\n' '_' <<<"$name").log
	if "$@" >"$file" 2>&1; then
		passed=$((passed + 1))
		echo "ok - $name ($((SECONDS - start)) s)"
	else
		failed=$((failed + 1))
		echo "not ok - $name"
		tail -n 25 "$file" | sed 's/^/    /'
	fi
}

skip() # NAME REASON
{
	echo "skip: $1: $2"
}

wants()
{
	[[ " $steps " == *" $1 "* ]]
}

# --- what was brought along -----------------------------------------------------------------------

unpack()
{
	[ -d cache/gpu/debs ] || return 0
	for package in cache/gpu/debs/*.deb; do
		[ -f "$work/$(basename "$package").unpacked" ] && continue
		dpkg-deb -x "$package" "$root" && : >"$work/$(basename "$package").unpacked"
	done
}

unpack
libraries=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu
if [ -d "$root" ]; then
	export CPATH=$root/usr/include:$root/usr/include/x86_64-linux-gnu${CPATH:+:$CPATH}
	export LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu${LIBRARY_PATH:+:$LIBRARY_PATH}
	export PATH=$root/usr/lib/postgresql/15/bin:$PATH
fi
# cuBLASLt and its header come with the toolkit, or with a Python package of NVIDIA's.
cublas=$(ldconfig -p | sed -n 's/.*libcublasLt\.so\.13 .* => //p' | head -n 1)
[ -n "$cublas" ] || cublas=$(find / -xdev -name 'libcublasLt.so.13' 2>/dev/null | head -n 1)
header=$(find /usr/local/cuda*/ "$(dirname "${cublas:-/}")/../include" -name cublasLt.h 2>/dev/null | head -n 1)
if [ -n "$header" ]; then
	header=$(dirname "$header")
	export NVCC_APPEND_FLAGS="-I$header"
fi
library_path=$libraries${cublas:+:$(dirname "$cublas")}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# Our programs need the libraries that were brought; other programs of the machine must not get them.
with_libraries()
{
	LD_LIBRARY_PATH=$library_path "$@"
}

model=
if [ -f cache/gpu/model.gguf ]; then
	model=$PWD/cache/gpu/model.gguf
elif [ -f cache/gpu/model.half.0 ] && [ -f cache/gpu/model.half.1 ]; then
	cat cache/gpu/model.half.0 cache/gpu/model.half.1 >"$work/model.gguf"
	model=$work/model.gguf
elif [ -f cache/SmolLM2-135M-Instruct.Q4_1.gguf ]; then
	model=$PWD/cache/SmolLM2-135M-Instruct.Q4_1.gguf
fi

# --- the steps ----------------------------------------------------------------------------------------

targets="engine unit-tests cuda bench-programs build/gpu/peak"
backend=$PWD/build/pg_finetune_cuda.so
if [ "${BACKEND-}" = emulated ]; then
	targets="engine unit-tests emulated"
	backend=$PWD/build/emulated/pg_finetune_cuda.so
fi
export PG_FINETUNE_CUDA_BACKEND=$backend

if wants build; then
	# shellcheck disable=SC2086 # a list of words
	ok "builds without a warning" make -j"$(nproc)" WERROR=-Werror $targets
fi

on_cuda() # PROGRAM
{
	local output
	output=$(PG_FINETUNE_TEST_BACKEND=cuda with_libraries "$build/test/engine/$1" 2>&1)
	local status=$?
	printf '%s\n' "$output"
	[ $status = 0 ] && ! grep -q '^skip: ' <<<"$output"
}

if wants ops; then
	for program in rows transformer matmul attention loss; do
		ok "operations on cuda against f64: $program" on_cuda test_ops_$program
	done
fi

if wants engine; then
	ok "gradients and optimizer steps equal PyTorch's" on_cuda test_gradients
	ok "trainer, checkpoints, resume" on_cuda test_trainer
	ok "serving: rows independent of the batch" on_cuda test_decode
	if [ -f cache/SmolLM2-135M-Instruct.Q4_1.gguf ]; then
		ok "the real model says what transformers says" on_cuda test_golden_smollm2
	else
		skip "the real model says what transformers says" "the whole model is not here"
	fi
fi

sanitize() # TOOL PROGRAM
{
	PG_FINETUNE_TEST_BACKEND=cuda with_libraries compute-sanitizer --tool "$1" --error-exitcode 9 \
		--target-processes all --kernel-name-exclude regex:'cutlass|cublas|gemm_|splitK' \
		"$build/test/engine/$2"
}

if wants sanitizer; then
	if command -v compute-sanitizer >/dev/null; then
		for program in rows transformer matmul attention loss; do
			ok "compute-sanitizer memcheck: $program" sanitize memcheck test_ops_$program
		done
		for program in rows transformer attention loss; do
			ok "compute-sanitizer racecheck: $program" sanitize racecheck test_ops_$program
			ok "compute-sanitizer synccheck: $program" sanitize synccheck test_ops_$program
		done
		ok "compute-sanitizer memcheck: gradients" sanitize memcheck test_gradients
		ok "compute-sanitizer initcheck: gradients" sanitize initcheck test_gradients
	else
		skip "compute-sanitizer" "it is not on the path"
	fi
fi

# --- a short fine-tune, on both devices --------------------------------------------------------------

# One job directory, made anew for each device.
train_on() # DEVICE NUMERICS BASE DIRECTORY
{
	rm -rf "$4"
	mkdir -p "$4"
	python3 test/gpu/make_job.py "$4" "$3" "$1" "$2" &&
		with_libraries $build/pg_finetune_engine train "$4" >"$4.events"
}

same_curve() # NUMERICS BASE TOLERANCE NAME
{
	train_on cpu "$1" "$2" "$work/$4.cpu" && train_on cuda "$1" "$2" "$work/$4.cuda" &&
		python3 test/gpu/compare_curves.py "$work/$4.cpu.events" "$work/$4.cuda.events" "$3"
}

if wants train; then
	tiny=$PWD/test/golden/tiny_llama/tied/base.gguf
	ok "a fine-tune's losses are the CPU's, reference numerics" same_curve reference "$tiny" 1e-4 tiny
	ok "a fine-tune's losses are the CPU's, fast numerics" same_curve fast "$tiny" 2e-2 tiny_fast
	if [ -n "$model" ] && [ "${BACKEND-}" != emulated ]; then
		ok "a fine-tune of the real model: losses are the CPU's" same_curve fast "$model" 2e-2 real
	fi
fi

if wants sql; then
	if [ "${BACKEND-}" = emulated ]; then
		skip "finetune() and complete() through SQL" "the engine finds its backend beside itself only"
	elif [ -z "$model" ] || ! command -v pg_config >/dev/null; then
		skip "finetune() and complete() through SQL" "no model or no PostgreSQL is here"
	else
		ok "installs" with_libraries make install
		ok "finetune() and complete() through SQL" with_libraries test/gpu/sql.sh "$work/sql" "$model" \
			"$root" "$library_path"
	fi
fi

echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]
