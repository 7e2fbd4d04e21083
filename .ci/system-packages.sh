#!/bin/sh
# Installs the programs that the test suite needs and no Python package provides. Everything else (PostgreSQL, Valkey,
# Caddy, Node.js, git's HTTP server) comes with the Python packages or with git.
#
# Always exits with status 0: if a program cannot be installed, the tests that need it fail and the others still run.
set -u

log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM
updated=''
export DEBIAN_FRONTEND=noninteractive

apt() {
    apt-get -o DPkg::Lock::Timeout=300 -qq "$@" >"$log" 2>&1 </dev/null
}

# Updates the package lists before the first installation.
install() {
    [ -n "$updated" ] || apt update || return 1
    updated=yes
    apt --yes --no-install-recommends install "$1"
}

# on_path COMMAND...: is one of these commands on PATH?
on_path() {
    for command in "$@"; do
        if command -v "$command" >/dev/null 2>&1; then return; fi
    done
    return 1
}

# provide PACKAGE NAME TESTS COMMAND...: installs the package unless one of the commands is on PATH. If that fails, says
# on stderr which tests will fail.
provide() {
    package=$1 name=$2 tests=$3 consequence="the tests in $3 will fail, not be skipped"
    shift 3
    on_path "$@" && return
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "$name is not on PATH, so $consequence; install it so that the command '$1' starts it." >&2
    elif [ "$(id -u)" -ne 0 ]; then
        echo "$name is not on PATH, so $consequence; install it: sudo apt-get install $package" >&2
    else
        echo "Installing $name for $tests ..."
        install "$package" && on_path "$@" && return
        reason=$(grep -E '^E: ' "$log" | head -n 1)
        echo "$name could not be installed (${reason:-$(tail -n 1 "$log")}), so $consequence." >&2
    fi
}

provide chromium-headless-shell Chromium tests/browser chromium-headless-shell chromium chromium-browser
provide curl curl tests/api curl
provide openssl OpenSSL tests/api openssl
provide systemd systemd-analyze tests/deploy systemd-analyze
provide iproute2 iproute2 tests/faults ip
provide kustomize kustomize tests/deploy kustomize
provide promtool promtool tests/deploy promtool
exit 0
