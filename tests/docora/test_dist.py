"""The wheel: it contains exactly Docora, and runs from an empty folder in its own environment."""

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deliveries_app.demo.git_server import GitServer
from deliveries_app.demo.repositories import make_demo_repositories
from docora import __version__
from tests.support.git import Repo
from tests.support.instance import PROJECT, Instance, free_port, port_is_taken
from tests.support.shared import copy

pytestmark = pytest.mark.early(3)

WHEEL = f"docora-{__version__}-py3-none-any.whl"
PASSWORD = "correct horse battery staple"
TRANSFORMS = """
from dataclasses import replace

class IntoAFolder:
    name, version = "into-a-folder", 1

    def __call__(self, file):
        return replace(file, path=f"portal/{file.path}")
"""

LATER_MIGRATION = """
from django.db import migrations

class Migration(migrations.Migration):
    dependencies = [("deliveries_app", "{}")]
    operations = [migrations.RunSQL("SELECT 1")]
"""


def build(source: Path, target: Path) -> Path:
    """Build the wheel of `source` in `target` as `make dist` does, and return it."""
    epoch = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)],
        cwd=source,
        env=os.environ | {"SOURCE_DATE_EPOCH": epoch.stdout.strip()},
        umask=0o077,
        check=True,
    )
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make dist` fills."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(["make", "--old-file=setup", "dist", f"DIST={folder}"], cwd=PROJECT, check=True)
    return folder


@pytest.fixture(scope="module")
def source(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(dist / f"docora-{__version__}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"docora-{__version__}"


class Environment:
    """A new virtual environment with the packages of requirements.txt, in which wheels can be installed.

    With `other` it is a copy of that one: all but the wheel, which has to be installed again.
    """

    def __init__(self, folder: Path, other: "Environment | None" = None) -> None:
        self.bin = folder / "bin"
        uv = subprocess.run([PROJECT / ".ci" / "bootstrap.sh", "uv"], capture_output=True, text=True, check=True)
        self._uv = uv.stdout.strip()
        if other is not None:
            copy(other.bin.parent, folder)
            return
        self._run("venv", "--no-project", "--no-python-downloads", "--python", sys.executable, str(folder))
        self._pip("--require-hashes", "-r", str(PROJECT / "requirements.txt"))

    def install(self, wheel: Path, *options: str) -> None:
        """Install the wheel offline, so that all its requirements must be installed already."""
        self._pip("--offline", "--reinstall-package", "docora", *options, str(wheel))

    def _pip(self, *arguments: str) -> None:
        self._run("pip", "install", "--no-python-downloads", "--python", str(self.bin / "python"), *arguments)

    def _run(self, *arguments: str) -> None:
        subprocess.run([self._uv, "--quiet", *arguments], cwd=self.bin.parent.parent, check=True)


@pytest.fixture(scope="module")
def environment(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("venv") / "docora")
    environment.install(dist / WHEEL, "--constraint", str(dist / "constraints.txt"))
    return environment


class Installed(Instance):
    """An installed Docora, run from an empty folder without settings. Its processes are known by their HOME."""

    def __init__(self, directory: Path, environment: Environment) -> None:
        super().__init__(directory)
        self.bin = environment.bin
        self.folder = directory / "folder"
        self.folder.mkdir()
        self.data = self.folder / "var"
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.directory)}

    def command(self, *arguments: str) -> list[str]:
        return [str(self.bin / "docora"), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def done(self, *arguments: str) -> str:
        """Run a command that must succeed, and return its output."""
        result = self.run(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    @contextlib.contextmanager
    def receiver(self, *options: str) -> Iterator[str]:
        """Run `docora receiver` in the background and yield its URL."""
        port = free_port()
        command = self.command("receiver", "--port", str(port), "--quiet", *options)
        with subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL) as process:
            try:
                self.wait_until(lambda: port_is_taken("127.0.0.1", port), 20)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()

    def settings(self, **values: str) -> None:
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))

    def get(self, path: str, form: dict[str, str] | None = None) -> bytes:
        """Return the body of a response, keeping cookies. Raise HTTPError for any status but 200."""
        data = urllib.parse.urlencode(form).encode() if form else None
        with self._opener.open(f"http://127.0.0.1:{self.port}{path}", data, timeout=20) as answer:
            return answer.read()

    def sign_in(self, name: str, password: str) -> str:
        """Sign in and return the first page of the admin."""
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get("/accounts/login/").decode())
        assert token
        form = {"csrfmiddlewaretoken": token[1], "login": name, "password": password, "next": "/admin/"}
        return self.get("/accounts/login/", form).decode()


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="docora-") as name:  # short, because it contains a socket
        yield Path(name)


@pytest.fixture
def installed(environment: Environment, directory: Path) -> Iterator[Installed]:
    installed = Installed(directory, environment)
    yield installed
    installed.end()


# --- Contents -----------------------------------------------------------------------------------------------------------


def test_wheel_contains_exactly_the_tracked_files(dist: Path) -> None:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    shipped = {name for name in names if name.startswith(("docora/", "repositories_app/", "deliveries_app/"))}
    shipped |= {f"docora/{name}" for name in names if name.startswith(("templates/", "static/", ".env.example"))}
    with zipfile.ZipFile(dist / WHEEL) as wheel:
        inside = set(wheel.namelist())
    about = {name for name in inside if name.startswith(f"docora-{__version__}.dist-info/")}
    assert {Path(name).name for name in about} == {"METADATA", "RECORD", "WHEEL", "entry_points.txt"}
    assert inside - about == shipped
    assert {"docora/templates/docs/page.html", "docora/static/docs/samples/verify.py", "docora/.env.example"} <= inside


def test_constraints_are_the_locked_versions(dist: Path) -> None:
    locked = re.findall(r"(?m)^([a-z].*?) \\$", (PROJECT / "requirements.txt").read_text())
    assert len(locked) > 20
    assert (dist / "constraints.txt").read_text().splitlines() == locked
    handbook = (PROJECT / "templates" / "docs" / "handbook" / "install.html").read_text()
    assert "pip install --constraint constraints.txt docora-*-py3-none-any.whl" in handbook


def test_wheel_from_the_sdist_has_the_same_bytes(dist: Path, source: Path, tmp_path: Path) -> None:
    assert build(source, tmp_path).read_bytes() == (dist / WHEEL).read_bytes()


# --- Running it ---------------------------------------------------------------------------------------------------------


def test_usage_always_names_docora(installed: Installed) -> None:
    module = [str(installed.bin / "python"), "-m", "docora", "help", "up"]
    usage = subprocess.run(
        module, cwd=installed.folder, env=installed.environment, capture_output=True, text=True, check=True
    ).stdout
    assert usage.startswith("usage: docora up ")
    assert installed.done("help", "up") == usage
    assert installed.done("--version") == installed.done("version") == f"{__version__}\n"
    assert "Type 'docora help <subcommand>'" in installed.done("help")


def test_wheel_runs_from_an_empty_folder_without_settings(installed: Installed) -> None:
    installed.start("--workers", "1")
    assert json.loads(installed.get("/health"))["uptime"] > 0
    assert json.loads(installed.get("/version"))["version"] == __version__
    login = installed.get("/admin/login/").decode()
    assert "<code>docora createsuperuser</code>" in login
    assert "Create one in another terminal: docora createsuperuser" in installed.log.read_text()

    handbook = installed.get("/docs/operations/").decode()
    assert "was not deployed" not in handbook
    assert "docora doctor" in handbook
    pages = [login, handbook, *(installed.get(f"/docs/{name}").decode() for name in ("", "webhooks/", "api/"))]
    links = set(re.findall(r'(?:href|src)="/(static/[^"]+)"', "".join(pages)))
    ours = {link for link in links if (PROJECT / link).exists()}
    assert {"static/docora/docora.css", "static/docora/docs.css", "static/docs/samples/receiver.py"} <= ours
    for link in links:
        body = installed.get(f"/{link}")
        assert body == (PROJECT / link).read_bytes() if link in ours else body

    assert installed.end() == 0
    assert installed.family() == {}
    assert "Traceback" not in installed.log.read_text()
    assert [path.name for path in installed.folder.iterdir()] == ["var"]
    made = {path.name for path in (installed.folder / "var").iterdir()}
    assert {"keys.json", "docora.sqlite3"} <= made
    assert made & {"valkey", "valkey-server", "redis-server"}


def test_demo_prints_how_to_sign_in_after_its_first_syncs_and_ends_with_its_parent(
    installed: Installed, migrated_sqlite: Path
) -> None:
    installed.use_database(migrated_sqlite)
    installed.settings(LC_ALL="POSIX", PYTHONUTF8="0")  # for all children, as in a locale such as de_DE.ISO-8859-1
    installed.start("--demo", "--workers", "1")
    installed.wait_until(lambda: "The demo is ready." in installed.log.read_text(), 120)
    with contextlib.closing(sqlite3.connect(installed.data / "docora.sqlite3")) as database:
        runs = database.execute("SELECT outcome FROM deliveries_app_syncrun WHERE reason = 'initial'").fetchall()
    assert len(runs) == 8
    assert ("",) not in runs
    assert runs.count(("failed",)) == 1  # on purpose
    log, _, banner = installed.log.read_text().partition("The demo is ready.")
    password = json.loads((installed.data / "demo" / "choices.json").read_text())["password"]
    lines = [line.strip() for line in banner.split("\n\n")[1].splitlines()]
    assert lines == [f"Open      http://127.0.0.1:{installed.port}/admin/", "User      admin", f"Password  {password}"]
    assert log.count('"reason": "initial", "requested_by"') == 8
    # The worker logs the end of a run after the commit that the demo waits for, perhaps below the banner.
    installed.wait_until(lambda: installed.log.read_text().count('"event": "run_ended"') == 8, 10)
    assert [line for line in banner.splitlines() if not line.startswith("{")][-1].endswith("Ctrl-C stops it.")
    assert "Overview" in installed.sign_in("admin", password)
    received = installed.data / "demo" / "received"
    installed.wait_until(lambda: any(path.is_file() for path in received.rglob("*.md")), 30)
    assert installed.process
    installed.process.kill()
    installed.process.wait()
    installed.wait_until(lambda: not installed.family(), 20)


def test_upgrade_to_a_newer_wheel_with_settings_and_transforms_of_the_current_folder(
    dist: Path, source: Path, environment: Environment, directory: Path, migrated_sqlite: Path
) -> None:
    newer = shutil.copytree(source, directory / "newer")
    (newer / "docora" / "__init__.py").write_text('__version__ = "99.0.0"\n')
    migrations = newer / "deliveries_app" / "migrations"
    newest = max(migrations.glob("0*.py"))
    (migrations / "9999_later.py").write_text(LATER_MIGRATION.format(newest.stem))
    environment = Environment(directory / "venv", environment)
    environment.install(dist / WHEEL)
    installed = Installed(directory, environment)
    installed.use_database(migrated_sqlite)
    (installed.folder / "portal_files.py").write_text(TRANSFORMS)
    installed.settings(
        DJANGO_SUPERUSER_PASSWORD=f"'{PASSWORD}'",
        ALLOW_HTTP="yes",
        ALLOWED_PRIVATE_NETWORKS="127.0.0.0/8",
        ALLOWED_GIT_HOSTS="127.0.0.1:*",
        FILE_TRANSFORMS="portal_files.IntoAFolder",
    )
    assert installed.done("--version") == f"{__version__}\n"
    installed.done("createsuperuser", "--noinput", "--username", "root", "--email", "root@docora.example")
    keys = (installed.data / "keys.json").read_text()

    def later_migrations() -> list[tuple[str]]:
        with contextlib.closing(sqlite3.connect(installed.data / "docora.sqlite3")) as database:
            return database.execute("SELECT name FROM django_migrations WHERE name LIKE '9999%'").fetchall()

    environment.install(build(newer, directory / "dist"))
    assert installed.done("--version") == "99.0.0\n"
    assert "[ ]  deliveries_app.9999_later" in installed.done("showmigrations", "--plan")
    try:
        installed.start("--workers", "1")
        assert later_migrations() == [("9999_later",)]
        assert "Docora 99.0.0" in installed.sign_in("root", PASSWORD)
        assert_transformed_files_arrive(installed)
    finally:
        status = installed.end()
    assert status == 0
    assert installed.family() == {}
    assert "Traceback" not in installed.log.read_text()
    assert (installed.data / "keys.json").read_text() == keys


def assert_transformed_files_arrive(installed: Installed) -> None:
    make_demo_repositories(installed.directory / "git")
    key = "a key of at least sixteen characters"
    with GitServer(installed.directory / "git") as server, installed.receiver("--key", key) as url:
        facts = ["Portal", url, "ops@portal.example", "--client-auth-key", key]
        app = json.loads(installed.done("onboard_app", *facts, "--json"))["app_id"]
        watch = json.loads(installed.done("watch_repository", app, f"{server.url}/acme/handbook", "--json"))
        repository = Repo("acme/handbook", server.directory / "acme" / "handbook.git", server)
        expected = {f"portal/{path}": content for path, content in repository.files().items()}
        copies = installed.data / "receiver" / app / watch["repository_id"]
        installed.wait_until(lambda: contents(copies) == expected, 40)
        installed.done("resync", app, "--wait", "--yes")


def contents(folder: Path) -> dict[str, bytes]:
    """Return path → content of every file below the folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
