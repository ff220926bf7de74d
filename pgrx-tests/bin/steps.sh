# Sourced by the scripts beside it: the repository's root, one line for each step, and the
# way to act as root or as another user. Nothing here changes anything by itself.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=$root/.cache
mkdir -p "$cache"

# Servers started under RUST_BACKTRACE would put a backtrace into the DETAIL of each error.
unset RUST_BACKTRACE
# Our own, so that nobody's cargo-pgrx configuration is touched.
export PGRX_HOME=$cache/pgrx
# cargo-pgrx would build the library with other linker flags than the tests, and so every
# dependency twice. GNU ld keeps the section that they are for; where it were lost, cargo-pgrx
# says so and stops.
export CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND=1
# Rust as rustup installs it, for shells that have not read its profile yet.
export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
# The Node that `setup node` unpacks where the machine has none that is new enough.
export PATH=$cache/node/bin:$PATH

# One line for a step, with the seconds since make began.
step() {
    printf '[%4d s] %s\n' $(($(date +%s) - ${PG_OUTBOX_STARTED_AT:-$(date +%s)})) "$*"
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        command -v sudo > /dev/null || fail "this needs root: $* (no sudo on this machine)"
        sudo "$@"
    fi
}

# Runs a command quietly; what it said is shown when it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" > "$log" 2>&1 || status=$?
    [ "$status" = 0 ] || cat "$log" >&2
    rm -f "$log"
    return "$status"
}

# The Postgres that everything is built for and tested on, unless PG_CONFIG names another.
pg_config=${PG_CONFIG:-/usr/lib/postgresql/15/bin/pg_config}

pg_major() {
    "$pg_config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'
}
