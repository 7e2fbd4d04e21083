"""The run id of a sync appears in the log from the request to the end, across all workers."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, SyncRun
from deliveries_app.progress import runs
from deliveries_app.receiver import Answer
from deliveries_app.services import cancel_operation, onboard_app, resync_many, resync_single, retry_single
from deliveries_app.sync import recorder
from docora import process
from docora.conf.logs import configure
from repositories_app.mirror.mirror import Mirror
from tests.support.git import Repo
from tests.support.histories import at_notification, refusing
from tests.support.world import KEY, World

FILES = {f"{number}.txt": b"content %d" % number for number in range(30)}
TOKEN = "ghp_PlantedPlantedPlantedPlantedPlanted00"
ME = Actor.command()

Lines = Callable[..., list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def batches_of_ten(settings) -> None:
    settings.RECORD_BATCH = 10


@pytest.fixture
def log() -> Iterator[Lines]:
    """`log(run_id="…")` returns the lines of this process with these fields, in order."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure({"format": "json", "level": "DEBUG"})
    stream = io.StringIO()
    root.handlers[0].setStream(stream)

    def lines(**fields: object) -> list[dict[str, Any]]:
        written = [json.loads(line) for line in stream.getvalue().splitlines()]
        return [line for line in written if fields.items() <= line.items()]

    yield lines
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def watched(world: World) -> tuple[Repo, AppRepository]:
    """A synced watch with thirty files, for an app that takes one request at a time."""
    world.app.max_in_flight = 1
    world.app.save()
    repo, watch = world.watch(FILES)
    world.settle()
    return repo, watch


def events(lines: list[dict[str, Any]]) -> list[str]:
    """Return the events of the lines in order, with consecutive batches as one."""
    said = [line["event"] for line in lines]
    return [event for event, before in zip(said, ["", *said], strict=False) if event != before]


START = ["claimed", "fetched", "planned", "sending", "batch_recorded"]


def test_log_of_a_resync(world: World, watched: tuple[Repo, AppRepository], log: Lines) -> None:
    repo, watch = watched
    run = resync_single(ME, watch)
    world.sync(watch)
    lines = log(run_id=run.run_id)
    assert events(lines) == ["sync_requested", *START, "sent", "run_ended"]
    first, claimed, fetched, planned = lines[:4]
    assert (first["requested_by"], first["reason"], first["watch"]) == ("command line", "resync", watch.pk)
    assert (claimed["attempt"], claimed["reason"]) == (1, "resync")
    assert fetched["commit"] == repo.head
    assert planned["files"] == 30
    batches = [line for line in lines if line["event"] == "batch_recorded"]
    assert {line["level"] for line in batches} == {"debug"}
    assert sum(line["files_done"] for line in batches) == 30
    assert len(batches) <= 30 / 10 + 2, "there is a line for each file"
    assert lines[-2]["acknowledged"] == 30
    assert lines[-1]["outcome"] == "succeeded"
    assert {line["claim"] for line in lines[1:]} == {claimed["claim"]}


def test_log_of_a_failure_and_its_retry(
    world: World, watched: tuple[Repo, AppRepository], log: Lines, settings
) -> None:
    settings.MAX_RETRY_ATTEMPTS = 2
    _, watch = watched
    world.answer(refusing("3.txt"))
    run = resync_single(ME, watch)
    world.sync(watch)
    world.sync(watch)
    attempt = [*START, "sent", "attempt_failed"]
    lines = log(run_id=run.run_id)
    assert events(lines) == ["sync_requested", *attempt, *attempt, "run_ended"]
    failed = [line for line in lines if line["event"] == "attempt_failed"]
    assert [(line["cause"], line["attempt"]) for line in failed] == [("http_5xx", 1), ("http_5xx", 2)]
    assert failed[0]["next_try_in"] < failed[1]["next_try_in"] == settings.RESCAN_INTERVAL_SECONDS
    assert lines[-1]["outcome"] == "failed"
    world.answer(None)
    retry = retry_single(ME, watch)
    world.sync(watch)
    lines = log(run_id=retry.run_id)
    assert events(lines) == ["sync_requested", *START, "sent", "run_ended"]
    assert lines[0]["reason"] == "retry"


def test_detected_change_logs_one_run_id(world: World, watched: tuple[Repo, AppRepository], log: Lines) -> None:
    repo, watch = watched
    repo.commit({"new.txt": b"new"})
    world.settle()
    run = SyncRun.objects.filter(watch=watch).latest("pk")
    assert events(log(run_id=run.run_id)) == [*START, "sent", "run_ended"]


def test_log_of_a_superseded_run(world: World, watched: tuple[Repo, AppRepository], log: Lines) -> None:
    _, watch = watched
    first = resync_single(ME, watch)
    world.answer(at_notification(15, lambda: resync_single(ME, watch)))
    world.sync(watch)
    assert events(log(run_id=first.run_id)) == ["sync_requested", *START, "superseded"]
    world.answer(None)
    world.sync(watch)
    second = SyncRun.objects.filter(watch=watch).latest("pk")
    assert events(log(run_id=second.run_id)) == ["sync_requested", *START, "sent", "run_ended"]
    assert log(run_id=first.run_id)[-1]["outcome"] == "superseded"


def test_log_of_a_retry_during_the_git_fetch(world: World, monkeypatch: pytest.MonkeyPatch, log: Lines) -> None:
    _, watch = world.watch(FILES)
    world.answer(refusing("3.txt"))
    world.sync(watch)
    world.answer(None)
    fetch = Mirror.fetch

    def fetch_and_retry(mirror, *arguments, **named):
        retry_single(ME, watch)
        return fetch(mirror, *arguments, **named)

    monkeypatch.setattr(Mirror, "fetch", fetch_and_retry)
    world.sync(watch)
    first, retry = SyncRun.objects.filter(watch=watch).order_by("pk")
    assert events(log(run_id=first.run_id))[-4:] == ["claimed", "run_ended", "fetched", "planned"]
    assert events(log(run_id=retry.run_id)) == ["sync_requested", "sending", "batch_recorded", "sent", "run_ended"]


def test_stopping_worker_hands_over(world: World, watched: tuple[Repo, AppRepository], log: Lines) -> None:
    _, watch = watched
    run = resync_single(ME, watch)
    world.answer(at_notification(15, process.request_stop))
    try:
        world.sync(watch)
    finally:
        process._stopping.clear()
    world.answer(None)
    world.sync(watch)
    lines = log(run_id=run.run_id)
    assert events(lines) == ["sync_requested", *START, "handed_over", *START, "sent", "run_ended"]
    assert len({line["claim"] for line in lines if line["event"] == "claimed"}) == 2


def test_log_of_a_bulk_operation(world: World, monkeypatch: pytest.MonkeyPatch, log: Lines) -> None:
    watches = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(3)]
    world.settle()
    operation = resync_many(ME, AppRepository.objects.all())
    (line,) = log(event="sync_requested", operation_id=operation.operation_id)
    assert (line["runs"], line["requested_by"], "run_id" in line) == (3, "command line", False)
    world.sync(watches[0])
    (run,) = operation.runs.filter(watch=watches[0])
    assert log(run_id=run.run_id)[0]["event"] == "claimed"
    assert log(run_id=run.run_id)[0]["operation_id"] == operation.operation_id
    monkeypatch.setattr(runs, "LOGGED_ONE_BY_ONE", 1)
    cancel_operation(ME, operation)
    (line,) = log(event="runs_ended")
    assert line["cancelled"] == 2


def test_no_line_holds_a_secret(world: World, log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "PUBLISH_SECONDS", 0.0)
    world.git.tokens["acme/secret"] = {TOKEN}
    repo = world.git.repo("acme/secret", FILES)
    made = onboard_app(ME, name="Search", base_url=world.receiver.url, email="a@b.example", client_auth_key=KEY)
    watch = world.watch_url(repo, app=made.app, token=TOKEN)
    world.answer(lambda note: Answer(401, {"error": KEY}) if note.path == "3.txt" else None)
    world.sync(watch)
    assert "attempt_failed" in events(log(watch=watch.pk))
    written = json.dumps(log())
    for secret in (TOKEN, KEY, made.token):
        assert secret not in written
