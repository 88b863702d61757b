#!/bin/bash
# run_tests.sh: build what the tests need and run them.
#
#   scripts/run_tests.sh [style|engine|sql|tap|fuzz|soak]…     (all but soak when none is named)
#   FUZZ_SECONDS=N scripts/run_tests.sh fuzz                   (N seconds for each target, 20 else)
#   FAULT_RUNS=N scripts/run_tests.sh faults                   (N runs of the tests of faults)
#   scripts/run_tests.sh requests                              (many sessions; CLIENTS, CALLS)
#   scripts/run_tests.sh curves                                (losses beside every reference's)
#
# TEST_JOBS says how many files are run at a time (as many as there are
# processors, up to 4): most of the server tests' time is waiting.
#
# Building is done here, in the checkout, by whoever calls.  Everything that is
# run afterwards runs from a copy in a scratch folder as an ordinary user:
# PostgreSQL refuses to run as root, a checkout may lie where nobody else can
# look, and a test that denies itself a file proves nothing as root.  Clusters
# are private ones in that folder; no other cluster is looked at.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
unset MAKEFLAGS MFLAGS MAKELEVEL
parts=${*:-style engine sql tap fuzz}
jobs=-j$(nproc)
pg_config=${PG_CONFIG:-pg_config}

scratch=$(mktemp -d "${TMPDIR:-/tmp}/pg_finetune_test.XXXXXX")
tree=$scratch/tree
mkdir "$tree" "$scratch/log"

session=
clean_up()
{
	# Whatever an interrupted run has left: its programs share a session, its clusters do not.
	[ -z "$session" ] || pkill -KILL -s "$session"
	find "$scratch" -name postmaster.pid -exec head -n 1 {} \; 2>/dev/null |
		while read -r pid; do kill -QUIT "$pid" 2>/dev/null; done
	rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 1' INT TERM HUP

wants() # PART…
{
	local part
	for part; do
		[[ " $parts " == *" $part "* ]] && return 0
	done
	return 1
}

# A step of the build that counts as a test, as a line of TAP.
checks=0
check() # NAME COMMAND…
{
	local name=$1 log=$scratch/log/check.$((++checks)) start=$SECONDS
	shift
	if "$@" >"$log" 2>&1; then
		echo "ok $checks - $name" >>"$scratch/checks.tap"
		echo "$name … ok ($((SECONDS - start)) s)"
	else
		echo "not ok $checks - $name" >>"$scratch/checks.tap"
		echo "$name … FAILED"
		tail -n 60 "$log"
		return 1
	fi
}

install_all()
{
	local as_root=
	[ -w "$($pg_config --pkglibdir)" ] || as_root=sudo
	$as_root make -s install
}

wanted="engine"
wants sql tap soak requests faults && wanted+=" all"
wants engine && wanted+=" unit-tests cuda emulated"
wants engine tap soak faults && wanted+=" fault-shim"
runnable=yes
# shellcheck disable=SC2086 # a list of words
if wants engine sql tap soak requests faults curves; then
	check "builds without a warning (gcc)" make "$jobs" WERROR=-Werror COPT=-Werror $wanted || runnable=
fi
if wants style; then
	check "the module compiles without a warning (clang)" make check-clang
	check "layout is clang-format's" make check-format
	check "src/engine/README.md names the engine's files" perl test/engine_files.pl
fi
if wants engine fuzz; then
	check "engine and tests build without a warning, with sanitizers (clang)" \
		make "$jobs" sanitized || rm -rf build/sanitized/test
fi
if [ -n "$runnable" ] && wants sql tap soak requests faults; then
	check "installs" install_all || runnable=
fi
echo "1..$checks" >>"$scratch/checks.tap"

if [ -n "$runnable" ]; then
	tar -c --exclude-vcs --exclude=./build --exclude=./cache --exclude=./tmp_check . | tar -x -C "$tree"
	find build -type f -perm -u+x ! -name '*.o' -print0 2>/dev/null |
		tar -c --null -T - | tar -x -C "$tree"
	mkdir "$tree/cache"
	for file in cache/*.gguf; do
		ln "$file" "$tree/cache" 2>/dev/null || cp "$file" "$tree/cache"
	done
	cp test/golden/tiny_llama/tied/base.gguf "$tree/cache/tiny.gguf"
else
	parts=
fi
cp scripts/run_suites.pl "$scratch"

as_user=(env)
if [ "$(id -u)" = 0 ]; then
	chown -R --no-dereference postgres: "$scratch"
	as_user=(runuser -u postgres -- env "HOME=$scratch")
fi
# shellcheck disable=SC2086 # a list of words
(cd "$tree" && exec setsid --wait "${as_user[@]}" PG_CONFIG="$pg_config" perl ../run_suites.pl "$scratch" $parts) &
session=$!
wait $session
status=$?

if [ $status != 0 ]; then
	rm -rf tmp_check
	mkdir -p tmp_check
	(cd "$scratch" && find . \( -path './log/*' -o -path '*tmp_check/log/*' -o -name 'regression.*' -o -name postmaster.log \) \
		-type f -print0 | tar -c --null -T -) | tar -x -C tmp_check
	echo "logs of the failed run: tmp_check/" >&2
fi
exit $status
