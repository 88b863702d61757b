#!/bin/bash
# quality.sh: how good models are that nobody chose options for, beside PEFT's with its customary ones.
#
#   QUALITY_PYTHON=/path/to/python bench/quality.sh
#
# Each task of quality.sql is learned once for each seed, which draws the rows for validation, too, through
# finetune('CREATE') with no option but the seed, and by quality_peft.py on the same rows for as many epochs.
# What counts is the share of validation rows that are answered exactly.  bench/results/quality.tsv gets a line
# a run as it ends, and the summary after them; the script fails when the mean difference of a task lies more
# than one standard error below zero.
#
#   QUALITY_PYTHON   an interpreter that has torch, transformers, peft and gguf; without it ours alone is measured
#   SEEDS            "1 2 3 4 5"
#   TASKS            "settings functions"
#   ROWS             rows of a task, validation included; all
#   MODEL            another GGUF file than cache/SmolLM2-135M-Instruct.Q4_1.gguf
#   RESULTS          another file than bench/results/quality.tsv
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(${PG_CONFIG:-pg_config} --bindir)
seeds=${SEEDS:-1 2 3 4 5}
tasks=${TASKS:-settings functions}
rows=${ROWS:-1000000}
results=$(realpath -m "${RESULTS:-bench/results/quality.tsv}")
python=${QUALITY_PYTHON-}
model=${MODEL:-cache/SmolLM2-135M-Instruct.Q4_1.gguf}
peer=$(realpath bench/quality_peft.py)
[ -e "$model" ] || {
	echo "$model is missing; scripts/fetch_model.sh fetches the one that is meant" >&2
	exit 1
}
gguf=$(realpath "$model")
if [ -z "$python" ]; then
	echo "QUALITY_PYTHON names no interpreter: PEFT is not measured" >&2
fi

scratch=$(mktemp -d "${TMPDIR:-/tmp}/pg_finetune_quality.XXXXXX")
mkdir "$scratch/models"
ln "$gguf" "$scratch/models/" 2>/dev/null || cp "$gguf" "$scratch/models/"
cp bench/quality.sql "$scratch"
. bench/cluster.sh
echo "pg_finetune.threads = $(nproc)" >>"$data/postgresql.conf"
"${as_user[@]}" "$bin/pg_ctl" -s -w -D "$data" -l log start
sql() # [PSQL OPTION…] <<<STATEMENTS
{
	"${as_user[@]}" "$bin/psql" -XqAt -v ON_ERROR_STOP=1 -h "$scratch" -d postgres "$@"
}
sql -v file="${gguf##*/}" -f quality.sql

# Train on the rows that are drawn; sets `ours`, `epochs` and `loss`.
learn() # TASK SEED
{
	local job status
	job=$(sql -v model="$1_$2" -v seed="$2" <<-'END'
		SELECT finetune('CREATE', :'model', 'base',
			'SELECT prompt, completion FROM example WHERE NOT validation ORDER BY name',
			'SELECT prompt, completion FROM example WHERE validation ORDER BY name',
			jsonb_build_object('seed', :seed));
	END
	)
	while true; do
		status=$(sql -v job="$job" <<<"SELECT status FROM finetune.jobs WHERE job_id = :'job'")
		case $status in SUCCESS) break ;; ERROR | CANCELLED)
			sql -v job="$job" <<<"SELECT jsonb_pretty(finetune('DESCRIBE', :'job') -> 'error')" >&2
			exit 1
			;;
		esac
		sleep 1
	done
	IFS='|' read -r ours loss epochs < <(sql -v model="$1_$2" -v job="$job" <<-'END'
		SELECT e ->> 'exact_match', round((e ->> 'loss')::numeric, 4),
			(SELECT round(max(epoch)) FROM finetune.metrics WHERE job_id = :'job')
		FROM finetune_evaluate(:'model', 'SELECT prompt, completion FROM example WHERE validation') e
	END
	)
}

mkdir -p "${results%/*}"
printf 'task\tseed\tepochs\tours\tpeft\tdifference\tour_loss\tpeft_loss\n' | tee "$results"
for task in $tasks; do
	for seed in $seeds; do
		sql -v task="$task" -v seed="$seed" -v rows="$rows" <<<"CALL draw(:'task', :seed, :rows)"
		learn "$task" "$seed"
		theirs='' their_loss='' difference=''
		if [ -n "$python" ]; then
			for part in train:NOT validation:; do
				sql <<<"SELECT json_build_object('prompt', prompt, 'completion', completion)
					FROM example WHERE ${part#*:} validation ORDER BY name" >"${part%%:*}.jsonl"
			done
			IFS=$'\t' read -r theirs their_loss < <("$python" "$peer" --gguf "$gguf" --epochs "$epochs" --seed "$seed" \
				--data "$scratch" --threads "$(nproc)" 2>peer.log || cat peer.log >&2)
			difference=$(awk -v a="$ours" -v b="$theirs" 'BEGIN { printf "%.4f", a - b }')
			[ -n "$their_loss" ] || exit 1
		fi
		printf '%s\t%d\t%d\t%.4f\t%s\t%s\t%s\t%s\n' "$task" "$seed" "$epochs" "$ours" "$theirs" "$difference" \
			"$loss" "$their_loss" | tee -a "$results"
	done
done

# A line a task: means, and the standard error of the mean difference.
awk -F '\t' '
	FNR > 1 { n[$1]++; ours[$1] += $4; peft[$1] += $5; d[$1] += $6; d2[$1] += $6 * $6; paired += $6 != "" }
	END {
		for (t in n) {
			mean = d[t] / n[t]
			error = n[t] > 1 ? sqrt((d2[t] - n[t] * mean * mean) / (n[t] - 1) / n[t]) : 0
			if (!paired) { printf "# %s: mean of %d seeds: ours %.4f\n", t, n[t], ours[t] / n[t]; continue }
			bad += mean < -error
			printf "# %s: mean of %d seeds: ours %.4f, PEFT %.4f, difference %+.4f, its standard error %.4f: %s\n",
				t, n[t], ours[t] / n[t], peft[t] / n[t], mean, error, mean < -error ? "WORSE" : "not worse"
		}
		exit bad > 0
	}' "$results" >"$scratch/summary" || failed=1
tee -a "$results" <"$scratch/summary"
[ -z "${failed-}" ] || {
	echo "a task is learned worse than by PEFT" >&2
	exit 1
}
