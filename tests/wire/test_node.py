"""Node.js clients verify every body both documented ways: over the parsed body and over the raw bytes."""

import base64
import hashlib
import json
import time
from collections.abc import Callable

import pytest

from deliveries_app.webhooks.payloads import webhook_id
from tests.wire.bodies import BODIES, CONTENTS, SEQUENCE, chunked, file_notification, signed
from tests.wire.clients import Node

KEYS = {
    "a readable key": "a-key-that-two-parties-share",
    "a generated key": "whsec_" + base64.b64encode(bytes(range(32))).decode(),
    "a non-ASCII key": "schlüssel-für-zwei-😀",
}
KEY = KEYS["a readable key"]
BODY = file_notification("x \u2028 😀\n".encode())


def test_every_body_verifies_parsed_and_raw(node: Node) -> None:
    for name, body in BODIES.items():
        verdict = node.check(signed(body, KEY), body, KEY)
        assert verdict.stringified == body, name
        assert (verdict.by_parsed_body, verdict.by_raw_body) == (True, True), name


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_decoded_content_matches_sha_and_size(node: Node, content: bytes) -> None:
    body = file_notification(content)
    expected = {"sha": hashlib.sha256(content).hexdigest(), "size": len(content)}
    assert node.check(signed(body, KEY), body, KEY).file == expected
    assert json.loads(body)["file"].items() >= expected.items()


def test_joined_chunks_are_the_base64_of_the_file() -> None:
    content = "text 😀\r\n".encode() * 1000
    files = [json.loads(body)["file"] for body in chunked(content, 1000)]
    assert len(files) > 10
    assert base64.b64decode("".join(file["content"] for file in files), validate=True) == content
    assert {file["sha"] for file in files} == {hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_every_key_verifies(node: Node, key: str) -> None:
    verdict = node.check(signed(BODY, key), BODY, key)
    assert (verdict.by_parsed_body, verdict.by_raw_body) == (True, True)


@pytest.mark.parametrize("age", [290, -290])
def test_clock_skew_below_five_minutes_is_accepted(node: Node, age: int) -> None:
    verdict = node.check(signed(BODY, KEY, age=age), BODY, KEY)
    assert (verdict.by_parsed_body, verdict.by_raw_body) == (True, True)


def fresh(**changes: str) -> Callable[[], dict[str, str]]:
    """Return a function that makes valid headers with these changes. It runs in the test, so the timestamp is fresh."""
    return lambda: signed(BODY, KEY) | {f"X-Docora-{name.title()}": value for name, value in changes.items()}


def with_signature(change: Callable[[str], str]) -> Callable[[], dict[str, str]]:
    def make() -> dict[str, str]:
        headers = signed(BODY, KEY)
        return headers | {"X-Docora-Signature": change(headers["X-Docora-Signature"])}

    return make


FORGED: dict[str, tuple[Callable[[], dict[str, str]], bytes]] = {
    "another content": (fresh(), BODY.replace(b"acme", b"evil")),
    "a path changed": (fresh(), BODY.replace(b"index.ts", b"index.js")),
    "an additional field": (fresh(), BODY.removesuffix(b"}") + b',"a":1}'),
    "an empty body": (fresh(), b""),
    "a body that is not JSON": (fresh(), BODY[:-1]),
    "signed with another key": (lambda: signed(BODY, "another-key-entirely"), BODY),
    "another id": (lambda: signed(BODY, KEY) | {"webhook-id": webhook_id("0123456789abcdef", SEQUENCE + 1)}, BODY),
    "no standard signature": (lambda: signed(BODY, KEY) | {"webhook-signature": ""}, BODY),
    "a standard signature made with another key": (
        lambda: signed(BODY, KEY) | {"webhook-signature": signed(BODY, "another-key-entirely")["webhook-signature"]},
        BODY,
    ),
    "an old standard timestamp": (
        lambda: signed(BODY, KEY) | {"webhook-timestamp": signed(BODY, KEY, age=310)["webhook-timestamp"]},
        BODY,
    ),
    "a timestamp that was not signed": (lambda: fresh(timestamp=str(int(time.time()) - 60))(), BODY),
    "too old": (lambda: signed(BODY, KEY, age=310), BODY),
    "too far in the future": (lambda: signed(BODY, KEY, age=-310), BODY),
    "a timestamp that is not a number": (fresh(timestamp="now"), BODY),
    "no timestamp": (fresh(timestamp=""), BODY),
    "no signature": (fresh(signature=""), BODY),
    "the empty digest": (fresh(signature="sha256="), BODY),
    "a truncated signature": (with_signature(lambda whole: whole[:-1]), BODY),
    "a signature with a suffix": (with_signature(lambda whole: whole + "0"), BODY),
    "a digest without its prefix": (with_signature(lambda whole: whole.removeprefix("sha256=")), BODY),
    "a non-ASCII signature": (with_signature(lambda whole: "é" * len(whole)), BODY),
}


@pytest.mark.parametrize(("make_headers", "body"), FORGED.values(), ids=FORGED)
def test_forged_request_is_refused(node: Node, make_headers: Callable[[], dict[str, str]], body: bytes) -> None:
    verdict = node.check(make_headers(), body, KEY)
    assert (verdict.by_parsed_body, verdict.by_raw_body) == (False, False)
