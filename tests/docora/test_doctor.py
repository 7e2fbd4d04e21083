"""`manage.py doctor`: a healthy instance passes, what is wrong is said in words, and it always comes to an end."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from redis import Redis

from deliveries_app.monitoring.doctor import Level, configuration, disk, examine, git, keys
from deliveries_app.monitoring.doctor.examination import Examination
from deliveries_app.monitoring.doctor.findings import Finding, fine
from docora.redis import heartbeat
from tests.support.doctor import doctor, fines, problems, silent_host, start_worker, warnings
from tests.support.git import GitFixture
from tests.support.staff import make_app, make_watch

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def git_server(tmp_path: Path, settings) -> Iterator[GitFixture]:
    """The first allowed git host."""
    fixture = GitFixture(tmp_path / "git")
    settings.ALLOWED_GIT_HOSTS = [fixture.server.url.partition("://")[2]]
    yield fixture
    fixture.server.stop()


@pytest.fixture
def healthy(transactional_db, redis_client: Redis, git_server: GitFixture, tmp_path: Path, settings) -> None:
    """Everything that a syncing instance has."""
    settings.REPOS_DIR = tmp_path / "repos"
    User.objects.create_superuser("root", password="x")
    start_worker(redis_client)
    heartbeat.beat(heartbeat.SWEEP)


# --- The command --------------------------------------------------------------------------------------------------------


def test_a_healthy_instance_has_no_problem(healthy) -> None:
    code, said = doctor()
    assert "PROBLEM" not in said
    assert code == 0
    for words in (
        "database: PostgreSQL 18",
        "redis: Redis answers and takes writes.",
        "sweep: The sweep looked less than a second ago.",
        "workers: 1 worker is alive",
        "delivery: A signed ping reached a receiver on this machine and was verified",
        "git-host: The git host 127.0.0.1:",
        "addresses: The outbound client refuses [::1], 10.0.0.1, 169.254.1.1, 169.254.169.254, [fd00:ec2::254].",
    ):
        assert f"fine     {words}" in said
    assert re.fullmatch(r"\d+ fine, \d+ warnings, 0 problems\.", said.splitlines()[-1])


def test_a_problem_ends_it_with_1_and_stands_last_with_what_to_do(healthy, redis_client: Redis) -> None:
    redis_client.delete("docora:heartbeat:sweep")
    code, said = doctor()
    assert code == 1
    marks = [line.split()[0] for line in said.splitlines()[:-1]]
    assert marks == sorted(marks, key=["fine", "WARNING", "PROBLEM"].index)
    assert said.splitlines()[-2] == (
        "PROBLEM  sweep: The sweep has not looked for a day, if ever: nothing begins by itself. Start manage.py up, or "
        "manage.py sweep; if it runs, its log says what it waits for."
    )
    assert said.splitlines()[-1].endswith(", 1 problem.")


def test_machines_are_told_the_same(healthy) -> None:
    code, said = doctor("--json")
    found = json.loads(said)
    assert code == 0
    assert {tuple(report) for report in found} == {("check", "level", "words", "advice")}
    assert {report["level"] for report in found} == {"fine", "warning"}
    assert {"git", "database", "redis", "keys", "delivery", "git-host"} <= {report["check"] for report in found}


def test_offline_asks_no_git_host(healthy, git_server: GitFixture) -> None:
    git_server.server.stop()
    assert doctor("--offline")[0] == 0
    code, said = doctor()
    assert code == 1
    assert "PROBLEM  git-host: The git host 127.0.0.1:" in said
    assert "cannot be reached" in said


def test_whatever_hangs_it_comes_to_an_end_and_shows_no_traceback(tmp_path: Path) -> None:
    with silent_host() as silent:
        environment = {
            "PATH": "/usr/bin:/bin",
            "DATA_DIR": str(tmp_path),
            "DOCORA_ENV_FILE": "/dev/null",
            "DATABASE_URL": f"postgres://docora:password-of-database@{silent}/docora",
            "REDIS_URL": f"redis://:password-of-redis@{silent}/0",
            "ALLOWED_GIT_HOSTS": silent,
            "ALLOWED_PRIVATE_NETWORKS": "127.0.0.0/8",
        }
        started = time.monotonic()
        command = [sys.executable, str(PROJECT / "manage.py"), "doctor"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 1
    assert time.monotonic() - started < 60
    assert "PROBLEM  database: The examination did not end within 10 s." in done.stdout
    assert "PROBLEM  redis: Redis does not answer. Check REDIS_URL" in done.stdout
    assert f"PROBLEM  git-host: The git host {silent} cannot be reached." in done.stdout
    assert "WARNING  secrets: Not examined, because of the problem of database." in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "password-of" not in done.stdout + done.stderr


def test_an_examination_that_fails_is_a_finding_without_secrets_and_the_others_are_made() -> None:
    def fails() -> Iterator[Finding]:
        yield fine("So far so good.")
        raise ValueError("cannot use redis://:s3cret@host/0\nsecond line")

    reports = examine([Examination("one", fails), Examination("two", lambda: [fine("Made.")])])
    assert [report.words for report in reports] == [
        "So far so good.",
        "The examination itself failed, with ValueError: cannot use redis://[redacted]@host/0.",
        "Made.",
    ]
    assert reports[1].level is Level.PROBLEM


def test_a_finding_is_one_line_whatever_stands_in_it() -> None:
    (report,) = examine([Examination("one", lambda: [fine("Nothing is sent to A\n  fine\x1b[2J.")])])
    assert report.words == "Nothing is sent to A fine\ufffd[2J."


# --- git ----------------------------------------------------------------------------------------------------------------


def fake_git(tmp_path: Path, monkeypatch, version: str) -> None:
    """A program called git that says this."""
    program = tmp_path / "git"
    program.write_text(f"#!/bin/sh\necho 'git version {version}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("version", "months"),
    [
        ("2.38.0", ["July 2025", "January 2025", "May 2024", "April 2023"]),
        ("2.39.5", ["July 2025", "January 2025"]),
        ("2.43.0", ["July 2025", "January 2025", "May 2024"]),
        ("2.43.6", ["July 2025"]),
        ("2.43.7", []),
        ("2.45.1", ["July 2025", "January 2025"]),
        ("2.47.2", ["July 2025"]),
        ("2.47.3-0+deb13u1", []),
        ("2.50.0", ["July 2025"]),
        ("2.50.1", []),
        ("2.51.0.windows.1", []),
        ("3.0.0", []),
    ],
)
def test_the_flaws_of_a_git_are_told_by_its_version(tmp_path, monkeypatch, version: str, months: list[str]) -> None:
    fake_git(tmp_path, monkeypatch, version)
    found = list(git.version())
    assert re.findall(r"the flaws of (\w+ \d{4})", warnings(iter(found))) == months
    assert problems(iter(found)) == ""


def test_a_flaw_names_the_nearest_release_that_mends_it_and_why_it_is_no_problem_here(tmp_path, monkeypatch) -> None:
    fake_git(tmp_path, monkeypatch, "2.42.1")
    said = warnings(git.version())
    assert "(CVE-2024-32002, CVE-2024-32004," in said
    assert "2.42.2 mended them" in said
    assert "2.43.7 mended them" in said
    assert "unless your distribution has backported the fixes" in said
    assert "Docora checks nothing out and runs no hooks and no submodules" in said


def test_a_git_that_is_too_old_or_missing_is_a_problem(tmp_path, monkeypatch) -> None:
    fake_git(tmp_path, monkeypatch, "2.30.2")
    assert "git is 2.30.2, but Docora needs 2.38 or newer. Upgrade it." in problems(git.version())
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "git was not found" in problems(git.version())


# --- Keys and files -----------------------------------------------------------------------------------------------------


def test_keys_that_somebody_typed_are_found(settings) -> None:
    assert problems(keys.strength()) == ""
    settings.SECRET_KEY = "x" * 60
    settings.ENCRYPTION_KEYS = [settings.ENCRYPTION_KEYS[0], "changemechangeme"]
    said = problems(keys.strength())
    assert "SECRET_KEY is short or repeats itself" in said
    assert "Number 2 of ENCRYPTION_KEYS is short or repeats itself" in said
    assert "changeme" not in said


def test_a_stored_secret_that_no_key_opens_is_named(db, settings) -> None:
    app = make_app("Portal")
    assert "All 1 stored secrets are read with the newest key." in fines(keys.secrets())
    settings.ENCRYPTION_KEYS = ["another-key-of-enough-letters"]
    said = problems(keys.secrets())
    assert f"1 stored secret cannot be decrypted with any of the ENCRYPTION_KEYS: {app._meta.label}" in said
    assert f"client_auth_key, pk {app.pk}." in said


def test_secrets_under_an_older_key_are_counted(db, settings) -> None:
    make_watch(make_app("Portal"), "docs")
    settings.ENCRYPTION_KEYS = ["a-newer-key-in-front", *settings.ENCRYPTION_KEYS]
    said = warnings(keys.secrets())
    assert "2 stored secrets have an older one of the ENCRYPTION_KEYS. Run manage.py rotate_encryption_keys" in said


def test_keys_and_folders_that_others_can_read_are_named(tmp_path: Path, settings, monkeypatch) -> None:
    settings.DATA_DIR, settings.REPOS_DIR = tmp_path / "data", tmp_path / "repos"
    for folder in (settings.DATA_DIR, settings.REPOS_DIR):
        folder.mkdir(mode=0o700)
    key_file, env_file = settings.DATA_DIR / "keys.json", tmp_path / ".env"
    key_file.write_text("{}")
    key_file.chmod(0o600)
    assert "open to nobody but their owner" in fines(keys.permissions())
    monkeypatch.setenv("DOCORA_ENV_FILE", str(env_file))
    env_file.write_text("SECRET_KEY=x")
    env_file.chmod(0o640)
    key_file.chmod(0o604)
    settings.REPOS_DIR.chmod(0o755)
    assert f"Every user of this machine can read {key_file}, which may hold keys. chmod 600" in problems(
        keys.permissions()
    )
    said = warnings(keys.permissions())
    assert f"The group of {env_file} can read it" in said
    assert f"Every user of this machine can enter {settings.REPOS_DIR}" in said


# --- Settings -----------------------------------------------------------------------------------------------------------


def test_settings_that_bite_are_named(settings) -> None:
    settings.HTTPS, settings.PUBLIC_URL = True, "https://docora.example"
    settings.ALLOW_HTTP, settings.ALLOWED_PRIVATE_NETWORKS = False, []
    settings.TRUSTED_PROXIES = [ip_network("127.0.0.1/32")]
    assert "nothing that is known to bite" in fines(configuration.what_bites())
    settings.TRUSTED_PROXIES, settings.DEBUG = [], True
    said = problems(configuration.what_bites())
    assert "TRUSTED_PROXIES is empty" in said
    assert "redirects every request for ever" in said
    assert "DEBUG is on" in said
    settings.TRUSTED_PROXIES = [ip_network("0.0.0.0/0")]
    assert "TRUSTED_PROXIES is everybody" in problems(configuration.what_bites())


def test_networks_are_judged_by_what_lies_in_them(settings) -> None:
    settings.ALLOWED_PRIVATE_NETWORKS = list(
        map(ip_network, ("169.254.0.0/16", "10.0.0.0/8", "127.0.0.1/32", "10.2.0.0/16"))
    )
    assert "169.254.0.0/16, in which clouds hand out the machine's credentials" in problems(configuration.what_bites())
    said = warnings(configuration.what_bites())
    assert "10.0.0.0/8, which is wide" in said
    assert "127.0.0.1/32: outbound calls reach every service on this machine" in said
    assert "10.2.0.0/16" not in said
    assert "PUBLIC_URL is http://127.0.0.1:8000, plain http" in said
    assert "ALLOW_HTTP is on" in said


def test_django_s_own_checks_are_told_once(settings) -> None:
    settings.DEBUG, settings.SECRET_KEY = True, "short"  # said elsewhere
    assert "find nothing more" in fines(configuration.django_checks())
    settings.SESSION_COOKIE_SECURE, settings.HTTPS = False, True
    settings.FILE_TRANSFORMS = ["no.such.module"]
    assert "(security.W012)" in warnings(configuration.django_checks())
    assert "no.such.module" in problems(configuration.django_checks())


def test_with_nobody_who_can_sign_in_the_command_is_told(db) -> None:
    assert "Nobody can sign in. Make an administrator: manage.py createsuperuser" in warnings(configuration.people())
    User.objects.create_user("anna", password="x", is_staff=True)
    assert "There is no superuser" in warnings(configuration.people())
    User.objects.create_superuser("root", password="x")
    assert "There is an administrator" in fines(configuration.people())


# --- The disk -----------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_and_a_disk_that_is_too_small_are_named(tmp_path: Path, settings) -> None:
    settings.MAX_FETCH_BYTES = 10**18
    assert "One fetch may write" in warnings(disk.space())
    (tmp_path / "file").write_text("")
    settings.REPOS_DIR = tmp_path / "file"
    assert f"REPOS_DIR ({tmp_path / 'file'}) cannot be written." in problems(disk.space())
