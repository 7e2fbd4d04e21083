"""Runs of a repository, with their progress."""

from datetime import timedelta

from django.utils import timezone

from deliveries_app.models import AppRepository, SyncRun
from tests.api.caller import BASE, Caller
from tests.support.receiver import Answer
from tests.support.world import World


def test_run_shows_its_progress_until_it_has_ended(world: World, caller: Caller) -> None:
    _, watch = world.watch({"a": b"1", "b": b"22"})
    path = f"/{watch.repository.repository_id}"
    world.settle()
    run_id = caller.post(f"{path}/resync").json()["run_id"]
    run = caller.get(f"{path}/runs/{run_id}").json()
    assert (run["reason"], run["outcome"], run["files_total"], run["percent"]) == ("resync", None, 2, 0)
    seen: list[int] = []
    world.answer(lambda note: seen.append(caller.get(f"{path}/runs/{run_id}").json()["percent"]))
    world.settle()
    assert all(percent < 100 for percent in seen)
    run = caller.get(f"{path}/runs/{run_id}").json()
    assert (run["outcome"], run["files_done"], run["bytes_done"], run["percent"]) == ("succeeded", 2, 3, 100)
    assert run["commit_sha"] == watch.repository.snapshots.get().commit_sha
    assert run["created_at"] <= run["started_at"] <= run["ended_at"]
    _, initial = world.runs(watch)
    assert caller.get(f"{path}/runs/{initial.run_id}").json()["reason"] == "initial"


def test_failed_run_says_why(world: World, caller: Caller, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 1
    _, watch = world.watch({"a": b"1"})
    world.answer(lambda note: Answer(422))
    world.sync(watch)
    (run,) = caller.get(f"/{watch.repository.repository_id}/runs", outcome="failed").json()["runs"]
    assert "HTTP 422" in run["error"]
    assert run["files_failed"] == 1


def test_runs_are_filtered_and_paged_newest_first(portal: Caller, watches) -> None:
    now = timezone.now()
    names = {"app_name": "Portal", "repository_name": "acme/docs", "requested_by": "x", "generation": 1}
    for number in range(5):
        outcome = {"outcome": "succeeded", "ended_at": now} if number else {}
        SyncRun.objects.create(
            watch=watches[0],
            reason="resync" if number == 3 else "change",
            created_at=now - timedelta(minutes=(number + 1) // 2),  # equal times on both sides of a page's end
            **names,
            **outcome,
        )
    SyncRun.objects.create(watch=watches[1], reason="change", **names)
    path = f"/{watches[0].repository.repository_id}/runs"
    found, after = [], ""
    while after is not None:
        page = portal.get(path, limit=2, after=after).json()
        found += [run["run_id"] for run in page["runs"]]
        after = page["next"]
    newest_first = SyncRun.objects.filter(watch=watches[0]).order_by("-created_at", "-pk")
    assert found == list(newest_first.values_list("run_id", flat=True))
    assert [run["reason"] for run in portal.get(path, reason="resync").json()["runs"]] == ["resync"]
    assert len(portal.get(path, open="true").json()["runs"]) == 1
    assert len(portal.get(path, open="false").json()["runs"]) == 4


def test_run_that_could_not_read_the_repository_is_not_at_100_percent(world: World, caller: Caller, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 1
    body = {"github_url": f"{world.git.url}/acme/missing"}
    registered = caller.client.post(BASE, body, content_type="application/json", headers={"Prefer": "respond-async"})
    world.sync(AppRepository.objects.get())
    (run,) = caller.get(f"/{registered.json()['repository_id']}/runs").json()["runs"]
    assert (run["outcome"], run["files_total"], run["percent"]) == ("failed", 0, 0)
