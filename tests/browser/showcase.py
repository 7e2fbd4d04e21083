"""An example instance after a day of work: apps, repositories, failures, and a day's traffic.

Docora runs as with `manage.py up`. The git server and the clients run in this process, which also writes to the
instance's database. All deliveries are real. Only earlier traffic and the start times of failures are made up.
"""

import random
from datetime import timedelta
from itertools import islice
from pathlib import Path
from threading import Event

from django.contrib.auth.models import User
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.demo import contents
from deliveries_app.demo.instance import add_example_day
from deliveries_app.models import App, AppRepository, HourlyTraffic
from deliveries_app.receiver import Answer, Notification, Receiver
from deliveries_app.services import onboard_app, watch_repository
from tests.support.git import GitServer
from tests.support.receiver import wait_for
from tests.support.repositories import commit, init

PASSWORD = "a password for pictures"

REPOSITORIES = {
    "handbook": contents.handbook(),
    "website": contents.website(),
    "assets": contents.assets(),
    "legacy": contents.legacy(),
    "blog": dict(islice(contents.website().items(), 40, 210)),
    "api-guide": dict(islice(contents.handbook().items(), 8, 50)),
    "release-notes": dict(islice(contents.website().items(), 240, 330)),
    "runbooks": dict(islice(contents.handbook().items(), 20, 56)),
    "onboarding": dict(islice(contents.handbook().items(), 12)),
    "drafts": dict(islice(contents.website().items(), 330, 350)),
    "payroll": dict(islice(contents.legacy().items(), 14)),
}
APPS = {
    "Portal": ("handbook", "website", "assets", "legacy", "blog", "api-guide", "release-notes", "runbooks", "drafts"),
    "Search": ("handbook", "website", "blog", "api-guide"),
    "Intranet": ("handbook", "onboarding", "runbooks", "payroll"),
    "Newsletter": ("blog", "release-notes"),
    "Help centre": ("api-guide", "handbook"),
}
BROKEN_APPS = {
    "Newsletter": Answer(401, {"error": "The signature does not match."}),
    "Help centre": Answer(502, {"error": "Bad gateway: no upstream server is up."}),
}
BROKEN_REPOSITORIES = ("drafts", "payroll")  # the first is deleted, the second one's token is revoked
FAILING_FOR = {"Newsletter": 6, "Help centre": 3, "Portal": 31, "Intranet": 9}  # hours
TOKEN = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"


class Showcase:
    """`fill()` creates everything in the running instance. `pace` is the seconds that clients take per file."""

    def __init__(self, directory: Path) -> None:
        self._closed = Event()
        self.pace = 0.0
        self.portal = 0  # pk of the app with the most watches
        self._tokens = {"acme/payroll": {TOKEN}}
        self._git = GitServer(directory / "git", tokens=self._tokens)
        self._keys: dict[str, str] = {}
        self._broken: dict[str, Answer] = {}  # app id → its responses
        self._clients = Receiver(directory / "clients", self._keys, on_request=self._answer, log_size=0)

    @property
    def password(self) -> str:
        """The password of anna, a superuser."""
        return PASSWORD

    def close(self) -> None:
        """Stop the clients, so that nothing writes to their folders."""
        self._closed.set()
        self._git.stop()
        self._clients.stop()

    def _answer(self, notification: Notification) -> Answer | None:
        self._closed.wait(self.pace)
        return Answer(503) if self._closed.is_set() else self._broken.get(notification.app_id)

    def fill(self) -> None:
        User.objects.create_superuser("anna", password=PASSWORD)
        self._git.start()
        self._clients.start()
        for name, files in REPOSITORIES.items():
            init(self._path(name))
            commit(self._path(name), files)
        for name, repositories in APPS.items():
            self._add_app(name, repositories)
        wait_for(lambda: not AppRepository.objects.exclude(status="synced").exists(), timeout=180)
        self._break()
        self._add_a_day()
        self._make_older()
        self.portal = App.objects.get(name="Portal").pk

    def _path(self, repository: str) -> Path:
        return self._git.directory / "acme" / f"{repository}.git"

    def _add_app(self, name: str, repositories: tuple[str, ...]) -> None:
        address = f"{name.lower().replace(' ', '-')}@acme.example"
        app = onboard_app(Actor.system(), name=name, base_url=self._clients.url, email=address).app
        self._keys[app.app_id] = app.client_auth_key
        for repository in repositories:
            token = TOKEN if repository == "payroll" else ""
            watch_repository(Actor.system(), app, f"{self._git.url}/acme/{repository}", github_token=token)

    def _break(self) -> None:
        """Make two apps refuse new files and two repositories unreadable."""
        for name, answer in BROKEN_APPS.items():
            self._broken[App.objects.get(name=name).app_id] = answer
        for name in ("blog", "release-notes", "api-guide", "handbook"):
            commit(self._path(name), {f"news/{number}.md": b"# News\n" for number in range(3)})
        deleted, _ = BROKEN_REPOSITORIES
        self._path(deleted).rename(self._path(deleted).with_suffix(".gone"))
        self._tokens["acme/payroll"] = {"another"}
        AppRepository.objects.update(next_check_at=Now())
        failing = sum(len(APPS[name]) for name in BROKEN_APPS) + len(BROKEN_REPOSITORIES)
        wait_for(lambda: AppRepository.objects.failing().count() == failing, timeout=180, interval=0.5)
        for name, hours in FAILING_FOR.items():
            since = timezone.now() - timedelta(hours=hours, minutes=len(name) * 3)
            AppRepository.objects.failing().filter(app__name=name).update(failing_since=since)

    def _add_a_day(self) -> None:
        """Add traffic for the previous 23 hours, with recent failures."""
        dice = random.Random("traffic")
        for size, name in enumerate(reversed(APPS), 1):
            app, milliseconds = App.objects.get(name=name), 20 * (len(name) - 4)
            add_example_day(app, dice, size=size, milliseconds=milliseconds)
            hours = FAILING_FOR[name] if name in BROKEN_APPS else 0
            for traffic in HourlyTraffic.objects.filter(app=app).order_by("-hour")[:hours]:
                traffic.failed = dice.randrange(60, 220)
                traffic.requests += traffic.failed
                traffic.milliseconds += traffic.failed * milliseconds
                traffic.save()

    def _make_older(self) -> None:
        """Backdate rows, which were all created within the last minute."""
        dice, now = random.Random("ages"), timezone.now()
        App.objects.update(created_at=now - timedelta(days=90))
        for watch in AppRepository.objects.all():
            synced_at = (watch.failing_since or now) - timedelta(minutes=dice.randrange(2, 140))
            AppRepository.objects.filter(pk=watch.pk).update(last_synced_at=synced_at)
