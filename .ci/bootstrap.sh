#!/bin/sh
# Builds .venv from requirements-dev.txt, with nothing on the machine but git and some Python.
#
#   .ci/bootstrap.sh       build or update .venv; says so in one line and does nothing when it is up to date
#   .ci/bootstrap.sh uv    print the path of a working uv, fetching one if need be (for `make lock`)
#
# PYTHON        the interpreter to use, instead of the first fitting one
# PYTHON_DIRS   folders, separated by colons, that are searched after PATH
#
# Whatever is missing is one sentence on stderr and exit status 1.
#
# .venv/.setup says what .venv holds: "building", or a fingerprint of the lock files, the interpreter and the place.
# It is written first and last, so that an interrupted run is seen and its half-installed packages are not trusted.
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

# at_least 2.47.3 2.38: compares two numbers of each.
at_least() {
    have_major=${1%%.*} have_rest=${1#*.} need_major=${2%%.*} need_rest=${2#*.}
    have_minor=${have_rest%%.*} need_minor=${need_rest%%.*}
    case "$have_major$have_minor" in '' | *[!0-9]*) return 1 ;; esac
    [ "$have_major" -gt "$need_major" ] || { [ "$have_major" -eq "$need_major" ] && [ "$have_minor" -ge "$need_minor" ]; }
}

require_git() {
    command -v git >/dev/null 2>&1 ||
        fail "Docora needs git $LOWEST_GIT or newer and finds none on PATH; install it (Debian: apt-get install git)."
    answer=$(git --version 2>/dev/null) || answer=
    version=${answer#git version }
    version=${version%%[!0-9.]*}
    at_least "$version" "$LOWEST_GIT" ||
        fail "Docora needs git $LOWEST_GIT or newer, but $(command -v git) is ${version:-of an unknown version};" \
            "install a newer one (Debian: apt-get install git)."
}

# ask_python PATH: sets found_version, found_pip (yes or no: can it make an environment with pip?) and found_python,
# the interpreter behind any shim or virtual environment. Only running it tells: a shim may lead nowhere.
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

# Every interpreter worth asking, one a line, the preferred first.
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
        for dir in $pattern; do # the unquoted pattern unfolds here
            for name in python3.14 python3.13 python3.12 python3; do
                [ ! -x "$dir/$name" ] || printf '%s\n' "$dir/$name"
            done
        done
    done
    IFS=$old_ifs
}

# Sets python, python_version and python_pip; and pip_python, any interpreter that can fetch uv with pip ('' if none).
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
        fail "PYTHON=$PYTHON is no Python that runs; name one of version $LOWEST_PYTHON or newer."
    fi
    fail "Docora needs Python $LOWEST_PYTHON or newer and finds ${seen:-none}; install one (Debian: apt-get install" \
        "python3 python3-venv) or name it: make PYTHON=/path/to/python3."
}

# Sets uv, to '' if there is none.
find_uv() {
    for uv in "$(command -v uv || :)" "$TOOLS/bin/uv" "${HOME:-}/.local/bin/uv" "${HOME:-}/.cargo/bin/uv"; do
        [ -n "$uv" ] || continue
        answer=$("$uv" --version 2>/dev/null </dev/null) || continue
        version=${answer#uv }
        if at_least "${version%% *}" "$LOWEST_UV"; then return; fi
    done
    uv=''
}

# Puts the uv of .ci/uv.txt into an environment of its own below .venv, where nothing else sees it.
fetch_uv() {
    [ -n "$pip_python" ] || return 1
    rm -rf "$TOOLS"
    if "$pip_python" -m venv "$TOOLS" &&
        "$TOOLS/bin/python" -m pip install --quiet --no-input --require-hashes -r .ci/uv.txt; then
        uv=$TOOLS/bin/uv
    else
        rm -rf "$TOOLS"
        return 1
    fi 2>/dev/null # what stops pip here stops it again at the packages, and is shown there
}

# The interpreter is always named: uv would otherwise download one, which not every machine may.
install_with_uv() {
    [ -n "$uv" ] || return 1
    [ "$state" = update ] ||
        "$uv" venv --quiet --no-project --no-python-downloads --allow-existing --python "$python" "$VENV" || return 1
    "$uv" pip sync --quiet --no-python-downloads --compile-bytecode --python "$VENV/bin/python" --require-hashes \
        requirements-dev.txt
}

install_with_pip() {
    [ "$python_pip" = yes ] || return 1
    [ -z "$uv" ] || printf 'uv did not get there; pip tries in its place ...\n'
    "$python" -m venv "$VENV" || return 1
    "$VENV/bin/python" -m pip install --quiet --no-input --require-hashes -r requirements-dev.txt
}

# What .venv should hold, or nothing if its interpreter does not run. Everything that makes it useless counts: other
# lock files, another interpreter behind the same link, a folder that was moved (the scripts name its old place).
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

# Sets state: 'ready', 'update' (packages differ), or 'rebuild'; and wanted, the fingerprint.
inspect_venv() {
    state=rebuild
    wanted=$(fingerprint) || return 0
    held=''
    [ ! -r "$STAMP" ] || read -r held <"$STAMP" || :
    if [ "$held" = "$wanted" ]; then
        state=ready
    elif [ -z "$held" ] || [ "${held% lock *}" = "${wanted% lock *}" ]; then # '' = made by hand, with any tool
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
    if [ -z "$uv" ] && ! fetch_uv && [ "$python_pip" = no ]; then
        fail "Python $python_version ($python) cannot make a virtual environment and uv is not there either;" \
            "install one of them (Debian: apt-get install python3-venv)."
    fi
    printf '%s .venv with Python %s (%s) and %s ...\n' "$doing" "$python_version" "$python" "${uv:-pip}"
    install_with_uv || install_with_pip ||
        fail "The packages of requirements-dev.txt could not be installed, for the reason above;" \
            "mend it (often the network or a proxy) and run make again."
    wanted=$(fingerprint) || fail "$VENV/bin/python does not run; remove .venv and run make again."
    write_stamp "$wanted"
    printf 'Docora is set up. "make run" starts it with demo data; .venv/bin/python manage.py help lists the commands.\n'
}

# One at a time: a second one waits, and then finds the work done. The lock is on this folder itself, so that no lock
# file lies about, and the kernel drops it whatever happens to this process.
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
        fetch_uv || fail "uv is not on PATH and could not be fetched; install it and try again."
    fi
    printf '%s\n' "$uv"
    ;;
*) fail "unknown argument '$1': call it without one, or with 'uv'." ;;
esac
