"""The reference client over a real socket: authentication, validation and storage."""

import base64
import json
import time

import pytest

from deliveries_app.receiver import Refused, tree_sha256, verify
from tests.deliveries.sender import APP, KEY, REPOSITORY, STANDARD_KEY, about, held, sha, signed
from tests.support.receiver import Receiver

# --- Authentication ---------------------------------------------------------------------------------------------------


def test_file_is_stored(receiver, sender):
    assert sender.send("src/größe.txt", "größer\r\n") == 200
    assert sender.send("image.bin", b"\0\xff", sequence=2) == 200
    assert held(receiver) == {"src/größe.txt": "größer\r\n".encode(), "image.bin": b"\0\xff"}
    assert receiver.copy(APP, "repo_1") == {path: sha(content) for path, content in held(receiver).items()}


def test_wrong_signature_is_refused(receiver, sender):
    assert sender.send("a.txt", "hello", key="another key") == 401
    assert held(receiver) == {}
    assert [(record.status, record.verified, record.path) for record in receiver.log] == [(401, False, "")]


@pytest.mark.parametrize("header", ["X-Docora-Signature", "webhook-signature"])
def test_both_signatures_are_required(sender, header):
    body = b'{"event":"ping","timestamp":"2026-11-24T12:00:00.000Z"}'
    wrong = signed(body) | {header: signed(body, "another key")[header]}
    missing = {name: value for name, value in signed(body).items() if name != header}
    assert [sender.post("ping", body, wrong), sender.post("ping", body, missing), sender.post("ping", body)] == [
        401,
        401,
        200,
    ]


def test_changed_body_is_refused(receiver, sender):
    body = json.dumps(about({"path": "a", "sha": sha(b"x"), "size": 1, "content": "x"})).encode()
    assert sender.post("create", body.replace(b'"x"', b'"y"'), signed(body)) == 401
    assert held(receiver) == {}


@pytest.mark.parametrize("seconds", [-301, 302])
def test_timestamp_out_of_tolerance_is_refused(sender, seconds):
    assert sender.send("a.txt", "hello", at=int(time.time()) + seconds) == 401


def test_timestamp_tolerance_is_five_minutes():
    verify(signed(b"{}", at=1000), b"{}", KEY, 1300)
    with pytest.raises(Refused, match="timestamp"):
        verify(signed(b"{}", at=1000), b"{}", KEY, 1300.5)


def test_standard_key_is_decoded_for_the_standard_signature_only():
    verify(signed(b"{}", STANDARD_KEY, at=1000), b"{}", STANDARD_KEY, 1000)


def test_one_of_several_standard_signatures_suffices():
    headers = signed(b"{}", at=1000)
    headers["webhook-signature"] = f"v1,{'A' * 43}= {headers['webhook-signature']}"
    verify(headers, b"{}", KEY, 1000)


@pytest.mark.parametrize("garbage", ["", "sha256=", "sha256=ü", "²", "9" * 5000])
def test_garbage_in_a_header_is_refused(garbage):
    for name in ("X-Docora-Timestamp", "webhook-timestamp", "X-Docora-Signature", "webhook-signature"):
        with pytest.raises(Refused):
            verify(signed(b"{}", at=1000) | {name: garbage}, b"{}", KEY, 1000)


def test_apps_have_separate_keys_and_copies(receiver, sender):
    receiver.keys = {"app_a": "key a", "app_b": "key b"}
    assert sender.send("f", "of a", app="app_a", key="key a") == 200
    assert sender.send("f", "of b", app="app_b", key="key b") == 200
    assert sender.send("f", "of c", app="app_b", key="key a") == 401
    assert sender.send("f", "of c", app="app_c", key="key a") == 401
    assert (held(receiver, "app_a"), held(receiver, "app_b")) == ({"f": b"of a"}, {"f": b"of b"})


# --- Validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["../out", "/etc/passwd", "a/../../out", "a//b", "a/./b", "", ".", "a/", "nul\0byte", "\ud800", "..", "./a"],
)
def test_path_outside_the_copy_is_refused(receiver, sender, path, tmp_path):
    body = json.dumps(about({"path": path, "sha": sha(b"x"), "size": 1, "content": "x"})).encode()
    assert sender.post("create", body) == 422
    assert sender.post("delete", body) == 422
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == []


@pytest.mark.parametrize("repository_id", ["..", ".", "a/b", "", "a\0", "../../x"])
def test_unsafe_repository_id_is_refused(receiver, sender, repository_id):
    file = {"path": "f", "sha": sha(b"x"), "size": 1, "content": "x"}
    assert sender.post("create", about(file) | {"repository": REPOSITORY | {"repository_id": repository_id}}) == 422
    assert [found for found in receiver.directory.rglob("*") if found.is_file()] == []


@pytest.mark.parametrize(
    "change", [{"sha": "0" * 64}, {"size": 4}, {"content": "hellO"}, {"content_encoding": "base64"}]
)
def test_content_must_match_sha_and_size(receiver, sender, change):
    file = {"path": "a.txt", "sha": sha(b"hello"), "size": 5, "content": "hello"}
    assert sender.post("create", about(file | change)) == 422
    assert held(receiver) == {}
    assert list((receiver.directory / ".incoming").iterdir()) == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"timestamp":1}'])
def test_malformed_body_is_refused(sender, body):
    for kind in ("create", "update", "delete", "sync_failed", "sync_completed", "ping"):
        assert sender.post(kind, body) == 422


def test_fields_of_the_wrong_type_are_refused(sender):
    file = {"path": "a", "sha": sha(b"x"), "size": 1, "content": "x"}
    for wrong in ({"size": True}, {"size": "1"}, {"sha": "abc"}, {"path": None}, {"chunk": {}}, {"content": 1}):
        assert sender.post("create", about(file | wrong)) == 422
    assert sender.post("update", about(file)) == 422  # no previous_sha


def test_unknown_path_is_not_found(sender):
    assert sender.post("destroy", b"{}") == 404


def test_ping_and_sync_failed(receiver, sender):
    assert sender.post("ping", {"event": "ping", "timestamp": "now"}) == 200
    failed = {"event": "sync_failed", "repository": REPOSITORY, "error": {"type": "git_failure"}, "timestamp": "now"}
    assert sender.post("sync_failed", failed) == 200
    assert [record.outcome for record in receiver.log] == ["pong", "noted"]


# --- Storage ----------------------------------------------------------------------------------------------------------


def test_update_to_an_empty_file(receiver, sender):
    sender.send("a", "one", sequence=1)
    assert sender.send("a", "", kind="update", sequence=2) == 200
    assert held(receiver) == {"a": b""}


def test_delete_removes_empty_directories(receiver, sender):
    sender.send("a/b/c/d.txt", "d", sequence=1)
    sender.send("a/e.txt", "e", sequence=2)
    assert sender.delete("a/b/c/d.txt", sequence=3) == 200
    assert sender.answer == {"status": "removed"}
    assert [path.name for path in (receiver.directory / APP / "repo_1/a").iterdir()] == ["e.txt"]


def test_delete_of_a_missing_file(sender):
    assert sender.delete("a/b") == 200
    assert sender.answer == {"status": "absent"}


def test_file_and_directory_replace_each_other(receiver, sender):
    sender.send("a", "file", sequence=1)
    assert sender.send("a/b/c", "below", sequence=2) == 200
    assert held(receiver) == {"a/b/c": b"below"}
    assert sender.send("a", "file again", sequence=3) == 200
    assert held(receiver) == {"a": b"file again"}
    assert set(receiver.copy(APP, "repo_1")) == {"a"}


def test_lower_sequence_is_ignored(receiver, sender):
    sender.send("a", "new", sequence=10)
    assert sender.send("a", "old", kind="update", sequence=9) == 200
    assert sender.answer == {"status": "stale"}
    assert sender.delete("a", sequence=9) == 200
    assert sender.send("a", "new", sequence=10) == 200  # a retry has the same number
    assert sender.answer == {"status": "kept"}
    assert held(receiver) == {"a": b"new"}


def test_lower_sequence_does_not_restore_a_deleted_file(receiver, sender):
    sender.delete("a", sequence=10)
    assert sender.send("a", "old", sequence=9) == 200
    assert held(receiver) == {}


def test_sequences_are_per_path(receiver, sender):
    sender.send("a", "a", sequence=10)
    sender.send("b", "b", sequence=5)
    assert held(receiver) == {"a": b"a", "b": b"b"}


def test_files_on_disk_survive_a_restart(receiver, sender):
    sender.send("a/b", "kept", sequence=1)
    again = Receiver(receiver.directory, KEY)
    assert again.copy(APP, "repo_1") == {"a/b": sha(b"kept")}


def test_sync_completed_compares_the_copy(receiver, sender):
    for number, path in enumerate(("z", "a/b", "a.b", "é")):
        sender.send(path, path, sequence=number + 1)
    lines = "".join(f"{sha(path.encode())}  {path}\n" for path in ("a.b", "a/b", "z", "é"))
    assert tree_sha256(receiver.copy(APP, "repo_1")) == sha(lines.encode())
    event = {
        "event": "sync_completed",
        "repository": REPOSITORY,
        "commit_sha": "c" * 40,
        "files": 4,
        "timestamp": "now",
    }
    assert sender.post("sync_completed", event | {"tree_sha256": sha(lines.encode())}) == 200
    assert sender.answer == {"status": "matches"}
    assert sender.post("sync_completed", event | {"tree_sha256": sha(b"")}) == 200
    assert sender.answer == {"status": "differs"}


# --- Chunks -----------------------------------------------------------------------------------------------------------


def pieces(content: bytes, size: int) -> list[str]:
    text = base64.b64encode(content).decode()
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [524_288, 100_000, 99_999])  # the last is not a multiple of four
def test_chunks_are_joined(receiver, sender, size):
    content = bytes(range(256)) * 5000
    parts = pieces(content, size)
    answers = [sender.send_chunk("big", content, part, index, len(parts)) for index, part in enumerate(parts)]
    assert set(answers) == {200}
    assert held(receiver) == {"big": content}
    assert [record.outcome for record in receiver.log] == ["partial"] * (len(parts) - 1) + ["kept"]


def test_file_appears_with_its_last_chunk(receiver, sender):
    sender.send("big", "the old one", sequence=1)
    sender.send_chunk("big", b"123456", "MTIz", 0, 2, sequence=2)
    assert held(receiver) == {"big": b"the old one"}


def test_new_chunk_id_starts_over(receiver, sender):
    sender.send_chunk("big", b"123456", "MTIz", 0, 2, id="c1")
    sender.send_chunk("big", b"123456", "MTIz", 0, 2, id="c2")
    assert sender.send_chunk("big", b"123456", "NDU2", 1, 2, id="c2") == 200
    assert held(receiver) == {"big": b"123456"}
    assert list((receiver.directory / ".incoming").iterdir()) == []


def test_repeated_chunk_counts_once(receiver, sender):
    sender.send_chunk("big", b"123456", "MTIz", 0, 2)
    assert sender.send_chunk("big", b"123456", "MTIz", 0, 2) == 200
    assert sender.answer == {"status": "repeated"}
    sender.send_chunk("big", b"123456", "NDU2", 1, 2)
    assert held(receiver) == {"big": b"123456"}


def test_chunk_out_of_order_is_refused(receiver, sender):
    assert sender.send_chunk("big", b"123456", "NDU2", 1, 2) == 422
    sender.send_chunk("big", b"123456", "MTIz", 0, 3)
    assert sender.send_chunk("big", b"123456", "NDU2", 2, 3) == 422
    assert held(receiver) == {}


def test_chunks_with_a_lower_sequence_are_ignored(receiver, sender):
    sender.send_chunk("big", b"123456", "MTIz", 0, 2, sequence=5)
    sender.send("big", "newer", sequence=6)
    assert sender.send_chunk("big", b"123456", "NDU2", 1, 2, sequence=5) == 200
    assert held(receiver) == {"big": b"newer"}


def test_chunks_that_do_not_match_the_sha_are_discarded(receiver, sender):
    sender.send_chunk("big", b"123456", "MTIz", 0, 2)
    assert sender.send_chunk("big", b"123456", "AAAA", 1, 2) == 422
    assert held(receiver) == {}
    assert list((receiver.directory / ".incoming").iterdir()) == []
