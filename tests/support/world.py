"""A small world for the engine: git repositories, a client app with a real receiver, and a worker in this process.

`world.settle()` does what workers and the sweep would do until nothing is due, without waiting for back-offs.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Delivery, SyncRun
from deliveries_app.receiver import Answer, Notification, Receiver, Record
from deliveries_app.services import onboard_app, watch
from deliveries_app.services.checking import check_due
from deliveries_app.sync import sync
from repositories_app import remote
from tests.support.git import Entry, GitFixture, Repo

KEY = "a-key-that-only-tests-use"


class World:
    """One app (`app`), its receiver, and repositories as the test makes them."""

    def __init__(self, directory: Path, host: str = "127.0.0.1") -> None:
        self.git = GitFixture(directory / "git", host)
        self.receiver = Receiver(directory / "copies", KEY, host=host)
        self.receiver.start()
        self.app = self.add_app("Portal")

    def close(self) -> None:
        self.receiver.stop()
        self.git.server.stop()

    def add_app(self, name: str, **changes: Any) -> App:
        """Another app at the same receiver."""
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
        """A new repository with these files, watched by the app and not yet synced."""
        repo = self.git.repo(name, {"readme.md": b"# Hello\n"} if files is None else files)
        return repo, self.watch_url(repo, app=app)

    def watch_url(self, repo: Repo, *, app: App | None = None, token: str = "") -> AppRepository:
        return watch(Actor.command(), app or self.app, repo.url, token).pair

    def answer(self, hook: Callable[[Notification], Answer | None] | None) -> None:
        """What the receiver answers from now on; None: as a good client does."""
        self.receiver.on_request = hook

    def make_due(self, pair: AppRepository) -> None:
        """As if the pair's back-off had passed."""
        AppRepository.objects.filter(pk=pair.pk).update(next_sync_at=Now())
        App.objects.filter(pk=pair.app_id).update(not_before=None)

    def sync(self, pair: AppRepository) -> AppRepository:
        """One attempt, now. Returns the pair as the database has it afterwards."""
        self.make_due(pair)
        sync(pair.pk)
        pair.refresh_from_db()
        return pair

    def check(self) -> int:
        """One round of checks, as if every pair's time had come."""
        AppRepository.objects.update(next_check_at=timezone.now() - timedelta(seconds=1))
        with remote.new_client() as client:
            return check_due(client)

    def settle(self, *, rounds: int = 30) -> None:
        """Check and sync until nothing is due any more."""
        for _ in range(rounds):
            self.check()
            due = list(
                AppRepository.objects.alive().filter(
                    next_sync_at__isnull=False, status__in=("pending_snapshot", "synced", "scanning")
                )
            )
            if not due:
                return
            for pair in due:
                self.sync(pair)
        raise AssertionError("The world does not come to rest.")

    def copy(self, pair: AppRepository) -> dict[str, str]:
        """path → sha of what the client holds."""
        return self.receiver.copy(pair.app.app_id, str(pair.repository))

    def requests(self, kind: str | None = None) -> list[Record]:
        return [record for record in self.receiver.log if kind is None or record.kind == kind]

    def rows(self, pair: AppRepository) -> dict[str, Delivery]:
        return {row.path: row for row in Delivery.objects.filter(pair=pair)}

    def runs(self, pair: AppRepository) -> list[SyncRun]:
        """The pair's runs, the newest first."""
        return list(SyncRun.objects.filter(pair=pair))
