"""`resync` and `retry`: they ask, say what was asked for, and wait for its end if they are told to."""

import io
import json
import signal
import subprocess
import sys

import pytest
from django.core.management import CommandError, call_command

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, BulkOperation, SyncRun
from deliveries_app.services import cancel_operation, cancel_request, pause_syncing, resync_single
from deliveries_app.sync.attempt import sync
from tests.support.commands import PROJECT, manage, run, run_json
from tests.support.receiver import Answer, wait_for
from tests.support.world import World

SLEEP = "deliveries_app.management.progress.time.sleep"


@pytest.fixture
def watch(world: World) -> AppRepository:
    _, watch = world.watch({"a.txt": b"a", "b.txt": b"b"})
    return world.sync(watch)


def refuse_b(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 1
    world.answer(lambda notification: Answer(500) if notification.path == "b.txt" else None)


def test_resync_does_nothing_when_nobody_is_there_to_be_asked(world: World, watch: AppRepository) -> None:
    with pytest.raises(CommandError, match=r"send ALL 2 files .*no terminal to ask at; .*add --yes") as refused:
        run("resync", world.app.app_id)
    assert refused.value.returncode == 2
    assert SyncRun.objects.count() == 1


def test_resync_says_what_was_asked_for(world: World, watch: AppRepository) -> None:
    single, many = (world.app.app_id, watch.repository.repository_id, "--yes"), (world.app.app_id, "--yes")
    assert "Re-sync queued, run_" in run("resync", *single)
    assert "Bulk re-sync started, bulk_" in run("resync", *many)
    assert run_json("resync", *single) == {"kind": "resync", "run_id": SyncRun.objects.first().run_id, "total": 1}
    told = run_json("resync", *many)
    assert told == {"kind": "resync", "operation_id": BulkOperation.objects.first().operation_id, "total": 1}


@pytest.mark.parametrize("many", [True, False])
def test_wait_ends_with_the_numbers_of_the_end(world: World, watch: AppRepository, monkeypatch, many: bool) -> None:
    # The worker of this test: it runs whenever the command looks.
    monkeypatch.setattr(SLEEP, lambda _: sync(watch.pk))
    ids = [world.app.app_id] if many else [world.app.app_id, watch.repository.repository_id]
    told = run_json("resync", *ids, "--wait", "--yes")
    assert (told["succeeded"], told["total"], told["files_done"], told["percent"]) == (1, 1, 2, 100)
    assert told["finished"] is True
    assert told.get("outcome", "succeeded") == "succeeded"


@pytest.mark.parametrize("many", [True, False])
def test_wait_ends_with_1_if_something_failed(
    world: World, watch: AppRepository, monkeypatch, settings, many: bool
) -> None:
    refuse_b(world, settings)
    monkeypatch.setattr(SLEEP, lambda _: sync(watch.pk))
    ids = [world.app.app_id] if many else [world.app.app_id, watch.repository.repository_id]
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 of 1 repositories did not" if many else "answered 500") as failed:
        call_command("resync", *ids, "--wait", "--yes", "--json", stdout=out)
    assert failed.value.returncode == 1
    told = json.loads(out.getvalue())
    assert (told["failed"], told["files_failed"], told["finished"]) == (1, 1, True)


@pytest.mark.parametrize("way", ["cancelled", "taken over by a later request"])
def test_what_was_cancelled_or_taken_over_did_not_succeed(
    world: World, watch: AppRepository, monkeypatch, way: str
) -> None:
    def meanwhile(_: float) -> None:
        if way == "cancelled":
            cancel_request(Actor.system(), watch)
        else:
            resync_single(Actor.system(), watch)
            sync(watch.pk)

    monkeypatch.setattr(SLEEP, meanwhile)
    with pytest.raises(CommandError, match=f"It did not succeed: {way}"):
        run("resync", world.app.app_id, watch.repository.repository_id, "--wait", "--yes")


def test_a_cancelled_operation_did_not_succeed(world: World, watch: AppRepository, monkeypatch) -> None:
    monkeypatch.setattr(SLEEP, lambda _: cancel_operation(Actor.system(), BulkOperation.objects.get()))
    with pytest.raises(CommandError, match="1 of 1 repositories did not succeed: 1 cancelled"):
        run("resync", world.app.app_id, "--wait", "--yes")


def test_a_wait_that_has_lasted_long_enough_says_that_it_goes_on(world: World, watch: AppRepository) -> None:
    out = io.StringIO()
    cancel = f"goes on by itself.*manage.py cancel {world.app.app_id} {watch.repository.repository_id}"
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


def test_a_timeout_without_a_wait_is_wrong_usage_and_asks_for_nothing(world: World, watch: AppRepository) -> None:
    with pytest.raises(CommandError, match="--timeout goes with --wait") as wrong:
        run("resync", world.app.app_id, "--yes", "--timeout", "5")
    assert wrong.value.returncode == 2
    assert SyncRun.objects.count() == 1
    for value in ("-1", "nan", "soon"):
        done = manage("retry", "--all", "--wait", f"--timeout={value}")
        assert (done.returncode, "--timeout" in done.stderr) == (2, True), value


def test_while_all_syncing_is_paused_the_wait_says_so(world: World, watch: AppRepository, capsys) -> None:
    pause_syncing(Actor.system())
    with pytest.raises(CommandError, match="goes on by itself"):
        run("resync", world.app.app_id, "--wait", "--yes", "--timeout=0")
    assert "All syncing is paused" in capsys.readouterr().err


@pytest.mark.parametrize("many", [True, False])
def test_what_holds_the_repositories_up_is_said(world: World, watch: AppRepository, capsys, many: bool) -> None:
    App.objects.update(paused=True)
    AppRepository.objects.update(arriving=True)
    ids = [world.app.app_id] if many else [world.app.app_id, watch.repository.repository_id]
    with pytest.raises(CommandError, match="goes on by itself"):
        run("resync", *ids, "--wait", "--yes", "--timeout=0")
    told = capsys.readouterr().err
    assert f"{world.app} is paused: this waits until it is resumed." in told
    assert "1 repository waits for the rest of the import: run manage.py import_docora again." in told


def test_ctrl_c_ends_the_wait_alone_and_says_how_to_cancel(
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
    assert f"It goes on by itself. To cancel it: manage.py cancel {operation.operation_id}" in errors
    assert "Traceback" not in errors
    operation.refresh_from_db()
    assert operation.ended_at is None


def test_retry_of_one_of_an_app_or_of_all_sends_what_failed(
    world: World, watch: AppRepository, monkeypatch, settings
) -> None:
    refuse_b(world, settings)
    monkeypatch.setattr(SLEEP, lambda _: sync(watch.pk))
    with pytest.raises(CommandError):
        run("resync", world.app.app_id, "--wait", "--yes")
    for ids in ([world.app.app_id, watch.repository.repository_id], [world.app.app_id], ["--all"]):
        with pytest.raises(CommandError, match=r"answered 500|1 of 1 repositories"):
            run("retry", *ids, "--wait")
    world.answer(None)
    sent = len(world.requests())
    told = run_json("retry", world.app.app_id, "--wait")
    assert (told["kind"], told["succeeded"], told["files_done"]) == ("retry", 1, 1)
    assert [record.path for record in world.requests()[sent:]] == ["b.txt"]


def test_where_nothing_fails_a_retry_has_nothing_to_do_and_that_is_well(world: World, watch: AppRepository) -> None:
    for ids in ([world.app.app_id, watch.repository.repository_id], [world.app.app_id], ["--all"]):
        assert "Nothing of it is failing" in run("retry", *ids, "--wait")
        assert run_json("retry", *ids) == {"kind": "retry", "total": 0}


@pytest.mark.parametrize("arguments", [[], ["app_1", "--all"]])
def test_retry_wants_to_know_of_what(db, arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="Give an app id, or --all") as wrong:
        run("retry", *arguments)
    assert wrong.value.returncode == 2
