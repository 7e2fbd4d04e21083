"""`.ci/bootstrap.sh` on machines that lack something, with a PATH of only what the machine has.

Nothing is downloaded: a script replaces uv, records its calls and creates a real environment. Every fresh machine that
runs `make test` tests the real uv and pip.
"""

import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
TOOLS = ("sh", "dirname", "find", "rm", "mv", "mkdir", "sleep", "flock")
REAL_PYTHON = Path(getattr(sys, "_base_executable", sys.executable))

FAKE_UV = """#!/bin/sh
[ "$1" = --version ] && { echo "uv 0.9.1"; exit 0; }
echo "$*" >>"$CALLS"
if [ "$1" = venv ]; then
    for folder in "$@"; do :; done
    "$REAL_PYTHON" -m venv --without-pip "$folder"
else
    echo half >.venv/installed
    [ -z "${UV_KILL_PARENT:-}" ] || { kill -9 "$PPID"; exit 1; }
    sleep "${UV_SECONDS:-0}"
    echo whole >.venv/installed
fi
"""


class Machine:
    """A checkout in a temporary folder on a machine that has git, a suitable Python and uv unless a test removes them."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.bin = folder / "bin"
        self.log = folder / "calls.log"
        (self.checkout / ".ci").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(PROJECT / ".ci" / "bootstrap.sh", self.checkout / ".ci")
        for name in ("requirements.txt", "requirements-dev.txt", ".ci/uv.txt"):
            (self.checkout / name).write_text("")
        for tool in TOOLS:
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)
        self.program("git", "echo git version 2.47.3")
        self.program("uv", FAKE_UV)
        (self.bin / "python3").symlink_to(REAL_PYTHON)
        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(folder),
            "PYTHON_DIRS": "",
            "CALLS": str(self.log),
            "REAL_PYTHON": str(REAL_PYTHON),
        }

    def program(self, name: str, script: str, folder: Path | None = None) -> Path:
        path = (folder or self.bin) / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def python(self, name: str, version: str, can_make_environments: bool = True) -> Path:
        """Add an interpreter that only answers the script's version query."""
        return self.program(name, f"echo {version} {'yes' if can_make_environments else 'no'} {self.bin / name}")

    def remove(self, *names: str) -> None:
        for name in names:
            (self.bin / name).unlink()

    def start(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.checkout / ".ci" / "bootstrap.sh"],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, **environment: str) -> tuple[int, str, str]:
        """Return the exit status, the output and the error output of one run."""
        process = self.start(**environment)
        output, errors = process.communicate(timeout=150)
        return process.returncode, output, errors

    def refusal(self, **environment: str) -> str:
        """Return the only line of a run that must fail."""
        status, output, errors = self.run(**environment)
        assert status == 1
        assert output == ""
        (line,) = errors.splitlines()
        assert line.endswith(".")
        return line

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def stamp(self) -> str:
        return (self.checkout / ".venv" / ".setup").read_text().strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_old_python_is_refused_with_its_version(machine: Machine) -> None:
    machine.remove("python3")
    old = machine.python("python3", "3.9.2")
    assert machine.refusal() == (
        f"Docora needs Python 3.12 or newer, but found 3.9.2 ({old}). Install one (Debian: apt-get install python3 "
        "python3-venv) or name one: make PYTHON=/path/to/python3."
    )
    assert not (machine.checkout / ".venv").exists()


def test_missing_python_names_the_package(machine: Machine) -> None:
    machine.remove("python3")
    assert "needs Python 3.12 or newer, but found none. Install one" in machine.refusal()


def test_broken_shim_is_skipped(machine: Machine, tmp_path: Path) -> None:
    machine.remove("python3")
    machine.program("python3", "echo 'no such version' >&2; exit 127")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "python3").symlink_to(REAL_PYTHON)
    status, output, errors = machine.run(PYTHON_DIRS=f"/nonexistent:{tmp_path}/else*")
    assert (status, errors) == (0, "")
    assert "Setting up .venv with Python" in output


def test_tested_python_is_preferred_to_a_newer_one(machine: Machine) -> None:
    machine.remove("python3")
    machine.python("python3", "3.99.0")
    (machine.bin / "python3.13").symlink_to(REAL_PYTHON)
    assert f"({machine.bin}/python3.13)" in machine.run()[1]


def test_named_interpreter_that_does_not_run_is_refused(machine: Machine) -> None:
    assert machine.refusal(PYTHON="/nonexistent/python3") == (
        "PYTHON=/nonexistent/python3 does not run. Name a Python of version 3.12 or newer."
    )


def test_missing_git_names_the_package(machine: Machine) -> None:
    machine.remove("git")
    assert machine.refusal() == (
        "Docora needs git 2.38 or newer, but there is none on PATH. Install it (Debian: apt-get install git)."
    )


def test_old_git_is_refused_with_its_version(machine: Machine) -> None:
    git = machine.program("git", "echo 'git version 2.30.2 (Vendor 14)'")
    assert machine.refusal() == (
        f"Docora needs git 2.38 or newer, but {git} is 2.30.2. Install a newer one (Debian: apt-get install git)."
    )


def test_missing_uv_and_venv_name_the_package(machine: Machine) -> None:
    machine.remove("uv", "python3")
    python = machine.python("python3", "3.13.5", can_make_environments=False)
    assert machine.refusal() == (
        f"Python 3.13.5 ({python}) cannot create a virtual environment, and there is no uv either. Install one of them "
        "(Debian: apt-get install python3-venv)."
    )


@pytest.fixture
def debian(machine: Machine) -> Machine:
    """A Debian with its own Python but neither python3-venv nor uv, and root at the terminal."""
    machine.remove("uv", "python3")
    (machine.checkout / ".ci" / "uv.txt").write_text("./no-such-package\n")
    machine.program("python3", "echo 3.13.5 no /usr/bin/python3")
    machine.program("id", "echo 0")
    machine.program(
        "apt-get",
        f"""echo "$*" >>"$CALLS"
case "$*" in *install*) {shutil.which("ln")} -sf "$REAL_PYTHON" {machine.bin}/python3 ;; esac""",
    )
    return machine


@pytest.mark.skipif(find_spec("ensurepip") is None, reason="this interpreter cannot make an environment with pip")
def test_root_on_debian_gets_python3_venv_and_pip_replaces_uv(debian: Machine) -> None:
    status, output, errors = debian.run()
    assert (status, errors) == (0, "")
    assert output.splitlines()[0] == "Installing python3-venv ..."
    assert output.splitlines()[1].startswith("Fetching uv")
    assert output.splitlines()[2].endswith("and pip ...")
    assert os.access(debian.checkout / ".venv" / "bin" / "pip", os.X_OK)
    assert [call.partition("=300 ")[2] for call in debian.calls()] == [
        "update",
        "install --yes --no-install-recommends python3-venv",
    ]
    assert debian.run()[1] == ".venv is up to date.\n"


@pytest.mark.parametrize(
    ("program", "script"),
    [("id", "echo 1000"), ("python3", "echo 3.13.5 no /opt/python/bin/python3")],
    ids=["ordinary user", "interpreter from elsewhere"],
)
def test_python3_venv_is_not_installed_for(debian: Machine, program: str, script: str) -> None:
    debian.program(program, script)
    assert "cannot create a virtual environment" in debian.refusal()
    assert debian.calls() == []


def test_failed_installation_of_python3_venv_shows_the_reason(debian: Machine) -> None:
    debian.program("apt-get", "echo 'E: no network' >&2; exit 100")
    status, _, errors = debian.run()
    assert status == 1
    assert errors.splitlines()[0] == "E: no network"
    assert errors.splitlines()[1].endswith("Install one of them (Debian: apt-get install python3-venv).")


def test_uv_gets_the_interpreter_and_never_downloads_one(machine: Machine) -> None:
    assert machine.run()[0] == 0
    environment = machine.checkout / ".venv"
    assert machine.calls() == [
        f"venv --quiet --no-project --no-python-downloads --allow-existing --python {machine.bin}/python3 {environment}",
        f"pip sync --quiet --no-python-downloads --compile-bytecode --python {environment}/bin/python --require-hashes "
        "requirements-dev.txt",
    ]


def test_second_run_does_nothing(machine: Machine) -> None:
    machine.run()
    stamp, calls = machine.stamp, machine.calls()
    assert machine.run() == (0, ".venv is up to date.\n", "")
    assert (machine.stamp, machine.calls()) == (stamp, calls)


def test_changed_lock_files_update_the_same_environment(machine: Machine) -> None:
    machine.run()
    (machine.checkout / ".venv" / "kept").touch()
    (machine.checkout / "requirements.txt").write_text("# changed\n")
    assert machine.run()[1].startswith("Updating .venv with Python")
    assert [call.split()[0] for call in machine.calls()] == ["venv", "pip", "pip"]
    assert (machine.checkout / ".venv" / "kept").exists()
    assert machine.run()[1] == ".venv is up to date.\n"


def test_half_built_environment_is_built_again(machine: Machine) -> None:
    assert machine.run(UV_KILL_PARENT="1")[0] == -signal.SIGKILL
    assert machine.stamp == "building"
    (machine.checkout / ".venv" / "half-installed").touch()
    assert machine.run()[0] == 0
    assert not (machine.checkout / ".venv" / "half-installed").exists()
    assert (machine.checkout / ".venv" / "installed").read_text() == "whole\n"
    assert machine.run()[1] == ".venv is up to date.\n"


def test_moved_environment_is_built_again(machine: Machine, tmp_path: Path) -> None:
    machine.run()
    machine.checkout = machine.checkout.rename(tmp_path / "moved")
    assert machine.run()[1].startswith("Setting up .venv")


@pytest.mark.skipif(
    shutil.which("flock") is None, reason="this machine has no flock; two setups at once are not guarded"
)
def test_second_of_two_concurrent_runs_waits_and_does_nothing(machine: Machine) -> None:
    processes = [machine.start(UV_SECONDS="1"), machine.start(UV_SECONDS="1")]
    outputs = sorted(process.communicate(timeout=150)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0].startswith("Setting up .venv")
    assert outputs[1].splitlines() == ["Waiting for another setup of this folder ...", ".venv is up to date."]
    assert len(machine.calls()) == 2
