"""JSON output of commands: one object with the documented keys, and nothing else on stdout."""

import contextlib
import io
import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.models import App, AuditAction, ContactMail, DriftCheck, DriftState, SyncRun
from deliveries_app.receiver import Record
from deliveries_app.sweep import retention
from tests.deliveries.sender import KEY, Sender
from tests.support.commands import PROJECT, run, run_json
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.staff import make_app, make_watch
from tests.support.world import World

COLUMNS = [
    "deliveries_app.App.client_auth_key",
    "deliveries_app.App.new_auth_key",
    "deliveries_app.AppRepository.github_token",
    "deliveries_app.AppRepository.push_secret",
    "mfa.Authenticator.data",
    "repositories_app.GitHubApp.private_key",
]


def test_sweep_prints_the_number_enqueued(world: World, redis_client) -> None:
    world.watch()
    redis_client.flushall()
    assert run_json("sweep", "--once") == {"enqueued": 1}
    with pytest.raises(CommandError, match="--json needs --once") as wrong:
        run("sweep", "--json")
    assert wrong.value.returncode == 2


def test_ctrl_c_ends_the_sweep(instance_environment: dict[str, str], redis_client, tmp_path: Path) -> None:
    daemons = Daemons(tmp_path, instance_environment)
    try:
        sweep = daemons.sweep()
        wait_for(lambda: redis_client.exists("docora:heartbeat:sweep"), timeout=30)
        sweep.process.send_signal(signal.SIGINT)
        assert sweep.process.wait(20) == 0
    finally:
        daemons.close()


def test_prune_counts_what_it_removes(db, capsys, monkeypatch) -> None:
    monkeypatch.setattr(retention, "_SLICE", 2)
    monkeypatch.setattr("docora.cli.output._LINE_SECONDS", 0.0)
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    watch = make_watch(make_app("Portal"), "docs")
    SyncRun.objects.bulk_create(
        SyncRun(watch=watch, reason="change", generation=1, created_at=long_ago, ended_at=long_ago, outcome="succeeded")
        for _ in range(6)  # the newest one stays
    )
    entry = audit.entry(Actor.command(), AuditAction.PING, watch.app, "Sent a test ping")
    entry.created_at = long_ago
    entry.save()
    DriftCheck.objects.create(watch=watch, state=DriftState.EQUAL, created_at=long_ago, ended_at=long_ago)
    ContactMail.objects.create(created_at=long_ago)  # never sent
    counted = run_json("prune", "--dry-run")
    assert set(counted) == {
        "dry_run",
        "runs",
        "operations",
        "checks",
        "audit_entries",
        "traffic",
        "alerts",
        "sessions",
        "delivery_attempts",
        "mails",
        "snapshots",
    }
    assert counted.keys() - {"dry_run"} == retention.prune(dry_run=True).keys(), "give the new kind a label in prune.py"
    assert (counted["dry_run"], counted["runs"]) == (True, 5)
    removed = "Removed: 5 sync runs, 1 check for differences, 1 audit log entry, 1 email to an app's contact."
    assert removed in run("prune")
    assert capsys.readouterr().err.splitlines()[:3] == ["Removed: 2", "Removed: 4", "Removed: 5"]
    assert run_json("prune") == dict.fromkeys(counted, 0) | {"dry_run": False}


def test_rotate_encryption_keys_counts_each_column(db, settings, capsys) -> None:
    settings.ENCRYPTION_KEYS = ["the-first-key-of-all"]
    lost = make_app("Lost")
    settings.ENCRYPTION_KEYS = ["a-newer-key-in-front"]
    make_app("Fine")
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 stored secret cannot be decrypted"):
        call_command("rotate_encryption_keys", "--json", stdout=out)
    printed = json.loads(out.getvalue())
    assert sorted(printed) == ["columns", "dry_run"]
    assert sorted(printed["columns"]) == COLUMNS
    keys = printed["columns"]["deliveries_app.App.client_auth_key"]
    assert keys == {"renewed": 0, "current": 1, "unreadable": [lost.pk]}
    assert capsys.readouterr().out == ""


def test_send_test_alert_prints_the_result_of_each_channel(world: World, settings) -> None:
    settings.ALERT_WEBHOOK_URL = f"{world.receiver.url}/alerts"
    out = io.StringIO()
    with pytest.raises(CommandError, match="could not be delivered"):
        call_command("send_test_alert", "--json", stdout=out)
    [channel] = json.loads(out.getvalue())["channels"]
    assert (channel["target"], channel["delivered"], bool(channel["problem"])) == ("the webhook", False, True)


def test_json_output_escapes_non_ascii_text(db) -> None:
    App.objects.filter(pk=make_app("Portal").pk).update(name="Pörtäl ☃")
    printed = run("list_apps", "--json")
    assert printed.isascii()
    assert json.loads(printed)["name"] == "Pörtäl ☃"


def start_receiver(directory: Path, *, key_stdin: bool = False) -> tuple[subprocess.Popen[str], Sender]:
    process = subprocess.Popen(
        [
            sys.executable,
            str(PROJECT / "manage.py"),
            "receiver",
            "--json",
            "--port=0",
            "--dir",
            directory,
            *(["--key-stdin"] if key_stdin else ["--key", KEY]),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    if key_stdin:
        process.stdin.write(f"{KEY}\n")
    process.stdin.close()
    process.stdin = None
    assert process.stderr
    listening = process.stderr.readline()

    class At:
        port = int(listening.partition(",")[0].rpartition(":")[2])

    return process, Sender(At())


def test_receiver_prints_one_line_per_notification(tmp_path: Path) -> None:
    process, sender = start_receiver(tmp_path)
    try:
        for path in ("a", "b"):
            assert sender.send(path, "text") == 200
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["path"] for line in lines] == ["a", "b"]
    assert set(lines[0]) == set(Record.__annotations__)
    assert process.returncode == 0
    assert {file.name for file in tmp_path.rglob("*") if file.is_file() and file.read_bytes() == b"text"} == {"a", "b"}


def test_receiver_reads_its_key_from_stdin(tmp_path: Path) -> None:
    process, sender = start_receiver(tmp_path, key_stdin=True)
    try:
        assert KEY.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert sender.send("a", "text") == 200
        assert sender.send("b", "text", key="another-key") == 401
        process.send_signal(signal.SIGINT)
        printed, shown = process.communicate(timeout=20)
    finally:
        process.kill()
    assert [json.loads(line)["status"] for line in printed.splitlines()] == [200, 401]
    assert "generated" not in shown


def test_receiver_without_a_key_on_stdin_is_wrong_usage(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    with pytest.raises(CommandError, match="There is no key on stdin") as wrong:
        call_command("receiver", "--key-stdin", "--dir", str(tmp_path))
    assert wrong.value.returncode == 2
    with pytest.raises(CommandError, match="not allowed with"):
        call_command("receiver", "--key-stdin", "--key", KEY, "--dir", str(tmp_path))


def test_receiver_exits_when_stdout_is_closed(tmp_path: Path) -> None:
    process, sender = start_receiver(tmp_path)
    try:
        assert process.stdout
        process.stdout.close()
        with contextlib.suppress(ConnectionError):  # it may end before it answers
            sender.send("a", "text")
        assert process.wait(20) == 141
        assert process.stderr
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
