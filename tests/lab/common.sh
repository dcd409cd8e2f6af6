# shellcheck shell=bash
# Sourced by the scripts of the lab: where things are, and how they speak.
# shellcheck disable=SC2034  # the variables are for the scripts that source this file

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$here/../.." && pwd)

# Built programs and images are outside the checkout: they take minutes to make and do not depend on it.
cache=${PGSET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pgset}

kubernetes_version=v1.37.2
coredns_version=v1.15.0

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { warn "$*"; exit 1; }

# lock FILE WHAT: takes the lock for the rest of the script, and says so if it has to wait for it.
lock() {
  mkdir -p "$(dirname "$1")"
  exec {lock_fd}>"$1"
  if ! flock -n "$lock_fd"; then
    say "another process is at work on $2; waiting for it (lock $1)"
    flock "$lock_fd"
  fi
}
