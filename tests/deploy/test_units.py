"""The systemd units: systemd understands them, they start what exists, and what they start works."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_compose import readiness
from tests.support.deployment import GIVEN, UNITS, start_command, unit
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
    environment = {"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "docora" in line]
    assert (ours, done.returncode) == ([], 0), done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_nobody_special_and_may_touch_its_state_only(name: str) -> None:
    told = unit(name)
    assert told["User"] == ["docora"]
    for key, value in {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "PrivateTmp": "yes",
        "StateDirectory": "docora",
        "CapabilityBoundingSet": "",
    }.items():
        assert told[key] == [value], key
    assert "DATA_DIR=/var/lib/docora" in told["Environment"]
    assert "DOCORA_PROGRAM=docora" in told["Environment"]  # what messages tell to run
    assert told["EnvironmentFile"] == ["/etc/docora/docora.env"]


@pytest.mark.parametrize("name", PARTS)
def test_a_process_starts_after_the_migrations_and_stops_with_the_rest(name: str) -> None:
    told = unit(name)
    assert "docora-migrate.service" in told["Wants"][0].split()
    assert (
        "docora-migrate.service" not in told.get("Requires", [""])[0].split()
    )  # it would be given up with the first try
    assert "docora-migrate.service" in told["After"][0].split()
    assert told["PartOf"] == ["docora.target"]
    assert told["Restart"] == ["always"]


def test_the_target_wants_every_part() -> None:
    assert {name.replace("@", "@1") for name in PARTS} == set(unit("docora.target")["Wants"][0].split())
    assert "docora-web.socket" in unit("docora-web.service")["Requires"][0]
    assert "PartOf" not in unit("docora-web.socket")  # it stays while the rest restarts


def test_the_migrations_are_tried_again_until_the_database_is_there_or_everything_is_stopped() -> None:
    told = unit("docora-migrate.service")
    assert told["Type"] == ["oneshot"]
    assert told["Restart"] == ["on-failure"]
    assert told["PartOf"] == ["docora.target"]


def test_every_file_is_in_sections_that_systemd_knows() -> None:
    for path in UNITS.glob("docora*.*"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read(path)
        assert set(parser.sections()) <= {"Unit", "Service", "Socket", "Install"}, path.name


def test_every_command_does_its_work(image: Daemons, addresses: dict[str, str]) -> None:
    image.environment |= GIVEN | addresses
    migrate = image.start(*start_command("docora-migrate.service"))
    assert migrate.process.wait(60) == 0, image.logs()
    for name in PARTS:
        image.start(*start_command(name))
    address = f"http://127.0.0.1:{addresses['PORT']}/health/ready"
    assert wait_for(lambda: readiness(address).get("ready"), 60, 0.3)
    assert "Traceback" not in image.logs()


def test_the_unit_for_everything_starts_everything(image: Daemons, addresses: dict[str, str]) -> None:
    image.environment |= GIVEN | addresses
    up = image.start(*start_command("docora.service"))
    address = f"http://127.0.0.1:{addresses['PORT']}/health/ready"
    assert wait_for(lambda: readiness(address).get("ready"), 60, 0.3)
    up.terminate()
    assert up.process.wait(30) == 0
