"""`resync` and `retry`: confirmation, output, and `--wait`."""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from django.core.management import CommandError, call_command
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.management import progress
from deliveries_app.models import App, AppRepository, BulkOperation, SyncRun
from deliveries_app.progress import live
from deliveries_app.services import cancel_operation, cancel_request, pause_syncing, resync_single
from deliveries_app.services.rollout import release_due
from tests.support.commands import PROJECT, manage, run, run_json
from tests.support.receiver import Answer, wait_for
from tests.support.staff import make_watch
from tests.support.syncing import sync
from tests.support.world import World


@pytest.fixture
def watch(world: World) -> AppRepository:
    _, watch = world.watch({"a.txt": b"a", "b.txt": b"b"})
    return world.sync(watch)


def while_waiting(monkeypatch, action: Callable[[], object]) -> None:
    """Let the command perform the action instead of sleeping between polls. Other threads of this process still sleep."""
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: action())
    monkeypatch.setattr(progress, "time", clock)


def refuse_b(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 1
    world.answer(lambda notification: Answer(500) if notification.path == "b.txt" else None)


def test_resync_without_a_terminal_or_yes_does_nothing(world: World, watch: AppRepository) -> None:
    question = r"This will re-sync acme/widgets for Portal and send ALL 2 files .*no terminal to ask on\. Add --yes"
    with pytest.raises(CommandError, match=question) as refused:
        run("resync", world.app.app_id)
    assert refused.value.returncode == 2
    assert SyncRun.objects.count() == 1
    make_watch(world.app, "acme/gadgets")
    with pytest.raises(CommandError, match="This will re-sync all 2 repositories for Portal and send ALL 102 files"):
        run("resync", world.app.app_id)


def test_resync_prints_the_request(world: World, watch: AppRepository) -> None:
    single, many = (world.app.app_id, watch.repository.repository_id, "--yes"), (world.app.app_id, "--yes")
    assert "Re-sync queued, run_" in run("resync", *single)
    assert "Bulk re-sync started, bulk_" in run("resync", *many)
    assert run_json("resync", *single) == {"kind": "resync", "run_id": SyncRun.objects.first().run_id, "total": 1}
    printed = run_json("resync", *many)
    assert printed == {"kind": "resync", "operation_id": BulkOperation.objects.first().operation_id, "total": 1}


@pytest.mark.parametrize("many", [True, False])
def test_wait_prints_the_final_numbers(world: World, watch: AppRepository, monkeypatch, many: bool) -> None:
    while_waiting(monkeypatch, lambda: sync(watch.pk))
    ids = [world.app.app_id] if many else [world.app.app_id, watch.repository.repository_id]
    printed = run_json("resync", *ids, "--wait", "--yes")
    assert (printed["succeeded"], printed["total"], printed["files_done"], printed["percent"]) == (1, 1, 2, 100)
    assert printed["finished"] is True
    assert printed.get("outcome", "succeeded") == "succeeded"


@pytest.mark.parametrize("many", [True, False])
def test_wait_exits_with_1_if_something_failed(
    world: World, watch: AppRepository, monkeypatch, settings, many: bool
) -> None:
    refuse_b(world, settings)
    while_waiting(monkeypatch, lambda: sync(watch.pk))
    ids = [world.app.app_id] if many else [world.app.app_id, watch.repository.repository_id]
    out = io.StringIO()
    with pytest.raises(
        CommandError, match=f"{'1 of 1 repository did not succeed: 1 failed. acme/widgets: .*' if many else ''}HTTP 500"
    ) as failed:
        call_command("resync", *ids, "--wait", "--yes", "--json", stdout=out)
    assert failed.value.returncode == 1
    printed = json.loads(out.getvalue())
    assert (printed["failed"], printed["files_failed"], printed["finished"]) == (1, 1, True)


def test_wait_names_status_if_several_failed(world: World, watch: AppRepository, monkeypatch, settings) -> None:
    _, other = world.watch({"b.txt": b"b"}, name="acme/gadgets")
    refuse_b(world, settings)
    while_waiting(monkeypatch, lambda: (sync(watch.pk), sync(other.pk)))
    with pytest.raises(CommandError, match=f"2 failed. To see why: manage.py status {world.app.app_id}"):
        run("resync", world.app.app_id, "--wait", "--yes")


@pytest.mark.parametrize("outcome", ["cancelled", "superseded by a later request"])
def test_wait_for_a_run_that_is_cancelled_or_superseded(
    world: World, watch: AppRepository, monkeypatch, outcome: str
) -> None:
    def meanwhile() -> None:
        if outcome == "cancelled":
            cancel_request(Actor.system(), watch)
        else:
            resync_single(Actor.system(), watch)
            sync(watch.pk)

    while_waiting(monkeypatch, meanwhile)
    with pytest.raises(CommandError, match=f"It did not succeed: {outcome}"):
        run("resync", world.app.app_id, watch.repository.repository_id, "--wait", "--yes")


def test_wait_for_an_operation_that_is_cancelled(world: World, watch: AppRepository, monkeypatch) -> None:
    while_waiting(monkeypatch, lambda: cancel_operation(Actor.system(), BulkOperation.objects.get()))
    with pytest.raises(CommandError, match="1 of 1 repository did not succeed: 1 cancelled"):
        run("resync", world.app.app_id, "--wait", "--yes")


def test_wait_that_times_out(world: World, watch: AppRepository) -> None:
    out = io.StringIO()
    cancel = f"The sync continues.*manage.py cancel {world.app.app_id} {watch.repository.repository_id}"
    with pytest.raises(CommandError, match=cancel) as late:
        call_command(
            "resync",
            world.app.app_id,
            watch.repository.repository_id,
            "--wait",
            "--yes",
            "--timeout=0.4",
            "--json",
            stdout=out,
        )
    assert late.value.returncode == 1
    assert json.loads(out.getvalue())["finished"] is False
    assert SyncRun.objects.first().outcome == ""


def test_timeout_without_wait_and_invalid_timeouts(world: World, watch: AppRepository) -> None:
    with pytest.raises(CommandError, match="--timeout needs --wait") as wrong:
        run("resync", world.app.app_id, "--yes", "--timeout", "5")
    assert wrong.value.returncode == 2
    assert SyncRun.objects.count() == 1
    for value in ("-1", "nan", "soon"):
        done = manage("retry", "--all", "--wait", f"--timeout={value}")
        assert (done.returncode, "--timeout" in done.stderr) == (2, True), value


def test_wait_while_all_syncing_is_paused(world: World, watch: AppRepository, capsys) -> None:
    pause_syncing(Actor.system())
    with pytest.raises(CommandError, match="The sync continues"):
        run("resync", world.app.app_id, "--wait", "--yes", "--timeout=0")
    assert "All syncing is paused" in capsys.readouterr().err


@pytest.mark.parametrize("many", [True, False])
def test_wait_for_a_paused_app_and_an_unfinished_import(world: World, watch: AppRepository, capsys, many: bool) -> None:
    App.objects.update(paused=True)
    AppRepository.objects.update(arriving=True)
    ids = [world.app.app_id] if many else [world.app.app_id, watch.repository.repository_id]
    with pytest.raises(CommandError, match="The sync continues"):
        run("resync", *ids, "--wait", "--yes", "--timeout=0")
    printed = capsys.readouterr().err
    assert f"{world.app} is paused. This waits until it is resumed." in printed
    assert (
        "1 repository waits for an unfinished import. If none is running, run manage.py import_docora again." in printed
    )
    AppRepository.objects.update(arriving=False)
    with pytest.raises(CommandError, match="The sync continues"):
        run("resync", *ids, "--wait", "--yes", "--timeout=0")
    assert "import" not in capsys.readouterr().err


def test_wait_for_what_is_not_released_yet(world: World, watch: AppRepository, capsys) -> None:
    make_watch(world.app, "other")
    App.objects.update(paused=True)
    AppRepository.objects.filter(pk=watch.pk).update(paused_at=Now())
    with pytest.raises(CommandError, match="The sync continues"):
        run("resync", world.app.app_id, "--canary", "--wait", "--yes", "--timeout=0")
    printed = capsys.readouterr().err
    assert f"{world.app} is paused. This waits until it is resumed." in printed
    assert "1 repository is paused. This waits until it is resumed." in printed


def test_ctrl_c_stops_waiting_but_not_the_sync(
    world: World, watch: AppRepository, instance_environment: dict[str, str]
) -> None:
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "manage.py"), "resync", world.app.app_id, "--wait", "--yes"],
        env=instance_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        operation = wait_for(BulkOperation.objects.first, timeout=30)
        assert process.stdout
        assert operation.operation_id in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"The sync continues. To cancel it: manage.py cancel {operation.operation_id}" in errors
    assert "Traceback" not in errors
    operation.refresh_from_db()
    assert operation.ended_at is None


def test_retry_one_an_app_or_all(world: World, watch: AppRepository, monkeypatch, settings) -> None:
    refuse_b(world, settings)
    while_waiting(monkeypatch, lambda: sync(watch.pk))
    with pytest.raises(CommandError):
        run("resync", world.app.app_id, "--wait", "--yes")
    for ids in ([world.app.app_id, watch.repository.repository_id], [world.app.app_id], ["--all"]):
        with pytest.raises(CommandError, match="HTTP 500"):
            run("retry", *ids, "--wait")
    world.answer(None)
    sent = len(world.requests())
    printed = run_json("retry", world.app.app_id, "--wait")
    assert (printed["kind"], printed["succeeded"], printed["files_done"]) == ("retry", 1, 1)
    assert [record.path for record in world.requests()[sent:]] == ["b.txt"]


def test_retry_with_nothing_failing_succeeds(world: World, watch: AppRepository) -> None:
    for ids in ([world.app.app_id, watch.repository.repository_id], [world.app.app_id], ["--all"]):
        assert "Nothing is failing" in run("retry", *ids, "--wait")
        assert run_json("retry", *ids) == {"kind": "retry", "total": 0}


@pytest.mark.parametrize("arguments", [[], ["app_1", "--all"]])
def test_retry_needs_an_app_or_all(db, arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="Give an app id, or --all") as wrong:
        run("retry", *arguments)
    assert wrong.value.returncode == 2


def test_resync_with_a_canary_that_fails_is_held(world: World, watch: AppRepository, monkeypatch, settings) -> None:
    world.watch({"c.txt": b"c", "d.txt": b"d", "e.txt": b"e"}, name="acme/other")
    world.settle()
    refuse_b(world, settings)

    def work() -> None:
        sync(watch.pk)
        release_due()

    while_waiting(monkeypatch, work)
    with pytest.raises(
        CommandError, match=r"Held\. Portal: acme/widgets failed: .*continue_resync bulk_\w+\. .*cancel bulk_"
    ):
        run("resync", world.app.app_id, "--canary", "--pace", "60", "--wait", "--yes")
    operation = BulkOperation.objects.get()
    assert (operation.canary, operation.pace, live.of_operation(operation).unreleased) == (True, 60, 1)
    assert run_json("continue_resync", operation.operation_id) == {"continued": 1}
    assert run_json("continue_resync", operation.operation_id) == {"continued": 0}
    assert run("continue_resync", operation.operation_id) == "The operation is not held.\n"
    assert "Cancelled: 1 repository." in run("cancel", operation.operation_id)


@pytest.mark.parametrize("pace", ["0", "many", "100001"])
def test_invalid_pace_is_refused(world: World, watch: AppRepository, pace: str) -> None:
    with pytest.raises(CommandError, match="--pace: must be a number from 1 to 100,000"):
        run("resync", world.app.app_id, "--pace", pace, "--yes")


def test_canary_of_one_repository_is_refused(world: World, watch: AppRepository) -> None:
    with pytest.raises(CommandError, match="for all repositories of an app"):
        run("resync", world.app.app_id, watch.repository.repository_id, "--canary", "--yes")
