"""Everything the sync engine needs: git repositories, a client app with a real receiver, and a worker in this process.

`world.settle()` does what workers and the sweep would do until nothing is due, without waiting for backoffs.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Delivery, SyncRun
from deliveries_app.receiver import Answer, Notification, Receiver, Record
from deliveries_app.services import onboard_app, watch_repository
from deliveries_app.sweep.head_checks import check_due
from repositories_app.git import remote
from tests.support.git import Entry, GitFixture, Repo
from tests.support.syncing import sync

KEY = "a-key-that-only-tests-use"


class World:
    """One app (`app`), its receiver, and the repositories that the test creates."""

    def __init__(self, directory: Path, host: str = "127.0.0.1") -> None:
        self.git = GitFixture(directory / "git", host)
        self.receiver = Receiver(directory / "copies", KEY, host=host)
        self.receiver.start()
        self.app = self.add_app("Portal")

    def close(self) -> None:
        with ThreadPoolExecutor(2) as both:  # each server takes a moment to notice
            stopped = both.submit(self.receiver.stop), both.submit(self.git.server.stop)
        for future in stopped:
            future.result()

    def add_app(self, name: str, **changes: Any) -> App:
        """Add another app with the same receiver."""
        made = onboard_app(
            Actor.command(), name=name, base_url=self.receiver.url, email="ops@portal.example", client_auth_key=KEY
        )
        for field, value in changes.items():
            setattr(made.app, field, value)
        made.app.save()
        return made.app

    def watch(
        self, files: Mapping[str, bytes | Entry] | None = None, *, name: str = "acme/widgets", app: App | None = None
    ) -> tuple[Repo, AppRepository]:
        """Create a repository with these files and watch it, without a sync."""
        repo = self.git.repo(name, {"readme.md": b"# Hello\n"} if files is None else files)
        return repo, self.watch_url(repo, app=app)

    def watch_url(self, repo: Repo, *, app: App | None = None, token: str = "", ref: str = "") -> AppRepository:
        return watch_repository(Actor.command(), app or self.app, repo.url, github_token=token, ref=ref).watch

    def answer(self, hook: Callable[[Notification], Answer | None] | None) -> None:
        """Set what the receiver answers from now on. None restores the normal responses."""
        self.receiver.on_request = hook

    def make_due(self, watch: AppRepository) -> None:
        """Make the watch due, as if its backoff and the app's cooldown were over."""
        AppRepository.objects.filter(pk=watch.pk).update(next_sync_at=Now())
        App.objects.filter(pk=watch.app_id).update(cooldown_until=None)

    def sync(self, watch: AppRepository) -> AppRepository:
        """Run one attempt now and return the refreshed watch."""
        self.make_due(watch)
        sync(watch.pk)
        watch.refresh_from_db()
        return watch

    def check(self) -> int:
        """Run one round of checks, as if every watch were due for one. Return the number of checks."""
        AppRepository.objects.update(next_check_at=timezone.now() - timedelta(seconds=1))
        with remote.new_client() as client:
            return check_due(client)

    def settle(self, *, rounds: int = 30) -> None:
        """Check and sync until nothing is due. Before each round, the app has processed every request."""
        for _ in range(rounds):
            self.check()
            AppRepository.objects.update(doubt_until=None)
            due = list(
                AppRepository.objects.alive().filter(
                    next_sync_at__isnull=False, status__in=("pending_snapshot", "synced", "scanning")
                )
            )
            if not due:
                return
            for watch in due:
                self.sync(watch)
        raise AssertionError(f"something is still due after {rounds} rounds")

    def copy(self, watch: AppRepository) -> dict[str, str]:
        """Return path → SHA-256 of what the client holds."""
        return self.receiver.copy(watch.app.app_id, watch.repository.repository_id)

    def requests(self, kind: str | None = None) -> list[Record]:
        return [record for record in self.receiver.log if kind is None or record.kind == kind]

    def requests_about(self, watch: AppRepository) -> list[Record]:
        return [record for record in self.requests() if record.repository == str(watch.repository)]

    def sent_in(self, run: SyncRun) -> Counter[str]:
        """Return how often this run sent each path."""
        return Counter(record.path for record in self.requests() if record.run_id == run.run_id)

    def rows(self, watch: AppRepository) -> dict[str, Delivery]:
        return {row.path: row for row in Delivery.objects.filter(watch=watch)}

    def runs(self, watch: AppRepository) -> list[SyncRun]:
        """Return the watch's runs, newest first."""
        return list(SyncRun.objects.filter(watch=watch))

    def outcomes(self, watch: AppRepository) -> list[tuple[str, str]]:
        """Return reason and outcome of the watch's runs, oldest first."""
        return [(run.reason, run.outcome) for run in reversed(self.runs(watch))]
