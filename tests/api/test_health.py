"""Health probes: alive without a database, ready only with everything."""

from datetime import timedelta

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.test import Client
from rq import Worker
from rq.utils import now

from deliveries_app.monitoring import health
from docora import disk
from docora.redis import heartbeat

CHECKS = ("database", "redis", "git", "disk", "workers", "sweep")


@pytest.fixture
def worker(redis_client):
    """A worker and a sweep with fresh heartbeats."""
    heartbeat.beat()
    worker = Worker(["high"], connection=redis_client)
    worker.register_birth()
    return worker


@pytest.mark.parametrize("path", ["/health", "/version"])
def test_alive_needs_no_database(client: Client, path: str) -> None:  # without the `db` fixture
    assert client.get(path).status_code == 200
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")


def test_uptime_is_in_seconds(client: Client) -> None:
    assert 0 < client.get("/health").json()["uptime"] < 3600


def test_build_comes_from_the_environment(client: Client, monkeypatch) -> None:
    monkeypatch.setenv("DOCORA_BUILD_NUMBER", "7")
    assert client.get("/version").json()["buildNumber"] == "7"


@pytest.mark.django_db
def test_ready_with_everything(client: Client, worker) -> None:
    answer = client.get("/health/ready")
    body = answer.json()
    assert 0 <= body.pop("sweep_age") < 60
    assert body == {"ready": True, "checks": dict.fromkeys(CHECKS, "ok")}
    assert answer.status_code == 200


def checks_of(client: Client) -> dict[str, str]:
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    return {name: message for name, message in answer.json()["checks"].items() if message != "ok"}


@pytest.mark.django_db
def test_not_ready_without_a_worker(client: Client) -> None:
    heartbeat.beat()
    assert list(checks_of(client)) == ["workers"]
    assert checks_of(client)["workers"] == (
        "no worker is running, so nothing is synced: check the service that runs the workers (systemd: docora-worker@1; "
        "containers: worker), or start manage.py up or manage.py rqworker high default low"
    )


@pytest.mark.django_db
def test_not_ready_with_a_silent_worker(client: Client, worker) -> None:
    long_ago = (now() - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    worker.connection.hset(worker.key, "last_heartbeat", long_ago)
    assert list(checks_of(client)) == ["workers"]


@pytest.mark.django_db
def test_not_ready_without_a_sweep(client: Client, worker) -> None:
    worker.connection.delete("docora:heartbeat:sweep")
    assert checks_of(client) == {
        "sweep": "the sweep has not run for a day: check the service that runs the sweep (systemd: docora-sweep; "
        "containers: sweep), or start manage.py up or manage.py sweep"
    }
    assert client.get("/health/ready").json()["sweep_age"] is None


@pytest.mark.django_db
def test_not_ready_with_an_old_sweep(client: Client, worker) -> None:
    worker.connection.set("docora:heartbeat:sweep", (now() - timedelta(minutes=10)).timestamp())
    found = checks_of(client)
    assert list(found) == ["sweep"]
    assert found["sweep"].startswith("the sweep last ran 10 min")
    assert 600 <= client.get("/health/ready").json()["sweep_age"] < 660


@pytest.mark.django_db
def test_not_ready_without_redis(client: Client, valkey_server) -> None:
    valkey_server.stop()
    assert set(checks_of(client)) == {"redis", "workers", "sweep"}
    assert client.get("/health/ready").json()["sweep_age"] is None


@pytest.mark.django_db
def test_not_ready_while_redis_rejects_writes(client: Client, worker, valkey_server) -> None:
    """Workers and the sweep run, but can't record that."""
    with valkey_server.refusing_writes():
        found = checks_of(client)
    assert found["redis"] == health.REDIS_UNUSABLE
    assert found["workers"] == found["sweep"] == "unknown without Redis"


@pytest.mark.django_db
def test_not_ready_with_unapplied_migrations(client: Client, worker) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'auth'")
    assert "run manage.py migrate" in checks_of(client)["database"]


@pytest.mark.django_db(transaction=True)
def test_not_ready_without_a_database(client: Client, worker, postgres_server) -> None:
    connection.close()
    postgres_server.stop()
    try:
        found = checks_of(client)
        web = client.get("/health/web")
    finally:
        postgres_server.start()
        connection.close()
    assert (web.status_code, web.json()["checks"]["database"]) == (503, health.DATABASE_DOWN)
    assert list(found) == ["database"]
    assert "password" not in str(found)


@pytest.mark.django_db(transaction=True)
def test_database_that_refuses_new_connections(client: Client, worker, postgres_server) -> None:
    """As after its password was changed: the web process works with the connections that it has, but no worker can connect."""
    assert client.get("/health/web").status_code == 200
    with postgres_server.refusing_connections(connection.settings_dict["NAME"]):
        found = checks_of(client)
        web = client.get("/health/web")
    assert found == {"database": health.DATABASE_REFUSES}
    assert web.status_code == 200


@pytest.mark.django_db
def test_sweep_waits_for_a_database_that_is_not_ready(client: Client, worker) -> None:
    worker.connection.delete("docora:heartbeat:sweep")
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'auth'")
    assert checks_of(client)["sweep"] == "unknown without the database"


@pytest.mark.django_db
def test_web_is_ready_without_workers_sweep_and_git(client: Client, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    answer = client.get("/health/web")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "checks": {"database": "ok", "redis": "ok"}})
    assert client.get("/health/ready").status_code == 503


@pytest.mark.django_db
def test_web_is_not_ready_without_redis(client: Client, valkey_server) -> None:
    valkey_server.stop()
    answer = client.get("/health/web")
    assert (answer.status_code, answer.json()) == (
        503,
        {"ready": False, "checks": {"database": "ok", "redis": health.REDIS_DOWN}},
    )


@pytest.mark.django_db
def test_web_is_ready_while_redis_cannot_save_to_its_disk(client: Client, valkey_server) -> None:
    """As with any Redis that rejects writes. The admin says so."""
    with valkey_server.unable_to_save():
        assert client.get("/health/web").json() == {"ready": True, "checks": {"database": "ok", "redis": "ok"}}
        assert client.get("/health/ready").json()["checks"]["redis"] == health.REDIS_UNUSABLE


@pytest.mark.django_db
def test_web_is_not_ready_with_unapplied_migrations(client: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'auth'")
    answer = client.get("/health/web")
    assert answer.status_code == 503
    assert "run manage.py migrate" in answer.json()["checks"]["database"]


@pytest.mark.django_db
def test_not_ready_with_a_read_only_disk(client: Client, worker, settings, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    settings.REPOS_DIR = tmp_path / "file"
    found = checks_of(client)
    assert list(found) == ["disk"]
    assert str(tmp_path) not in str(found)


@pytest.mark.django_db
def test_not_ready_with_a_full_disk(client: Client, worker, settings, tmp_path, monkeypatch) -> None:
    settings.REPOS_DIR = tmp_path
    monkeypatch.setattr(disk, "MIN_FREE_BYTES", 2**62)
    monkeypatch.setattr(disk, "MIN_FREE_SHARE", 0.0)
    assert client.get("/health/ready").status_code == 200  # the limit is lower on a small disk
    monkeypatch.setattr(disk, "MIN_FREE_SHARE", 1.0)
    found = checks_of(client)
    assert list(found) == ["disk"]
    assert "of disk space is left" in found["disk"]
    assert str(tmp_path) not in found["disk"]


@pytest.mark.django_db
def test_not_ready_without_git(client: Client, worker, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert list(checks_of(client)) == ["git"]


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/health", "/health/web", "/health/ready", "/version"])
def test_probes_accept_any_host_header(client: Client, settings, path: str) -> None:
    settings.PUBLIC_URL, settings.ALLOWED_HOSTS = "https://docora.example", ["docora.example"]
    assert client.get(path, headers={"Host": "10.1.2.3:8000"}).status_code in {200, 503}
    assert client.get("/docs/", headers={"Host": "10.1.2.3:8000"}).status_code == 400


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/health", "/health/web", "/health/ready", "/version"])
def test_probes_are_not_redirected_to_https(client: Client, settings, path: str) -> None:
    settings.SECURE_SSL_REDIRECT = True
    assert client.get(path).status_code in {200, 503}
    assert django_settings.SECURE_SSL_REDIRECT
