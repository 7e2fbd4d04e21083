"""`.ci/system-packages.sh` on machines that lack something, with a PATH that holds only what the machine has.

In apt-get's place stands a script that writes down how it was called, and makes the programs that it is told to.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "system-packages.sh"
TOOLS = ("sh", "mktemp", "rm", "grep", "head", "tail", "touch", "chmod")
PROGRAMS = ("chromium", "node", "npm", "systemd-analyze", "ip")
PACKAGES = ["chromium", "nodejs", "npm", "systemd", "iproute2"]
NODE_FAILS = "the tests in tests/wire will fail, not be skipped"

APT_GET = """#!/bin/sh
echo "$*" >>"$FOLDER/apt.log"
case "$*" in *install*) ;; *) exit 0 ;; esac
for package in "$@"; do :; done
[ "$package" != "${UNKNOWN:-}" ] || { echo "E: Unable to locate package $package" >&2; exit 100; }
case "$package" in
    nodejs) package=node ;;
    systemd) package=systemd-analyze ;;
    iproute2) package=ip ;;
esac
touch "$FOLDER/bin/$package" && chmod +x "$FOLDER/bin/$package"
"""


class Machine:
    """A machine with apt-get and its administrator signed in, until `program` says otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for tool in TOOLS:
            (folder / "bin" / tool).symlink_to(shutil.which(tool) or tool)
        self.program("id", "#!/bin/sh\necho 0\n")
        self.program("apt-get", APT_GET)

    def program(self, name: str, script: str = "#!/bin/sh\n") -> None:
        path = self.folder / "bin" / name
        path.write_text(script)
        path.chmod(0o755)

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.folder / "bin"),
            "FOLDER": str(self.folder),
            "TMPDIR": str(self.folder),
        } | environment
        return subprocess.run(["sh", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=30)

    def has(self, program: str) -> bool:
        return os.access(self.folder / "bin" / program, os.X_OK)

    @property
    def asked(self) -> list[str]:
        """The last words of each call of apt-get."""
        log = self.folder / "apt.log"
        return [line.rpartition(" ")[2] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_that_has_everything_is_left_alone(machine: Machine) -> None:
    for program in PROGRAMS:
        machine.program(program)
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr, machine.asked) == (0, "", "", [])


def test_what_is_missing_is_installed_and_the_package_lists_are_asked_for_once(machine: Machine) -> None:
    done = machine.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.asked == ["update", *PACKAGES]
    assert all(map(machine.has, PROGRAMS))


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    for program in set(PROGRAMS) - {"node"}:
        machine.program(program)
    assert machine.run().stdout == "Installing Node.js for tests/wire ...\n"
    assert machine.asked == ["update", "nodejs"]


def test_a_package_that_cannot_be_installed_is_no_error_and_stops_no_other(machine: Machine) -> None:
    done = machine.run(UNKNOWN="chromium")
    assert done.returncode == 0
    assert (
        "Chromium could not be installed (E: Unable to locate package chromium), so the tests in tests/browser"
        in done.stderr
    )
    assert machine.has("node")


def test_who_may_not_install_is_told_what_to_install(machine: Machine) -> None:
    machine.program("id", "#!/bin/sh\necho 1000\n")
    done = machine.run()
    assert (done.returncode, machine.asked) == (0, [])
    assert f"There is no Node.js on PATH, so {NODE_FAILS}; install it: sudo apt-get install nodejs\n" in done.stderr


def test_without_apt_get_the_command_that_is_needed_is_named(machine: Machine) -> None:
    (machine.folder / "bin" / "apt-get").unlink()
    done = machine.run()
    assert done.returncode == 0
    assert f"{NODE_FAILS}; install it so that the command 'node' starts it.\n" in done.stderr


@pytest.mark.parametrize("answer", ["works", "fails"])
def test_no_temporary_file_is_left_behind(machine: Machine, answer: str) -> None:
    machine.run(UNKNOWN="nodejs" if answer == "fails" else "")
    assert {path.name for path in machine.folder.iterdir()} == {"bin", "apt.log"}
