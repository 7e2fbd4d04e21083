"""The manifest lists all files that the app has acknowledged, in bounded memory."""

import json
import tracemalloc

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.api import files
from deliveries_app.models import AppRepository, Delivery
from tests.api.caller import Caller
from tests.support.world import World


def lines_of(answer) -> list[dict]:
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in b"".join(answer.streaming_content).splitlines()]


def deliver(watch: AppRepository, path: str, **fields) -> Delivery:
    defaults = {"sha": "a" * 64, "size": 1, "generation": 1, "acknowledged": True, "sequence": 1, "kind": "create"}
    return Delivery(watch=watch, path=path, mode="100644", updated_at=timezone.now(), **(defaults | fields))


def path_of(watch: AppRepository) -> str:
    return f"/{watch.repository.repository_id}/manifest"


def test_manifest_equals_the_app_s_copy_after_a_sync(world: World, caller: Caller) -> None:
    files = {"b.txt": b"two", "a/ü.txt": b"one", "Z": b"", "a-b": b"\xff\x00"}
    _, watch = world.watch(files)
    world.settle()
    lines = lines_of(caller.get(path_of(watch)))
    assert [line["path"] for line in lines] == sorted(files, key=str.encode)
    assert {line["path"]: line["sha"] for line in lines} == world.copy(watch)
    assert {line["path"]: line["size"] for line in lines} == {path: len(content) for path, content in files.items()}
    assert all(list(line) == ["path", "sha", "size"] for line in lines)


def test_doubtful_and_cleared_files_are_not_listed(portal: Caller, watches) -> None:
    AppRepository.objects.filter(pk=watches[0].pk).update(generation=5, resend_floor=4)
    Delivery.objects.bulk_create(
        [
            deliver(watches[0], "acknowledged", generation=4),
            deliver(watches[0], "cleared", generation=3),
            deliver(watches[0], "in doubt", generation=5, acknowledged=False),
            deliver(watches[2], "of another app", generation=5),
        ]
    )
    assert [line["path"] for line in lines_of(portal.get(path_of(watches[0])))] == ["acknowledged"]


def test_empty_manifest_has_no_lines(portal: Caller, watches) -> None:
    assert lines_of(portal.get(path_of(watches[0]))) == []


@pytest.mark.parametrize("count", [0, 1, 3, 4, 8])
def test_pages_have_no_gaps(portal: Caller, watches, monkeypatch, count: int) -> None:
    monkeypatch.setattr(files, "MANIFEST_PAGE", 4)
    paths = [f"{number:02}" for number in range(count)]
    Delivery.objects.bulk_create([deliver(watches[0], path) for path in reversed(paths)])
    assert [line["path"] for line in lines_of(portal.get(path_of(watches[0])))] == paths


def test_resync_during_the_download_clears_the_remaining_pages(portal: Caller, watches, monkeypatch) -> None:
    monkeypatch.setattr(files, "MANIFEST_PAGE", 2)
    Delivery.objects.bulk_create([deliver(watches[0], path) for path in "abcd"])
    stream = portal.get(path_of(watches[0])).streaming_content
    assert next(stream).count(b"\n") == 2
    portal.post(f"/{watches[0].repository.repository_id}/resync")
    assert list(stream) == []


def test_memory_is_bounded(portal: Caller, watches) -> None:
    def peak_with(start: int, stop: int) -> int:
        """Add the files from `start` to `stop`, and return the peak memory in bytes while all are listed."""
        rows = (deliver(watches[0], f"folder/{'x' * 100}/{number:06}") for number in range(start, stop))
        Delivery.objects.bulk_create(rows, batch_size=2_000)
        answer = portal.get(path_of(watches[0]))
        tracemalloc.start()
        size = sum(map(len, answer.streaming_content))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert size > stop * 180
        return peak

    few = peak_with(0, 2 * files.MANIFEST_PAGE)
    assert peak_with(2 * files.MANIFEST_PAGE, 10 * files.MANIFEST_PAGE) < few * 1.3


def test_each_page_is_its_own_query(portal: Caller, watches, monkeypatch) -> None:
    monkeypatch.setattr(files, "MANIFEST_PAGE", 5)
    Delivery.objects.bulk_create([deliver(watches[0], f"{number:02}") for number in range(12)])
    answer = portal.get(path_of(watches[0]))
    with CaptureQueriesContext(connection) as queries:
        assert [piece.count(b"\n") for piece in answer.streaming_content] == [5, 5, 2]
    assert len(queries) == 4
