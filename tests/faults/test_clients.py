"""The clients of the random histories, which replace methods of the reference client."""

from dataclasses import replace
from pathlib import Path

import pytest

from deliveries_app.receiver import tree_sha256
from tests.deliveries.sender import APP, KEY, REPOSITORY, Sender, sha
from tests.faults.clients import KINDS, ClientKind, Clients

COPY = tree_sha256({"a.txt": sha(b"content")})
CHECK = {
    "event": "verify",
    "repository": REPOSITORY,
    "commit_sha": "c" * 40,
    "timestamp": "2026-11-24T12:00:00.000Z",
    "tree_sha256": COPY,
    "after": "",
    "limit": 100,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_client_answers_a_check_for_differences_from_its_own_copy(tmp_path: Path, kind: ClientKind) -> None:
    with Clients(tmp_path, KEY) as clients:
        clients.kinds = {APP: replace(kind, gap=0.0)}
        assert Sender(clients).send("a.txt", "content") == 200
        sender = Sender(clients)  # some clients have closed the connection
        if kind.verifies:
            assert sender.post("verify", CHECK, sequence=2) == 200
            assert sender.answer == {"tree_sha256": COPY}
        else:
            assert sender.post("verify", CHECK, sequence=2) == 404
