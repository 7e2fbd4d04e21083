"""`.ci/bootstrap.sh` on machines that lack something, played with a PATH that holds only what the machine has.

Nothing is fetched: in uv's place stands a script that writes down how it was called and makes a real environment. That
the real uv and pip install the real packages is shown by every fresh machine that runs `make test`.
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
echo "$*" >>"$UV_LOG"
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
    """A checkout in a temporary folder, and a machine that has git, a fitting Python and uv until they are taken away."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.bin = folder / "bin"
        self.uv_log = folder / "uv.log"
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
            "UV_LOG": str(self.uv_log),
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
        """An interpreter that answers the script's question as one of this version does, and can do nothing else."""
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
        """The exit status, the output and the error output of one run."""
        process = self.start(**environment)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def refusal(self, **environment: str) -> str:
        """The single sentence of a run that must fail."""
        status, output, errors = self.run(**environment)
        assert status == 1
        assert output == ""
        (sentence,) = errors.splitlines()
        assert sentence.endswith(".")
        return sentence

    def uv_calls(self) -> list[str]:
        return self.uv_log.read_text().splitlines() if self.uv_log.exists() else []

    @property
    def stamp(self) -> str:
        return (self.checkout / ".venv" / ".setup").read_text().strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_python_that_is_too_old_is_named_with_its_version(machine: Machine) -> None:
    machine.remove("python3")
    old = machine.python("python3", "3.9.2")
    assert machine.refusal() == (
        f"Docora needs Python 3.12 or newer and finds 3.9.2 ({old}); install one (Debian: apt-get install python3 "
        "python3-venv) or name it: make PYTHON=/path/to/python3."
    )
    assert not (machine.checkout / ".venv").exists()


def test_without_any_python_it_says_what_to_install(machine: Machine) -> None:
    machine.remove("python3")
    assert "needs Python 3.12 or newer and finds none; install one" in machine.refusal()


def test_a_shim_that_leads_nowhere_is_passed_over(machine: Machine, tmp_path: Path) -> None:
    machine.remove("python3")
    machine.program("python3", "echo 'no such version' >&2; exit 127")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "python3").symlink_to(REAL_PYTHON)
    status, output, errors = machine.run(PYTHON_DIRS=f"/nonexistent:{tmp_path}/else*")
    assert (status, errors) == (0, "")
    assert "Setting up .venv with Python" in output


def test_a_tested_python_is_preferred_to_one_that_is_newer_than_all_tested(machine: Machine) -> None:
    machine.remove("python3")
    machine.python("python3", "3.99.0")
    (machine.bin / "python3.13").symlink_to(REAL_PYTHON)
    assert f"({machine.bin}/python3.13)" in machine.run()[1]


def test_an_interpreter_named_by_hand_that_does_not_run_is_refused(machine: Machine) -> None:
    assert machine.refusal(PYTHON="/nonexistent/python3") == (
        "PYTHON=/nonexistent/python3 is no Python that runs; name one of version 3.12 or newer."
    )


def test_without_git_it_says_what_to_install(machine: Machine) -> None:
    machine.remove("git")
    assert machine.refusal() == (
        "Docora needs git 2.38 or newer and finds none on PATH; install it (Debian: apt-get install git)."
    )


def test_a_git_that_is_too_old_is_named_with_its_version(machine: Machine) -> None:
    git = machine.program("git", "echo 'git version 2.30.2 (Vendor 14)'")
    assert machine.refusal() == (
        f"Docora needs git 2.38 or newer, but {git} is 2.30.2; install a newer one (Debian: apt-get install git)."
    )


def test_without_uv_and_venv_it_says_which_package_brings_one(machine: Machine) -> None:
    machine.remove("uv", "python3")
    python = machine.python("python3", "3.13.5", can_make_environments=False)
    assert machine.refusal() == (
        f"Python 3.13.5 ({python}) cannot make a virtual environment and uv is not there either; install one of them "
        "(Debian: apt-get install python3-venv)."
    )


def test_uv_is_told_the_interpreter_and_never_downloads_one(machine: Machine) -> None:
    assert machine.run()[0] == 0
    environment = machine.checkout / ".venv"
    assert machine.uv_calls() == [
        f"venv --quiet --no-project --no-python-downloads --allow-existing --python {machine.bin}/python3 {environment}",
        f"pip sync --quiet --no-python-downloads --compile-bytecode --python {environment}/bin/python --require-hashes "
        "requirements-dev.txt",
    ]


def test_a_second_run_finds_everything_done(machine: Machine) -> None:
    machine.run()
    stamp, calls = machine.stamp, machine.uv_calls()
    assert machine.run() == (0, ".venv is up to date.\n", "")
    assert (machine.stamp, machine.uv_calls()) == (stamp, calls)


def test_other_lock_files_are_installed_into_the_same_environment(machine: Machine) -> None:
    machine.run()
    (machine.checkout / ".venv" / "kept").touch()
    (machine.checkout / "requirements.txt").write_text("# changed\n")
    assert machine.run()[1].startswith("Updating .venv with Python")
    assert [call.split()[0] for call in machine.uv_calls()] == ["venv", "pip", "pip"]
    assert (machine.checkout / ".venv" / "kept").exists()
    assert machine.run()[1] == ".venv is up to date.\n"


def test_what_an_interrupted_run_left_is_not_trusted(machine: Machine) -> None:
    assert machine.run(UV_KILL_PARENT="1")[0] == -signal.SIGKILL
    assert machine.stamp == "building"
    (machine.checkout / ".venv" / "half-installed").touch()
    assert machine.run()[0] == 0
    assert not (machine.checkout / ".venv" / "half-installed").exists()
    assert (machine.checkout / ".venv" / "installed").read_text() == "whole\n"
    assert machine.run()[1] == ".venv is up to date.\n"


def test_an_environment_that_was_moved_is_built_anew(machine: Machine, tmp_path: Path) -> None:
    machine.run()
    machine.checkout = machine.checkout.rename(tmp_path / "moved")
    assert machine.run()[1].startswith("Setting up .venv")


@pytest.mark.skipif(
    shutil.which("flock") is None, reason="this machine has no flock; two setups at once are not guarded"
)
def test_of_two_at_once_one_waits_and_finds_the_work_done(machine: Machine) -> None:
    processes = [machine.start(UV_SECONDS="1"), machine.start(UV_SECONDS="1")]
    outputs = sorted(process.communicate(timeout=60)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0].startswith("Setting up .venv")
    assert outputs[1].splitlines() == ["Waiting for another setup of this folder ...", ".venv is up to date."]
    assert len(machine.uv_calls()) == 2


@pytest.mark.skipif(find_spec("ensurepip") is None, reason="this interpreter cannot make an environment with pip")
def test_where_uv_cannot_be_had_pip_takes_its_place(machine: Machine) -> None:
    machine.remove("uv")
    (machine.checkout / ".ci" / "uv.txt").write_text("./no-such-package\n")
    status, output, _ = machine.run()
    assert status == 0
    assert output.splitlines()[0].endswith("and pip ...")
    assert os.access(machine.checkout / ".venv" / "bin" / "pip", os.X_OK)
    assert machine.run()[1] == ".venv is up to date.\n"
