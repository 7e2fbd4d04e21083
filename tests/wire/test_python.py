"""Python clients verify every body: with the plain sample and with the Standard Webhooks library."""

import base64
import json
from collections.abc import Callable, Mapping

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from deliveries_app.webhooks.payloads import Chunk, webhook_id
from tests.wire.bodies import BODIES, SEQUENCE, signed
from tests.wire.clients import load
from tests.wire.test_node import BODY, FORGED, KEY, KEYS

GENERATED = KEYS["a generated key"]
plain = load("verify")
standard = load("verify_standard")


def by_library(headers: Mapping[str, str], body: bytes, key: str) -> object:
    """Verify with the library alone, without the sample. Return the parsed body."""
    bare = key if key.startswith("whsec_") else base64.b64encode(key.encode()).decode()
    return Webhook(bare).verify(body, dict(headers))


def test_every_body_verifies(subtests: pytest.Subtests) -> None:
    for name, body in BODIES.items():
        with subtests.test(name):
            headers = signed(body, GENERATED)
            parsed = json.loads(body)
            assert by_library(headers, body, GENERATED) == parsed
            assert standard.notification(headers, body, GENERATED) == parsed
            assert plain.verify(headers, body, GENERATED)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_every_key_verifies(key: str) -> None:
    headers = signed(BODY, key)
    assert by_library(headers, BODY, key) == json.loads(BODY)
    assert standard.notification(headers, BODY, key) == json.loads(BODY)
    assert plain.verify(headers, BODY, key)


@pytest.mark.parametrize(("make_headers", "body"), FORGED.values(), ids=FORGED)
def test_plain_sample_refuses_forged_requests(make_headers: Callable[[], dict[str, str]], body: bytes) -> None:
    assert not plain.verify(make_headers(), body, KEY)


def changed(**changes: str) -> Callable[[], dict[str, str]]:
    return lambda: signed(BODY, GENERATED) | {name.replace("_", "-"): value for name, value in changes.items()}


FORGED_STANDARD: dict[str, Callable[[], dict[str, str]]] = {
    "another id": changed(webhook_id=webhook_id("0123456789abcdef", SEQUENCE + 1)),
    "the id of a chunk": changed(webhook_id=webhook_id("0123456789abcdef", SEQUENCE, Chunk("1", 0, 2, ""))),
    "no id": changed(webhook_id=""),
    "another timestamp": lambda: (
        signed(BODY, GENERATED) | {"webhook-timestamp": signed(BODY, GENERATED, age=60)["webhook-timestamp"]}
    ),
    "no timestamp": changed(webhook_timestamp=""),
    "too old": lambda: signed(BODY, GENERATED, age=310),
    "too far in the future": lambda: signed(BODY, GENERATED, age=-310),
    "no signature": changed(webhook_signature=""),
    "a signature of another version": lambda: (
        signed(BODY, GENERATED)
        | {"webhook-signature": signed(BODY, GENERATED)["webhook-signature"].replace("v1,", "v2,")}
    ),
    "signed with another key": lambda: signed(BODY, KEY),
    "signed with two other keys": lambda: signed(BODY, KEY, "a-third-key"),
}


@pytest.mark.parametrize("forge", FORGED_STANDARD.values(), ids=FORGED_STANDARD)
def test_library_refuses_forged_requests(forge: Callable[[], dict[str, str]]) -> None:
    headers = forge()
    with pytest.raises(WebhookVerificationError):
        by_library(headers, BODY, GENERATED)
    assert standard.notification(headers, BODY, GENERATED) is None


@pytest.mark.parametrize("garbage", ["v1", "v1,%%%", "v1,", "v1,a,b", ",", "\u00e9"])
def test_malformed_signature_is_refused(garbage: str) -> None:
    headers = signed(BODY, GENERATED) | {"webhook-signature": garbage}
    assert standard.notification(headers, BODY, GENERATED) is None


@pytest.mark.parametrize("body", [BODY.replace(b"acme", b"evil"), BODY + b" ", BODY[:-1], b"", b"\xff"])
def test_library_refuses_tampered_bodies(body: bytes) -> None:
    assert standard.notification(signed(BODY, GENERATED), body, GENERATED) is None


OTHER = KEYS["a non-ASCII key"]


@pytest.mark.parametrize("keys", [(GENERATED, OTHER), (OTHER, GENERATED)], ids=["old first", "new first"])
@pytest.mark.parametrize("known", [GENERATED, OTHER], ids=["knows the generated key", "knows the other key"])
def test_either_key_verifies_during_a_rotation(keys: tuple[str, str], known: str) -> None:
    headers = signed(BODY, *keys)
    assert len(headers["webhook-signature"].split(" ")) == 2
    assert by_library(headers, BODY, known) == json.loads(BODY)
    assert standard.notification(headers, BODY, known) == json.loads(BODY)
    assert plain.verify(headers, BODY, known) is (known == keys[0])
    assert standard.notification(headers, BODY, KEY) is None
