"""The environment of the measurements: a PostgreSQL (or SQLite), a Valkey, a git server and receivers on this machine.

Except for loopback addresses and the log level, the settings are those of a fresh installation. As in the tests, PostgreSQL
does not wait for the disk, since only Docora is measured.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django

from docora.process import die_with_parent
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer

if TYPE_CHECKING:
    from deliveries_app.models import App, AppRepository

PROJECT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
KEY = "a-key-that-only-benchmarks-use"


class Receiver:
    """A `sink` in its own process."""

    def __init__(self, delay_ms: float = 0) -> None:
        command = [sys.executable, "-I", str(HERE / "sink.py"), str(delay_ms)]
        ends_with_this = partial(die_with_parent, signal.SIGTERM)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=ends_with_this)
        assert self.process.stdout
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def counts(self) -> dict[str, float]:
        """Return what has arrived since the last call.

        Posts, their bytes, the seconds from the first to the last, and the most in flight at once.
        """
        with urllib.request.urlopen(f"{self.url}/counts") as answer:
            found: dict[str, float] = json.load(answer)
        return found

    @property
    def cpu(self) -> float:
        """CPU seconds used so far."""
        return cpu_of(self.process.pid)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def cpu_of(pid: int) -> float:
    """Return the CPU seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children and so on."""
    from tests.support.processes import children

    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


class Stage:
    """The running environment. Create it with `open_stage`, which also sets up Django."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        from tests.support.git import GitFixture

        self._stack = stack
        self.directory = directory
        self.git = GitFixture(directory / "git")
        stack.callback(self.git.server.stop)
        self._apps = 0

    def clear(self) -> None:
        """Leave no watch of an earlier measurement due: it would occupy a worker, or a run would make way for it.

        Schedule a sync as well: otherwise the sweep would correct a check that is so far ahead (`wrong_times.py`).
        """
        from django.utils import timezone

        from deliveries_app.models import AppRepository

        later = timezone.now() + timedelta(minutes=100)
        AppRepository.objects.update(next_sync_at=later, next_check_at=later, lease_until=None, lease_slots=0)

    def vacuum(self) -> None:
        """Do what autovacuum would do now, so that it does not disturb the measurement."""
        from django.db import connection

        connection.cursor().execute("VACUUM ANALYZE")

    def receiver(self, delay_ms: float = 0) -> Receiver:
        made = Receiver(delay_ms)
        self._stack.callback(made.close)
        return made

    def app(self, receiver: Receiver, **columns: Any) -> "App":
        from deliveries_app.actors import Actor
        from deliveries_app.models import App
        from deliveries_app.services import onboard_app

        self._apps += 1
        made = onboard_app(
            Actor.command(), name=f"App {self._apps}", base_url=receiver.url, email="ops@portal.example",
            client_auth_key=KEY,
        )  # fmt: skip
        App.objects.filter(pk=made.app.pk).update(**columns) if columns else None
        made.app.refresh_from_db()
        return made.app

    def watch(self, app: "App", name: str) -> "AppRepository":
        from deliveries_app.actors import Actor
        from deliveries_app.services import watch_repository

        return watch_repository(Actor.command(), app, f"{self.git.url}/{name}").watch

    def request_sync(self, watch: "AppRepository") -> None:
        """Request a sync, as a push hook does."""
        from deliveries_app import scheduling
        from deliveries_app.models import AppRepository

        scheduling.request_sync(AppRepository.objects.filter(pk=watch.pk))

    def many_watches(self, app: "App", host: str, count: int, commit: str, **columns: Any) -> None:
        """Create repositories on `host` that the app watches and that are synced to `commit`."""
        from deliveries_app.models import AppRepository, Status
        from deliveries_app.planning.delivery_rows import delivery_rules_of
        from repositories_app.models import Repository

        urls = [f"{host}/bench/{app.pk}-{number}" for number in range(count)]
        repositories = Repository.objects.bulk_create(
            [Repository(canonical_url=url, owner="bench", name=url.rpartition("/")[2]) for url in urls]
        )
        watches = [
            AppRepository(
                app=app, repository=repository, github_url=repository.canonical_url, status=Status.SYNCED,
                next_sync_at=None, base_commit=commit, last_commit=commit, branch="main", **columns,
            )
            for repository in repositories
        ]  # fmt: skip
        for watch in watches:
            watch.base_rules = delivery_rules_of(watch).fingerprint
        AppRepository.objects.bulk_create(watches, batch_size=1000)

    def job(self, watch: "AppRepository", **settings: str) -> dict[str, float]:
        """Sync the watch in a new process with these settings, and return what that took."""
        measured = self._attempt(watch, settings)
        if watch.status != "synced":
            raise RuntimeError(f"{watch} is {watch.status}: {watch.last_error}")
        return measured

    def job_with_a_slot(self, watch: "AppRepository") -> None:
        """Sync the watch beside others of its app. Try again while they use all slots."""
        while watch.status != "synced":
            self._attempt(watch, {})
            time.sleep(0.5)

    def _attempt(self, watch: "AppRepository", settings: Mapping[str, str]) -> dict[str, float]:
        command = [sys.executable, "-m", "tests.bench.job", "sync_watch", str(watch.pk)]
        done = subprocess.run(command, cwd=PROJECT, env=os.environ | dict(settings), stdout=subprocess.PIPE, check=True)
        measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        watch.refresh_from_db()
        return measured


@contextmanager
def open_stage(database: str = "postgres") -> Iterator[Stage]:
    """Start the servers, migrate, and yield the stage. Remove everything afterwards."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="docora-bench-")))
        url = stack.enter_context(PostgresServer()).url if database == "postgres" else f"sqlite:///{directory}/db"
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "docora.settings",
            "DOCORA_ENV_FILE": os.devnull,
            "DATABASE_URL": url,
            "REDIS_URL": stack.enter_context(ValkeyServer()).url,
            "DATA_DIR": str(directory / "data"),
            "ALLOWED_GIT_HOSTS": "127.0.0.1:*",
            "ALLOWED_PRIVATE_NETWORKS": "127.0.0.0/8",
            "ALLOW_HTTP": "yes",
            "LOG_LEVEL": "warning",
        }
        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        yield Stage(stack, directory)
