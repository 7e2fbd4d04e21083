"""The systemd units: systemd accepts them, and the commands that they start work."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_compose import readiness
from tests.docora.test_docs import read
from tests.support.deployment import ENV_FILE, UNITS, start_command, unit
from tests.support.processes import Daemons
from tests.support.receiver import wait_for

SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
PARTS = [name for name in SERVICES if name not in {"docora.service", "docora-migrate.service"}]


def test_systemd_understands_every_unit(tmp_path: Path) -> None:
    for path in UNITS.iterdir():
        if path.suffix in {".service", ".target", ".socket"}:
            text = path.read_text().replace("/opt/docora/.venv/bin/python", sys.executable)
            (tmp_path / path.name).write_text(text)
    units = [str(path).replace("@.", "@1.") for path in tmp_path.iterdir()]
    edited = tmp_path / "docora-web.socket.d"  # by `systemctl edit`
    edited.mkdir()
    (edited / "override.conf").write_text(read("/docs/operations/").code["listen-stream"])
    environment = {"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "docora" in line]
    assert (ours, done.returncode) == ([], 0), done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_unprivileged_and_sandboxed(name: str) -> None:
    settings = unit(name)
    assert settings["User"] == ["docora"]
    for key, value in {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "PrivateTmp": "yes",
        "StateDirectory": "docora",
        "CapabilityBoundingSet": "",
    }.items():
        assert settings[key] == [value], key
    assert "DATA_DIR=/var/lib/docora" in settings["Environment"]
    assert "DOCORA_PROGRAM=docora" in settings["Environment"]  # the program that messages name
    # Docora reads it itself: one parser for services and commands, and extensions are found beside it.
    assert "DOCORA_ENV_FILE=/etc/docora/docora.env" in settings["Environment"]
    assert "EnvironmentFile" not in settings


@pytest.mark.parametrize("name", PARTS)
def test_services_start_after_the_migrations(name: str) -> None:
    settings = unit(name)
    assert "docora-migrate.service" in settings["Wants"][0].split()
    # With Requires=, a failed first migration would stop the service.
    assert "docora-migrate.service" not in settings.get("Requires", [""])[0].split()
    assert "docora-migrate.service" in settings["After"][0].split()
    assert settings["PartOf"] == ["docora.target"]
    assert settings["Restart"] == ["always"]


def test_target_wants_every_service() -> None:
    assert {name.replace("@", "@1") for name in PARTS} == set(unit("docora.target")["Wants"][0].split())
    assert "docora-web.socket" in unit("docora-web.service")["Requires"][0]
    assert "PartOf" not in unit("docora-web.socket")  # it stays while the rest restarts


def test_migrations_are_retried_until_the_database_is_up() -> None:
    settings = unit("docora-migrate.service")
    assert settings["Type"] == ["oneshot"]
    assert settings["Restart"] == ["on-failure"]
    assert settings["PartOf"] == ["docora.target"]


def test_files_have_only_sections_that_systemd_knows() -> None:
    for path in UNITS.glob("docora*.*"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read(path)
        assert set(parser.sections()) <= {"Unit", "Service", "Socket", "Install"}, path.name


def test_every_command_runs(image: Daemons, addresses: dict[str, str]) -> None:
    image.environment |= ENV_FILE | addresses
    migrate = image.start(*start_command("docora-migrate.service"))
    assert migrate.process.wait(60) == 0, image.logs()
    for name in PARTS:
        image.start(*start_command(name))
    address = f"http://127.0.0.1:{addresses['PORT']}/health/ready"
    assert wait_for(lambda: readiness(address).get("ready"), 60, 0.3)
    assert "Traceback" not in image.logs()


def test_single_unit_starts_everything(image: Daemons, addresses: dict[str, str]) -> None:
    image.environment |= ENV_FILE | addresses
    up = image.start(*start_command("docora.service"))
    address = f"http://127.0.0.1:{addresses['PORT']}/health/ready"
    assert wait_for(lambda: readiness(address).get("ready"), 60, 0.3)
    up.terminate()
    assert up.process.wait(30) == 0
