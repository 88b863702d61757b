# real_model.sh: a scratch folder with the real model, for a benchmark's cluster, to be sourced from the root.
#
# Sets `scratch`, as cluster.sh wants it, with models/base.gguf: the file that MODEL names, or the one of the tests.
model=${MODEL:-cache/SmolLM2-135M-Instruct.Q4_1.gguf}
[ -e "$model" ] || {
	echo "$model is missing; scripts/fetch_model.sh fetches the one that is meant" >&2
	exit 1
}
gguf=$(realpath "$model")
scratch=$(mktemp -d "${TMPDIR:-/tmp}/pg_finetune_bench.XXXXXX")
mkdir "$scratch/models"
ln "$gguf" "$scratch/models/base.gguf" 2>/dev/null || cp "$gguf" "$scratch/models/base.gguf"
