"""`.ci/system-packages.sh` on machines that lack something, with a PATH of only what the machine has.

A script replaces apt-get: it records its calls and creates the programs of the requested packages.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "system-packages.sh"
TOOLS = ("sh", "mktemp", "rm", "grep", "head", "tail", "touch", "chmod")
PROGRAMS = ("chromium-headless-shell", "curl", "openssl", "systemd-analyze", "ip", "kustomize", "promtool")
PACKAGES = ["chromium-headless-shell", "curl", "openssl", "systemd", "iproute2", "kustomize", "promtool"]
CURL_FAILS = "the tests in tests/api will fail, not be skipped"

APT_GET = """#!/bin/sh
echo "$*" >>"$FOLDER/apt.log"
case "$*" in *install*) ;; *) exit 0 ;; esac
for package in "$@"; do :; done
[ "$package" != "${UNKNOWN:-}" ] || { echo "E: Unable to locate package $package" >&2; exit 100; }
case "$package" in
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
        """Return the last argument of each call of apt-get."""
        log = self.folder / "apt.log"
        return [line.rpartition(" ")[2] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_complete_machine_is_left_alone(machine: Machine) -> None:
    for program in PROGRAMS:
        machine.program(program)
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr, machine.asked) == (0, "", "", [])


def test_package_lists_are_updated_once(machine: Machine) -> None:
    done = machine.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.asked == ["update", *PACKAGES]
    assert all(map(machine.has, PROGRAMS))


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    for program in set(PROGRAMS) - {"curl"}:
        machine.program(program)
    assert machine.run().stdout == "Installing curl for tests/api ...\n"
    assert machine.asked == ["update", "curl"]


@pytest.mark.parametrize("browser", ["chromium", "chromium-browser"])
def test_full_chromium_serves_as_well(machine: Machine, browser: str) -> None:
    machine.program(browser)
    machine.run()
    assert machine.asked == ["update", *PACKAGES[1:]]


def test_package_that_cannot_be_installed_is_skipped(machine: Machine) -> None:
    done = machine.run(UNKNOWN="curl")
    assert done.returncode == 0
    assert f"curl could not be installed (E: Unable to locate package curl), so {CURL_FAILS}.\n" in done.stderr
    assert machine.has("openssl")


def test_ordinary_user_sees_the_command_to_run(machine: Machine) -> None:
    machine.program("id", "#!/bin/sh\necho 1000\n")
    done = machine.run()
    assert (done.returncode, machine.asked) == (0, [])
    assert f"curl is not on PATH, so {CURL_FAILS}; install it: sudo apt-get install curl\n" in done.stderr


def test_without_apt_get_the_missing_command_is_named(machine: Machine) -> None:
    (machine.folder / "bin" / "apt-get").unlink()
    done = machine.run()
    assert done.returncode == 0
    assert f"{CURL_FAILS}; install it so that the command 'curl' starts it.\n" in done.stderr


@pytest.mark.parametrize("answer", ["works", "fails"])
def test_no_temporary_file_is_left_behind(machine: Machine, answer: str) -> None:
    machine.run(UNKNOWN="curl" if answer == "fails" else "")
    assert {path.name for path in machine.folder.iterdir()} == {"bin", "apt.log"}
