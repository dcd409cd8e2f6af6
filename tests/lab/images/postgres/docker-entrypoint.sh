#!/usr/bin/env bash
# Entry point of the lab's postgres image. It does what the documentation of Docker's official image promises, in our own
# words: the same variables, the same order of events, the same messages where programs look for them.
set -Eeo pipefail

# from_file VARIABLE [DEFAULT]: settles VARIABLE from itself, or from the file that VARIABLE_FILE names, or the default.
from_file() {
  local name=$1 file_name=${1}_FILE value=${2:-}
  if [ -n "${!name:-}" ] && [ -n "${!file_name:-}" ]; then
    echo "error: both $name and $file_name are set, only one may be" >&2
    exit 1
  fi
  if [ -n "${!name:-}" ]; then
    value=${!name}
  elif [ -n "${!file_name:-}" ]; then
    value=$(<"${!file_name}")
  fi
  export "$name=$value"
  unset "$file_name"
}

read_environment() {
  from_file POSTGRES_PASSWORD
  from_file POSTGRES_USER postgres
  from_file POSTGRES_DB "$POSTGRES_USER"
  from_file POSTGRES_INITDB_ARGS
  from_file POSTGRES_INITDB_WALDIR
  from_file POSTGRES_HOST_AUTH_METHOD
}

# As root: what the server needs belongs to the user that it will run as. As any user: what can be made, is made.
make_directories() {
  mkdir -p "$PGDATA"
  chmod 00700 "$PGDATA" || :            # not ours to change: initdb and postgres judge
  mkdir -p /var/run/postgresql || :
  chmod 03775 /var/run/postgresql || :
  if [ -n "$POSTGRES_INITDB_WALDIR" ]; then
    mkdir -p "$POSTGRES_INITDB_WALDIR"
    chmod 700 "$POSTGRES_INITDB_WALDIR"
  fi
  if [ "$(id -u)" = 0 ]; then
    find "$PGDATA" /var/run/postgresql ${POSTGRES_INITDB_WALDIR:+"$POSTGRES_INITDB_WALDIR"} \
      ! -user postgres -exec chown postgres '{}' +
  fi
}

require_password() {
  if [ -z "$POSTGRES_PASSWORD" ] && [ "$POSTGRES_HOST_AUTH_METHOD" != trust ]; then
    cat >&2 <<'TEXT'
Error: Database is uninitialized and superuser password is not specified.
       Set POSTGRES_PASSWORD (or POSTGRES_PASSWORD_FILE) to a value that is not empty, as in "-e POSTGRES_PASSWORD=password".
       POSTGRES_HOST_AUTH_METHOD=trust does without a password: anyone who reaches the server is then its superuser.
TEXT
    exit 1
  fi
  if [ "$POSTGRES_HOST_AUTH_METHOD" = trust ]; then
    echo 'WARNING: POSTGRES_HOST_AUTH_METHOD is "trust": anyone who reaches the server is its superuser.' >&2
  fi
}

make_cluster() {
  local wrapped='' library arguments=()
  if ! getent passwd "$(id -u)" >/dev/null; then
    # initdb wants a name for its user: lend it one
    library=$(find /usr/lib -name libnss_wrapper.so -print -quit)
    NSS_WRAPPER_PASSWD=$(mktemp)
    NSS_WRAPPER_GROUP=$(mktemp)
    echo "postgres:x:$(id -u):$(id -g):PostgreSQL:$PGDATA:/bin/false" >"$NSS_WRAPPER_PASSWD"
    echo "postgres:x:$(id -g):" >"$NSS_WRAPPER_GROUP"
    export LD_PRELOAD=$library NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP
    wrapped=yes
  fi
  [ -z "$POSTGRES_INITDB_WALDIR" ] || arguments+=(--waldir "$POSTGRES_INITDB_WALDIR")
  # POSTGRES_INITDB_ARGS is shell words, quotes included
  eval 'arguments+=('"$POSTGRES_INITDB_ARGS"')'
  initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") "${arguments[@]}"
  if [ -n "$wrapped" ]; then
    rm -f "$NSS_WRAPPER_PASSWD" "$NSS_WRAPPER_GROUP"
    unset LD_PRELOAD NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP
  fi
}

allow_hosts() { # ARGUMENTS OF postgres...
  local method=$POSTGRES_HOST_AUTH_METHOD
  [ -n "$method" ] || method=$(postgres -C password_encryption "$@")
  printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"
}

start_temporary_server() { # ARGUMENTS OF postgres...: on the socket only, so that nobody meets a half-made database
  local options
  options=$(printf '%q ' "$@" -c listen_addresses='' -p "${PGPORT:-5432}")
  PGUSER=$POSTGRES_USER NOTIFY_SOCKET='' pg_ctl -D "$PGDATA" -o "$options" -w start
}

stop_temporary_server() {
  PGUSER=$POSTGRES_USER pg_ctl -D "$PGDATA" -m fast -w stop
}

sql() { # ARGUMENTS OF psql...
  psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --no-password --no-psqlrc "$@"
}

create_database() {
  local there
  there=$(sql --dbname postgres -At -v name="$POSTGRES_DB" <<<"SELECT 1 FROM pg_database WHERE datname = :'name'")
  if [ -z "$there" ]; then
    sql --dbname postgres -v name="$POSTGRES_DB" <<<'CREATE DATABASE :"name"'
    printf '\n'
  fi
}

run_scripts() { # FILE...
  local file
  printf '\n'
  for file; do
    case $file in
      *.sh)
        if [ -x "$file" ]; then
          echo "$0: running $file"
          "$file"
        else
          echo "$0: sourcing $file"
          # shellcheck disable=SC1090
          . "$file"
        fi
        ;;
      *.sql) echo "$0: running $file"; sql --dbname "$POSTGRES_DB" -f "$file"; printf '\n' ;;
      *.sql.gz) echo "$0: running $file"; gunzip -c "$file" | sql --dbname "$POSTGRES_DB"; printf '\n' ;;
      *.sql.xz) echo "$0: running $file"; xzcat "$file" | sql --dbname "$POSTGRES_DB"; printf '\n' ;;
      *) echo "$0: ignoring $file" ;;
    esac
    printf '\n'
  done
}

initialise() { # ARGUMENTS OF postgres...
  require_password
  ls /docker-entrypoint-initdb.d/ >/dev/null    # unreadable: fail before there is a database
  make_cluster
  allow_hosts "$@"
  export PGPASSWORD=$POSTGRES_PASSWORD
  start_temporary_server "$@"
  create_database
  run_scripts /docker-entrypoint-initdb.d/*
  stop_temporary_server
  unset PGPASSWORD
  printf '\nPostgreSQL init process complete; ready for start up.\n\n'
}

asks_for_help() { # `postgres --help` and the like need no database
  local argument
  for argument; do
    case $argument in
      -'?' | --help | --describe-config | -V | --version | -C) return 0 ;;
    esac
  done
  return 1
}

_main() {
  if [ "${1:0:1}" = - ]; then set -- postgres "$@"; fi
  if [ "$1" = postgres ] && ! asks_for_help "$@"; then
    read_environment
    make_directories
    if [ "$(id -u)" = 0 ]; then exec gosu postgres "${BASH_SOURCE[0]}" "$@"; fi
    if [ -s "$PGDATA/PG_VERSION" ]; then
      printf '\nPostgreSQL Database directory appears to contain a database; Skipping initialization\n\n'
    else
      shopt -s nullglob
      initialise "${@:2}"
      shopt -u nullglob
    fi
  fi
  exec "$@"
}

# Sourced, by an entry point built on this one, it only brings its functions.
if [ "${FUNCNAME[0]:-}" != source ]; then _main "$@"; fi
