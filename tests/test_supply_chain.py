"""`make check-audit`, `make sbom` and `make pin-images`, without a network."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docora import __version__

PROJECT = Path(__file__).resolve().parent.parent

FAKE_AUDIT = """
import sys
assert "requirements-dev.txt" in sys.argv and "--require-hashes" in sys.argv and "--disable-pip" in sys.argv
sys.stdout.write({stdout!r})
sys.stderr.write({stderr!r})
raise SystemExit({code})
"""


def audit(folder: Path, stdout: str, stderr: str, code: int) -> subprocess.CompletedProcess[str]:
    """Run `.ci/audit.py` with a pip-audit that prints this."""
    (folder / "pip_audit.py").write_text(FAKE_AUDIT.format(stdout=stdout, stderr=stderr, code=code))
    command = [sys.executable, ".ci/audit.py"]
    return subprocess.run(
        command, cwd=PROJECT, env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )


def test_known_vulnerability_fails(tmp_path: Path) -> None:
    flaw = {"id": "PYSEC-2026-1", "fix_versions": ["2.0"], "aliases": [], "description": "…"}
    report = {
        "dependencies": [
            {"name": "left", "version": "1.0", "vulns": [flaw]},
            {"name": "right", "version": "1", "vulns": []},
        ]
    }
    done = audit(tmp_path, json.dumps(report), "Found 1 known vulnerability in 1 package", 1)
    assert (done.returncode, done.stderr) == (1, "left 1.0: PYSEC-2026-1, fixed in 2.0\n")


def test_no_known_vulnerability(tmp_path: Path) -> None:
    report = {"dependencies": [{"name": "right", "version": "1", "vulns": []}, {"name": "left", "skip_reason": "…"}]}
    done = audit(tmp_path, json.dumps(report), "No known vulnerabilities found", 0)
    assert (done.returncode, done.stdout) == (0, "No known vulnerability in 1 of 2 packages.\n")
    assert done.stderr == "1 of 2 packages are not in the vulnerability database.\n"


def test_missing_vulnerability_data_is_not_reported_as_safe(tmp_path: Path) -> None:
    report = {"dependencies": [{"name": "right", "skip_reason": "Dependency not found"}]}
    done = audit(tmp_path, json.dumps(report), "No known vulnerabilities found", 0)
    assert done.returncode == 0
    assert done.stdout.startswith("Skipped the search for known vulnerabilities: ")


@pytest.mark.parametrize(
    "stderr",
    [
        "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed: connection timed out",
        "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='x'): Max retries exceeded with url: /",
        "ProxyError: 403 Client Error: Forbidden for url: https://x",
    ],
)
def test_unreachable_database_is_not_a_failure(tmp_path: Path, stderr: str) -> None:
    done = audit(tmp_path, "", stderr, 1)
    assert done.returncode == 0
    assert done.stdout.startswith("Skipped the search for known vulnerabilities: ")
    assert done.stderr == ""


def test_other_failures_are_not_hidden(tmp_path: Path) -> None:
    done = audit(tmp_path, "", "ERROR:pip_audit._cli:requirement x is missing a hash", 1)
    assert (done.returncode, done.stderr) == (1, "ERROR:pip_audit._cli:requirement x is missing a hash\n")


def test_sbom_lists_every_package(tmp_path: Path) -> None:
    environment = {"BIN": str(Path(sys.executable).parent), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [PROJECT / ".ci" / "sbom.sh", str(tmp_path / "sbom.json")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    document = json.loads((tmp_path / "sbom.json").read_text())
    assert document["bomFormat"] == "CycloneDX"
    described = document["metadata"]["component"]
    assert (described["name"], described["version"]) == ("docora", __version__)
    listed = {(component["name"], component["version"]) for component in document["components"]}
    lock = (PROJECT / "requirements.txt").read_text().splitlines()
    locked = {tuple(line.split(" ")[0].split("==")) for line in lock if "==" in line}
    assert {(name.partition("[")[0], version) for name, version in locked} == listed
    assert all(component["externalReferences"][0]["hashes"] for component in document["components"])


DOCKER = """#!/bin/sh
case "$*" in
*postgres*) {postgres} ;;
*) printf 'sha256:%064d' "${{#5}}" ;;
esac
"""


@pytest.mark.parametrize("fails", [False, True])
def test_images_are_pinned_by_the_digests_that_docker_reads(tmp_path: Path, fails: bool) -> None:
    docker = tmp_path / "docker"
    docker.write_text(DOCKER.format(postgres="echo denied >&2; exit 1" if fails else "printf sha256:%064d 7"))
    docker.chmod(0o755)
    done = subprocess.run(
        [PROJECT / ".ci" / "pin-images.sh"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "CADDY_IMAGE": "mirror.example/caddy:2@sha256:old"},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    if fails:
        assert (done.returncode, len(lines)) == (1, 1)
        assert "The digest of postgres:18 could not be read, for the reason above." in done.stderr
        return
    assert done.returncode == 0
    assert [line.split("=")[0] for line in lines] == ["PYTHON_IMAGE", "POSTGRES_IMAGE", "VALKEY_IMAGE", "CADDY_IMAGE"]
    assert f"POSTGRES_IMAGE=postgres:18@sha256:{7:064}" in lines
    assert lines[3].startswith("CADDY_IMAGE=mirror.example/caddy:2@sha256:0")


def test_images_are_pinned() -> None:
    compose = (PROJECT / "compose.yaml").read_text()
    pinned = dict(re.findall(r"\$\{(\w+_IMAGE):-([^}]+)\}", compose))
    assert {name: image.partition("@")[0] for name, image in pinned.items()} == {
        "PYTHON_IMAGE": "python:3.13-slim",
        "POSTGRES_IMAGE": "postgres:18",
        "VALKEY_IMAGE": "valkey/valkey:9",
        "CADDY_IMAGE": "caddy:2",
    }
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", image.partition("@")[2]) for image in pinned.values())
    assert not re.findall(r"image: (?!docora$|\$\{)", compose, re.MULTILINE)
    assert f"ARG PYTHON_IMAGE={pinned['PYTHON_IMAGE']}\n" in (PROJECT / "Dockerfile").read_text()
