"""The version number is defined once and shown everywhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.test import Client

from docora import __version__
from docora.http import USER_AGENT
from tests.support.staff import staff

PROJECT = Path(__file__).resolve().parents[2]


def test_version_is_semantic_and_defined_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    project = (PROJECT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert not re.search(r"(?m)^version\s*=", project)


@pytest.mark.parametrize("entry", [["manage.py"], ["-m", "docora"]], ids=" ".join)
@pytest.mark.parametrize("question", ["--version", "version"])
def test_command_prints_the_version_even_with_invalid_settings(entry: list[str], question: str) -> None:
    result = subprocess.run(
        [sys.executable, *entry, question],
        cwd=PROJECT,
        env={"PORT": "no number"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{__version__}\n", "")


def test_version_in_pages_and_responses(db, client: Client) -> None:
    assert client.get("/version").json()["version"] == __version__
    assert client.get("/openapi.json").json()["info"]["version"] == __version__
    assert f'<p class="version">Docora {__version__}</p>' in staff("olga").get("/admin/").text
    assert f"Docora/{__version__}" == USER_AGENT
