"""Turn planned changes into notifications: read and hash their contents, in blocks of bounded size.

With transforms, each file is transformed here, although planning may already have done so. A large file is transformed
again when it is sent. Only one large transformed file is in memory at a time, and on disk only while it is sent.
"""

import hashlib
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from django.conf import settings

from deliveries_app.models.deliveries import Kind
from deliveries_app.planning.eligibility import remark_on
from deliveries_app.planning.plan import Change, DeliveryRules
from deliveries_app.planning.transforms import SourceFile, TransformFailed
from deliveries_app.sync.notification import Failure, Notification
from deliveries_app.webhooks.payloads import Chunk, chunk_count, cut_base64
from repositories_app.mirror.blobs import BlobReader
from repositories_app.mirror.mirror import Mirror

BLOCK_BYTES = 8_000_000  # of small files' contents in one block


def blocks(changes: Iterator[Change]) -> Iterator[list[Change]]:
    """Yield blocks of at most `RECORD_BATCH` changes and `BLOCK_BYTES` of small files."""
    block: list[Change] = []
    size = 0
    for change in changes:
        size_in_memory = 0 if is_large(change.size) else change.size
        if block and (len(block) >= settings.RECORD_BATCH or size + size_in_memory > BLOCK_BYTES):
            yield block
            block, size = [], 0
        block.append(change)
        size += size_in_memory
    if block:
        yield block


def is_large(size: int) -> bool:
    """Return whether a file of this size is sent in chunks. It is read twice: for its hash, and to be sent."""
    return size > settings.CHUNK_THRESHOLD_BYTES


class Contents:
    """The contents of one commit's files, as they are sent: with active transforms, transformed."""

    def __init__(self, mirror: Mirror, reader: BlobReader, delivery_rules: DeliveryRules) -> None:
        self._mirror, self._reader, self._rules = mirror, reader, delivery_rules

    def prefetch(self, changes: Sequence[Change]) -> None:
        """Request what `read` reads next, so that git unpacks it while the previous block is sent."""
        if not self._rules.transforms:
            self._reader.prefetch(self._blobs_to_read(changes))

    def read(
        self, changes: Sequence[Change], tick: Callable[[], None], fail: Callable[[Change, Failure], None]
    ) -> list[Notification]:
        """Return one notification for each change, in the same order. Changes whose transforms fail are passed to `fail`."""
        transforms = self._rules.transforms
        contents = self._reader.read(self._blobs_to_read(changes))
        notifications = []
        for change in changes:
            if change.kind == Kind.DELETE:
                notifications.append(Notification(change, "", change.sha, 0, None))
                continue
            if not transforms and is_large(change.size):
                notifications.append(Notification(change, self._rules.source_key(change.blob), "", change.size, None))
                continue
            content = next(contents)
            if transforms:
                tick()
                try:
                    content = _transformed(change, content, self._rules)
                except TransformFailed as error:
                    fail(change, Failure("transform", str(error)))
                    continue
            notifications.append(self._notification(change, content))
        for notification in notifications:
            if not notification.sha:  # large files come last, when the pipe holds no other answers
                notification.sha, notification.remark = self._hash(notification.change, tick)
        return notifications

    def chunks_of(self, notification: Notification) -> "ChunkedFile":
        """Open a large file. Raises `TransformFailed`."""
        return ChunkedFile(notification, self._mirror, self._rules)

    def _blobs_to_read(self, changes: Sequence[Change]) -> list[str]:
        """Return the blobs whose contents `read` keeps in memory. Without transforms, large files are only hashed."""
        if self._rules.transforms:
            return [change.blob for change in changes if change.blob]
        return [change.blob for change in changes if change.blob and not is_large(change.size)]

    def _notification(self, change: Change, content: bytes) -> Notification:
        """Return the notification for a content in memory, with the content unless it is large."""
        size = len(content)
        return Notification(
            change,
            self._rules.source_key(change.blob, change.source_path),
            hashlib.sha256(content).hexdigest(),
            size,
            None if is_large(size) else content,
            remark_on(size, content),
        )

    def _hash(self, change: Change, tick: Callable[[], None]) -> tuple[str, str]:
        """Return the SHA-256 and the remark of a large file."""
        digest = hashlib.sha256()
        beginning = b""
        for block in self._reader.stream(change.blob):
            beginning = beginning or block
            digest.update(block)
            tick()
        return digest.hexdigest(), remark_on(change.size, beginning)


def _transformed(change: Change, content: bytes, delivery_rules: DeliveryRules) -> bytes:
    """Return the transformed content. Raises `TransformFailed`, also if the transforms return another path than planned."""
    made = delivery_rules.transforms.apply(SourceFile(change.source_path, content))
    if made is None or made.path != change.path:
        raise _not_deterministic(change)
    return made.content


def _not_deterministic(change: Change) -> TransformFailed:
    return TransformFailed(
        f"The transforms returned different results for {change.source_path}. Transforms must be deterministic."
    )


class ChunkedFile:
    """The chunks of one large file, read one after the other from a git process of its own.

    Transformed content is read from a temporary file instead. Raises `TransformFailed`.
    """

    def __init__(self, notification: Notification, mirror: Mirror, delivery_rules: DeliveryRules) -> None:
        self._notification = notification
        self._reader = mirror.blobs()
        self._spool = tempfile.TemporaryFile() if delivery_rules.transforms else None  # noqa: SIM115  closed by `close`
        self._id = str(uuid.uuid4())  # a new one whenever the file starts over
        self.total = chunk_count(notification.size, settings.CHUNK_SIZE_BYTES)
        self.index = -1
        try:
            content = (
                self._transformed(delivery_rules) if self._spool else self._reader.stream(notification.change.blob)
            )
            self._pieces = cut_base64(content, settings.CHUNK_SIZE_BYTES)
            self.advance()
        except BaseException:  # a running git process would keep the mirror in use
            self.close()
            raise

    def _transformed(self, delivery_rules: DeliveryRules) -> Iterator[bytes]:
        assert self._spool
        item = self._notification
        content = _transformed(item.change, next(self._reader.read([item.change.blob])), delivery_rules)
        if hashlib.sha256(content).hexdigest() != item.sha:
            raise _not_deterministic(item.change)
        self._spool.write(content)
        self._spool.seek(0)
        return iter(partial(self._spool.read, BlobReader.BLOCK), b"")

    @property
    def is_last(self) -> bool:
        return self.index + 1 == self.total

    def advance(self) -> None:
        """Read the next chunk into `chunk`."""
        self.index += 1
        self.chunk = Chunk(self._id, self.index, self.total, next(self._pieces))

    def close(self) -> None:
        self._reader.close()
        if self._spool:
            self._spool.close()
