#!/bin/sh
# Installs what the suite needs and no Python package brings: Chromium, for tests/browser. Everything else (PostgreSQL,
# Valkey, git's HTTP server) comes with the packages or with git.
#
# Never an error by itself: without a browser every other test still says something, and those in tests/browser fail.
set -u

command -v chromium >/dev/null 2>&1 && exit 0

consequence='the tests in tests/browser will fail, not be skipped'
if ! command -v apt-get >/dev/null 2>&1; then
    echo "There is no Chromium on PATH, so $consequence; install it so that the command 'chromium' starts it." >&2
elif [ "$(id -u)" -ne 0 ]; then
    echo "There is no Chromium on PATH, so $consequence; install it: sudo apt-get install chromium" >&2
else
    echo 'Installing Chromium for the browser tests ...'
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    if apt-get -o DPkg::Lock::Timeout=300 -qq update >"$log" 2>&1 </dev/null &&
        apt-get -o DPkg::Lock::Timeout=300 -qq --yes --no-install-recommends install chromium >"$log" 2>&1 </dev/null &&
        command -v chromium >/dev/null 2>&1; then
        :
    else
        reason=$(grep -E '^E: ' "$log" | head -n 1)
        echo "Chromium could not be installed (${reason:-$(tail -n 1 "$log")}), so $consequence." >&2
    fi
    rm -f "$log"
fi
exit 0
