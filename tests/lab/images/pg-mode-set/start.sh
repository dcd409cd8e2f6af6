#!/usr/bin/env bash
# Stand-in for the family of images that implement PG_MODE=set themselves: the same environment, the same order of events,
# the role from the ordinal. Written anew; where the family's own script would lose data or hide a failure, this one does not.
set -euo pipefail

log() { echo "$(date -u +%FT%TZ) $*"; }
fail() { log "ERROR: $*" >&2; exit 1; }

# A mounted directory of credentials comes before the environment.
read_secrets() {
  if [ -d /pguser ]; then PG_USER=$(</pguser/username) PG_PASSWORD=$(</pguser/password); fi
  if [ -d /pgroot ]; then PG_ROOT_PASSWORD=$(</pgroot/password); fi
  if [ -d /pgmaster ]; then PG_MASTER_USER=$(</pgmaster/username) PG_MASTER_PASSWORD=$(</pgmaster/password); fi
  if [ -d /pgprimary ]; then PG_MASTER_USER=$(</pgprimary/username) PG_MASTER_PASSWORD=$(</pgprimary/password); fi
}

# The family renamed MASTER to PRIMARY in 2017: both are understood.
require_environment() {
  local name primary
  for name in PG_MASTER_HOST PG_MASTER_PORT PG_MASTER_USER PG_MASTER_PASSWORD; do
    primary=PG_PRIMARY_${name#PG_MASTER_}
    [ -n "${!name:-}" ] || export "$name=${!primary:-}"
  done
  for name in PG_MODE PG_MASTER_HOST PG_MASTER_PORT PG_MASTER_USER PG_MASTER_PASSWORD \
    PG_USER PG_PASSWORD PG_DATABASE PG_ROOT_PASSWORD; do
    [ -n "${!name:-}" ] || fail "$name environment variable is not set, aborting"
  done
  export PG_USER PG_PASSWORD PG_ROOT_PASSWORD
}

# label VALUE: puts the label name=VALUE on this pod, with the service account's token; tries until it works. The image has
# no HTTP client, so the request is spoken through openssl, which checks the API server's certificate.
label() {
  local account=/var/run/secrets/kubernetes.io/serviceaccount namespace body answer status
  namespace=${CCP_NAMESPACE:-$(cat "$account/namespace")} || return 1
  body="{\"metadata\":{\"labels\":{\"name\":\"$1\"}}}"
  while :; do
    answer=$(
      printf '%s\r\n' "PATCH /api/v1/namespaces/$namespace/pods/$HOSTNAME HTTP/1.1" \
        "Host: kubernetes.default.svc" "Authorization: Bearer $(cat "$account/token")" "Connection: close" \
        "User-Agent: pg-mode-set" "Content-Type: application/merge-patch+json" "Content-Length: ${#body}" "" "$body" |
        timeout 10 openssl s_client -quiet -verify_quiet -verify_return_error -verify_hostname kubernetes.default.svc \
          -servername kubernetes.default.svc -CAfile "$account/ca.crt" \
          -connect "$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT" 2>&1
    ) || :
    status=$(grep -m 1 '^HTTP/' <<<"$answer" || tail -n 1 <<<"$answer")
    case $status in
      HTTP/*' 200 '*) log "labelled pod $HOSTNAME name=$1"; return ;;
    esac
    log "ERROR: cannot label pod $namespace/$HOSTNAME name=$1, trying again: ${status:-no answer}" >&2
    sleep 2
  done
}

# As the family does it: ordinal 0 is the master, whatever happened before. The label is put on at the start, in the
# background, so that a database without access to the API still starts (and says what is wrong, again and again).
discover_role() {
  case $PG_MODE in
    set)
      if [ "${HOSTNAME##*-}" = 0 ]; then
        role=master
        label "$PG_MASTER_HOST" &
      else
        role=replica
        if [ -n "${PG_REPLICA_HOST:-}" ]; then label "$PG_REPLICA_HOST" & fi
      fi
      ;;
    master | primary) role=master ;;
    slave | replica) role=replica ;;
    *) fail "PG_MODE is $PG_MODE, it must be set, master (primary) or slave (replica)" ;;
  esac
  log "role of $HOSTNAME: $role"
}

configuration() {
  cat <<'CONF'

# from the image
listen_addresses = '*'
unix_socket_directories = '/tmp'
wal_level = replica
max_wal_senders = 6
wal_keep_size = 512MB
hot_standby = on
password_encryption = scram-sha-256
CONF
  echo "max_connections = ${MAX_CONNECTIONS:-100}"
  echo "shared_buffers = ${SHARED_BUFFERS:-128MB}"
}

# md5 takes passwords stored as SCRAM as well
host_access() {
  cat <<HBA
local all all trust
host all all 127.0.0.1/32 trust
host all all 0.0.0.0/0 md5
host all all ::/0 md5
host replication $PG_MASTER_USER 0.0.0.0/0 md5
host replication $PG_MASTER_USER ::/0 md5
HBA
}

# A cluster is made, or cloned, beside its place and renamed when it is whole: a half-made one is never started.
make_master() {
  local making=$PGDATA.making
  rm -rf "$making"
  initdb -D "$making" --username=postgres --pwfile=<(printf '%s\n' "$PG_ROOT_PASSWORD") --locale="${PG_LOCALE:-C.UTF-8}"
  configuration >>"$making/postgresql.conf"
  host_access >"$making/pg_hba.conf"
  pg_ctl -D "$making" -o "-c listen_addresses=''" -w start
  psql -h /tmp -U postgres -v ON_ERROR_STOP=1 -q <<'SQL'
\getenv master_user PG_MASTER_USER
\getenv master_password PG_MASTER_PASSWORD
\getenv user PG_USER
\getenv password PG_PASSWORD
\getenv database PG_DATABASE
CREATE ROLE :"master_user" LOGIN REPLICATION PASSWORD :'master_password';
CREATE ROLE :"user" LOGIN PASSWORD :'password';
CREATE DATABASE :"database" OWNER :"user";
\connect :"database"
CREATE SCHEMA :"user" AUTHORIZATION :"user";
SQL
  pg_ctl -D "$making" -m fast -w stop
  mv "$making" "$PGDATA"
}

make_replica() {
  local making=$PGDATA.making
  until pg_isready -q -h "$PG_MASTER_HOST" -p "$PG_MASTER_PORT" &&
    psql -qAt "host=$PG_MASTER_HOST port=$PG_MASTER_PORT user=$PG_MASTER_USER dbname=postgres" -c 'SELECT now()'; do
    log "waiting for the master at $PG_MASTER_HOST:$PG_MASTER_PORT"
    sleep 1
  done
  rm -rf "$making"
  pg_basebackup -D "$making" -h "$PG_MASTER_HOST" -p "$PG_MASTER_PORT" -U "$PG_MASTER_USER" -X stream -c fast
  chmod 700 "$making"
  mv "$making" "$PGDATA"
}

follow_master() {
  touch "$PGDATA/standby.signal"
  sed -i '/^primary_conninfo = /d' "$PGDATA/postgresql.conf"
  echo "primary_conninfo = 'application_name=$HOSTNAME host=$PG_MASTER_HOST port=$PG_MASTER_PORT user=$PG_MASTER_USER passfile=$PGPASSFILE'" \
    >>"$PGDATA/postgresql.conf"
}

role=
main() {
  export PGDATA=/pgdata/${PGDATA_PATH_OVERRIDE:-$HOSTNAME} PGPASSFILE=/tmp/.pgpass PGHOST=/tmp
  read_secrets
  require_environment
  discover_role
  (umask 077; printf '*:*:*:*:%s\n' "$PG_MASTER_PASSWORD" >"$PGPASSFILE")
  if [ "$role" = master ]; then
    [ -f "$PGDATA/PG_VERSION" ] || make_master
  else
    [ -f "$PGDATA/PG_VERSION" ] || make_replica
    follow_master
  fi
  # The family does so too: in a new container the recorded process id says nothing.
  rm -f "$PGDATA/postmaster.pid"

  postgres -D "$PGDATA" &
  local server=$!
  # A pod is ended with SIGTERM, which PostgreSQL takes as "wait for the clients": stop fast instead.
  trap 'kill -INT "$server"' TERM INT
  while kill -0 "$server" 2>/dev/null; do wait "$server" && status=$? || status=$?; done
  exit "$status"
}
main
