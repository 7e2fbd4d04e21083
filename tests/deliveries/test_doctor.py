"""`manage.py doctor`: a healthy instance passes, each problem has a hint, and the command always ends."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from allauth.socialaccount.models import SocialAccount
from django.contrib.auth.models import User
from django.core.checks import CheckMessage, Info
from django.core.management import CommandError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from redis import Redis
from rq import Worker

from deliveries_app.monitoring import doctor as monitoring
from deliveries_app.monitoring import instance_checks, server_checks
from deliveries_app.monitoring.doctor import FINE, PROBLEM, WARNING, Check, Result, run_checks
from deliveries_app.receiver import Answer
from docora import disk
from docora.redis import heartbeat
from docora.security import crypto
from repositories_app.models import HostOutage
from tests.support.doctor import doctor, infos, problems, silent_host, start_worker, warnings
from tests.support.git import GitFixture
from tests.support.processes import forked, reap
from tests.support.small_disk import mount_small_disk
from tests.support.staff import make_app, make_watch
from tests.support.world import World

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def git_server(tmp_path: Path, settings) -> Iterator[GitFixture]:
    """The first allowed git host."""
    fixture = GitFixture(tmp_path / "git")
    settings.ALLOWED_GIT_HOSTS = [fixture.server.url.partition("://")[2]]
    yield fixture
    fixture.server.stop()


@pytest.fixture
def healthy(
    transactional_db, redis_client: Redis, git_server: GitFixture, tmp_path: Path, settings, monkeypatch
) -> None:
    """A complete instance. Responses that are slow on a busy machine are not reported."""
    monkeypatch.setattr(server_checks, "_SLOW_SECONDS", 60.0)
    settings.REPOS_DIR = tmp_path / "repos"
    User.objects.create_superuser("root", password="x")
    start_worker(redis_client)
    heartbeat.beat()


# --- The command --------------------------------------------------------------------------------------------------------


def test_healthy_instance(healthy) -> None:
    code, output = doctor()
    assert "PROBLEM" not in output
    assert code == 0
    for line in (
        f"database: {connection.display_name} ",
        "redis: Redis responds and accepts writes.",
        "sweep: The sweep last ran ",
        "workers: 1 worker is running",
        "delivery: A local test receiver accepted a signed ping",
        "git-host: The git host 127.0.0.1:",
        "addresses: Docora refuses to connect to [::1], 10.0.0.1, 169.254.1.1, 169.254.169.254, [fd00:ec2::254].",
    ):
        assert f"fine     {line}" in output
    assert re.fullmatch(r"\d+ fine, \d+ warnings, 0 problems\.", output.splitlines()[-1])


def test_problem_exits_with_1_and_shows_a_hint(healthy, redis_client: Redis) -> None:
    redis_client.delete("docora:heartbeat:sweep")
    code, output = doctor()
    assert code == 1
    marks = [line.split()[0] for line in output.splitlines()[:-1]]
    assert marks == sorted(marks, key=["fine", "WARNING", "PROBLEM"].index)
    assert output.splitlines()[-2] == (
        "PROBLEM  sweep: The sweep has not run for a day. Check the service that runs the sweep (systemd: docora-sweep; "
        "containers: sweep), or start manage.py up or manage.py sweep."
    )
    assert output.splitlines()[-1].endswith(", 1 problem.")


def test_json_has_the_same_results(healthy) -> None:
    code, output = doctor("--json")
    found = json.loads(output)
    assert code == 0
    assert {tuple(result) for result in found} == {("check", "level", "message", "advice")}
    assert {result["level"] for result in found} == {"fine", "warning"}
    checks = {check.name for check in monitoring.all_checks()}
    checks.remove("connections" if connection.vendor == "sqlite" else "sqlite")
    assert {result["check"] for result in found} == checks


def test_offline_does_not_call_the_git_host(healthy, git_server: GitFixture) -> None:
    address = "127.0.0.1", urlsplit(git_server.url).port
    git_server.server.stop()
    with socket.socket() as taken:  # otherwise, a server of another test may get the port
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        assert doctor("--offline")[0] == 0
        code, output = doctor()
    assert code == 1
    assert "PROBLEM  git-host: Couldn't reach 127.0.0.1:" in output


@pytest.mark.early(5)
def test_doctor_ends_when_every_server_hangs(tmp_path: Path) -> None:
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
    assert re.search(
        r"PROBLEM  database: The database is not responding: .*timeout.*\. Check DATABASE_URL", done.stdout
    )
    assert re.search(r"PROBLEM  redis: Redis does not respond: Timeout .+\. Check REDIS_URL", done.stdout)
    assert f"PROBLEM  git-host: Couldn't connect to {silent} within" in done.stdout
    assert "WARNING  secrets: Not checked, because the database check found a problem." in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "password-of" not in done.stdout + done.stderr


# --- Running checks -----------------------------------------------------------------------------------------------------


def test_check_that_raises_is_a_problem() -> None:
    def fails() -> list[CheckMessage]:
        raise ValueError("cannot use redis://:s3cret@host/0\nsecond line")

    assert run_checks([Check("one", fails), Check("two", lambda: [Info("It works.")])]) == [
        Result(
            "one",
            PROBLEM,
            "The check failed with ValueError: cannot use redis://[redacted]@host/0.",
            "If no other problem explains this, report it as a bug.",
        ),
        Result("two", FINE, "It works.", ""),
    ]


def test_check_that_hangs_is_a_problem() -> None:
    def hangs() -> list[CheckMessage]:
        time.sleep(2)
        return [Info("Too late.")]

    checks = [Check("one", hangs, seconds=0.05), Check("two", lambda: [Info("It works.")], needs=("one",))]
    found = [(result.check, result.level, result.message) for result in run_checks(checks)]
    assert found == [
        ("one", PROBLEM, "The check didn't finish within 0.05 s."),
        ("two", WARNING, "Not checked, because the one check found a problem."),
    ]


def test_result_is_one_line() -> None:
    (result,) = run_checks([Check("one", lambda: [Info("Nothing is sent to A\n  fine\x1b[2J.")])])
    assert result.message == "Nothing is sent to A fine\ufffd[2J."


# --- Settings -----------------------------------------------------------------------------------------------------------


def test_system_checks_are_results(db, settings) -> None:
    settings.SECRET_KEY, settings.TRUSTED_PROXIES = "short", []
    settings.FILE_TRANSFORMS = ["no.such.module"]
    (secret_key, transforms) = sorted(problems(monitoring.check_settings()).splitlines(), reverse=True)
    assert secret_key.startswith("SECRET_KEY is short or repetitive")
    assert "no.such.module" in transforms
    assert "PUBLIC_URL is http://127.0.0.1:8000, which uses plain http" in warnings(monitoring.check_settings())
    settings.HTTPS, settings.SESSION_COOKIE_SECURE = True, False
    assert "TRUSTED_PROXIES is empty" in problems(monitoring.check_settings())
    assert "SESSION_COOKIE_SECURE" in warnings(monitoring.check_settings())


def test_covered_messages_are_left_out(db, settings) -> None:
    settings.DEBUG, settings.SECRET_KEY = True, "short"
    found = {message.id for message in monitoring.check_settings()}
    assert found >= {"docora.E003", "docora.E007", "docora.W001"}
    assert not [name for name in found if name.startswith("security.")]


def test_silenced_check_is_left_out(db, settings) -> None:
    settings.HTTPS, settings.PUBLIC_URL, settings.ALLOW_HTTP = True, "https://docora.example", False
    settings.ALLOWED_PRIVATE_NETWORKS = []
    settings.SILENCED_SYSTEM_CHECKS = ["mail.W001", *(f"security.W0{number:02}" for number in range(1, 30))]
    found = monitoring.check_settings()
    assert [message.id for message in found] == ["docora.E004"]
    settings.SILENCED_SYSTEM_CHECKS += ["docora.E004"]
    assert "Django's system checks (check --deploy) found no problems." in infos(monitoring.check_settings())


# --- Secrets, accounts, files and disk ----------------------------------------------------------------------------------


def test_secret_that_no_key_decrypts(db, settings) -> None:
    app = make_app("Portal")
    assert "The newest key in ENCRYPTION_KEYS decrypts 1 stored secret." in infos(instance_checks.check_secrets())
    settings.ENCRYPTION_KEYS = ["another-key-of-enough-letters"]
    text = problems(instance_checks.check_secrets())
    assert f"1 stored secret can't be decrypted with any key in ENCRYPTION_KEYS: {app._meta.label}" in text
    assert f"client_auth_key, pk {app.pk}." in text


def test_secrets_under_an_older_key_are_counted(db, settings) -> None:
    make_watch(make_app("Portal"), "docs")
    settings.ENCRYPTION_KEYS = ["a-newer-key-in-front", *settings.ENCRYPTION_KEYS]
    text = warnings(instance_checks.check_secrets())
    assert "2 stored secrets use an older key in ENCRYPTION_KEYS. Run manage.py rotate_encryption_keys" in text


def test_only_the_first_secrets_of_each_column_are_read(db, monkeypatch) -> None:
    monkeypatch.setattr(instance_checks, "_SECRETS_READ", 2)
    for number in range(4):
        make_app(f"App {number}")
    with CaptureQueriesContext(connection) as queries:
        text = infos(instance_checks.check_secrets())
    assert "decrypts 2 stored secrets. Of each column, the first 2 were checked." in text
    read = [query["sql"] for query in queries if '"deliveries_app_app"."client_auth_key"' in query["sql"]]
    assert read
    assert all("LIMIT" in sql for sql in read)


def test_no_administrator_is_a_warning(db, settings) -> None:
    text = warnings(instance_checks.check_accounts())
    assert "No account can sign in to the admin. Create a superuser: manage.py createsuperuser" in text
    User.objects.create_superuser("former", password="x", is_active=False)
    User.objects.create_user("outside", password="x", is_superuser=True)
    assert "No account can sign in to the admin." in warnings(instance_checks.check_accounts())
    User.objects.create_user("anna", password="x", is_staff=True)
    assert "There is no superuser" in warnings(instance_checks.check_accounts())
    User.objects.create_superuser("root", password="x")
    assert "An administrator can sign in." in infos(instance_checks.check_accounts())
    settings.LOCAL_SIGN_IN, settings.OIDC_ISSUER = False, "https://login.example.org"
    text = warnings(instance_checks.check_accounts())
    assert "No account can sign in to the admin. In OIDC_ROLES, give a group at the provider the role superuser" in text
    SocialAccount.objects.create(user=User.objects.get(username="root"), provider="oidc", uid="1")
    assert "An administrator can sign in." in infos(instance_checks.check_accounts())


def test_keys_and_folders_readable_by_others(tmp_path: Path, settings, monkeypatch) -> None:
    settings.DATA_DIR, settings.REPOS_DIR = tmp_path / "data", tmp_path / "repos"
    for folder in (settings.DATA_DIR, settings.REPOS_DIR):
        folder.mkdir(mode=0o700)
    key_file, env_file = settings.DATA_DIR / "keys.json", tmp_path / ".env"
    key_file.write_text("{}")
    key_file.chmod(0o600)
    monkeypatch.setenv("DOCORA_ENV_FILE", str(env_file))
    assert "Other users cannot access keys" in infos(instance_checks.check_files())
    env_file.write_text("SECRET_KEY=x")
    env_file.chmod(0o640)
    key_file.chmod(0o604)
    settings.REPOS_DIR.chmod(0o755)
    text = problems(instance_checks.check_files())
    assert f"Every user on this server can read {key_file}, which may contain keys. chmod 600" in text
    text = warnings(instance_checks.check_files())
    assert f"The group of {env_file} can read it, and it may contain keys. chmod 600 {env_file}, unless" in text
    assert f"Every user on this server can open {settings.REPOS_DIR}" in text


def test_env_file_of_root_that_docoras_group_can_read(tmp_path: Path, settings, monkeypatch) -> None:
    """The handbook installs the file with mode 0640 and owner root:docora. With 0600, the process could not read it."""
    settings.DATA_DIR = settings.REPOS_DIR = tmp_path / "data"
    env_file = tmp_path / "docora.env"
    env_file.write_text("SECRET_KEY=x")
    env_file.chmod(0o640)
    monkeypatch.setenv("DOCORA_ENV_FILE", str(env_file))
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    monkeypatch.setattr("os.getegid", lambda: env_file.stat().st_gid)
    assert warnings(instance_checks.check_files()) == ""
    monkeypatch.setattr("os.getegid", lambda: 54321)
    monkeypatch.setattr("os.getgroups", lambda: [54321])
    advice = f"chown 54321 {env_file}, then chmod 600 {env_file}"
    assert f"{advice}, unless this is intended." in warnings(instance_checks.check_files())
    env_file.chmod(0o644)
    assert advice in problems(instance_checks.check_files())


def test_read_only_folder_and_small_disk(tmp_path: Path, settings, monkeypatch) -> None:
    settings.MAX_FETCH_BYTES = 10**18
    assert "A fetch may write up to" in warnings(instance_checks.check_disk())
    monkeypatch.setattr(instance_checks, "_FULL_BYTES", 10**18)
    assert problems(instance_checks.check_disk()).count("Free up space, or move it to a separate disk.") == 2
    assert "nothing can be recorded" in instance_checks.check_disk()[0].hint
    assert "nothing can be fetched" in instance_checks.check_disk()[1].hint
    (tmp_path / "file").write_text("")
    settings.REPOS_DIR = tmp_path / "file"
    assert f"REPOS_DIR ({tmp_path / 'file'}) is not writable." in problems(instance_checks.check_disk())
    assert "is not writable. File exists." in problems(instance_checks.check_disk())
    assert disk.problem().startswith("REPOS_DIR is not writable (File exists): ")


def test_doctor_finds_each_almost_full_disk_that_the_probe_finds(monkeypatch) -> None:
    """With 1.05 GB left, `/health/ready` asked to free up space, and doctor found no problem."""
    monkeypatch.setattr(disk, "MIN_FREE_BYTES", 10**18)
    monkeypatch.setattr(disk, "MIN_FREE_SHARE", 1.0)
    assert "of disk space is left for REPOS_DIR: free up space" in disk.problem()
    assert "nothing can be fetched" in problems(instance_checks.check_disk())


def test_doctor_names_the_disk_of_another_machine(redis_client) -> None:
    """`check_disk` reports this machine's."""
    for host in ("worker-2", socket.gethostname()):
        worker = Worker(["high"], name=host, connection=redis_client)
        worker.register_birth()
        redis_client.hset(worker.key, mapping={"hostname": host, "disk_problem": "REPOS_DIR is not writable"})
    assert problems(instance_checks.check_workers()).strip() == "On worker-2, REPOS_DIR is not writable."


def test_full_temporary_disk(tmp_path: Path, settings, monkeypatch) -> None:
    """Syncs failed and large pages were empty, and no check found why. Python's own search for a folder skips a full one."""
    settings.DATA_DIR = settings.REPOS_DIR = tmp_path / "data"
    small_disk, report = tmp_path / "tmp", tmp_path / "report"
    monkeypatch.setenv("TMPDIR", str(small_disk))

    def check() -> list[object]:
        doctors = instance_checks.check_disk()
        return [disk.problem(), problems(doctors), infos(doctors).count("is writable and has")]

    def work() -> None:
        try:
            mount_small_disk(small_disk, "size=1m")
        except OSError:
            report.write_text("null")
            return
        found = check()
        with contextlib.suppress(OSError):
            (small_disk / "filler").write_bytes(bytes(980 * 1024))
        found += check()
        with contextlib.suppress(OSError), (small_disk / "rest").open("wb", buffering=0) as rest:
            while True:
                rest.write(bytes(4096))
        report.write_text(json.dumps([*found, *check()]))

    assert os.waitstatus_to_exitcode(reap(forked(work), 60)) == 0
    found = json.loads(report.read_text())
    if found is None:
        pytest.skip("this process may not mount a small disk, as root or in a user namespace")
    assert found[:3] == ["", "", 3]
    assert re.fullmatch("only 4. kB of disk space is left for TMPDIR: free up space", found[3])
    assert "syncs fail, and large pages and requests end early." in found[4]
    assert found[6].startswith("TMPDIR is not writable (No space left on device): ")
    assert found[7] == f"TMPDIR ({small_disk}) is not writable. No space left on device. Free up space."
    assert found[5] == found[8] == 2
    for folder in (tmp_path, tmp_path / "missing"):  # on the same disk, and one that Python ignores
        monkeypatch.setenv("TMPDIR", str(folder))
        assert infos(instance_checks.check_disk()).count("is writable and has") == 2


# --- Deliveries ---------------------------------------------------------------------------------------------------------


def test_git_host_that_is_down(db) -> None:
    assert "No git host is down." in infos(instance_checks.check_outages())
    now = timezone.now()
    since = now - timedelta(minutes=16)
    HostOutage.objects.create(host="https://git.example/", since=since, retry_at=now, error="Connection refused.")
    text = problems(instance_checks.check_outages())
    assert re.match(
        r"The git host git\.example has been down for 16 min.*Nothing on it is synced.*Connection refused\.", text
    )


def test_self_test_detects_a_wrong_signature(monkeypatch) -> None:
    assert "rejected one signed with a wrong key" in infos(instance_checks.check_delivery())
    monkeypatch.setattr("deliveries_app.webhooks.signing.docora_signature", lambda *_: "sha256=0")
    text = problems(instance_checks.check_delivery())
    assert "A signed ping to a local test receiver failed. The server returned HTTP 401." in text
    assert "X-Docora-Signature does not match." in text


@pytest.fixture
def world(transactional_db, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def test_app_is_pinged_on_request(world: World) -> None:
    code, output = doctor("--app", world.app.app_id)
    assert "fine     app: Portal: The app accepted the ping (HTTP 200)." in output
    assert [record.kind for record in world.requests()] == ["ping"]
    world.answer(lambda _: Answer(401))
    code, output = doctor("--app", world.app.app_id)
    assert code == 1
    assert "PROBLEM  app: Portal: The app returned HTTP 401. The app rejected the signature" in output


def test_unknown_app_and_lost_key_are_problems(world: World, settings) -> None:
    for unknown in ("app_x", "", "\udcff"):
        assert f"There is no app {unknown}." in problems(instance_checks.check_app(unknown))
    settings.ENCRYPTION_KEYS = ["another-key-of-enough-letters"]
    assert str(crypto.DecryptionError()) in problems(instance_checks.check_app(world.app.app_id))
    with pytest.raises(CommandError, match="cannot be used together"):
        doctor("--offline", "--app", world.app.app_id)
