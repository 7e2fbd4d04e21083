"""Follow the handbook step by step: back up a running instance, lose the machine, recover on another, rotate the keys.

The commands are those of the page. Docora runs as real processes, with a private repository, so that both kinds of secrets
are needed: the repository's token to read it, the app's key to sign what is sent.
"""

import contextlib
import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.test import Client

from deliveries_app.receiver import Receiver
from deliveries_app.sweep.head_checks import TAKEN_SECONDS
from tests.docora.test_docs import read
from tests.support.commands import manage, run_script
from tests.support.deployment import PROJECT
from tests.support.git import GitFixture, Repo
from tests.support.histories import shas
from tests.support.postgres import PostgresServer
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.shared import copy
from tests.support.valkey import ValkeyServer

TOKEN = "a-token-of-a-private-repository"
KEY = "whsec_bm90LWEtcmVhbC1rZXktYnV0LW9mLXRoZS10ZXN0cyE="


class Machine:
    """One machine with Docora's data in a folder, which the handbook calls /var/lib/docora."""

    def __init__(self, folder: Path, database: str, valkey: ValkeyServer) -> None:
        self.folder, self.data = folder, folder / "data"
        folder.mkdir()
        self.data.mkdir(mode=0o700)
        self.environment = {
            "PATH": os.environ["PATH"],
            "DOCORA_ENV_FILE": os.devnull,
            "DATA_DIR": str(self.data),
            "REDIS_URL": valkey.url,
            "ALLOW_HTTP": "yes",
            "ALLOWED_PRIVATE_NETWORKS": "127.0.0.0/8",
            "ALLOWED_GIT_HOSTS": "127.0.0.1:*",
            "SWEEP_INTERVAL_SECONDS": "0.5",
            "RESCAN_MIN_INTERVAL_SECONDS": "1",
            "RESCAN_INTERVAL_SECONDS": "1",
        } | ({"DATABASE_URL": database} if database else {})

    def shell(self, block: str, **environment: str) -> str:
        """Run a code block of the handbook, or a command line of it."""
        script = read("/docs/operations/").code.get(block, block).replace("/var/lib/docora", str(self.data))
        script = script.replace("python3 ", f"{sys.executable} ")
        done = subprocess.run(
            ["sh", "-ec", script], cwd=self.folder, env=self.environment | environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def command(self, *arguments: str, stdin: str = "", status: int = 0, **environment: str) -> str:
        given = self.environment | environment
        done = run_script(PROJECT / "manage.py", *arguments, environment=given, stdin=stdin)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run a sweep and a worker, and kill them at the end, as the loss of the machine does."""
        daemons = Daemons(self.folder, self.environment)
        try:
            daemons.sweep(), daemons.worker()
            yield
            assert "Traceback" not in daemons.logs()
        finally:
            daemons.close()

    def secrets(self, **environment: str) -> list[str]:
        """Return the levels of doctor's findings about stored secrets."""
        done = manage("doctor", "--offline", "--json", environment=self.environment | environment, timeout=120)
        return [finding["level"] for finding in json.loads(done.stdout) if finding["check"] == "secrets"]


@pytest.fixture
def git(tmp_path: Path) -> Iterator[GitFixture]:
    with GitFixture(tmp_path / "git") as git:
        yield git


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with Receiver(tmp_path / "copies", KEY) as receiver:
        yield receiver


def rotation_steps() -> list[str]:
    """Return the code in the handbook's steps to rotate ENCRYPTION_KEYS."""
    section = Client().get("/docs/operations/").text.partition('id="encryption-keys"')[2].partition("</ol>")[0]
    return [html.unescape(code) for code in re.findall("<code>([^<]*)</code>", section.partition("<ol>")[2])]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_backup_loss_recovery_and_key_rotation(
    kind: str,
    request: pytest.FixtureRequest,
    valkey_server: ValkeyServer,
    git: GitFixture,
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    databases, tools = ["", ""], {}
    if kind == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        databases = [server.create_database(f"recovery_{os.getpid()}_{number}") for number in range(2)]
        tools["PATH"] = f"{server._binary('pg_dump').parent}:{os.environ['PATH']}"
    first = Machine(tmp_path / "first", databases[0], valkey_server)
    if kind == "sqlite":
        copy(request.getfixturevalue("migrated_sqlite"), first.data / "docora.sqlite3")
    else:
        first.command("migrate", "--verbosity", "0")
    repo = git.repo("acme/handbook", {"kept": b"kept", "changed": b"1", "removed": b"x"}, token=TOKEN)
    portal = ["Portal", receiver.url, "ops@portal.example"]
    app = json.loads(first.command("onboard_app", *portal, "--client-auth-key-stdin", "--json", stdin=KEY))["app_id"]
    watch = ["watch_repository", app, repo.url, "--github-token-stdin", "--json"]
    watched = json.loads(first.command(*watch, stdin=TOKEN))["repository_id"]

    def arrives(repo: Repo) -> None:
        # A sweep that is killed during a check leaves the next one to be made after TAKEN_SECONDS.
        wait_for(lambda: receiver.copy(app, watched) == shas(repo.files()), TAKEN_SECONDS + 30, 0.1)

    # Back up while it runs. More is delivered after that, and the last commit is not.
    with first.running():
        arrives(repo)
        if kind == "postgresql":
            first.shell("backup-postgres", **tools, POSTGRES_URL=databases[0])
            first.shell("cp /var/lib/docora/keys.json .")
        else:
            first.shell("backup-sqlite")
        repo.commit({"changed": b"2", "new": b"new", "removed": None})
        arrives(repo)
    repo.commit({"changed": b"3", "last": b"last"})

    # Recover on another machine, with an empty Redis.
    with valkey_server.client() as client:
        client.flushall()
    second = Machine(tmp_path / "second", databases[1], valkey_server)
    for name in ("keys.json", "docora.dump", "docora-backup.sqlite3"):
        if (first.folder / name).exists():
            (second.folder / name).write_bytes((first.folder / name).read_bytes())
    second.shell("install -m 0600 keys.json /var/lib/docora/keys.json")
    second.shell("restore-postgres" if kind == "postgresql" else "restore-sqlite", **tools, POSTGRES_URL=databases[1])
    assert second.secrets() == ["fine"]
    sent = len(receiver.log)
    with second.running():
        arrives(repo)
        printed = json.loads(second.command("resync", app, "--yes", "--wait", "--json"))
        assert (printed["succeeded"], printed["failed"]) == (1, 0)
        arrives(repo)
    assert {record.kind for record in receiver.log[sent:]} >= {"create", "update"}
    assert all(record.verified and record.status == 200 for record in receiver.log)

    # Rotate the encryption keys.
    keys, command, dry_run = rotation_steps()[0], *rotation_steps()[2:4]
    assert (keys, dry_run) == ("ENCRYPTION_KEYS=new,old", "--dry-run")
    arguments = command.removeprefix("manage.py ").split()
    old = json.loads((second.data / "keys.json").read_text())["encryption_keys"]
    new = second.shell("make-key").strip()
    second.environment["ENCRYPTION_KEYS"] = f"{new},{old}"
    with valkey_server.client() as client:
        client.flushall()  # which still has the worker that was killed, with the old key
    with second.running():
        repo.commit({"changed": b"4"})
        arrives(repo)
        assert "1 to re-encrypt" in second.command(*arguments, dry_run)
        assert "You can remove the older keys." in second.command(*arguments)
        assert "1 already had the newest key" in second.command(*arguments, dry_run)
    assert second.secrets(ENCRYPTION_KEYS=old) != ["fine"]
    second.environment["ENCRYPTION_KEYS"] = new
    assert second.secrets() == ["fine"]
    with second.running():
        repo.commit({"changed": b"5", "last": None})
        arrives(repo)
    assert all(record.verified and record.status == 200 for record in receiver.log)
