"""The demo: local git repositories, three client apps served by the reference receiver, and users.

Portal is healthy, Search is slow, and Newsletter fails until its base URL is corrected. Servers, apps, syncs and failures
are real. Only the repositories' content and the traffic before the first start are made up.

Everything is stored in `DATA_DIR/demo`, including the ports and the password chosen at the first start, so that later
starts use the same ones.
"""

import contextlib
import json
import math
import os
import random
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db import OperationalError, ProgrammingError
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.demo.git_server import GitServer
from deliveries_app.demo.repositories import make_demo_repositories
from deliveries_app.models import App, AppRepository, HourlyTraffic, Status
from deliveries_app.receiver import Answer, Notification, Receiver
from deliveries_app.services import onboard_app, watch_repository

BROKEN = "/broken"
"""Below this path, the clients reject the files in `BROKEN_FOLDER`."""
BROKEN_FOLDER = "posts/2024/"
_BROKEN_ANSWER = Answer(
    500, {"error": f"This endpoint cannot store {BROKEN_FOLDER}. Remove {BROKEN} from the base URL."}
)


@dataclass(frozen=True)
class Client:
    """One client app. `seconds` is the range of the time that it takes for a file.

    `size` and `milliseconds` describe its made-up traffic.
    """

    name: str
    repositories: Sequence[str]
    description: str
    seconds: tuple[float, float]
    size: int
    milliseconds: int
    path: str = ""


CLIENTS = (
    Client(
        "Portal",
        ("acme/handbook", "acme/assets", "acme/legacy", "acme/website"),
        "Demo: a healthy app. Its traffic from before the demo was started is made up.",
        seconds=(0.02, 0.08),  # slow enough to watch the progress bar
        size=3,
        milliseconds=50,
    ),
    Client(
        "Search",
        ("acme/handbook", "acme/legacy"),
        "Demo: a slow app, which takes up to a second for a file. Its traffic from before the demo was started is made up.",
        seconds=(0.3, 1.0),
        size=1,
        milliseconds=650,
    ),
    Client(
        "Newsletter",
        ("acme/website", "acme/handbook"),
        f"Demo: an app that fails. Remove {BROKEN} from the base URL under Settings, then retry it under Failed syncs. "
        "Its traffic from before the demo was started is made up.",
        seconds=(0.02, 0.08),
        size=2,
        milliseconds=50,
        path=BROKEN,
    ),
)


USERS: Mapping[str, Sequence[str]] = {"admin": [], "operator": ["Operators"], "viewer": ["Viewers"]}
"""Name → groups. `admin` is a superuser."""


class NotEmpty(Exception):
    """The instance has apps that the demo did not create."""


_CHOICES = "choices.json"


@dataclass
class Choices:
    """The values chosen at the first start.

    `has_users`: the demo has created its users. `kept_users` had existed before, and keep their passwords and roles.
    """

    password: str
    git_port: int = 0
    receiver_port: int = 0
    has_users: bool = False
    kept_users: list[str] = field(default_factory=list)


class Demo:
    """Serve the demo's repositories and client apps. Call `start`, then `fill` the database, and finally `stop`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / _CHOICES
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.choices = _read_choices(directory)
        self._git = GitServer(directory / "git", port=self.choices.git_port)
        self._keys: dict[str, str] = {}  # app id → key; the receiver reads it for each request
        self._seconds: dict[str, tuple[float, float]] = {}  # app id → range of the time for a file
        self._receiver = _Clients(directory / "received", self._keys, self._seconds, port=self.choices.receiver_port)

    def start(self) -> None:
        """Create the repositories and start both servers.

        Raises OSError, for example if a port from an earlier start is now taken, and CalledProcessError if git fails.
        """
        make_demo_repositories(self._directory / "git")
        self._git.start()
        self._receiver.start()
        self.choices.git_port, self.choices.receiver_port = self._git.port, self._receiver.port
        self._write()

    def stop(self) -> None:
        self._git.stop()
        self._receiver.stop()

    def fill(self) -> None:
        """Create the users, apps and watches that are missing."""
        self._make_users()
        for client in CLIENTS:
            app = self._find(client) or self._register(client)
            self._seconds[app.app_id], self._keys[app.app_id] = client.seconds, app.client_auth_key
            watched = AppRepository.objects.filter(app=app).values_list("github_url", flat=True)
            for repository in client.repositories:
                url = f"{self._git.url}/{repository}"
                if url not in watched:
                    watch_repository(Actor.system(), app, url)

    def wait_for_first_syncs(self, seconds: float, stopped: threading.Event) -> None:
        """Return when the first syncs have succeeded or failed, or after `seconds`, or when `stopped` is set."""
        deadline = time.monotonic() + seconds
        ended = (Status.SYNCED, Status.FAILED)
        watches = AppRepository.objects.alive().filter(app__app_id__in=self._keys).exclude(status__in=ended)
        while time.monotonic() < deadline and watches.exists() and not stopped.wait(0.25):
            pass

    def _find(self, client: Client) -> App | None:
        """Return the client's app from an earlier start. Its base URL may have been corrected since."""
        urls = (self._receiver.url, self._receiver.url + BROKEN)
        return App.objects.filter(name=client.name, base_url__in=urls, ended_at=None).first()

    def _register(self, client: Client) -> App:
        app = onboard_app(
            Actor.system(),
            name=client.name,
            base_url=self._receiver.url + client.path,
            email=f"{client.name.lower()}@demo.example",
            description=client.description,
        ).app
        rng = random.Random(client.name)  # noqa: S311 - reproducible on purpose
        add_example_day(app, rng, size=client.size, milliseconds=client.milliseconds)
        return app

    def _make_users(self) -> None:
        users = get_user_model()._default_manager
        if not self.choices.has_users:
            self.choices.kept_users = sorted(users.filter(username__in=USERS).values_list("username", flat=True))
            self.choices.has_users = True
            self._write()
        for name, groups in USERS.items():
            if name in self.choices.kept_users:
                continue
            user, _ = get_user_model().objects.get_or_create(username=name)
            user.is_staff, user.is_superuser = True, name == "admin"
            if not user.check_password(self.choices.password):
                user.set_password(self.choices.password)
            user.save()
            user.groups.set(Group.objects.filter(name__in=groups))

    def _write(self) -> None:
        temporary = self._file.with_suffix(".new")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self.choices), file)
        temporary.replace(self._file)


def _read_choices(directory: Path) -> Choices:
    file = directory / _CHOICES
    if file.exists():
        return Choices(**{"has_users": True} | json.loads(file.read_text()))
    return Choices(password=secrets.token_urlsafe(9))


def require_own_instance(directory: Path) -> None:
    """Raise NotEmpty if the instance has apps, and the demo in this directory has not created its own yet.

    A database that has no tables yet, or doesn't respond, passes.
    """
    if _read_choices(directory).has_users:
        return
    with contextlib.suppress(OperationalError, ProgrammingError):
        if App.objects.exists():
            raise NotEmpty("This instance already has apps, which the demo would be mixed with")


class _Clients(Receiver):
    """The demo's clients on one port. `seconds`: app id → range of the time that the app takes for a file."""

    def __init__(
        self, directory: Path, keys: Mapping[str, str], seconds: Mapping[str, tuple[float, float]], *, port: int
    ) -> None:
        super().__init__(directory, keys, port=port, on_request=self._misbehave, log_size=0)
        self._seconds = seconds
        self._request = threading.local()

    def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self._request.is_broken = path.startswith(f"{BROKEN}/")
        return super().handle(path.removeprefix(BROKEN), headers, body)

    def _misbehave(self, notification: Notification) -> Answer | None:
        """Take as long as the app does, and reject what the broken endpoint rejects. Runs in the thread of `handle`."""
        time.sleep(random.uniform(*self._seconds[notification.app_id]))  # noqa: S311  no secret
        if self._request.is_broken and notification.path.startswith(BROKEN_FOLDER):
            return _BROKEN_ANSWER
        return None


def add_example_day(app: App, rng: random.Random, *, size: int, milliseconds: int) -> None:
    """Add traffic for the 23 hours before this one: busy by day, quiet by night.

    `size` scales the number of files, `milliseconds` is the typical time for a file.
    """
    this_hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    rows = []
    for ago in range(1, 24):
        day = 1 + math.cos((ago - 5) / 24 * 2 * math.pi)
        files = int((40 + 150 * day) * size * rng.uniform(0.6, 1.2))
        rows.append(
            HourlyTraffic(
                app=app,
                hour=this_hour - timedelta(hours=ago),
                files=files,
                bytes=files * rng.randrange(4_000, 12_000),
                requests=files,
                milliseconds=int(files * milliseconds * rng.uniform(0.6, 1.5)),
            )
        )
    HourlyTraffic.objects.bulk_create(rows)
