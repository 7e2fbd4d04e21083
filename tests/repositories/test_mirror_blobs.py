"""Contents through one `git cat-file --batch`, asked for ahead: whatever is wanted then comes, whole and in order."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from repositories_app.git.exceptions import GitError
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


def test_they_come_in_the_order_that_was_asked_for(reader: BlobReader, blobs: list[str]) -> None:
    assert list(reader.read(blobs)) == CONTENTS
    assert list(reader.read([blobs[7], blobs[3], blobs[7]])) == [CONTENTS[7], CONTENTS[3], CONTENTS[7]]


def test_what_was_asked_ahead_comes_once(reader: BlobReader, blobs: list[str]) -> None:
    reader.ask_ahead(blobs[:50])
    assert list(reader.read(blobs[:50])) == CONTENTS[:50]
    assert list(reader.read(blobs[50:60])) == CONTENTS[50:60]


@pytest.mark.parametrize(
    "wanted",
    [[0, 2, 4], [4], [0, 1, 60, 61], [60, 61], [3, 1], [2, 2, 3], [0, 1, 2, 3, 4, 5, 6]],
    ids=lambda numbers: ",".join(map(str, numbers)),
)
def test_whatever_is_wanted_of_what_was_asked_ahead_nothing_is_taken_for_another(
    reader: BlobReader, blobs: list[str], wanted: list[int]
) -> None:
    reader.ask_ahead(blobs[:6])
    assert list(reader.read([blobs[number] for number in wanted])) == [CONTENTS[number] for number in wanted]
    assert list(reader.read(blobs[5:9])) == CONTENTS[5:9]


def test_the_same_content_may_be_asked_ahead_twice(reader: BlobReader, blobs: list[str]) -> None:
    reader.ask_ahead([blobs[1], blobs[1], blobs[2]])
    reader.ask_ahead([blobs[2], blobs[1]])
    assert list(reader.read([blobs[1], blobs[2], blobs[1]])) == [CONTENTS[1], CONTENTS[2], CONTENTS[1]]


def test_more_than_git_takes_at_once_may_be_asked_ahead(reader: BlobReader, blobs: list[str]) -> None:
    reader.ask_ahead(blobs)
    assert list(reader.read(blobs)) == CONTENTS


def test_a_large_content_is_streamed_past_what_was_asked_ahead(reader: BlobReader, blobs: list[str]) -> None:
    reader.ask_ahead(blobs[:6])
    assert b"".join(reader.stream(blobs[999])) == CONTENTS[999]
    assert list(reader.read(blobs[:6])) == CONTENTS[:6]


def test_a_content_that_is_not_there_is_an_error_also_when_it_was_asked_ahead(
    reader: BlobReader, blobs: list[str]
) -> None:
    reader.ask_ahead([blobs[0], "f" * 40])
    read = reader.read([blobs[0], "f" * 40])
    assert next(read) == CONTENTS[0]
    with pytest.raises(GitError, match="ffffffffffff cannot be read"):
        next(read)
