"""Clients on Node.js verify every body as the documentation shows it, over the parsed body and over the bytes."""

import base64
import hashlib
import json
import time
from collections.abc import Callable

import pytest

from tests.wire.bodies import BODIES, CONTENTS, chunked, signed, written
from tests.wire.clients import Node

KEYS = {
    "a key of words": "a-key-that-two-parties-share",
    "a generated key": "whsec_" + base64.b64encode(bytes(range(32))).decode(),
    "a key outside ASCII": "schlüssel-für-zwei-😀",
}
KEY = KEYS["a key of words"]
BODY = written("x \u2028 😀\n".encode())


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_javascript_writes_a_body_as_it_was_sent_so_both_ways_verify(node: Node, body: bytes) -> None:
    judgement = node.judge(signed(body, KEY), body, KEY)
    assert judgement.again == body
    assert (judgement.by_parsed_body, judgement.by_raw_body) == (True, True)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_javascript_decodes_the_very_bytes_that_sha_and_size_are_of(node: Node, content: bytes) -> None:
    body = written(content)
    expected = {"sha": hashlib.sha256(content).hexdigest(), "size": len(content)}
    assert node.judge(signed(body, KEY), body, KEY).file == expected
    assert json.loads(body)["file"].items() >= expected.items()


def test_the_joined_chunks_are_the_base64_of_the_file() -> None:
    content = "text 😀\r\n".encode() * 1000
    files = [json.loads(body)["file"] for body in chunked(content, 1000)]
    assert len(files) > 10
    assert base64.b64decode("".join(file["content"] for file in files), validate=True) == content
    assert {file["sha"] for file in files} == {hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_every_key_verifies(node: Node, key: str) -> None:
    judgement = node.judge(signed(BODY, key), BODY, key)
    assert (judgement.by_parsed_body, judgement.by_raw_body) == (True, True)


@pytest.mark.parametrize("age", [290, -290])
def test_a_clock_that_differs_by_almost_five_minutes_is_accepted(node: Node, age: int) -> None:
    judgement = node.judge(signed(BODY, KEY, age=age), BODY, KEY)
    assert (judgement.by_parsed_body, judgement.by_raw_body) == (True, True)


def fresh(**changes: str) -> Callable[[], dict[str, str]]:
    """Headers that are right but for the changes, made when the test runs and so never too old by themselves."""
    return lambda: signed(BODY, KEY) | {f"X-Docora-{name.title()}": value for name, value in changes.items()}


def with_signature(change: Callable[[str], str]) -> Callable[[], dict[str, str]]:
    def make() -> dict[str, str]:
        headers = signed(BODY, KEY)
        return headers | {"X-Docora-Signature": change(headers["X-Docora-Signature"])}

    return make


FORGED: dict[str, tuple[Callable[[], dict[str, str]], bytes]] = {
    "another content": (fresh(), BODY.replace(b"acme", b"evil")),
    "a path changed": (fresh(), BODY.replace(b"index.ts", b"index.js")),
    "a field more": (fresh(), BODY.removesuffix(b"}") + b',"a":1}'),
    "an empty body": (fresh(), b""),
    "a body that is not JSON": (fresh(), BODY[:-1]),
    "signed with another key": (lambda: signed(BODY, "a-key-of-somebody-else"), BODY),
    "a time that was not signed": (lambda: fresh(timestamp=str(int(time.time()) - 60))(), BODY),
    "too old": (lambda: signed(BODY, KEY, age=310), BODY),
    "too far in the future": (lambda: signed(BODY, KEY, age=-310), BODY),
    "a time that is no number": (fresh(timestamp="now"), BODY),
    "no time": (fresh(timestamp=""), BODY),
    "no signature": (fresh(signature=""), BODY),
    "the empty digest": (fresh(signature="sha256="), BODY),
    "a signature cut short": (with_signature(lambda whole: whole[:-1]), BODY),
    "a signature and more": (with_signature(lambda whole: whole + "0"), BODY),
    "a digest without its prefix": (with_signature(lambda whole: whole.removeprefix("sha256=")), BODY),
    "a signature outside ASCII": (with_signature(lambda whole: "é" * len(whole)), BODY),
}


@pytest.mark.parametrize(("make_headers", "body"), FORGED.values(), ids=FORGED)
def test_what_is_forged_is_refused(node: Node, make_headers: Callable[[], dict[str, str]], body: bytes) -> None:
    judgement = node.judge(make_headers(), body, KEY)
    assert (judgement.by_parsed_body, judgement.by_raw_body) == (False, False)
