#!/bin/bash
# bring.sh: gather what `make gpu-check` needs on a machine that reaches no packages.
#
#   test/gpu/bring.sh [LAYERS]      (default 4; "halves" for the whole model in two files)
#
# Runs on Debian 12 with the packages of `scripts/install_packages.sh test`.
# Leaves in cache/gpu/: debs/ (libraries, headers, PostgreSQL: everything beyond
# glibc and the compiler's run time), and the model, cut to its first layers or
# in halves.  The folder is ignored by git; README.md says how it travels.
set -euo pipefail
cd "$(dirname "$0")/../.."
layers=${1-4}
to=cache/gpu
model=cache/SmolLM2-135M-Instruct.Q4_1.gguf

named="libjansson-dev libjansson4 libevent-dev libevent-2.1-7 libevent-core-2.1-7
	libevent-pthreads-2.1-7 libpcre2-dev libpcre2-8-0 libutf8proc-dev libutf8proc2 libcmocka-dev libcmocka0 libssl-dev libssl3 libcurl4-openssl-dev libcurl4
	libdnnl-dev libdnnl2 postgresql-15 postgresql-client-15 postgresql-server-dev-15 libpq5 tzdata"
pgbin=$(pg_config --bindir)

# The packages of the shared objects that these link, as the loader here finds them.
linked()
{
	ldd "$pgbin"/{postgres,initdb,psql,pg_ctl} "$(ldconfig -p | sed -n 's/.*libdnnl\.so\.2 .* => //p')" \
		"$(ldconfig -p | sed -n 's/.*libcurl\.so\.4 .* => //p')" |
		sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' | sort -u |
		while read -r file; do
			dpkg-query -S "$file" 2>/dev/null || dpkg-query -S "$(readlink -f "$file")" 2>/dev/null ||
				dpkg-query -S "/usr$file" 2>/dev/null || true
		done | sed 's/:.*//' | sort -u | grep -Ev '^(libc6|libgcc-s1|libstdc\+\+6)$'
}

mkdir -p $to/debs
# shellcheck disable=SC2086,SC2046 # lists of words
packages=$(printf '%s\n' $named $(linked) | sort -u)
(
	cd $to/debs
	missing=()
	for package in $packages; do
		ls "${package}"_*.deb >/dev/null 2>&1 || missing+=("$package")
	done
	[ ${#missing[@]} = 0 ] || apt-get -q download "${missing[@]}"
)

rm -f $to/model.gguf $to/model.half.*
if [ "$layers" = halves ]; then
	split -n 2 -d -a 1 $model $to/model.half.
else
	test/gpu/cut_gguf.py $model "$layers" $to/model.gguf
fi
du -sh $to/debs $to/model.* | sort -k 2
