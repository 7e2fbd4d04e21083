"""The demo: git repositories on this machine, two client apps that are the reference receiver, users to try it with.

Everything stands below `DATA_DIR/demo`, with the ports and the password that were chosen the first time, so that a
second start finds the same addresses. Real parts throughout: only their content is made up.
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
_SECONDS_PER_FILE = 0.05  # what a real client needs to store a file, and long enough to watch the bar


@dataclass
class Choices:
    """What was chosen at the first start."""

    password: str
    git_port: int = 0
    receiver_port: int = 0


class Demo:
    """Serves the demo's repositories and client; `start`, `fill` the database, `stop`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "choices.json"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.choices = self._read()
        self._git = GitServer(directory / "git", port=self.choices.git_port)
        self._keys: dict[str, str] = {}  # app id → key; the receiver looks into it for each request
        self._receiver = Receiver(
            directory / "received", self._keys, port=self.choices.receiver_port, on_request=_take_a_moment, log_size=0
        )

    @property
    def password(self) -> str:
        return self.choices.password

    def start(self) -> None:
        """Raises OSError when a port that was chosen earlier is taken now."""
        make_demo_repositories(self._directory / "git")
        self._git.start()
        self._receiver.start()
        self.choices.git_port, self.choices.receiver_port = self._git.port, self._receiver.port
        self._write()

    def stop(self) -> None:
        self._git.stop()
        self._receiver.stop()

    def fill(self) -> None:
        """Users, apps and watches, those that are missing."""
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
        """`admin` may everything; `operator` and `viewer` are in the groups of their names."""
        for name, groups in {"admin": [], "operator": ["Operators"], "viewer": ["Viewers"]}.items():
            user, _ = User.objects.get_or_create(username=name)
            user.is_staff, user.is_superuser = True, name == "admin"
            if not user.check_password(self.password):
                user.set_password(self.password)
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
    """Whether the tables were there within so many seconds: the instance may be starting at this moment."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            App.objects.exists()
            return True
        except (OperationalError, ProgrammingError):
            time.sleep(0.2)
    return False


def _take_a_moment(notification: Notification) -> Answer | None:
    time.sleep(_SECONDS_PER_FILE)
    return None
