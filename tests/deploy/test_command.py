"""`docora/deploy/docora` runs every command with the user, settings and data of the systemd units."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_units import SERVICES
from tests.docora.test_docs import read
from tests.support.deployment import PROJECT, UNITS, unit

SETTINGS = "from django.conf import settings; print(settings.DATA_DIR, *settings.ALLOWED_GIT_HOSTS)"
RUNUSER = """#!/bin/sh
echo "$1 $2 $3" >"$0.log"
shift 3
exec "$@"
"""


class Machine:
    """A machine set up as in the handbook, below a folder. `user` types the commands."""

    def __init__(self, folder: Path, user: str) -> None:
        self.data, self.home = folder / "data", folder / "home"
        self.bin, self.sbin = folder / "bin", folder / "sbin"
        for directory in (self.data, self.home, self.bin, self.sbin):
            directory.mkdir()
        (folder / "docora.env").write_text("ALLOWED_GIT_HOSTS=git.docora.example\n")
        text = (UNITS / "docora").read_text()
        for there, here in {
            "/var/lib/docora": self.data,
            "/etc/docora/docora.env": folder / "docora.env",
            "/opt/docora/.venv/bin/python": sys.executable,
            "/opt/docora/manage.py": PROJECT / "manage.py",
            "/usr/sbin": self.sbin,
        }.items():
            assert there in text
            text = text.replace(there, str(here))
        self._program(self.bin / "docora", text)
        self._program(self.sbin / "runuser", RUNUSER)  # where Debian has it, and cron doesn't look
        number = 0 if user == "root" else 1000
        self._program(self.bin / "id", f'#!/bin/sh\n[ "$1" = -u ] && echo {number} || echo {user}\n')

    def _program(self, file: Path, text: str) -> None:
        file.write_text(text)
        file.chmod(0o755)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.home)}
        return subprocess.run(
            ["docora", *arguments], cwd=self.home, env=environment, capture_output=True, text=True, timeout=60
        )

    @property
    def became(self) -> str:
        log = self.sbin / "runuser.log"
        return log.read_text() if log.exists() else ""


@pytest.mark.parametrize(("user", "became"), [("root", "-u docora --\n"), ("docora", "")])
def test_root_and_docora_run_the_command_as_docora(user: str, became: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, user)
    done = machine.run("shell", "--verbosity", "0", "-c", SETTINGS)
    assert (done.stdout, done.stderr) == (f"{machine.data} git.docora.example\n", "")
    assert machine.became == became
    assert machine.run("migrate", "contenttypes", "--verbosity", "0").returncode == 0  # all migrations take seconds
    assert (machine.data / "docora.sqlite3").stat().st_mode & 0o077 == 0
    assert list(machine.home.iterdir()) == []  # no second Docora


def test_exit_status_and_name_of_the_command(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "docora")
    done = machine.run("status")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("Migrate it: docora migrate\n")


def test_other_users_are_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "anna")
    done = machine.run("status")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "This command is for root and for the user docora: sudo docora ...\n"
    assert list(machine.data.iterdir()) == []


def test_command_uses_the_settings_of_the_units() -> None:
    text = (UNITS / "docora").read_text()
    for name in SERVICES:
        settings = unit(name)
        assert all(f"    {variable} \\\n" in text for variable in settings["Environment"])
        assert settings["ExecStart"][0].startswith("/opt/docora/.venv/bin/python ")
        assert settings["WorkingDirectory"] == ["/opt/docora"]
        assert settings["User"] == ["docora"]


def test_handbook_installs_the_command_and_the_units() -> None:
    lines = read("/docs/operations/").code["systemd-units"]
    assert lines.startswith("umask 022\ncd /opt/docora && make setup\n")  # the user docora reads the checkout and .venv
    assert "\nln -s /opt/docora/docora/deploy/docora /usr/local/bin/docora\n" in lines
    assert os.access(UNITS / "docora", os.X_OK)
    assert "cp /opt/docora/docora/deploy/docora*.* /etc/systemd/system/" in lines
    assert {path.name for path in UNITS.glob("docora*.*")} == {path.name for path in UNITS.iterdir()} - {
        "docora",
        "Caddyfile",
        "kubernetes",
        "monitoring",
    }
