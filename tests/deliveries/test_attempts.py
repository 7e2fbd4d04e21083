"""What Docora keeps of each attempt to send a file, and who can see it."""

from copy import copy
from datetime import timedelta
from html import unescape

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Delivery, DeliveryAttempt
from deliveries_app.models.deliveries import path_digest
from deliveries_app.receiver import Answer
from deliveries_app.services import unwatch_repository
from deliveries_app.sweep.cleanup import remove_ended
from deliveries_app.sweep.retention import prune
from deliveries_app.sync import failures
from deliveries_app.sync.failures import beginning
from deliveries_app.webhooks.keyring import Keyring
from deliveries_app.webhooks.payloads import Envelope, masked_headers
from tests.support.histories import refusing
from tests.support.staff import VIEWS, staff
from tests.support.world import KEY, World

SECRET = "a response that only some may read"
LONG = "x" * 5000


def failing(watch: AppRepository, path: str = "a.txt") -> list[DeliveryAttempt]:
    return list(DeliveryAttempt.objects.filter(watch=watch, path_digest=path_digest(path.encode())).order_by("-pk"))


def page_of(client: Client, watch: AppRepository, path: str = "a.txt") -> str:
    row = Delivery.objects.get(watch=watch, path=path)
    answer = client.get(f"/admin/deliveries_app/delivery/{row.pk}/change/")
    assert answer.status_code == 200
    fragment = client.get(f"/admin/live/delivery/{row.pk}/")
    assert fragment.status_code == 200
    return unescape(answer.text)


def test_failure_and_later_success_are_kept(world: World) -> None:
    _, watch = world.watch({"a.txt": b"content of the file"})
    world.answer(lambda note: Answer(500, {"error": f"The key is {KEY}.", "more": LONG}))
    world.sync(watch)
    (attempt,) = failing(watch)
    (request,) = world.requests()
    assert (attempt.event, attempt.status_code, attempt.cause) == ("create", 500, "http")
    assert attempt.message == "The app returned HTTP 500."
    assert 0 <= attempt.milliseconds < 30_000
    assert abs(attempt.at - timezone.now()) < timedelta(seconds=60)
    assert "content of the file" in attempt.request_body
    assert attempt.response_body.startswith('{"error": "The key is [redacted].')
    assert len(attempt.response_body) == failures.KEPT_BYTES + 1  # and the ellipsis
    assert attempt.headers["webhook-id"] == request.webhook_id
    assert attempt.headers["X-Docora-Run-Id"] == request.run_id
    assert attempt.headers["X-Docora-Signature"] == "sha256=[redacted]"
    assert attempt.headers["webhook-signature"] == "v1,[redacted]"
    row = world.rows(watch)["a.txt"]
    assert (row.delivered_at, row.delivered_status, row.delivered_ms) == (None, None, None)
    world.answer(lambda note: Answer(202))
    world.sync(watch)
    row = world.rows(watch)["a.txt"]
    assert row.delivered_status == 202
    assert row.delivered_ms is not None
    assert row.delivered_at is not None
    assert row.delivered_at > attempt.at
    assert failing(watch) == [attempt]


def test_attempt_without_a_response(world: World) -> None:
    _, watch = world.watch({"a.txt": b"1"})
    world.answer(lambda note: Answer(close=True))
    world.sync(watch)
    (attempt,) = failing(watch)
    assert (attempt.status_code, attempt.cause, attempt.response_body) == (None, "network", "")


@pytest.mark.parametrize(
    ("status", "headers", "kept"),
    [
        (308, {"Location": "https://new.example/hooks?secret=1#2"}, "Location: https://new.example/hooks\n{}"),
        (401, {"WWW-Authenticate": f'Basic realm="{KEY}"'}, 'WWW-Authenticate: Basic realm="[redacted]"\n{}'),
        (500, {"X-Other": "1"}, "{}"),
    ],
)
def test_response_says_what_to_change(world: World, status: int, headers: dict[str, str], kept: str) -> None:
    """A redirect's target and a proxy's demand for credentials are in the headers, not in the body."""
    _, watch = world.watch({"a.txt": b"1"})
    world.answer(lambda note: Answer(status, headers=headers))
    world.sync(watch)
    (attempt,) = failing(watch)
    assert attempt.response_body == kept
    watch.refresh_from_db()
    assert watch.last_response == kept


def test_large_file_counts_all_chunks(world: World, settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 200, 150
    _, watch = world.watch({"a.txt": b"z" * 1000})
    world.answer(lambda note: Answer(500) if note.chunk and note.chunk.index == 3 else None)
    world.sync(watch)
    (attempt,) = failing(watch)
    assert '"index":3' in attempt.request_body
    world.answer(None)
    world.sync(watch)
    assert world.rows(watch)["a.txt"].delivered_status == 200


def test_newest_ten_of_a_path_are_kept(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 50
    _, watch = world.watch({"a.txt": b"1", "b.txt": b"2"})
    world.answer(lambda note: Answer(500, {"number": len(world.requests())}))
    for _ in range(12):
        world.sync(watch)
    for path in ("a.txt", "b.txt"):
        kept = failing(watch, path)
        assert len(kept) == 10
        sent = [note.webhook_id for note in world.requests() if note.path == path]
        assert {attempt.headers["webhook-id"] for attempt in kept} <= set(sent)
    newest = max(attempt.pk for attempt in DeliveryAttempt.objects.all())
    assert newest >= 24  # the first ones are gone
    client, note = staff("victor", *(f"view_{model}" for model in VIEWS)), "Only the last 10 attempts are kept."
    assert note in page_of(client, watch)
    DeliveryAttempt.objects.filter(pk=newest).delete()
    pages = [page_of(client, watch, path) for path in ("a.txt", "b.txt")]
    assert sum(note in page for page in pages) == 1


def test_limit_of_an_app(world: World, settings) -> None:
    settings.ATTEMPTS_PER_APP = 3
    _, watch = world.watch({f"{name}.txt": name.encode() for name in "abcde"})
    _, other = world.watch({"a.txt": b"1"}, name="acme/other", app=world.add_app("Search"))
    world.answer(lambda note: Answer(500))
    world.sync(other)
    world.sync(watch)
    assert DeliveryAttempt.objects.filter(app=watch.app).count() == 3
    assert len(failing(other)) == 1
    settings.ATTEMPTS_PER_APP = 0
    world.sync(watch)
    assert DeliveryAttempt.objects.filter(app=watch.app).count() == 3


def test_limit_of_a_path_leaves_other_repositories_alone(watches: list[AppRepository]) -> None:
    for watch, number in ((watches[2], 10), (watches[0], 3)):
        attempt = DeliveryAttempt(
            app=watch.app, watch=watch, path_digest=path_digest(b"a.txt"), at=timezone.now(), event="create", cause="http",
            message="", milliseconds=1, headers={}, request_body="", response_body="",
        )  # fmt: skip
        failures.write_attempts(watch, [copy(attempt) for _ in range(number)])
    assert [len(failing(watch)) for watch in watches] == [3, 0, 10]


def test_nothing_is_kept_of_a_file_that_was_not_sent(world: World) -> None:
    """`a/b` waits for the delete of `a`, which fails."""
    repo, watch = world.watch({"a": b"1"})
    world.sync(watch)
    repo.commit({"a": None, "a/b": b"2"})
    world.answer(refusing("a"))
    world.sync(watch)
    assert watch.failures.count() == 2
    assert [attempt.event for attempt in DeliveryAttempt.objects.all()] == ["delete"]


def test_attempts_are_pruned_and_removed_with_their_watch(world: World) -> None:
    _, watch = world.watch({"a.txt": b"1", "b.txt": b"2"})
    world.answer(lambda note: Answer(500))
    world.sync(watch)
    DeliveryAttempt.objects.filter(pk=failing(watch)[0].pk).update(at=timezone.now() - timedelta(days=31))
    assert prune(dry_run=True)["delivery_attempts"] == 1
    assert prune()["delivery_attempts"] == 1
    assert len(failing(watch, "b.txt")) == 1
    unwatch_repository(Actor.command(), watch)
    assert remove_ended() == 1
    assert not DeliveryAttempt.objects.exists()


def test_bodies_need_their_own_permission(world: World) -> None:
    _, watch = world.watch({"a.txt": b"content of the file"})
    world.answer(lambda note: Answer(500, {"error": SECRET}))
    world.sync(watch)
    views = [f"view_{model}" for model in VIEWS]
    viewer, reader = staff("vera", *views), staff("rita", *views, "view_payloads")
    why = f"/admin/deliveries_app/apprepository/{watch.pk}/why/?path=a.txt"
    lists = (f"/admin/deliveries_app/{page}" for page in (f"apprepository/{watch.pk}/change/", "failedsync/"))
    pages = [why, *lists]
    for client, can_read in ((viewer, False), (reader, True)):
        page = page_of(client, watch)
        for text in (SECRET, "content of the file"):
            assert (text in page) is can_read
        assert "HTTP 500" in page
        assert "webhook-id" in page
        assert KEY not in page
        assert ("You don't have permission to view request bodies and responses." in page) is not can_read
        for url in pages:
            assert (SECRET in client.get(url).text) is can_read, url
        for export in ("syncrun", "bulkoperation"):
            csv = b"".join(client.get(f"/admin/deliveries_app/{export}/export/")).decode()  # type: ignore[arg-type]
            assert watch.runs.get().run_id in csv or export == "bulkoperation"
            assert SECRET not in csv
            assert "content of the file" not in csv


def test_page_follows_the_delivery(world: World) -> None:
    viewer = staff("vera", *(f"view_{model}" for model in VIEWS))
    _, watch = world.watch({"a.txt": b"1"})
    world.answer(lambda note: Answer(503))
    world.sync(watch)
    page = page_of(viewer, watch)
    for text in ("Not delivered", "Never", "Next try", "HTTP 503", "Portal", "acme/widgets"):
        assert text in page, text
    assert "Resend this file" not in page
    world.answer(None)
    world.sync(watch)
    page = page_of(viewer, watch)
    assert page.index("Acknowledged</span>") < page.index("HTTP 503")
    assert "Next try" not in page
    assert "Never" not in page


def test_page_costs_the_same_with_any_number_of_attempts(world: World, settings) -> None:
    client = staff("rita", *(f"view_{model}" for model in VIEWS), "view_payloads")
    settings.MAX_RETRY_ATTEMPTS = 50
    _, watch = world.watch({"a.txt": b"1"})
    world.answer(lambda note: Answer(500))
    counts = []
    for tries in (1, 9):
        for _ in range(tries):
            world.sync(watch)
        page_of(client, watch)
        with CaptureQueriesContext(connection) as queries:
            page_of(client, watch)
        counts.append(len(queries))
    assert counts[0] == counts[1]


@pytest.mark.django_db
def test_signatures_are_masked_and_credentials_left_out(watches: list[AppRepository]) -> None:
    app = watches[0].app
    app.new_auth_key = "n" * 20
    envelope = Envelope(app.app_id, "run_1", "change")
    lines = envelope.headers(b"{}", "msg_1", 7, 1_700_000_000, (*Keyring(app).keys, app.new_auth_key))
    shown = masked_headers([*lines, "Authorization: Bearer abc", "Cookie: a=b"])
    assert shown["X-Docora-Signature"] == "sha256=[redacted]"
    assert shown["webhook-signature"] == "v1,[redacted] v1,[redacted]"  # two keys
    assert shown["X-Docora-Sequence"] == "7"
    assert {"Authorization", "Cookie"}.isdisjoint(shown)


def test_beginning_of_a_body() -> None:
    assert beginning("short") == "short"
    assert beginning("ä" * 600) == "ä" * 500 + "…"
