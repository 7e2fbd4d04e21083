#!/bin/sh
# Builds .venv from requirements-dev.txt. The machine needs only git and a Python; as root on Debian, the script installs
# python3-venv if it is missing.
#
#   .ci/bootstrap.sh       build or update .venv; if it is up to date, print one line and do nothing
#   .ci/bootstrap.sh uv    print the path of a working uv, and fetch one if there is none (for `make lock`)
#
# PYTHON        the interpreter to use, instead of the first suitable one
# PYTHON_DIRS   folders, separated by colons, that are searched after PATH
#
# If something is missing, the script prints what to do on stderr and exits with status 1.
#
# .venv/.setup holds "building" while .venv is built, and then a fingerprint of the lock files, the interpreter and the
# path. An interrupted run leaves "building" behind, so the next one does not trust half-installed packages.
set -eu

LOWEST_GIT=2.38
LOWEST_PYTHON=3.12
NEWEST_TESTED_PYTHON=3.14
LOWEST_UV=0.5

cd "$(dirname "$0")/.."
ROOT=$(pwd -P)
VENV=$ROOT/.venv
STAMP=$VENV/.setup
TOOLS=$VENV/.tools
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# at_least 2.47.3 2.38: is the first version at least the second? Compares the major and minor numbers.
at_least() {
    have_major=${1%%.*} have_rest=${1#*.} need_major=${2%%.*} need_rest=${2#*.}
    have_minor=${have_rest%%.*} need_minor=${need_rest%%.*}
    case "$have_major$have_minor" in '' | *[!0-9]*) return 1 ;; esac
    [ "$have_major" -gt "$need_major" ] || { [ "$have_major" -eq "$need_major" ] && [ "$have_minor" -ge "$need_minor" ]; }
}

require_git() {
    command -v git >/dev/null 2>&1 ||
        fail "Docora needs git $LOWEST_GIT or newer, but there is none on PATH. Install it (Debian: apt-get install git)."
    answer=$(git --version 2>/dev/null) || answer=
    version=${answer#git version }
    version=${version%%[!0-9.]*}
    at_least "$version" "$LOWEST_GIT" ||
        fail "Docora needs git $LOWEST_GIT or newer, but $(command -v git) is ${version:-of an unknown version}." \
            "Install a newer one (Debian: apt-get install git)."
}

# ask_python PATH: sets found_version, found_pip (yes or no: can it create an environment with pip?) and found_python,
# the interpreter behind a shim or virtual environment. Runs the interpreter, since a shim may point to a missing one.
ask_python() {
    answer=$("$1" -c '
import sys
try:
    import ensurepip, venv
    pip = "yes"
except ImportError:
    pip = "no"
version = ".".join(str(part) for part in sys.version_info[:3])
print("%s %s %s" % (version, pip, getattr(sys, "_base_executable", None) or sys.executable))
' 2>/dev/null </dev/null) || return 1
    found_version=${answer%% *} rest=${answer#* }
    found_pip=${rest%% *} found_python=${rest#* }
    at_least "$found_version" 0.0
}

# Prints every interpreter to try, one per line, the preferred one first.
candidates() {
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" || :
        return
    fi
    for name in python3 python3.14 python3.13 python3.12; do
        command -v "$name" || :
    done
    home=${HOME:-/nonexistent}
    dirs=${PYTHON_DIRS-/usr/local/bin:/usr/bin:$home/.pyenv/versions/*/bin:$home/.local/share/uv/python/*/bin}
    old_ifs=$IFS
    IFS=:
    for pattern in $dirs; do
        for dir in $pattern; do # unquoted, so that the shell expands the pattern
            for name in python3.14 python3.13 python3.12 python3; do
                [ ! -x "$dir/$name" ] || printf '%s\n' "$dir/$name"
            done
        done
    done
    IFS=$old_ifs
}

# Sets python, python_version and python_pip, and sets pip_python to any interpreter that can fetch uv with pip ('' if
# there is none).
find_python() {
    python='' newer='' pip_python='' seen=''
    list=$(candidates)
    old_ifs=$IFS
    IFS='
'
    for candidate in $list; do
        IFS=$old_ifs
        ask_python "$candidate" || continue
        if [ "$found_pip" = yes ] && [ -z "$pip_python" ] && at_least "$found_version" 3.9; then
            pip_python=$found_python
        fi
        if [ -n "$python" ]; then
            :
        elif ! at_least "$found_version" "$LOWEST_PYTHON"; then
            seen="$seen${seen:+, }$found_version ($candidate)"
        elif at_least "$NEWEST_TESTED_PYTHON" "$found_version"; then
            python=$found_python python_version=$found_version python_pip=$found_pip
        elif [ -z "$newer" ]; then
            newer=$found_python newer_version=$found_version newer_pip=$found_pip
        fi
        if [ -n "$python" ] && [ -n "$pip_python" ]; then break; fi
    done
    IFS=$old_ifs
    if [ -z "$python" ] && [ -n "$newer" ]; then
        python=$newer python_version=$newer_version python_pip=$newer_pip
    fi
    [ -n "$python" ] && return
    if [ -n "${PYTHON:-}" ] && [ -z "$seen" ]; then
        fail "PYTHON=$PYTHON does not run. Name a Python of version $LOWEST_PYTHON or newer."
    fi
    fail "Docora needs Python $LOWEST_PYTHON or newer, but found ${seen:-none}. Install one (Debian: apt-get install" \
        "python3 python3-venv) or name one: make PYTHON=/path/to/python3."
}

# Sets uv to the path of a working uv, or to '' if there is none.
find_uv() {
    for uv in "$(command -v uv || :)" "$TOOLS/bin/uv" "${HOME:-}/.local/bin/uv" "${HOME:-}/.cargo/bin/uv"; do
        [ -n "$uv" ] || continue
        answer=$("$uv" --version 2>/dev/null </dev/null) || continue
        version=${answer#uv }
        if at_least "${version%% *}" "$LOWEST_UV"; then return; fi
    done
    uv=''
}

# As root on Debian, installs python3-venv for the system's own interpreter.
install_venv_package() {
    case "$python" in /usr/bin/*) ;; *) return 1 ;; esac
    command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" -eq 0 ] || return 1
    printf 'Installing python3-venv ...\n'
    for step in update 'install --yes --no-install-recommends python3-venv'; do
        # unquoted, so that the shell splits the step into its arguments
        DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 $step >/dev/null </dev/null || return 1
    done
}

# Installs the uv of .ci/uv.txt into its own environment below .venv, separate from the packages of Docora.
fetch_uv() {
    [ -n "$pip_python" ] || return 1
    rm -rf "$TOOLS"
    if "$pip_python" -m venv "$TOOLS" &&
        "$TOOLS/bin/python" -m pip install --quiet --no-input --require-hashes -r .ci/uv.txt; then
        uv=$TOOLS/bin/uv
    else
        rm -rf "$TOOLS"
        return 1
    fi 2>/dev/null # an error here happens again when pip installs the packages, and is shown there
}

# Always names the interpreter: uv would otherwise download one, which not every machine may do.
install_with_uv() {
    [ -n "$uv" ] || return 1
    [ "$state" = update ] ||
        "$uv" venv --quiet --no-project --no-python-downloads --allow-existing --python "$python" "$VENV" || return 1
    "$uv" pip sync --quiet --no-python-downloads --compile-bytecode --python "$VENV/bin/python" --require-hashes \
        requirements-dev.txt
}

install_with_pip() {
    [ "$python_pip" = yes ] || return 1
    [ -z "$uv" ] || printf 'uv failed; trying pip instead ...\n'
    "$python" -m venv "$VENV" || return 1
    "$VENV/bin/python" -m pip install --quiet --no-input --require-hashes -r requirements-dev.txt
}

# Prints a fingerprint, or nothing if the interpreter of .venv does not run. It covers everything that would make .venv
# useless: changed lock files, another interpreter behind the same link, a moved folder (the scripts contain its old path).
fingerprint() {
    "$VENV/bin/python" -I -S -c '
import hashlib, sys
lock = hashlib.sha256()
for name in sys.argv[2:]:
    with open(name, "rb") as file:
        lock.update(file.read())
print("python %d.%d.%d" % sys.version_info[:3], "in", sys.argv[1], "lock", lock.hexdigest())
' "$ROOT" requirements.txt requirements-dev.txt 2>/dev/null </dev/null
}

write_stamp() {
    printf '%s\n' "$1" >"$STAMP.new"
    mv -f "$STAMP.new" "$STAMP"
}

# Sets state to 'ready', 'update' (the packages differ) or 'rebuild', and wanted to the fingerprint.
inspect_venv() {
    state=rebuild
    wanted=$(fingerprint) || return 0
    held=''
    [ ! -r "$STAMP" ] || read -r held <"$STAMP" || :
    if [ "$held" = "$wanted" ]; then
        state=ready
    elif [ -z "$held" ] || [ "${held% lock *}" = "${wanted% lock *}" ]; then # '' = created by hand
        state=update
    fi
    [ "$state" != rebuild ] || return 0
    ask_python "$VENV/bin/python" && at_least "$found_version" "$LOWEST_PYTHON" || state=rebuild
    if [ -n "${PYTHON:-}" ]; then
        venv_version=$found_version
        ask_python "$PYTHON" && [ "$found_version" = "$venv_version" ] || state=rebuild
    fi
}

build_venv() {
    find_uv
    doing='Setting up'
    if [ "$state" = update ]; then doing=Updating PYTHON=$VENV/bin/python; fi
    find_python
    mkdir -p "$VENV"
    write_stamp building
    if [ "$state" = rebuild ]; then
        find "$VENV" -mindepth 1 -maxdepth 1 ! -name .tools ! -name .setup -exec rm -rf {} +
    fi
    if [ -z "$uv$pip_python" ] && install_venv_package; then find_python; fi
    if [ -z "$uv" ] && [ -n "$pip_python" ]; then printf 'Fetching uv, which installs the packages ...\n'; fi
    if [ -z "$uv" ] && ! fetch_uv && [ "$python_pip" = no ]; then
        fail "Python $python_version ($python) cannot create a virtual environment, and there is no uv either." \
            "Install one of them (Debian: apt-get install python3-venv)."
    fi
    printf '%s .venv with Python %s (%s) and %s ...\n' "$doing" "$python_version" "$python" "${uv:-pip}"
    install_with_uv || install_with_pip ||
        fail "The packages of requirements-dev.txt could not be installed, for the reason above." \
            "Fix it (often the network or a proxy) and run make again."
    wanted=$(fingerprint) || fail "$VENV/bin/python does not run. Remove .venv and run make again."
    write_stamp "$wanted"
    printf 'Docora is set up. "make run" starts it with demo data; .venv/bin/python manage.py help lists the commands.\n'
}

# Only one setup runs at a time; a second one waits and then finds the work done. The lock is on this folder itself, so
# it needs no lock file, and the kernel releases it when this process ends.
exec 9<.ci
if command -v flock >/dev/null 2>&1; then
    flock -n 9 || {
        printf 'Waiting for another setup of this folder ...\n'
        flock 9 || :
    }
fi

case "${1:-setup}" in
setup)
    require_git
    inspect_venv
    if [ "$state" = ready ]; then
        printf '.venv is up to date.\n'
    else
        build_venv
    fi
    ;;
uv)
    find_uv
    if [ -z "$uv" ]; then
        find_python
        mkdir -p "$VENV"
        fetch_uv || fail "uv is not on PATH and could not be fetched. Install it and try again."
    fi
    printf '%s\n' "$uv"
    ;;
*) fail "Unknown argument '$1'. Call it without an argument, or with 'uv'." ;;
esac
