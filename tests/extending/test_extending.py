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

from tests.docora.test_dist import PASSWORD, Installed
from tests.docora.test_docs import read
from tests.support.instance import Instance
from tests.support.receiver import wait_for

BESIDE_ENV = Path(__file__).with_name("beside_env")
SIGN_IN = {"ADMIN_USERNAME": "root", "ADMIN_PASSWORD": f"'{PASSWORD}'"}


class Extended(Instance):
    """Everything from `up`, with settings in a file that the extension is beside, as with the systemd units."""

    get, sign_in = Installed.get, Installed.sign_in

    def __init__(self, directory: Path, **settings: str) -> None:
        super().__init__(directory)
        shutil.copytree(BESIDE_ENV, directory / "etc", ignore=shutil.ignore_patterns("__pycache__"))
        (directory / "etc" / "docora.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"DOCORA_ENV_FILE": str(self.directory / "etc" / "docora.env")}


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="docora-") as name:  # short, because it contains a socket
        yield Path(name)


def test_app_with_a_model_a_page_and_a_middleware(directory: Path) -> None:
    instance = Extended(directory, DOCORA_SETTINGS="on_call_settings", **SIGN_IN)
    try:
        instance.start()
        overview = instance.sign_in("root", PASSWORD)
        sections = re.findall(r'<a href="([^"]+)" class="section"[^>]*>\s*([^<]+?)\s*</a>', overview)
        assert ("/admin/on_call/", "On call") in sections
        assert 'href="/admin/on_call/person/add/"' in overview
        assert "On call administration" in instance.get("/admin/on_call/").decode()

        form = instance.get("/admin/on_call/person/add/").decode()
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
        assert token
        posted = {"csrfmiddlewaretoken": token[1], "name": "Anna", "phone": "+49 30 1234", "_save": "Save"}
        assert "was added successfully" in instance.get("/admin/on_call/person/add/", posted).decode()
        with urllib.request.urlopen(f"http://127.0.0.1:{instance.port}/on-call/", timeout=20) as answer:
            assert answer.read() == b"Anna +49 30 1234"
            assert answer.headers["X-On-Call"] == "Anna"
            assert answer.headers["X-Request-Id"]
        wait_for(lambda: json.loads(instance.get("/health/ready"))["ready"], 30)
        assert "[X] 0001_initial" in instance.run("showmigrations", "on_call").stdout
        assert "Person" in instance.run("shell", "-v", "0", "-c", "import on_call.models as m; print(m.Person)").stdout
        assert 'route="on-call/"' in instance.get("/metrics").decode()
    finally:
        instance.end()
    assert instance.family() == {}
    assert "Traceback" not in instance.log.read_text()


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


def test_error_reports_reach_sentry_without_secrets(directory: Path) -> None:
    sentry = Sentry()
    settings = {"DOCORA_SETTINGS": "both_settings", "SENTRY_DSN": sentry.dsn, "ENCRYPTION_KEYS": "a" * 8 + "b" * 40}
    instance = Extended(directory, **settings)
    both = "from sentry_settings import *\nfrom on_call_settings import *\n"
    (directory / "etc" / "both_settings.py").write_text(both)
    try:
        instance.start()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{instance.port}/on-call/fail/",
            headers={"Authorization": "Bearer a-secret-of-the-request"},
        )
        with pytest.raises(urllib.error.HTTPError) as failed:
            urllib.request.urlopen(asked, timeout=20)
        assert failed.value.headers["X-On-Call"] == "nobody"
        [event] = wait_for(lambda: [event for event in sentry.events if "This page always fails." in event], 20)
        assert "on_call/urls.py" in event
        for secret in ("a-secret-of-the-request", settings["ENCRYPTION_KEYS"]):
            assert secret not in event
        wait_for(
            lambda: json.loads(urllib.request.urlopen(f"http://127.0.0.1:{instance.port}/health/ready").read())[
                "ready"
            ],
            30,
        )
    finally:
        instance.end()
        sentry.close()


def test_module_that_cannot_be_imported_is_named(directory: Path) -> None:
    done = Extended(directory, DOCORA_SETTINGS="no_such_settings").run("check")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Docora cannot start: DOCORA_SETTINGS names no_such_settings, which cannot be imported: No module named "
        "'no_such_settings'.\n"
    )
    broken = Extended(directory / "broken", DOCORA_SETTINGS="broken_settings")
    (directory / "broken" / "etc" / "broken_settings.py").write_text("import a_missing_package\n")
    done = broken.run("check")
    assert "which cannot be imported: No module named 'a_missing_package'" in done.stderr
    assert "Traceback" not in done.stderr


def test_users_without_permission_do_not_see_the_app(directory: Path) -> None:
    """Docora's own groups give no permission for other apps."""
    instance = Extended(directory, DOCORA_SETTINGS="on_call_settings")
    script = (
        "from django.test import Client; from django.contrib.auth.models import Group, User;"
        "user = User.objects.create_user('vera', is_staff=True); user.groups.set(Group.objects.filter(name='Viewers'));"
        "client = Client(); client.force_login(user); page = client.get('/admin/', headers={'host': 'localhost'});"
        "print(page.status_code, 'Watched repositories' in page.text, 'On call' in page.text)"
    )
    assert instance.run("migrate", "--verbosity", "0").returncode == 0
    done = instance.run("shell", "--verbosity", "0", "-c", script)
    assert done.stdout == "200 True False\n", done.stderr


def test_handbook_shows_these_modules() -> None:
    shown = read("/docs/operations/").code
    assert shown["extension-settings"].strip() == (BESIDE_ENV / "on_call_settings.py").read_text().strip()
    assert shown["sentry-settings"].strip() == (BESIDE_ENV / "sentry_settings.py").read_text().strip()
    assert "DOCORA_SETTINGS" in Client().get("/docs/operations/").text
