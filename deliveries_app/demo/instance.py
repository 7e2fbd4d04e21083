"""The demo: local git repositories, two client apps served by the reference receiver, and users.

Everything is stored in `DATA_DIR/demo`, including the ports and the password chosen at the first start, so that later
starts use the same ones. Only the content is made up: the servers, apps and syncs are real.
"""

import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from django.contrib.auth.models import Group, User
from django.db import OperationalError, ProgrammingError

from deliveries_app.actors import Actor
from deliveries_app.demo.git_server import GitServer
from deliveries_app.demo.repositories import make_demo_repositories
from deliveries_app.models import App, AppRepository
from deliveries_app.receiver import Answer, Notification, Receiver
from deliveries_app.services import onboard_app, watch_repository

APPS: dict[str, Sequence[str]] = {
    "Portal": ("acme/handbook", "acme/assets", "acme/legacy", "acme/website"),
    "Search": ("acme/handbook", "acme/website"),
}
_SECONDS_PER_FILE = 0.05  # about what a real client needs, and slow enough to watch the progress bar


@dataclass
class Choices:
    """The values chosen at the first start."""

    password: str
    git_port: int = 0
    receiver_port: int = 0


class Demo:
    """Serve the demo's repositories and client apps. Call `start`, then `fill` the database, and finally `stop`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "choices.json"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.choices = self._read()
        self._git = GitServer(directory / "git", port=self.choices.git_port)
        self._keys: dict[str, str] = {}  # app id → key; the receiver reads it for each request
        self._receiver = Receiver(
            directory / "received", self._keys, port=self.choices.receiver_port, on_request=_delay, log_size=0
        )

    def start(self) -> None:
        """Start both servers. Raises OSError if a port from an earlier start is now taken."""
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
        for name, repositories in APPS.items():
            app = App.objects.filter(name=name, base_url=self._receiver.url, ended_at=None).first()
            if app is None:
                app = onboard_app(
                    Actor.system(), name=name, base_url=self._receiver.url, email=f"{name.lower()}@demo.example"
                ).app
            self._keys[app.app_id] = app.client_auth_key
            watched = AppRepository.objects.filter(app=app).values_list("github_url", flat=True)
            for repository in repositories:
                url = f"{self._git.url}/{repository}"
                if url not in watched:
                    watch_repository(Actor.system(), app, url)

    def _make_users(self) -> None:
        """Create `admin`, a superuser, and `operator` and `viewer`, who are in the groups of the same name."""
        for name, groups in {"admin": [], "operator": ["Operators"], "viewer": ["Viewers"]}.items():
            user, _ = User.objects.get_or_create(username=name)
            user.is_staff, user.is_superuser = True, name == "admin"
            if not user.check_password(self.choices.password):
                user.set_password(self.choices.password)
            user.save()
            user.groups.set(Group.objects.filter(name__in=groups))

    def _read(self) -> Choices:
        if self._file.exists():
            return Choices(**json.loads(self._file.read_text()))
        return Choices(password=secrets.token_urlsafe(9))

    def _write(self) -> None:
        temporary = self._file.with_suffix(".new")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self.choices), file)
        temporary.replace(self._file)


def wait_for_database(seconds: float) -> bool:
    """Wait up to `seconds` for the tables of an instance that may be starting. Return whether they exist."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            App.objects.exists()
            return True
        except (OperationalError, ProgrammingError):
            time.sleep(0.2)
    return False


def _delay(notification: Notification) -> Answer | None:
    time.sleep(_SECONDS_PER_FILE)
    return None
