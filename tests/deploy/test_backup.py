"""Backup and restore with the commands in the handbook."""

import io
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections
from psycopg.conninfo import conninfo_to_dict

from deliveries_app.actors import Actor
from deliveries_app.models import RootCause
from deliveries_app.services import check_watch, send_differences
from deliveries_app.services.keys import retire_old_key, start_key_rotation
from deliveries_app.services.tokens import authenticate, rotate_app_token
from tests.deliveries.conftest import world
from tests.docora.test_docs import read, text_of
from tests.support.deployment import ENV_FILE, UNITS, compose, unit
from tests.support.histories import shas
from tests.support.postgres import PostgresServer
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.valkey import ValkeyServer
from tests.support.world import World

__all__ = ["world"]

TOKEN = "a-token-of-a-private-repository"


def run(block: str, folder: Path, **environment: str) -> None:
    """Run a code block of the handbook in this folder, which also replaces /var/lib/docora."""
    script = read("/docs/operations/").code[block].replace("/var/lib/docora", str(folder / "data"))
    script = script.replace("python3 ", f"{sys.executable} ")
    subprocess.run(["sh", "-ec", script], cwd=folder, env={"PATH": os.environ["PATH"]} | environment, check=True)


def test_every_app_holds_head_after_restoring_an_old_backup(
    world: World,
    postgres_server: PostgresServer,
    valkey_server: ValkeyServer,
    instance_environment: dict[str, str],
    tmp_path: Path,
    settings,
) -> None:
    settings.RESCAN_INTERVAL_SECONDS = settings.RESCAN_MIN_INTERVAL_SECONDS = 1
    tools = {"PATH": f"{postgres_server._binary('pg_dump').parent}:{os.environ['PATH']}"}
    world.app.send_sync_completed = True
    world.app.save()
    before = {"kept": b"kept", "changed": b"1", "removed": b"removed", "there-and-back": b"A"}
    repo = world.git.repo("acme/widgets", before, token=TOKEN)
    watch = world.watch_url(repo, token=TOKEN)
    world.settle()
    connections.close_all()
    run("backup-postgres", tmp_path, **tools, POSTGRES_URL=instance_environment["DATABASE_URL"])

    repo.commit({"changed": b"2", "new": b"new", "removed": None, "ghost": b"ghost", "there-and-back": b"B"})
    world.settle()
    repo.commit(
        {"changed": b"3", "newer": b"newer", "ghost": None, "there-and-back": b"A"}
    )  # then the database is lost
    head = shas(repo.files())
    left_over = {path: sha for path, sha in world.copy(watch).items() if path == "ghost"}
    assert left_over

    with valkey_server.client() as client:
        client.flushall()
    restored = postgres_server.create_database(f"restored_{os.getpid()}")
    for _ in range(2):  # into an empty database, and into that of a newer version
        run("restore-postgres", tmp_path, **tools, POSTGRES_URL=restored)
        with psycopg.connect(restored) as database:
            [(newer,)] = database.execute("SELECT to_regclass('newer')")
            assert newer is None
            database.execute("CREATE TABLE newer (watch bigint REFERENCES deliveries_app_apprepository)")
    data = tmp_path / "another-machine"
    data.mkdir()
    shutil.copy(settings.DATA_DIR / "keys.json", data)
    daemons = Daemons(
        tmp_path,
        instance_environment
        | {"DATABASE_URL": restored, "DATA_DIR": str(data), "REPOS_DIR": str(data / "repos")}
        | {"SWEEP_INTERVAL_SECONDS": "0.5", "RESCAN_MIN_INTERVAL_SECONDS": "1", "RESCAN_INTERVAL_SECONDS": "1"},
    )

    def synced() -> bool:
        with psycopg.connect(restored) as database:
            [(status, commit)] = database.execute("SELECT status, last_commit FROM deliveries_app_apprepository")
        return (status, commit) == ("synced", repo.head)

    try:
        daemons.sweep(), daemons.worker(), daemons.worker()
        wait_for(synced, 60, 0.1)
        assert world.copy(watch) == head | left_over | shas({"there-and-back": b"B"})

        resync = daemons.start("resync", world.app.app_id, "--wait", "--yes")
        assert resync.process.wait(60) == 0, daemons.logs()
        assert world.copy(watch) == head | left_over
        wait_for(lambda: world.requests("sync_completed")[-1].outcome == "differs", 20)

        repo.commit({"ghost": b"once more"})
        wait_for(synced, 60, 0.1)
        repo.commit({"ghost": None})
        wait_for(synced, 60, 0.1)
        assert world.copy(watch) == head
        wait_for(lambda: world.requests("sync_completed")[-1].outcome == "matches", 20)
        assert "Traceback" not in daemons.logs()
    finally:
        daemons.close()


def test_changes_after_the_backup_are_undone_and_can_be_repeated(
    world: World,
    postgres_server: PostgresServer,
    instance_environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replaced token is valid again, a rotated key is lost, and a check finds the file whose delete wasn't delivered."""
    actor, new_key = Actor.command(), "a-key-that-the-app-got-after-the-backup"
    tools = {"PATH": f"{postgres_server._binary('pg_dump').parent}:{os.environ['PATH']}"}
    tools["POSTGRES_URL"] = instance_environment["DATABASE_URL"]
    leaked = rotate_app_token(actor, world.app).token
    world.app.answers_verify = True
    world.app.save()
    repo, watch = world.watch({"kept": b"1"})
    world.settle()
    connections.close_all()
    run("backup-postgres", tmp_path, **tools)

    repo.commit({"ghost": b"ghost"})
    world.settle()
    repo.commit({"ghost": None, "kept": b"2"})
    start_key_rotation(actor, world.app, new_key)
    world.receiver.keys = new_key
    call_command("ping_app", world.app.app_id, "--new-key")
    retire_old_key(actor, world.app)
    current = rotate_app_token(actor, world.app, overlap=timedelta(0)).token
    assert (authenticate(leaked), authenticate(current)) == (None, world.app)
    connections.close_all()
    run("restore-postgres", tmp_path, **tools)

    assert (authenticate(leaked), authenticate(current)) == (world.app, None)
    current = rotate_app_token(actor, world.app, overlap=timedelta(0)).token
    assert (authenticate(leaked), authenticate(current)) == (None, world.app)

    world.check()
    world.sync(watch)
    assert watch.root_cause == RootCause.REFUSED
    [paragraph] = re.findall("If an app's key was rotated.*", text_of("/docs/operations/"))
    monkeypatch.setattr("sys.stdin", io.StringIO(new_key))
    for name, option in re.findall(r"(rotate_key|ping_app) APP_ID (--[\w-]+)", paragraph):
        call_command(name, world.app.app_id, option)
    world.sync(watch)
    world.settle()
    assert world.copy(watch) == shas(repo.files() | {"ghost": b"ghost"})

    check = check_watch(actor, watch)
    world.settle()
    send_differences(actor, check)
    world.settle()
    assert world.copy(watch) == shas(repo.files())


def test_url_for_the_tools_lacks_parameters_of_docora() -> None:
    """Those of the handbook for PgBouncer would end `pg_dump`."""
    named = re.search(r"parameters that libpq doesn't know, such as (\w+)", text_of("/docs/operations/"))
    with pytest.raises(psycopg.ProgrammingError, match="invalid URI query parameter"):
        conninfo_to_dict(f"postgres://docora@127.0.0.1/docora?{named[1]}=true")


def test_sqlite_backup_during_writes_and_restore(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    owner = 54321 if os.geteuid() == 0 else os.geteuid()  # root restores the file for the user of the processes
    os.chown(data, owner, -1)
    (data / "keys.json").write_text("{}")
    file = data / "docora.sqlite3"
    stop_writing = threading.Event()

    def write() -> None:
        """Write two rows per transaction, so that an inconsistent copy has an odd number of rows, or none."""
        database = sqlite3.connect(file, isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE rows (number INTEGER)")
        while not stop_writing.is_set():
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT INTO rows VALUES (1)")
            database.execute("INSERT INTO rows VALUES (2)")
            database.execute("COMMIT")
        database.close()

    def rows(path: Path) -> int:
        with sqlite3.connect(path, timeout=20) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return database.execute("SELECT count(*) FROM rows").fetchone()[0]

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_for(lambda: file.exists() and file.with_name("docora.sqlite3-wal").exists(), 10)
        wait_for(lambda: _has_rows(file), 10)
        run("backup-sqlite", tmp_path)
        backed_up = rows(tmp_path / "docora-backup.sqlite3")
        wait_for(lambda: rows(file) > backed_up, 10)
    finally:
        stop_writing.set()
        writer.join(20)
    assert backed_up > 0
    assert backed_up % 2 == 0
    assert (tmp_path / "keys.json").exists()
    file.with_name("docora.sqlite3-wal").write_bytes(b"of the lost database")
    run("restore-sqlite", tmp_path)
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (owner, 0o600)
    assert rows(file) == backed_up


def test_restore_stops_every_process_that_uses_the_database() -> None:
    shown = read("/docs/operations/").code
    stopped = set(shlex.split(shown["stop-units"])[2:])
    assert stopped == {"docora-web.socket", "docora.target", "docora-worker@*"}
    for path in UNITS.glob("docora-*.service"):
        assert unit(path.name)["PartOf"] == ["docora.target"], path.name  # stopped with it
    for path in UNITS.glob("docora*.socket"):
        assert path.name in stopped
    services = compose(ENV_FILE)["services"]
    working = {name for name, service in services.items() if service["image"] == "docora"}
    assert set(shlex.split(shown["stop-containers"])[3:]) == working - {"migrate"}  # it has ended before they began


def test_restore_empties_the_database_in_containers_too() -> None:
    emptied = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
    assert f'"{emptied}"' in read("/docs/operations/").code["restore-postgres"]
    in_containers = f'docker compose exec -T db psql --username=docora --dbname=docora --command="{emptied}"'
    assert in_containers in text_of("/docs/operations/")
    assert "Use another database, not only another schema" in text_of("/docs/operations/")  # than the imported service


@pytest.mark.parametrize("tool", ["pg_dump", "pg_restore"])
def test_backup_commands_are_the_same_in_containers(tool: str) -> None:
    code = "\n".join(read("/docs/operations/").code.values())
    [plain] = re.findall(rf"(?m)^{tool} (.*)", code)
    [inside] = re.findall(rf"docker compose exec -T db {tool} (.*?) [<>] docora.dump", text_of("/docs/operations/"))
    assert "--username=docora" in inside

    def options(command: str) -> set[str]:
        return {word for word in command.split() if word.startswith("--")} - {"--username=docora"}

    def is_place(option: str) -> bool:
        return option.startswith(("--dbname", "--file"))

    assert {one for one in options(plain) if not is_place(one)} == {one for one in options(inside) if not is_place(one)}


def _has_rows(file: Path) -> bool:
    try:
        with sqlite3.connect(file, timeout=20) as database:
            return bool(database.execute("SELECT count(*) FROM rows").fetchone()[0])
    except sqlite3.OperationalError:
        return False
