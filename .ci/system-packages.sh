#!/bin/sh
# Installs what the suite needs and no Python package brings: a browser, Node.js, and the tools of the system.
# Everything else (PostgreSQL, Valkey, Caddy, git's HTTP server) comes with the packages or with git.
#
# Never an error by itself: without them every other test still says something, and those that need them fail.
set -u

log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM
updated=''
export DEBIAN_FRONTEND=noninteractive

apt() {
    apt-get -o DPkg::Lock::Timeout=300 -qq "$@" >"$log" 2>&1 </dev/null
}

# The package lists are asked for once, and only if something is to be installed.
install() {
    [ -n "$updated" ] || apt update || return 1
    updated=yes
    apt --yes --no-install-recommends install "$1"
}

# provide COMMAND PACKAGE NAME TESTS: has the command on PATH, or says on stderr what will come of its absence.
provide() {
    command -v "$1" >/dev/null 2>&1 && return
    consequence="the tests in $4 will fail, not be skipped"
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "There is no $3 on PATH, so $consequence; install it so that the command '$1' starts it." >&2
    elif [ "$(id -u)" -ne 0 ]; then
        echo "There is no $3 on PATH, so $consequence; install it: sudo apt-get install $2" >&2
    else
        echo "Installing $3 for $4 ..."
        install "$2" && command -v "$1" >/dev/null 2>&1 && return
        reason=$(grep -E '^E: ' "$log" | head -n 1)
        echo "$3 could not be installed (${reason:-$(tail -n 1 "$log")}), so $consequence." >&2
    fi
}

provide chromium chromium Chromium tests/browser
provide node nodejs Node.js tests/wire
provide npm npm npm tests/browser
provide systemd-analyze systemd systemd-analyze tests/deploy
provide ip iproute2 iproute2 tests/faults
exit 0
