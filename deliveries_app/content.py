"""From planned changes to notifications that can be announced: contents read and hashed, in bounded blocks."""

import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from django.conf import settings

from deliveries_app.kinds import Kind
from deliveries_app.payloads import Chunk, RepositoryInfo, chunk_count, cut_base64, file_body
from deliveries_app.plan import Change, Terms
from deliveries_app.recorder import Notification
from repositories_app.mirror import BlobReader, Mirror

BLOCK_BYTES = 8_000_000  # of small files' contents held at once


def blocks(changes: Iterator[Change]) -> Iterator[list[Change]]:
    """Portions of at most `RECORD_BATCH` changes and `BLOCK_BYTES` of small files."""
    block: list[Change] = []
    size = 0
    for change in changes:
        weight = 0 if is_large(change.size) else change.size
        if block and (len(block) >= settings.RECORD_BATCH or size + weight > BLOCK_BYTES):
            yield block
            block, size = [], 0
        block.append(change)
        size += weight
    if block:
        yield block


def is_large(size: int) -> bool:
    """Sent in chunks, and read twice: once for its hash, once for sending."""
    return size > settings.CHUNK_THRESHOLD_BYTES


def read_block(
    changes: Sequence[Change], reader: BlobReader, terms: Terms, tick: Callable[[], None]
) -> list[Notification]:
    """One notification per change, in the same order."""
    small = [change.blob for change in changes if change.blob and not is_large(change.size)]
    contents = reader.read(small)
    notifications = []
    for change in changes:
        if change.kind == Kind.DELETE:
            made = Notification(change, "", change.sha, 0, None)
        elif is_large(change.size):
            made = Notification(change, terms.source_key(change.blob), "", change.size, None)
        else:
            content = next(contents)
            sha = hashlib.sha256(content).hexdigest()
            made = Notification(change, terms.source_key(change.blob), sha, len(content), content)
        made.intent = change.intent or 0
        notifications.append(made)
    for made in notifications:
        if not made.sha:  # the large ones last: the pipe is free of other answers then
            made.sha = _hash(reader, made.change.blob, tick)
    return notifications


def _hash(reader: BlobReader, blob: str, tick: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    for block in reader.stream(blob):
        digest.update(block)
        tick()
    return digest.hexdigest()


class ChunkedFile:
    """The bodies of one large file, one chunk after the other, read from a pipe of its own."""

    def __init__(self, notification: Notification, mirror: Mirror) -> None:
        self._notification = notification
        self._reader = mirror.blobs()
        self._pieces = cut_base64(self._reader.stream(notification.change.blob), settings.CHUNK_SIZE_BYTES)
        self._id = str(uuid.uuid4())  # a new one whenever the file starts over
        self.total = chunk_count(notification.size, settings.CHUNK_SIZE_BYTES)
        self.index = -1
        self.chunk = self.advance()

    @property
    def is_last(self) -> bool:
        return self.index + 1 == self.total

    def advance(self) -> Chunk:
        """Go on to the next chunk, which then is `chunk`."""
        self.index += 1
        self.chunk = Chunk(self._id, self.index, self.total, next(self._pieces))
        return self.chunk

    def body(self, repository: RepositoryInfo, commit: str, moment: datetime) -> bytes:
        item = self._notification
        previous = item.change.previous_sha
        return file_body(repository, item.change.path, item.sha, item.size, self.chunk, commit, moment, previous)

    def close(self) -> None:
        self._reader.close()
