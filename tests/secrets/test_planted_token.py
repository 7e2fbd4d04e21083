"""Use known secrets in a long journey through Docora, then search for them everywhere Docora stores or shows data.

Remote servers may repeat what they received: here the git host returns the Authorization header in its errors, and the
client app returns its signing key.
"""

import base64
import hashlib
import hmac
import html
import io
import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from itertools import count
from urllib.parse import quote

import pytest
from django.conf import settings as project
from django.core.management import call_command
from django.test import Client

from deliveries_app.models import App, AppRepository, DeliveryFailure
from docora.conf.logs import configure
from tests.secrets import search
from tests.support.git import Takeover
from tests.support.processes import Daemons
from tests.support.receiver import Answer, Notification, wait_for
from tests.support.world import KEY, World

pytestmark = pytest.mark.timeout(240)

GITHUB = "planted+GitHub/token=0001&<4Zq>~end"
WRONG = "planted+wrong/token=0002&<4Zq>~end"
CLIENT_KEY = 'planted "client" key <0003> & more ünd so'
NEW_KEY = 'planted "newer" key <0004> & more ünd so'
APPS, WATCHES = "/admin/deliveries_app/app/", "/admin/deliveries_app/apprepository/"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Capture everything that this process logs, at level DEBUG."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure({"format": "json", "level": "DEBUG"})
    stream = io.StringIO()
    root.handlers[0].setStream(stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def echo(status: int, token: str) -> Callable[[socket.socket], None]:
    """Return a git host's error response that repeats the token it received."""
    basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    body = f"Authorization: Basic {basic}\nfatal: {token} is no good, {quote(token, safe='')} neither\n".encode()
    head = f"HTTP/1.1 {status} No\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return lambda connection: connection.sendall(head + body)


class Journey:
    """Collects the data to search in `places`, and the secrets to search for in `secrets`."""

    def __init__(self, world: World, admin: Client) -> None:
        self.world, self.admin = world, admin
        self.places: dict[str, bytes] = {}
        self.secrets = {"token": GITHUB, "wrong token": WRONG, "key": CLIENT_KEY, "new key": NEW_KEY}
        self.secrets |= {"SECRET_KEY": project.SECRET_KEY, "encryption key": project.ENCRYPTION_KEYS[0]}
        self.repo = world.git.repo("acme/secret", {f"{n}.txt": b"%d" % n for n in range(30)}, token=GITHUB)
        self.app = self.register()
        self.watch: AppRepository

    def page(self, name: str, response) -> str:
        self.places[f"page: {name}"] = response.content
        return response.text

    def shown_once(self, response, *names: str) -> list[str]:
        """Return the secrets on the one-time page that the response redirects to. This page itself is not searched."""
        assert response.status_code == 302, response.text
        shown = self.admin.get(response.url).text
        again = self.admin.get(response.url, follow=True)
        self.page(f"{response.url} again", again)
        return [re.findall(rf'id="{name}"[^>]*>([^<]+)', shown)[0] for name in names]

    def register(self) -> App:
        fields = {"name": "Planted", "base_url": self.world.receiver.url, "email": "ops@planted.example"}
        refused = self.admin.post(f"{APPS}add/", fields | {"email": "no", "client_auth_key": CLIENT_KEY})
        self.page("registration refused", refused)
        made = self.admin.post(f"{APPS}add/", fields | {"client_auth_key": CLIENT_KEY})
        self.secrets["app token"], key = self.shown_once(made, "token", "signing-key")
        assert key.startswith("planted"), "the page shows it once"
        app = App.objects.get(name="Planted")
        self.world.receiver.keys = {app.app_id: CLIENT_KEY, self.world.app.app_id: KEY}
        return app

    def call(self, name: str, method: str, path: str = "", body: object = None, status: int = 200, token: str = ""):
        headers = {"Authorization": f"Bearer {token or self.secrets['app token']}"}
        response = Client(headers=headers).generic(
            method, f"/api/repositories{path}", json.dumps(body) if body else "", content_type="application/json"
        )
        assert response.status_code == status, response.content
        content = b"".join(response.streaming_content) if response.streaming else response.content
        self.places[f"API: {name}"] = content
        return response

    def add_watch(self) -> None:
        refused = {"github_url": self.repo.url, "github_token": WRONG}
        self.call("refused", "POST", body=refused, status=404)
        self.call("malformed", "POST", body=refused | {"github_token": [GITHUB]}, status=422)
        self.call("unknown app", "GET", status=401, token=WRONG)
        self.call("watch", "POST", body={"github_url": self.repo.url, "github_token": GITHUB}, status=201)
        self.watch = AppRepository.objects.get(app=self.app)
        form = {"app": self.app.pk, "github_url": self.repo.url, "github_token": WRONG}
        self.page("watch refused", self.admin.post(f"{WATCHES}add/", form))

    def rotate(self) -> None:
        """Rotate the app's key and token, and the push hook secret."""
        change, watch = f"{APPS}{self.app.pk}/", f"{WATCHES}{self.watch.pk}/"
        self.page("key refused", self.admin.post(f"{change}rotate-key/", {"client_auth_key": NEW_KEY[:10]}))
        made = self.admin.post(f"{change}rotate-key/", {"client_auth_key": NEW_KEY})
        self.shown_once(made, "signing-key")
        self.world.answer(lambda note: Answer(401, {"error": f"expected {CLIENT_KEY}", "or": NEW_KEY}))
        self.page("ping", self.admin.post(f"{change}ping/", {"key": "new"}, follow=True))
        self.world.answer(None)
        made = self.admin.post(f"{change}rotate-token/", {"overlap": "24"})
        self.secrets["second app token"] = self.shown_once(made, "token")[0]
        made = self.admin.post(f"{watch}push-secret/", {})
        self.secrets["push secret"] = self.shown_once(made, "push-secret")[0]
        for secret, status in ((self.secrets["push secret"], 202), (WRONG, 401)):
            signed = hmac.new(secret.encode(), b"{}", hashlib.sha256).hexdigest()
            hook = f"/api/hooks/push/{self.watch.repository.repository_id}"
            response = Client(headers={"X-Hub-Signature-256": f"sha256={signed}"}).generic("POST", hook, b"{}")
            assert response.status_code == status
            self.page(f"push hook {status}", response)
        self.page("token rejected", self.admin.post(f"{watch}token/", {"github_token": WRONG}))

    def fail(self) -> None:
        """Fail in every way in which remote servers repeat secrets."""
        self.world.answer(self._repeat_secrets)
        self.repo.commit({"0.txt": b"changed"})
        self.world.sync(self.watch)
        assert "wrong: expected" in DeliveryFailure.objects.get().body
        self.places["database, failing"] = search.database_dump()
        for address in (f"{APPS}{self.app.pk}/change/", f"{WATCHES}{self.watch.pk}/change/", WATCHES):
            self.page(f"{address}, failing", self.admin.get(address))
        self.world.answer(None)
        for status in (400, 401, 403, 404, 429, 500):
            for what in ("HEAD", "the pack", "git's request"):
                self.repo.commit({"0.txt": f"{status} {what}".encode()})
                self._fail_git(status, what)
                self.world.sync(self.watch)
                assert self.watch.last_error, (status, what)
                self.places[f"{what} {status}"] = self.watch.last_error.encode()
        self.world.git.server.on_request = None
        self.world.git.tokens["acme/secret"] = {"another one"}
        self.world.sync(self.watch)
        assert "The git host rejected the token" in self.watch.last_error
        path = f"/{self.watch.repository.repository_id}/token"
        self.call("token rejected", "PATCH", path, {"github_token": WRONG}, status=422)
        self.world.git.tokens["acme/secret"] = {GITHUB}
        self.call("token replaced", "PATCH", path, {"github_token": GITHUB})
        self.call("re-sync", "POST", f"/{self.watch.repository.repository_id}/resync", status=202)
        self.world.settle()
        self.watch.refresh_from_db()
        assert (self.watch.status, self.watch.last_error) == ("synced", "")

    def _fail_git(self, status: int, what: str) -> None:
        """Refuse the first request, the second one, or those of git, which is asked when the answer to the second is odd."""
        numbers = count()

        def answer(method: str, _target: str) -> Takeover | int | None:
            if what == "git's request":
                return echo(status, GITHUB) if method == "GET" else 400 if next(numbers) == 1 else None
            return echo(status, GITHUB) if next(numbers) >= ("HEAD", "the pack").index(what) else None

        self.world.git.server.on_request = answer

    def _repeat_secrets(self, notification: Notification) -> Answer:
        body = {"error": f"wrong: expected {CLIENT_KEY}", "token": self.secrets["app token"], "new": NEW_KEY}
        return Answer(422, body)

    def collect_pages(self) -> None:
        """Collect all pages and API responses."""
        self.call("list", "GET")
        self.call("detail", "GET", f"/{self.watch.repository.repository_id}")
        self.call("manifest", "GET", f"/{self.watch.repository.repository_id}/manifest")
        start_urls = ["/admin/", f"{APPS}{self.app.pk}/change/", f"{WATCHES}{self.watch.pk}/change/"]
        start_urls += [f"{APPS}{self.app.pk}/ping/", "/admin/api/repositories"]
        for address, content in search.admin_pages(self.admin, *start_urls):
            self.places[f"page: {address}"] = content
        for address in ("/openapi.json", "/docs/", "/health", "/health/ready", "/version"):
            self.page(address, Client().get(address))
        output = io.StringIO()
        call_command("rotate_encryption_keys", stdout=output)
        self.places["rotate_encryption_keys"] = output.getvalue().encode()


def test_no_secret_leaks_anywhere(
    world: World, daemons: Daemons, admin_user, redis_client, log: io.StringIO, settings
) -> None:
    admin = Client()
    admin.force_login(admin_user)
    journey = Journey(world, admin)
    journey.add_watch()
    journey.places["Redis, queued"] = search.redis_dump(redis_client)
    assert b"rq:job" in journey.places["Redis, queued"]

    commands = search.Commands()
    posts = count()

    def let_git_fetch(method: str, _target: str) -> int | None:
        if method == "GET":
            time.sleep(1.5)
            return None
        return 400 if next(posts) == 1 else None

    world.git.server.on_request = let_git_fetch
    world.answer(lambda note: time.sleep(0.05))
    daemons.environment |= {"LOG_LEVEL": "debug", "LOG_FORMAT": "json"}
    daemons.sweep()
    daemons.worker("-v", "3", "high", "default", "low")
    wait_for(lambda: world.receiver.log, timeout=40)
    journey.places["Redis, at work"] = search.redis_dump(redis_client)
    journey.places["database, at work"] = search.database_dump()
    journey.places["mirrors, at work"] = search.files_dump(settings.REPOS_DIR)
    wait_for(lambda: AppRepository.objects.filter(pk=journey.watch.pk, status="synced").exists(), timeout=40)
    daemons.close()
    commands.stop()
    world.git.server.on_request = None
    world.answer(None)

    journey.rotate()
    journey.fail()
    journey.collect_pages()

    assert any(b"git" in line and b" fetch " in line for line in commands.seen)
    journey.places |= {
        "command lines": b"\n".join(commands.seen),
        "logs of the processes": daemons.logs().encode(),
        "log of this process": log.getvalue().encode(),
        "Redis": search.redis_dump(redis_client),
        "database": search.database_dump(),
        "mirrors": search.files_dump(settings.REPOS_DIR),
    }
    for place in ("command lines", "logs of the processes", "log of this process", "Redis", "database", "mirrors"):
        assert len(journey.places[place]) > 500, f"{place}: nothing was collected"
    assert len([place for place in journey.places if place.startswith("page: ")]) > 60
    stored = search.secrets_of(App.objects.all())
    assert {GITHUB, CLIENT_KEY, NEW_KEY, journey.secrets["push secret"]} <= set(stored.values())
    assert search.found(journey.places, journey.secrets | stored) == {}


@pytest.mark.parametrize("secret", [GITHUB, CLIENT_KEY])
def test_search_finds_every_encoding(secret: str) -> None:
    raw = secret.encode()
    for number, content in enumerate(
        [
            b"..." + raw + b"...",
            json.dumps({"x": [secret]}).encode(),
            repr(json.dumps({"x": [secret]})).encode(),
            html.escape(json.dumps({"x": [secret]})).encode(),
            repr({"x": secret}).encode(),
            f"?token={quote(secret)}&".encode(),
            base64.b64encode(raw),
            base64.b64encode(b"x-access-token:" + raw + b" and more"),
            base64.urlsafe_b64encode(b"ab" + raw + b"c"),
            base64.b64encode(b"a" + raw),
            raw.hex().encode(),
        ]
    ):
        assert search.found({"here": content}, {"it": secret}) == {"here": ["it"]}, number
    assert search.found({"here": b"planted, but nothing else"}, {"it": secret}) == {}
