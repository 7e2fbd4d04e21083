"""Quotas of what an app may watch and re-sync. Files and bytes: tests/deliveries/test_quotas.py."""

import contextlib
import threading
from datetime import timedelta

import pytest
from django.db import transaction
from django.db.models import F
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository
from deliveries_app.services import host_checks, quotas, resync_single, unwatch_repository, watch_repository
from tests.api.caller import Caller, code_of, error_of
from tests.support.processes import in_threads
from tests.support.staff import make_app
from tests.support.world import World


def limit(app: App, **quotas: int | None) -> None:
    App.objects.filter(pk=app.pk).update(**quotas)
    app.refresh_from_db()


def post_async(caller: Caller, url: str, prefer: str = "respond-async"):
    return caller.client.post(
        "/api/repositories", {"github_url": url}, content_type="application/json", headers={"Prefer": prefer}
    )


# --- Watched repositories -----------------------------------------------------------------------------------------------


def test_another_repository_is_409_and_no_host_is_asked(world: World, caller: Caller) -> None:
    limit(world.app, max_watches=1)
    first, second = world.git.repo("acme/one", {"a": b"1"}), world.git.repo("acme/two", {"a": b"1"})
    assert caller.post("", {"github_url": first.url}).status_code == 201
    asked = len(world.git.server.requests)
    for answer in (
        caller.post("", {"github_url": second.url}),
        caller.put({"github_url": second.url}),
        post_async(caller, second.url),
    ):
        assert code_of(answer, 409) == "quota_exceeded"
        assert "The app's quota is 1 repository. Stop watching one" in answer.json()["error"]
    assert len(world.git.server.requests) == asked
    assert AppRepository.objects.count() == 1
    assert caller.put({"github_url": first.url}).status_code == 200
    assert caller.delete(f"/{AppRepository.objects.get().repository.repository_id}").status_code == 204
    assert caller.post("", {"github_url": second.url}).status_code == 201


def test_default_and_own_quota(world: World, caller: Caller, settings) -> None:
    settings.MAX_WATCHES_PER_APP = 1
    urls = [world.git.repo(f"acme/r{number}", {"a": b"1"}).url for number in range(3)]
    assert [post_async(caller, url).status_code for url in urls] == [202, 409, 409]
    limit(world.app, max_watches=2)
    assert [post_async(caller, url).status_code for url in urls[1:]] == [202, 409]
    limit(world.app, max_watches=0)
    assert post_async(caller, urls[2]).status_code == 202


def test_administrators_can_exceed_the_quotas(world: World, caller: Caller) -> None:
    limit(world.app, max_watches=1, max_resyncs_per_hour=1)
    for number in range(3):
        repo = world.git.repo(f"acme/r{number}", {"a": b"1"})
        watch = watch_repository(Actor.command(), world.app, repo.url).watch
        resync_single(Actor.command(), watch)
    unwatch_repository(Actor.command(), watch)
    usage = caller.client.get("/api/app").json()["quotas"]
    assert usage["watches"] == {"used": 2, "limit": 1}
    assert usage["resyncs_per_hour"] == {"used": 0, "limit": 1}


# --- Re-syncs -----------------------------------------------------------------------------------------------------------


def test_resyncs_come_back_evenly(portal: Caller, watches) -> None:
    app, path = watches[0].app, f"/{watches[0].repository.repository_id}/resync"
    limit(app, max_resyncs_per_hour=2)
    assert [portal.post(path).status_code for _ in range(3)] == [202, 202, 429]
    answer = portal.post(path)
    assert "The app's quota is 2 re-syncs per hour. Try again in " in error_of(answer, 429)
    assert 1790 <= int(answer.headers["Retry-After"]) <= 1800
    assert portal.client.get("/api/app").json()["quotas"]["resyncs_per_hour"] == {"used": 2, "limit": 2}
    App.objects.filter(pk=app.pk).update(resyncs_used_at=F("resyncs_used_at") - timedelta(minutes=31))
    assert [portal.post(path).status_code for _ in range(2)] == [202, 429]
    App.objects.filter(pk=app.pk).update(resyncs_used_at=F("resyncs_used_at") - timedelta(days=1))
    assert [portal.post(path).status_code for _ in range(3)] == [202, 202, 429]


@pytest.mark.parametrize("minutes", [10, -10])
def test_clock_of_the_web_server_does_not_count(portal: Caller, watches, monkeypatch, minutes: int) -> None:
    limit(watches[0].app, max_resyncs_per_hour=2)
    path, real_now = f"/{watches[0].repository.repository_id}/resync", timezone.now
    monkeypatch.setattr(timezone, "now", lambda: real_now() + timedelta(minutes=minutes))
    assert [portal.post(path).status_code for _ in range(3)] == [202, 202, 429]
    assert portal.client.get("/api/app").json()["quotas"]["resyncs_per_hour"]["used"] == 2
    App.objects.update(resyncs_used_at=F("resyncs_used_at") - timedelta(minutes=31))
    assert [portal.post(path).status_code for _ in range(2)] == [202, 429]


def test_a_refused_resync_changes_nothing(portal: Caller, watches) -> None:
    limit(watches[0].app, max_resyncs_per_hour=1)
    path = f"/{watches[0].repository.repository_id}/resync"
    assert portal.post(path).status_code == 202
    before = AppRepository.objects.values().get(pk=watches[0].pk)
    assert portal.post(path).status_code == 429
    assert AppRepository.objects.values().get(pk=watches[0].pk) == before


def test_posting_a_watched_repository_is_a_resync(world: World, caller: Caller) -> None:
    limit(world.app, max_resyncs_per_hour=1)
    repo, _ = world.watch()
    assert [caller.post("", {"github_url": repo.url}).status_code for _ in range(2)] == [201, 429]
    asked = len(world.git.server.requests)
    assert [post_async(caller, repo.url).status_code, caller.post("", {"github_url": repo.url}).status_code] == [
        429
    ] * 2
    assert len(world.git.server.requests) == asked
    assert caller.put({"github_url": repo.url}).status_code == 200


def test_unwatching_uses_the_quota_of_resyncs_and_the_reference_says_so(world: World, caller: Caller) -> None:
    _, watch = world.watch()
    limit(world.app, max_resyncs_per_hour=1)
    assert caller.delete(f"/{watch.repository.repository_id}").status_code == 204
    assert caller.client.get("/api/app").json()["quotas"]["resyncs_per_hour"] == {"used": 1, "limit": 1}
    assert caller.put({"github_url": world.git.repo("acme/new", {"a": b"1"}).url}).status_code == 429
    schemas = caller.client.get("/openapi.json").json()["components"]["schemas"]
    described = schemas["Quotas"]["properties"]["resyncs_per_hour"]["description"]
    assert "stops watching" in described
    assert "new repository" in described


def test_unwatching_uses_no_more_than_the_quota(portal: Caller, watches) -> None:
    limit(watches[0].app, max_resyncs_per_hour=1)
    for watch in watches[:2]:
        assert portal.delete(f"/{watch.repository.repository_id}").status_code == 204
    assert portal.client.get("/api/app").json()["quotas"]["resyncs_per_hour"]["used"] == 1


def test_unwatching_twice_at_once_counts_once(portal: Caller, watches) -> None:
    """Both calls have read the watch before either of them ends it."""
    limit(watches[0].app, max_resyncs_per_hour=5)
    actor = Actor.of_app(watches[0].app)
    for watch in [AppRepository.objects.select_related("app").get(pk=watches[0].pk) for _ in range(2)]:
        unwatch_repository(actor, watch)
    assert portal.client.get("/api/app").json()["quotas"]["resyncs_per_hour"]["used"] == 1


# --- Without waiting for the git host -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefer", "status"),
    [
        ("respond-async", 202),
        ("handling=lenient, Respond-Async; wait=10", 202),
        ("wait=10", 201),
        ("respond-async=no, x", 201),
        ("return=minimal", 201),
    ],
)
def test_202_only_with_respond_async(world: World, caller: Caller, prefer: str, status: int) -> None:
    repo = world.git.repo("acme/widgets", {"a": b"1"})
    answer = post_async(caller, repo.url, prefer)
    assert answer.status_code == status
    assert answer.headers.get("Preference-Applied") == ("respond-async" if status == 202 else None)
    assert list(answer.json()) == ["repository_id", "github_url", "owner", "name", "is_private", "created_at"]
    assert bool(world.git.server.requests) == (status == 201)
    world.settle()
    watch = AppRepository.objects.get()
    assert world.copy(watch).keys() == {"a"}
    assert caller.get(f"/{watch.repository.repository_id}").json()["is_private"] is False


def test_first_sync_finds_out_that_there_is_no_such_repository(world: World, caller: Caller) -> None:
    answer = post_async(caller, f"{world.git.url}/acme/missing")
    assert answer.status_code == 202
    world.sync(AppRepository.objects.get())
    found = caller.get(f"/{answer.json()['repository_id']}").json()
    assert (found["status"], found["last_error_cause"]) == ("failed", "not_found")
    assert "Repository not found" in found["last_error"]


def test_malformed_async_registration_is_422(caller: Caller) -> None:
    for url in ("https://evil.example/a/b", "nonsense"):
        assert post_async(caller, url).status_code == 422
    assert not AppRepository.objects.exists()


def test_unchecked_registration_keeps_what_is_known_about_privacy(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/private", {"a": b"1"}, token="right")
    public = world.git.repo("acme/public", {"a": b"1"})
    assert caller.post("", {"github_url": public.url, "github_token": "ghp_any"}).json()["is_private"] is False
    assert post_async(caller, public.url).json()["is_private"] is False
    assert post_async(caller, repo.url).json()["is_private"] is True


# --- The admin ----------------------------------------------------------------------------------------------------------


def test_app_s_settings_show_usage_and_set_quotas(admin_client: Client, watches, settings) -> None:
    settings.MAX_FILES_PER_APP = 5_000
    app = watches[0].app
    path = f"/admin/deliveries_app/app/{app.pk}/settings/"
    page = admin_client.get(path).text
    assert "Administrators can exceed it. Now used: 2. Blank means the default (none), 0 no quota." in page
    assert "Now used: 200 of 5,000. Blank means the default (5,000), 0 no quota." in page
    values = {
        "name": app.name, "base_url": app.base_url, "email": app.email, "max_in_flight": 8, "max_watches": 7,
        "max_files": "", "max_bytes": 0, "max_resyncs_per_hour": 12,
    }  # fmt: skip
    assert admin_client.post(path, values).status_code == 302
    app.refresh_from_db()
    assert (app.watch_limit, app.file_limit, app.byte_limit, app.resync_limit) == (7, 5_000, None, 12)
    assert "0 of 12" in admin_client.get(path).text
    assert admin_client.post(path, values | {"max_watches": -1}).status_code == 200


@pytest.mark.parametrize("name", ["per_caller", "total"])
def test_failed_host_checks_free_their_slots(world: World, caller: Caller, name: str) -> None:
    for _ in range(getattr(host_checks.LIMIT, name) + 1):
        assert caller.post("", {"github_url": f"{world.git.url}/acme/missing"}).status_code == 404


@pytest.mark.django_db(transaction=True)
def test_concurrent_resyncs_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    app, both, used = make_app("Portal"), threading.Barrier(2), quotas._resyncs_used
    limit(app, max_resyncs_per_hour=1)

    def read_used(app: App) -> float:
        number = used(app)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(1)  # until the other request has read it
        return number

    def count() -> None:
        with transaction.atomic():
            quotas.count_resync(Actor.of_app(app))

    monkeypatch.setattr(quotas, "_resyncs_used", read_used)
    with pytest.raises(quotas.TooManyResyncs):
        in_threads(count, count)
