"""Real processes with DOCORA_SETTINGS: an app with a model, a page, a middleware, and error reports to Sentry."""

import gzip
import json
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from django.test import Client
from redis import Redis

from docora.conf.data_dir import embedded_redis_socket
from tests.docora.test_dist import PASSWORD, Installed
from tests.docora.test_docs import read
from tests.support.instance import Instance
from tests.support.receiver import wait_for

BESIDE_ENV = Path(__file__).with_name("beside_env")
ENCRYPTION_KEY = "an-encryption-key-that-only-these-tests-use"
VIEWER = """
from django.test import Client
from django.contrib.auth.models import Group, User
user = User.objects.create_user("vera", is_staff=True)
user.groups.set(Group.objects.filter(name="Viewers"))
client = Client()
client.force_login(user)
page = client.get("/admin/", headers={"host": "localhost"})
print(page.status_code, "Watched repositories" in page.text, "On call" in page.text)
"""


class Extended(Instance):
    """An instance run by `up`. The extension lies beside the settings file, as with the systemd units."""

    get, sign_in = Installed.get, Installed.sign_in

    def __init__(self, directory: Path, **settings: str) -> None:
        super().__init__(directory)
        shutil.copytree(BESIDE_ENV, directory / "etc", ignore=shutil.ignore_patterns("__pycache__"))
        both = "from sentry_settings import *\nfrom on_call_settings import *\n"
        (directory / "etc" / "both_settings.py").write_text(both)
        (directory / "etc" / "docora.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"DOCORA_ENV_FILE": str(self.directory / "etc" / "docora.env")}

    def open(self, path: str, **headers: str) -> tuple[bytes, dict[str, str]]:
        """Return body and headers of the response to a request without cookies. Raise HTTPError for an error status."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read(), dict(answer.headers)


class Sentry:
    """Collects the events that clients report."""

    def __init__(self) -> None:
        self.events: list[str] = []
        events = self.events

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                events.append((gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body).decode())
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.dsn = f"http://public@127.0.0.1:{self._server.server_port}/1"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def sentry() -> Iterator[Sentry]:
    sentry = Sentry()
    yield sentry
    sentry.close()


@pytest.fixture(scope="module")
def instance(sentry: Sentry, migrated_sqlite: Path) -> Iterator[Extended]:
    with tempfile.TemporaryDirectory(prefix="docora-") as name:  # short, because it contains a socket
        instance = Extended(
            Path(name),
            DOCORA_SETTINGS="both_settings",
            SENTRY_DSN=sentry.dsn,
            ENCRYPTION_KEYS=ENCRYPTION_KEY,
            ADMIN_USERNAME="root",
            ADMIN_PASSWORD=f"'{PASSWORD}'",
        )
        instance.use_database(migrated_sqlite)
        try:
            instance.start("--workers", "1")
            yield instance
        finally:
            instance.end()
        assert instance.family() == {}


def test_first_start_names_the_new_administrator(instance: Extended) -> None:
    log = instance.log.read_text()
    assert "User      root\n  Password  the value of ADMIN_PASSWORD\n" in log
    assert PASSWORD not in log


def test_app_is_migrated_and_in_the_navigation(instance: Extended) -> None:
    overview = instance.sign_in("root", PASSWORD)
    sections = re.findall(r'<a href="([^"]+)" class="section"[^>]*>\s*([^<]+?)\s*</a>', overview)
    assert sections[-1] == ("/admin/on_call/", "On call")
    assert 'href="/admin/on_call/person/add/"' in overview
    assert "On call administration" in instance.get("/admin/on_call/").decode()
    assert "[X] 0001_initial" in instance.run("showmigrations", "on_call").stdout

    form = instance.get("/admin/on_call/person/add/").decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
    assert token
    posted = {"csrfmiddlewaretoken": token[1], "name": "Anna", "phone": "+49 30 1234", "_save": "Save"}
    assert "was added successfully" in instance.get("/admin/on_call/person/add/", posted).decode()
    body, headers = instance.open("/on-call/")
    assert (body, headers["X-On-Call"]) == (b"Anna +49 30 1234", "Anna")


def test_every_process_uses_the_module(instance: Extended) -> None:
    wait_for(lambda: json.loads(instance.open("/health/ready")[0])["ready"], 30)
    instance.open("/on-call/")
    assert 'route="on-call/"' in instance.open("/metrics")[0].decode()
    done = instance.run("shell", "--verbosity", "0", "-c", "from on_call.models import Person; print(Person.__name__)")
    assert done.stdout == "Person\n"


def test_requests_are_counted_without_a_scrape(instance: Extended) -> None:
    instance.open("/docs/webhooks/")
    with Redis(unix_socket_path=str(embedded_redis_socket(instance.directory / "data"))) as redis:
        wait_for(lambda: any(name.endswith(b":docs/webhooks/") for name in redis.hkeys("docora:counters")), 20)


def test_users_without_permission_do_not_see_the_app(instance: Extended) -> None:
    """Docora's own groups give no permission for other apps."""
    done = instance.run("shell", "--verbosity", "0", "-c", VIEWER)
    assert done.stdout == "200 True False\n", done.stderr


def test_errors_reach_sentry_without_secrets(instance: Extended, sentry: Sentry) -> None:
    with pytest.raises(urllib.error.HTTPError) as failed:
        instance.open("/on-call/fail/", Authorization="Bearer a-secret-of-the-request")
    assert failed.value.headers["X-On-Call"]
    [event] = wait_for(lambda: [event for event in sentry.events if "This page always fails." in event], 20)
    assert "on_call/urls.py" in event
    for secret in ("a-secret-of-the-request", ENCRYPTION_KEY):
        assert secret not in event


def test_module_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    instance = Extended(tmp_path, DOCORA_SETTINGS="broken_settings")
    done = instance.run("check")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Docora cannot start: DOCORA_SETTINGS names broken_settings, which cannot be imported: No module named "
        "'broken_settings'.\n"
    )
    (tmp_path / "etc" / "broken_settings.py").write_text("import a_missing_package\n")
    done = instance.run("check")
    assert "which cannot be imported: No module named 'a_missing_package'" in done.stderr
    assert "Traceback" not in done.stderr


def test_handbook_shows_these_modules() -> None:
    shown = read("/docs/operations/").code
    assert shown["extension-settings"].strip() == (BESIDE_ENV / "on_call_settings.py").read_text().strip()
    assert shown["sentry-settings"].strip() == (BESIDE_ENV / "sentry_settings.py").read_text().strip()
    assert "DOCORA_SETTINGS" in Client().get("/docs/operations/").text
