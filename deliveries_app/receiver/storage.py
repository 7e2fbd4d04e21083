"""The client's copy of one repository: its files on disk, plus the state needed to keep them correct."""

import base64
import contextlib
import hashlib
import heapq
import itertools
import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Self

from .notification import Chunk, Notification, Refused

Page = Mapping[str, object]
"""The answer to `verify`: the hash of the whole copy if it is the requested one, otherwise some of its files."""

Outcome = Literal["kept", "removed", "absent", "stale", "partial", "repeated", "matches", "differs"]
"""The result of a notification. Every one is a success to the sender.

`absent`: there was nothing to delete · `stale`: ignored, because a later notification about this path, or one of a
later watch, has already arrived · `partial`: a chunk, with more to come · `repeated`: a chunk that has already been
received · `matches`, `differs`: the result of `sync_completed`.
"""

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Epoch:
    """Which watch of the repository a copy was made from, stored beside the copy.

    When an app stops watching a repository and watches it again, Docora no longer knows what the copy holds, and
    deletes nothing in it. So the copy is dropped, and everything is sent again. It is dropped only for a verified
    notification of another watch with a sequence above `highest`, the highest one so far. Late and replayed requests of
    an earlier watch have lower sequences and are ignored.

    The new epoch is stored as `dropping` before anything is deleted, and without it afterwards. If the receiver is killed in
    between, it finishes the deletion before it stores anything else.
    """

    watch_id: str = ""
    highest: int = 0
    dropping: bool = False

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the epoch. There is none before the first notification, or if a power failure has damaged the file."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (FileNotFoundError, ValueError):
            return cls()

    def store(self, path: Path, *, flush: bool) -> None:
        """Replace the file. With `flush`, return only once it would survive a power failure."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.new")  # not a valid repository_id
        with temporary.open("w") as file:
            json.dump(asdict(self), file)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if flush:
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)


class Copy:
    """One repository's files in `directory`, updated by notifications. Thread-safe.

    Files are written to `incoming`, checked, and then moved into place, so an incomplete file is never visible.
    `incoming` is on the same file system but outside `directory`, so that no path can collide with it. A new Copy adopts
    the files on disk. Sequences of paths and incomplete uploads are lost at a restart; a client with a database stores the
    sequence next to the file. Only the `epoch` file survives. Files are not flushed to disk before the answer; a copy that
    must survive a power failure needs `os.fsync`.
    """

    def __init__(self, directory: Path, incoming: Path, epoch: Path) -> None:
        self.directory = directory
        self._incoming = incoming
        incoming.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._epoch_file = epoch
        self._epoch = Epoch.load(epoch)
        self._shas: dict[str, str] = _scan(directory)
        self._highest: dict[str, int] = {}
        self._uploads: dict[str, _Upload] = {}

    def files(self) -> dict[str, str]:
        """Return path → SHA-256 for every file of the copy."""
        with self._lock:
            return dict(self._shas)

    def keep(self, notification: Notification) -> Outcome:
        """Store the content of a create or update, or one chunk of it.

        Raises Refused (422) if the path leads outside the copy, a chunk is missing, or the content does not match `sha`
        and `size`. Raises OSError if the file cannot be written.
        """
        path = safe_path(notification.path)
        chunk = notification.chunk or Chunk("", 0, 1)  # a whole file is one piece
        with self._lock:
            if self._is_stale(notification):
                return "stale"
            upload = self._uploads.get(path)
            if upload is None or upload.chunk.id != chunk.id:  # the sender started over
                self._drop_upload(path)
                upload = self._uploads[path] = _Upload(self._incoming, chunk)
            if chunk.index < upload.received:
                return "repeated"
            try:
                upload.add(chunk.index, notification)
                if upload.received == upload.chunk.total:
                    upload.check(notification.sha, notification.size)
                    self._place(upload.temporary, path)
                    self._shas[path] = notification.sha
            except BaseException:
                self._drop_upload(path)
                raise
            self._remember(notification)
            if upload.received < upload.chunk.total:
                return "partial"
            self._drop_upload(path)
            return "kept"

    def remove(self, notification: Notification) -> Outcome:
        """Delete the file and the directories that become empty. A missing file is not an error."""
        path = safe_path(notification.path)
        with self._lock:
            if self._is_stale(notification):
                return "stale"
            self._remember(notification)
            self._drop_upload(path)
            if path not in self._shas:
                return "absent"
            self._delete(path)
            return "removed"

    def compare(self, notification: Notification) -> Outcome:
        """Compare the copy with the `tree_sha256` of a `sync_completed`."""
        with self._lock:
            if not self._belongs(notification):
                return "stale"
            same = tree_sha256(self._shas) == notification.payload.get("tree_sha256")
            return "matches" if same else "differs"

    def page(self, notification: Notification) -> Page:
        """Return the answer to a `verify`. Raises `Refused` (409) for a request that is old or a replay.

        The first page reads the files on disk again: they may have been changed or lost since they were written.
        """
        asked = notification.payload
        after, limit = str(asked["after"]), int(str(asked["limit"]))
        with self._lock:
            if not self._belongs(notification) or notification.sequence < self._epoch.highest:
                raise Refused(409, "A later notification has arrived.")
            if not after:
                self._shas = _scan(self.directory)
                if tree_sha256(self._shas) == asked["tree_sha256"]:
                    return {"tree_sha256": asked["tree_sha256"]}
            # Python compares strings by code points, which is also the order of their UTF-8 bytes.
            later = heapq.nsmallest(limit + 1, (path for path in self._shas if path > after))
            files = [{"path": path, "sha": self._shas[path]} for path in later[:limit]]
            return {"files": files, "next": later[limit - 1] if len(later) > limit else None}

    def _belongs(self, notification: Notification) -> bool:
        """Return whether the notification is of the copy's epoch. Begin a new epoch first if it proves one."""
        epoch = self._epoch
        if notification.watch_id != epoch.watch_id:
            if notification.sequence <= epoch.highest:
                return False
            # A copy from elsewhere has no epoch, so nothing shows that it is of another watch.
            epoch = Epoch(notification.watch_id, notification.sequence, dropping=epoch.watch_id != "")
            self._remember_epoch(epoch)
        elif notification.sequence > epoch.highest:
            self._remember_epoch(replace(epoch, highest=notification.sequence), flush=False)
        if self._epoch.dropping:
            self._drop()
            self._remember_epoch(replace(self._epoch, dropping=False))
        return True

    def _remember_epoch(self, epoch: Epoch, *, flush: bool = True) -> None:
        epoch.store(self._epoch_file, flush=flush)
        self._epoch = epoch

    def _drop(self) -> None:
        """Forget the whole copy and delete its files."""
        for path in list(self._uploads):
            self._drop_upload(path)
        self._highest.clear()
        self._shas.clear()
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def _is_stale(self, notification: Notification) -> bool:
        # Strictly lower: a retry of the same notification has the same number.
        return not self._belongs(notification) or notification.sequence < self._highest.get(notification.path, 0)

    def _remember(self, notification: Notification) -> None:
        self._highest[notification.path] = max(notification.sequence, self._highest.get(notification.path, 0))

    def _drop_upload(self, path: str) -> None:
        if upload := self._uploads.pop(path, None):
            upload.discard()

    def _place(self, temporary: Path, path: str) -> None:
        """Move a finished file into place. Create or remove directories only if that fails, which is rare."""
        target = self.directory / path
        try:
            temporary.replace(target)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._make_room(path)
            temporary.replace(target)

    def _make_room(self, path: str) -> None:
        """Create the parent directories. Remove files that are in place of directories, and vice versa."""
        target = self.directory / path
        for parent in itertools.accumulate(path.split("/")[:-1], "{}/{}".format):
            if parent in self._shas:
                self._delete(parent)
        if target.is_dir():
            shutil.rmtree(target)
            self._shas = {other: sha for other, sha in self._shas.items() if not other.startswith(f"{path}/")}
        target.parent.mkdir(parents=True, exist_ok=True)

    def _delete(self, path: str) -> None:
        del self._shas[path]
        target = self.directory / path
        target.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # stop at the first directory that is not empty
            for parent in target.parents:
                if parent == self.directory:
                    break
                parent.rmdir()


class _Upload:
    """A file being received. Each piece is decoded to a temporary file, so a large file is never in memory."""

    def __init__(self, incoming: Path, chunk: Chunk) -> None:
        self.temporary = incoming / f"{os.getpid()}-{next(_numbers)}"
        self.chunk = chunk
        self.received = 0
        self._size = 0
        self._digest = hashlib.sha256()
        self._undecoded = ""  # base64 is decoded four characters at a time; this is the remainder

    def add(self, index: int, notification: Notification) -> None:
        """Append a piece. Raises Refused (422) if it is not the next one or cannot be decoded."""
        if index != self.received:
            raise Refused(422, f"Expected chunk {self.received}, got chunk {index}.")
        try:
            content = self._decode(notification) if notification.is_base64 else notification.content.encode()
        except ValueError:  # base64 and UTF-8 errors are ValueErrors
            raise Refused(422, "content cannot be decoded.") from None
        with self.temporary.open("ab", buffering=64 * 1024) as file:
            file.write(content)
        self._digest.update(content)
        self._size += len(content)
        self.received += 1

    def _decode(self, notification: Notification) -> bytes:
        text = self._undecoded + notification.content
        is_last = self.received == self.chunk.total - 1
        usable = len(text) if is_last else len(text) - len(text) % 4
        self._undecoded = text[usable:]
        return base64.b64decode(text[:usable], validate=True)

    def discard(self) -> None:
        """Delete the temporary file, unless it was moved into place."""
        self.temporary.unlink(missing_ok=True)

    def check(self, sha: str, size: int) -> None:
        """Raise Refused (422) if the whole file does not match `sha` and `size`."""
        if self._size != size:
            raise Refused(422, f"size is {size}, but the content has {self._size} bytes.")
        if self._digest.hexdigest() != sha:
            raise Refused(422, "sha is not the SHA-256 of the content.")


def safe_path(path: str) -> str:
    """Return the path if it is that of a file inside the directory it is joined to. Raises Refused (422) otherwise."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise Refused(422, "path is not a plain relative path.")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise Refused(422, "path is not valid Unicode.") from None
    return path


def tree_sha256(files: Mapping[str, str]) -> str:
    """Return the hash of a whole copy (path → sha), as sent in `sync_completed`."""
    digest = hashlib.sha256()
    for path in sorted(files, key=str.encode):
        digest.update(f"{files[path]}  {path}\n".encode())
    return digest.hexdigest()


def _scan(directory: Path) -> dict[str, str]:
    shas = {}
    for folder, _, names in directory.walk():
        for name in names:
            with (folder / name).open("rb") as file:
                sha = hashlib.file_digest(file, "sha256").hexdigest()
            shas[(folder / name).relative_to(directory).as_posix()] = sha
    return shas
