"""Signing key rotation. A client that knows only the old headers and one key at a time must not notice it."""

from collections.abc import Mapping

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models.functions import Now
from standardwebhooks import Webhook, WebhookVerificationError

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository
from deliveries_app.receiver import Answer, Notification
from deliveries_app.receiver.server import BackgroundServer, PostHandler
from deliveries_app.services import resync_single
from deliveries_app.services.keys import (
    KeyRotationError,
    cancel_key_rotation,
    retire_old_key,
    start_key_rotation,
)
from deliveries_app.services.pinging import send_ping
from deliveries_app.sync import slots
from deliveries_app.webhooks.keyring import Keyring
from docora.security.crypto import new_webhook_key
from tests.support.histories import assert_promise_kept
from tests.support.staff import staff
from tests.support.world import KEY, World

ME = Actor.command()
NEW = "the-key-that-comes-next"
FILES = {f"{number}.txt": b"x" * number for number in range(20)}


def fresh(app: App) -> App:
    return App.objects.get(pk=app.pk)


def resend(world: World, watch: AppRepository) -> None:
    resync_single(ME, watch)
    world.settle()


def refusals(world: World) -> int:
    return sum(record.status == 401 for record in world.requests())


def test_client_with_the_old_key_gets_no_request_twice(world: World) -> None:
    repo, watch = world.watch(FILES)
    start_key_rotation(ME, world.app, NEW)
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert refusals(world) == 0
    assert (fresh(world.app).new_key_signs, fresh(world.app).new_key_accepted_at) == (False, None)


def test_client_that_switches_to_the_new_key(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.settle()
    start_key_rotation(ME, world.app, NEW)
    world.receiver.keys = NEW
    resend(world, watch)
    assert_promise_kept(world, repo, watch)
    first = refusals(world)
    assert 1 <= first <= world.app.max_in_flight  # the requests in flight when the first was refused
    assert fresh(world.app).new_key_signs
    resend(world, watch)
    assert refusals(world) == first
    assert_promise_kept(world, repo, watch)


def test_client_that_switches_back_to_the_old_key(world: World) -> None:
    repo, watch = world.watch(FILES)
    start_key_rotation(ME, world.app, NEW)
    world.receiver.keys = NEW
    world.settle()
    world.receiver.keys = KEY
    resend(world, watch)
    assert_promise_kept(world, repo, watch)
    assert not fresh(world.app).new_key_signs
    first_accepted_at = fresh(world.app).new_key_accepted_at
    assert first_accepted_at is not None
    world.receiver.keys = NEW
    resend(world, watch)
    assert (fresh(world.app).new_key_signs, fresh(world.app).new_key_accepted_at) == (True, first_accepted_at)


def test_refused_chunk_keeps_its_chunk_id(world: World, settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 100, 60
    repo, watch = world.watch({"large": b"y" * 400})
    start_key_rotation(ME, world.app, NEW)
    world.receiver.keys = NEW
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert [record.status for record in world.requests()][:2] == [401, 200]
    assert len({record.webhook_id for record in world.requests()}) == len(world.requests()) - 1


def test_standard_header_carries_both_signatures(world: World) -> None:
    seen = []
    world.answer(lambda note: seen.append(note.headers["webhook-signature"].split()))  # type: ignore[func-returns-value]
    world.watch()
    start_key_rotation(ME, world.app, NEW)
    world.settle()
    assert {len(signatures) for signatures in seen} == {2}


def test_key_that_is_retired_during_a_run(world: World) -> None:
    world.app.max_in_flight = 1
    world.app.save()
    repo, watch = world.watch(FILES)
    calls = []

    def rotate_during_run(note) -> Answer | None:
        calls.append(note)
        if len(calls) == 5:
            start_key_rotation(ME, world.app, NEW)
            App.objects.filter(pk=world.app.pk).update(new_key_accepted_at=fresh(world.app).key_rotation_started_at)
            retire_old_key(ME, world.app)
            world.receiver.keys = NEW
        return None

    world.answer(rotate_during_run)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_run_signs_with_the_current_keys(world: World, monkeypatch) -> None:
    world.app.max_in_flight = 1
    world.app.save()
    repo, watch = world.watch(FILES)
    start_key_rotation(ME, world.app, NEW)
    App.objects.filter(pk=world.app.pk).update(new_key_accepted_at=Now())
    monkeypatch.setattr(slots, "_REBALANCE_SECONDS", (0.0, 0.0))
    signatures: list[int] = []

    def retire(note: Notification) -> None:
        signatures.append(len(note.headers["webhook-signature"].split()))
        if len(signatures) == 5:
            retire_old_key(ME, world.app)
            world.receiver.keys = NEW

    world.answer(retire)
    world.sync(watch)
    assert signatures == [2] * 5
    world.sync(watch)
    assert set(signatures[5:]) == {1}
    assert refusals(world) == 0
    assert_promise_kept(world, repo, watch)


def test_response_that_repeats_a_key_is_redacted(world: World) -> None:
    """Even if the key was added during the run."""
    world.app.max_in_flight = 1
    world.app.save()
    _, watch = world.watch(FILES)

    def rotate_and_leak(note) -> Answer:
        if not fresh(world.app).is_rotating_key:
            start_key_rotation(ME, world.app, NEW)
        return Answer(422, {"error": f"expected {KEY} or {NEW}"})

    world.answer(rotate_and_leak)
    world.sync(watch)
    bodies = {failure.body for failure in watch.failures.all()}
    assert len(bodies) == 1
    assert "expected [redacted] or [redacted]" in bodies.pop()


def test_client_that_knows_neither_key(world: World) -> None:
    _, watch = world.watch({"one": b"1"})
    start_key_rotation(ME, world.app, NEW)
    world.receiver.keys = "neither-of-the-two-keys"
    world.sync(watch)
    assert [record.status for record in world.requests()] == [401, 401]
    assert "HTTP 401" in watch.last_error


def test_refused_key_is_never_replaced_by_another_apps_key(world: World) -> None:
    apps = [world.app, world.add_app("Other")]
    for app in apps:
        App.objects.filter(pk=app.pk).update(client_auth_key=f"new-{app.pk}")
    assert [Keyring(app).other((KEY,)) for app in apps] == [(f"new-{app.pk}",) for app in apps]


class StandardClient(BackgroundServer):
    """A client that verifies only `webhook-signature`, with `key`. It answers the first `refusals` requests with 403."""

    handler = PostHandler

    def __init__(self, key: str, *, refusals: int) -> None:
        super().__init__("127.0.0.1", 0)
        self.key, self.refusals, self.statuses = key, refusals, list[int]()

    def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self.statuses.append(403 if len(self.statuses) < self.refusals else self._verify(headers, body))
        return Answer(self.statuses[-1])

    def _verify(self, headers: Mapping[str, str], body: bytes) -> int:
        try:
            Webhook(self.key).verify(body, dict(headers))
        except WebhookVerificationError:
            return 401
        return 200


def test_refusal_for_another_reason_does_not_accept_the_new_key(world: World) -> None:
    """The repeated request was signed with both keys, so the old key could be retired, and the app refused everything."""
    key = new_webhook_key()
    App.objects.filter(pk=world.app.pk).update(client_auth_key=key)
    with StandardClient(key, refusals=1) as client:
        App.objects.filter(pk=world.app.pk).update(base_url=client.url)
        start_key_rotation(ME, world.app)
        send_ping(ME, world.app)
        assert fresh(world.app).new_key_accepted_at is None
        _, watch = world.watch({"one": b"1"})
        client.refusals += len(client.statuses)
        world.settle()
        assert watch.deliveries.get().acknowledged_sha
        assert (fresh(world.app).new_key_signs, fresh(world.app).new_key_accepted_at) == (False, None)
    assert client.statuses == [403, 401, 403, 401, 200]


def test_old_key_is_retired_after_acceptance_of_the_new(world: World) -> None:
    with pytest.raises(KeyRotationError, match="No key rotation is in progress"):
        retire_old_key(ME, world.app)
    start_key_rotation(ME, world.app, NEW)
    with pytest.raises(KeyRotationError, match="hasn't accepted the new key yet"):
        retire_old_key(ME, world.app)
    assert not send_ping(ME, world.app, new_key=True).delivered
    assert fresh(world.app).new_key_accepted_at is None
    assert fresh(world.app).ping_failed_at is None, "the endpoint works with the old key"
    world.receiver.keys = NEW
    assert send_ping(ME, world.app, new_key=True).delivered
    retire_old_key(ME, world.app)
    app = fresh(world.app)
    assert (app.client_auth_key, app.new_auth_key, app.is_rotating_key) == (NEW, "", False)
    start_key_rotation(ME, app, f"{NEW}-but-one")
    app = fresh(app)
    assert (app.new_key_signs, app.new_key_accepted_at) == (False, None), "of another key"


def test_cancelled_rotation_keeps_the_old_key(world: World) -> None:
    start_key_rotation(ME, world.app, NEW)
    cancel_key_rotation(ME, world.app)
    app = fresh(world.app)
    assert (app.client_auth_key, app.new_auth_key, app.is_rotating_key) == (KEY, "", False)
    with pytest.raises(KeyRotationError):
        cancel_key_rotation(ME, world.app)


def test_acceptance_during_an_earlier_rotation_does_not_count(world: World) -> None:
    """A worker records it late. Otherwise the old key could be retired, although the app does not know the new one."""
    start_key_rotation(ME, world.app, NEW)
    earlier = Keyring(fresh(world.app))
    cancel_key_rotation(ME, world.app)
    start_key_rotation(ME, world.app, f"{NEW}-but-one")
    earlier.accepted((NEW, KEY))
    app = fresh(world.app)
    assert (app.new_key_signs, app.new_key_accepted_at) == (False, None)


def test_invalid_keys_and_a_second_rotation_are_refused(world: World) -> None:
    with pytest.raises(ValidationError, match="in use"):
        start_key_rotation(ME, world.app, KEY)
    for bad in ("too-short", "x" * 501, "sixteen characters\n"):
        with pytest.raises(ValidationError, match="16 to 500"):
            start_key_rotation(ME, world.app, bad)
    assert start_key_rotation(ME, world.app).startswith("whsec_")
    with pytest.raises(KeyRotationError, match="already"):
        start_key_rotation(ME, world.app, NEW)


@pytest.mark.parametrize("verb", [start_key_rotation, retire_old_key, cancel_key_rotation])
def test_rotation_needs_its_own_permission(world: World, verb) -> None:
    staff("olga", "change_app", "view_app")
    with pytest.raises(PermissionDenied):
        verb(Actor.of_user(User.objects.get(username="olga")), world.app)
