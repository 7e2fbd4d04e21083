"""Failures, delivery records, manifests in pages, and sending chosen files again."""

import json
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Delivery, DeliveryFailure, SyncRun
from deliveries_app.planning.plan import MAX_SKIPPED_LISTED
from deliveries_app.services import resync_single
from deliveries_app.webhooks.payloads import timestamp
from repositories_app.git.url import host_of
from repositories_app.models import HostOutage
from tests.api.caller import BASE, Caller, code_of, error_of
from tests.api.test_manifest import deliver, lines_of
from tests.support.audit import by_apps
from tests.support.git import Entry
from tests.support.receiver import Answer
from tests.support.world import World


def path_of(watch: AppRepository, call: str) -> str:
    return f"/{watch.repository.repository_id}/{call}"


def pages(caller: Caller, path: str, name: str, **query: object) -> list[list[dict]]:
    """Follow `next` and return the rows of each page."""
    found, after = [], ""
    while after is not None:
        answer = caller.get(path, after=after, **query)
        assert answer.status_code == 200, answer.content
        found.append(answer.json()[name])
        after = answer.json()["next"]
    return found


# --- Failures ----------------------------------------------------------------------------------------------------------


def test_failure_says_what_the_app_answered(world: World, caller: Caller) -> None:
    _, watch = world.watch({"bad.txt": b"1", "good.txt": b"2", "link": b"3"})
    world.answer(lambda note: Answer(500, {"error": "out of disk"}) if note.path == "bad.txt" else None)
    world.sync(watch)
    (failure,) = caller.get(path_of(watch, "failures")).json()["failures"]
    assert failure["path"] == "bad.txt"
    assert (failure["kind"], failure["cause"], failure["status"]) == ("failed", "http", 500)
    assert "out of disk" in failure["response"]
    assert failure["message"] == "The app returned HTTP 500."
    assert failure["attempts"] == 1
    assert failure["next_attempt_at"] > failure["last_at"]
    world.answer(None)
    world.settle()
    assert caller.get(path_of(watch, "failures")).json() == {"failures": [], "next": None}


def test_files_failing_is_counted_at_the_end_of_an_attempt(world: World, caller: Caller) -> None:
    """An attempt that a 410 stops lists what failed until then. It has not tried the other files, and the reference says so."""
    _, watch = world.watch({f"{number}.txt": b"1" for number in range(5)})
    world.answer(lambda note: Answer(410))
    world.sync(watch)
    repository = caller.get(f"/{watch.repository.repository_id}").json()
    assert (repository["files_failing"], repository["last_error_cause"]) == (0, "http")
    assert caller.get(path_of(watch, "failures")).json()["failures"]
    fields = caller.client.get("/openapi.json").json()["components"]["schemas"]["WatchedRepository"]["properties"]
    assert "attempt that tried every file" in fields["files_failing"]["description"]


def test_next_attempt_of_a_failure_is_unknown_during_a_pause(world: World, caller: Caller) -> None:
    _, watch = world.watch({"bad.txt": b"1"})
    world.answer(lambda note: Answer(500))
    world.sync(watch)
    for paused in (True, False):
        caller.client.patch("/api/app", {"paused": paused}, content_type="application/json")
        (failure,) = caller.get(path_of(watch, "failures")).json()["failures"]
        assert (failure["next_attempt_at"] is None) == paused


def test_next_attempt_of_a_failure_waits_for_the_git_host(world: World, caller: Caller) -> None:
    _, watch = world.watch({"bad.txt": b"1"})
    world.answer(lambda note: Answer(500))
    world.sync(watch)
    until = timezone.now() + timedelta(hours=1)
    host = host_of(watch.repository.canonical_url)
    HostOutage.objects.create(host=host, since=timezone.now(), retry_at=until, error="refused")
    (failure,) = caller.get(path_of(watch, "failures")).json()["failures"]
    assert failure["next_attempt_at"] == timestamp(until)


def test_skipped_file_has_no_attempts(world: World, caller: Caller) -> None:
    _, watch = world.watch({"a.txt": b"1", "x/" + "long" * 300: b"2"})
    world.settle()
    (failure,) = caller.get(path_of(watch, "failures"), kind="skipped").json()["failures"]
    assert (failure["kind"], failure["attempts"], failure["next_attempt_at"]) == ("skipped", 0, None)
    assert caller.get(path_of(watch, "failures"), kind="failed").json()["failures"] == []


def test_files_that_patterns_leave_out_are_only_counted(world: World, caller: Caller) -> None:
    """The reference says so, and how many others are listed."""
    _, watch = world.watch(
        {".docoraignore": b"*.tmp\n", "a.tmp": b"1", "b.png": b"2", "c": b"3", "link": Entry.symlink("c")}
    )
    caller.put({"github_url": watch.github_url, "exclude_patterns": ["*.png"]})
    world.settle()
    assert [row["path"] for row in caller.get(path_of(watch, "failures")).json()["failures"]] == ["link"]
    counted = caller.get(f"/{watch.repository.repository_id}").json()["left_out"]
    assert counted == {"ignored": 1, "excluded": 1, "symlink": 1}
    call = caller.client.get("/openapi.json").json()["paths"][f"{BASE}/{{repository_id}}/failures"]["get"]
    assert f"at most {MAX_SKIPPED_LISTED:,} of a sync are listed" in " ".join(call["description"].split())


def test_failures_are_read_in_pages(world: World, caller: Caller) -> None:
    _, watch = world.watch({f"{number}.txt": b"1" for number in range(7)})
    world.answer(lambda note: Answer(422))
    world.sync(watch)
    found = pages(caller, path_of(watch, "failures"), "failures", limit=3)
    assert [len(page) for page in found] == [3, 3, 1]
    assert sorted(row["path"] for page in found for row in page) == [f"{number}.txt" for number in range(7)]


def test_skipped_files_keep_their_place_and_time_while_a_client_reads_them(world: World, caller: Caller) -> None:
    links = {f"l{number}": Entry.symlink("a.txt") for number in range(6)}
    repo, watch = world.watch({"a.txt": b"1", **links})
    world.settle()
    everything = caller.get(path_of(watch, "failures")).json()["failures"]
    first = caller.get(path_of(watch, "failures"), limit=4).json()
    repo.commit({"l5": b"a file now"})
    resync_single(Actor.command(), watch)
    world.settle()
    rest = caller.get(path_of(watch, "failures"), after=first["next"]).json()["failures"]
    assert [row["path"] for row in first["failures"] + rest] == [
        row["path"] for row in everything if row["path"] != "l5"
    ]
    for earlier, row in zip(everything[4:], rest, strict=False):
        assert row["first_at"] == earlier["first_at"]
        assert row["last_at"] > earlier["last_at"]


# --- Delivery records --------------------------------------------------------------------------------------------------


def test_delivery_records_by_path_and_state(portal: Caller, watches) -> None:
    AppRepository.objects.filter(pk=watches[0].pk).update(generation=5, resend_floor=4)
    Delivery.objects.bulk_create(
        [
            deliver(watches[0], "a", generation=4),
            deliver(watches[0], "b", generation=3, source_key=None),
            deliver(watches[0], "c", generation=3, acknowledged=False, attempts=2),
            deliver(watches[2], "of another app", generation=5),
        ]
    )
    path = path_of(watches[0], "deliveries")
    found = portal.get(path).json()["deliveries"]
    assert [(row["path"], row["state"]) for row in found] == [
        ("a", "acknowledged"),
        ("b", "cleared"),
        ("c", "unconfirmed"),
    ]
    assert (found[1]["size"], found[2]["failed_attempts"]) == (None, 2)
    assert [row["path"] for row in portal.client.get(BASE + path, {"path": "c"}).json()["deliveries"]] == ["c"]
    assert portal.client.get(BASE + path, {"path": "of another app"}).json()["deliveries"] == []
    for state, expected in {"acknowledged": "a", "cleared": "b", "unconfirmed": "c"}.items():
        assert [row["path"] for row in portal.get(path, state=state).json()["deliveries"]] == [expected]


def test_delivery_records_are_paged_in_byte_order(portal: Caller, watches) -> None:
    paths = ["\x01" * 1024, "\x02" * 1024, "B", "a", "a/b", "a-b", "z", "ä", "日本"]
    Delivery.objects.bulk_create([deliver(watches[0], path) for path in paths])
    found = pages(portal, path_of(watches[0], "deliveries"), "deliveries", limit=2)
    assert [row["path"] for page in found for row in page] == sorted(paths, key=str.encode)


@pytest.mark.parametrize("call", ["failures", "deliveries", "runs"])
@pytest.mark.parametrize(
    "after", ["x", "!!", "bnVsbA", "WzFd", "WyJhIiwtMV0", "W251bGwsMV0", "WzEsImEiXQ", "WzFlOTk5LDFd"]
)
def test_wrong_cursor_is_422(portal: Caller, watches, call: str, after: str) -> None:
    assert "the value of next on an earlier page" in error_of(portal.get(path_of(watches[0], call), after=after), 422)


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 501}, {"limit": "x"}])
def test_wrong_limit_is_422(portal: Caller, watches, query: dict) -> None:
    assert code_of(portal.get(path_of(watches[0], "deliveries"), **query), 422) == "invalid_request"


# --- The manifest in pages ---------------------------------------------------------------------------------------------


def test_manifest_is_read_in_pages(portal: Caller, watches) -> None:
    paths = [f"{number:02}" for number in range(7)]
    Delivery.objects.bulk_create([deliver(watches[0], path) for path in paths])
    found, after = [], ""
    while page := lines_of(portal.get(path_of(watches[0], "manifest"), limit=3, after=after)):
        found.append([line["path"] for line in page])
        after = found[-1][-1]
    assert found == [paths[:3], paths[3:6], paths[6:]]
    assert [line["path"] for line in lines_of(portal.get(path_of(watches[0], "manifest"), after="04"))] == paths[5:]


@pytest.mark.django_db(transaction=True)
def test_third_manifest_at_once_is_refused(portal: Caller, watches) -> None:
    Delivery.objects.bulk_create([deliver(watches[0], "a")])
    manifest = path_of(watches[0], "manifest")
    first, second = portal.get(manifest), portal.get(manifest)
    refused = portal.get(manifest)
    assert code_of(refused, 429) == "too_many_requests"
    assert refused.headers["Retry-After"] == "5"
    assert [line["path"] for line in lines_of(portal.get(manifest, limit=10))] == ["a"]  # a page is not counted
    second.close()  # without having been read
    third = portal.get(manifest)
    assert [line["path"] for line in lines_of(third)] == ["a"]
    first.close()
    third.close()


@pytest.mark.django_db(transaction=True)
def test_apps_do_not_share_the_limit_of_manifests(portal: Caller, watches) -> None:
    held = [portal.get(path_of(watches[0], "manifest")) for _ in range(2)]
    assert lines_of(Caller(watches[2].app).get(path_of(watches[2], "manifest"))) == []
    for answer in held:
        answer.close()


# --- Resend ------------------------------------------------------------------------------------------------------------


def test_resend_sends_these_files_and_no_others(world: World, caller: Caller) -> None:
    _, watch = world.watch({"a": b"1", "b": b"2", "c": b"3"})
    world.settle()
    before = {record.path: record for record in world.requests("create")}
    answer = caller.post(path_of(watch, "resend"), {"paths": ["b", "missing", "b"]})
    assert answer.status_code == 202
    body = answer.json()
    assert (body["files"], body["unknown"]) == (1, ["missing"])
    world.settle()
    (again,) = world.requests("create")[3:]
    assert (again.path, again.reason, again.run_id) == ("b", "retry", body["run_id"])
    assert again.sequence > before["b"].sequence
    assert again.webhook_id != before["b"].webhook_id
    run = SyncRun.objects.get(run_id=body["run_id"])
    assert (run.outcome, run.files_total, run.files_done) == ("succeeded", 1, 1)
    assert by_apps().get(message="Resent 1 file").repository_name == "acme/widgets"
    watch.refresh_from_db()
    assert (watch.status, watch.resend_floor) == ("synced", 1)


def test_resent_file_that_was_deleted_upstream_is_deleted(world: World, caller: Caller) -> None:
    repo, watch = world.watch({"a": b"1", "b": b"2"})
    world.settle()
    repo.commit({"b": None})
    caller.post(path_of(watch, "resend"), {"paths": ["b"]})
    world.settle()
    assert [record.path for record in world.requests("delete")] == ["b"]
    assert set(world.copy(watch)) == {"a"}


def test_resend_during_a_resync_joins_it(world: World, caller: Caller) -> None:
    _, watch = world.watch({"a": b"1", "b": b"2"})
    world.settle()
    run = resync_single(Actor.command(), watch)
    assert caller.post(path_of(watch, "resend"), {"paths": ["a"]}).json()["run_id"] == run.run_id
    world.settle()
    assert len(world.requests("create")) == 4
    run.refresh_from_db()
    assert (run.outcome, run.files_done) == ("succeeded", 2)


def test_worker_that_is_syncing_cannot_record_a_resent_file(world: World, caller: Caller) -> None:
    """The worker has sent `a` before the app asks for it again, and gets the answer afterwards."""
    _, watch = world.watch({"a": b"1"})
    asked: list[dict] = []

    def ask(note) -> None:
        if not asked:
            asked.append(caller.post(path_of(watch, "resend"), {"paths": ["a"]}).json())

    world.answer(ask)
    world.settle()
    assert asked[0]["files"] == 1
    assert [record.path for record in world.requests("create")] == ["a", "a"]
    assert world.rows(watch)["a"].acknowledged


def test_resend_without_a_known_path_starts_nothing(world: World, caller: Caller) -> None:
    _, watch = world.watch({"a": b"1"})
    world.settle()
    body = caller.post(path_of(watch, "resend"), {"paths": ["no", "none"]}).json()
    assert body == {"run_id": None, "files": 0, "unknown": ["no", "none"]}
    assert SyncRun.objects.count() == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "The field paths is required"),
        ({"paths": []}, "The field paths must not be empty"),
        ({"paths": ["a"] * 1001}, "The field paths must have at most 1000 items"),
        ({"paths": ["a", ""]}, "The field paths.1 must not be empty"),
        ({"paths": ["a"], "path": "b"}, "The field path is not known"),
    ],
)
def test_malformed_resend_is_422(portal: Caller, watches, body: dict, message: str) -> None:
    assert error_of(portal.post(path_of(watches[0], "resend"), body), 422) == message


def test_strange_paths_are_unknown(portal: Caller, watches) -> None:
    body = json.dumps({"paths": ["a\x00b", "\u202e", "..", "x" * 1024]})
    answer = portal.client.post(
        f"/api/repositories{path_of(watches[0], 'resend')}", body, content_type="application/json"
    )
    assert answer.status_code == 202
    assert answer.json()["files"] == 0


def test_files_of_another_app_are_404(client: Client, portal: Caller, watches) -> None:
    foreign = Caller(watches[2].app)
    for call in ("failures", "deliveries", "manifest", "runs"):
        assert code_of(foreign.get(path_of(watches[1], call)), 404) == "not_watched"
    assert code_of(foreign.post(path_of(watches[1], "resend"), {"paths": ["a"]}), 404) == "not_watched"
    assert code_of(foreign.post(path_of(watches[1], "push-secret"), {}), 404) == "not_watched"
    assert not DeliveryFailure.objects.exists()
