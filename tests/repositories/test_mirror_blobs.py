"""Reading blobs through one `git cat-file --batch-command` with prefetching: each is complete and the right one."""

import fcntl
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from repositories_app.git.exceptions import Cause, GitError
from repositories_app.mirror.blobs import BlobReader
from repositories_app.mirror.mirror import Mirror
from tests.support.git import git

CONTENTS = [b"content %d\n" % number * (number + 1) for number in range(1000)]


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    git(tmp_path, "init", "--quiet", "--bare", "mirror.git")
    return Mirror(tmp_path / "mirror.git")


@pytest.fixture
def blobs(mirror: Mirror, tmp_path: Path) -> list[str]:
    names = []
    for number, content in enumerate(CONTENTS):
        (tmp_path / f"{number}").write_bytes(content)
        names.append(str(tmp_path / f"{number}"))
    return git(mirror.directory, "hash-object", "-w", "--no-filters", "--", *names).decode("ascii").split()


@pytest.fixture
def reader(mirror: Mirror) -> Iterator[BlobReader]:
    with mirror.in_use(lambda: None), mirror.blobs() as reader:
        yield reader


def test_blobs_arrive_in_the_requested_order(reader: BlobReader, blobs: list[str]) -> None:
    assert list(reader.read(blobs)) == CONTENTS
    assert list(reader.read([blobs[7], blobs[3], blobs[7]])) == [CONTENTS[7], CONTENTS[3], CONTENTS[7]]


def test_prefetched_blob_is_returned_once(reader: BlobReader, blobs: list[str]) -> None:
    reader.prefetch(blobs[:50])
    assert list(reader.read(blobs[:50])) == CONTENTS[:50]
    assert list(reader.read(blobs[50:60])) == CONTENTS[50:60]


@pytest.mark.parametrize(
    "wanted",
    [[0, 2, 4], [4], [0, 1, 60, 61], [60, 61], [3, 1], [2, 2, 3], [0, 1, 2, 3, 4, 5, 6]],
    ids=lambda numbers: ",".join(map(str, numbers)),
)
def test_any_order_returns_the_right_prefetched_blob(reader: BlobReader, blobs: list[str], wanted: list[int]) -> None:
    reader.prefetch(blobs[:6])
    assert list(reader.read([blobs[number] for number in wanted])) == [CONTENTS[number] for number in wanted]
    assert list(reader.read(blobs[5:9])) == CONTENTS[5:9]


def test_same_blob_may_be_prefetched_twice(reader: BlobReader, blobs: list[str]) -> None:
    reader.prefetch([blobs[1], blobs[1], blobs[2]])
    reader.prefetch([blobs[2], blobs[1]])
    assert list(reader.read([blobs[1], blobs[2], blobs[1]])) == [CONTENTS[1], CONTENTS[2], CONTENTS[1]]


def test_prefetch_beyond_the_pipe_buffer(reader: BlobReader, blobs: list[str]) -> None:
    reader.prefetch(blobs)
    assert list(reader.read(blobs)) == CONTENTS


def test_object_is_in_memory_once(reader: BlobReader, mirror: Mirror) -> None:
    content = bytes(10_000_000)
    blob = git(mirror.directory, "hash-object", "-w", "--stdin", stdin=[content]).decode("ascii").strip()
    tracemalloc.start()
    assert next(reader.read([blob])) == content
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * len(content)


def test_large_blob_is_streamed_past_the_prefetched_ones(reader: BlobReader, blobs: list[str]) -> None:
    reader.prefetch(blobs[:6])
    assert b"".join(reader.stream(blobs[999])) == CONTENTS[999]
    assert list(reader.read(blobs[:6])) == CONTENTS[:6]


def test_unread_prefetched_blobs_do_not_block_git(reader: BlobReader, blobs: list[str]) -> None:
    for start in range(0, 6000, 200):  # more than the pipe holds, of contents and of questions
        reader.prefetch(blobs[start % 1000 :][:200])
    assert list(reader.read(blobs[-300:])) == CONTENTS[-300:]


def test_small_pipes_do_not_block(reader: BlobReader, blobs: list[str]) -> None:
    """Linux shrinks the pipes of a user who has many. git then blocks on its full output; sending queries must not."""
    process = reader._open()
    assert process.stdin
    assert process.stdout
    for pipe in (process.stdin, process.stdout):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    reader.prefetch(blobs)
    assert list(reader.read(blobs)) == CONTENTS
    assert list(reader.sizes(blobs)) == list(map(len, CONTENTS))


def test_missing_blob_is_an_error(reader: BlobReader, blobs: list[str]) -> None:
    reader.prefetch([blobs[0], "f" * 40])
    read = reader.read([blobs[0], "f" * 40])
    assert next(read) == CONTENTS[0]
    with pytest.raises(GitError, match="ffffffffffff cannot be read"):
        next(read)


@pytest.mark.parametrize("when", ["asked", "read", "streamed"])
def test_git_that_is_killed_does_not_mean_a_damaged_mirror(
    mirror: Mirror, reader: BlobReader, blobs: list[str], when: str
) -> None:
    """The kernel may kill it when memory is short. Otherwise, the mirror would be removed and fetched again."""
    large = git(mirror.directory, "hash-object", "-w", "--stdin", stdin=[b"x" * 3_000_000]).decode().strip()
    process = reader._open()
    if when == "asked":
        reader.prefetch(blobs[:6])
    stream = reader.stream(large)
    if when == "streamed":
        next(stream)
    process.kill()
    with pytest.raises(GitError, match="killed by signal 9") as caught:
        list(stream if when == "streamed" else reader.read(blobs))
    assert caught.value.cause is Cause.OTHER
    assert list(reader.read(blobs)) == CONTENTS
