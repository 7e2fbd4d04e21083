"""Generated content and paths: the content round-trips, and JavaScript writes the body exactly as signed."""

import base64
import hashlib
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire.bodies import SHA, file_notification, signed
from tests.wire.clients import Node
from tests.wire.test_node import KEY

# Deterministic and without a database, so that a failure is reproducible everywhere.
fixed = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

AWKWARD = '"\\/\0\b\t\n\f\r\x1b\x7f\x85\u2028\u2029\ufeff\ufffe\uffff\U00010000\U0010ffff'
text = st.text(st.sampled_from(AWKWARD), max_size=20) | st.text(st.characters(codec="utf-8"), max_size=200)
without_nul = text.map(lambda drawn: drawn.replace("\0", ""))
mixed = st.lists(text.map(str.encode) | st.binary(max_size=100), max_size=3).map(b"".join)
contents = without_nul.map(str.encode) | mixed
paths = without_nul.filter(bool)


@fixed
@given(content=contents, path=paths, previous=st.none() | st.just(SHA))
def test_any_content_at_any_path_verifies(node: Node, content: bytes, path: str, previous: str | None) -> None:
    body = file_notification(content, path, previous)
    file = json.loads(body)["file"]
    is_base64 = file.get("content_encoding") == "base64"
    decoded = base64.b64decode(file["content"], validate=True) if is_base64 else file["content"].encode()
    assert (decoded, file["path"]) == (content, path)
    assert (file["sha"], file["size"]) == (hashlib.sha256(content).hexdigest(), len(content))

    verdict = node.check(signed(body, KEY), body, KEY)
    assert verdict.stringified == body
    assert (verdict.by_parsed_body, verdict.by_raw_body) == (True, True)
    assert verdict.file == {"sha": file["sha"], "size": file["size"]}
