#!/bin/bash
# install_packages.sh: install the Debian packages that are missing.
#
#   scripts/install_packages.sh build|demo|test
#
# Does nothing, and needs no rights, when all are there.  Never upgrades a
# package that is there already and never makes, starts or stops a cluster.
set -euo pipefail

build="gcc libc6-dev make postgresql-15 postgresql-server-dev-15 libcurl4-openssl-dev libdnnl-dev
	libevent-dev libjansson-dev libpcre2-dev libssl-dev libutf8proc-dev"
demo="$build python3 python3-pip ca-certificates procps"
test="$demo perl openssl clang clang-format libclang-rt-14-dev libcmocka-dev libio-socket-ssl-perl
	libipc-run-perl postgresql-15-pgtap"

case ${1-} in
	build | demo | test) wanted=${!1} ;;
	*)
		echo "usage: $0 build|demo|test" >&2
		exit 2
		;;
esac

missing=
for package in $wanted; do
	state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$state" = installed ] || missing+=" $package"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null || {
		echo "$0: not root and no sudo; install by hand:$missing" >&2
		exit 1
	}
	as_root=sudo
fi

# Debian's packages make a cluster of their own unless told not to.  The note
# holds only while they are being installed: it is not ours to change what a
# later installation does.
note=/etc/postgresql-common/createcluster.d/no-cluster-for-pg_finetune.conf
trap '$as_root rm -f "$note"' EXIT
$as_root mkdir -p "${note%/*}"
echo "create_main_cluster = false" | $as_root tee "$note" >/dev/null

echo "installing:$missing"
apt=(apt-get -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
environment=(env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1)
$as_root "${environment[@]}" "${apt[@]}" update
# shellcheck disable=SC2086 # a list of words
$as_root "${environment[@]}" "${apt[@]}" install -y --no-install-recommends --no-upgrade $missing
