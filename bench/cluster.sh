# cluster.sh: a private cluster for a benchmark, to be sourced.
#
# Expects `bin`, the folder of PostgreSQL's programs, and `scratch`, a new folder
# with models/ and whatever else the server's user is to read.  Goes there, makes
# the cluster in `data` and has it stopped and all removed at the end; starting it
# is the caller's, after more settings.  Runs as whoever calls, or as user postgres
# for root: `as_user` is put before what that user is to run.
as_user=(env)
if [ "$(id -u)" = 0 ]; then
	# not what is in the folders: a model there may be a link to one that is kept
	chown postgres: "$scratch" "$scratch"/*
	as_user=(runuser -u postgres -- env "HOME=$scratch")
fi
for variable in $(compgen -e PG); do unset "$variable"; done
cd "$scratch"
data=$scratch/data

clean_up()
{
	local status=$?
	if [ $status != 0 ] && [ -f log ]; then
		echo "--- the end of the server's log" >&2
		tail -n 30 log >&2
	fi
	if [ -f "$data/postmaster.pid" ]; then
		"${as_user[@]}" "$bin/pg_ctl" -s -w -D "$data" -m immediate stop || true
	fi
	rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

"${as_user[@]}" "$bin/initdb" -D "$data" -A trust -E UTF8 --locale=C.UTF-8 -N >/dev/null
cat >>"$data/postgresql.conf" <<-END
	listen_addresses = ''
	unix_socket_directories = '$scratch'
	shared_preload_libraries = 'pg_finetune'
	pg_finetune.model_directory = '$scratch/models'
END
