"""The mirror of one repository on this machine: a bare, shallow clone. It is a cache and may be deleted at any time.

Two file locks are *beside* it: `fetch` (exclusive, to add objects) and `use` (shared to read, exclusive to remove or
repack). git processes inherit the locks' descriptors, so a lock is free only when all of them have ended, even after a kill
-9.

Refs keep the objects that are needed: `refs/docora/<watch>/run` is the commit that a run reads, and
`refs/docora/<watch>/base` is the commit that the watch's rows describe. There is no `run` if both are the same.
"""

import contextlib
import logging
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from django.conf import settings

from docora import file_locks
from docora.conf.data_dir import make_private
from docora.http.client import HttpClient
from repositories_app.git import errors as git_errors
from repositories_app.git import process as git
from repositories_app.git.exceptions import Cause, GitError, MirrorBusy, RepositoryMoved
from repositories_app.git.packs import fetch_pack
from repositories_app.git.protocol import OBJECT_NAME, SHA1, SHA256, object_format
from repositories_app.git.refs import HEAD
from repositories_app.git.remote import redirect_error
from repositories_app.mirror.blobs import BlobReader

logger = logging.getLogger(__name__)

_CONFIG = {
    SHA1: "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n",
    SHA256: "[core]\n\trepositoryformatversion = 1\n\tfilemode = true\n\tbare = true\n[extensions]\n\tobjectformat = sha256\n",
}
MAX_PACKS = 50
UNREADABLE_SECONDS = 3600.0
"""How long a commit that could not be read from a new mirror is no reason to rebuild the mirror again."""


class Mirror:
    """`directory` is `REPOS_DIR/{repository_id}.git`. It need not exist."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._fds: list[int] = []

    @contextlib.contextmanager
    def in_use(self, tick: git.Tick, *, max_wait: float = math.inf) -> Iterator[None]:
        """Hold the shared lock, which keeps other processes from removing or repacking the mirror.

        Raises `MirrorBusy` after waiting `max_wait` seconds for a process that does that.
        """
        with self._lock("use", self._raising_busy("use", tick, max_wait), shared=True) as fd:
            os.utime(fd)
            yield

    @contextlib.contextmanager
    def in_use_nowait(self) -> Iterator[None]:
        """Hold the shared lock for a page view, without waiting. Raises `GitError` if the mirror can't be read now."""
        if not (self.directory / "HEAD").exists():
            raise GitError(Cause.NOT_FOUND, "This server has no mirror of the repository.")
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._lock("use", shared=True, wait=False))
            except BlockingIOError:
                message = "The mirror is being rebuilt. Try again in a moment."
                raise GitError(Cause.OTHER, message) from None
            except OSError as error:
                raise GitError(Cause.OTHER, f"The mirror on this server can't be read: {error.strerror}.") from error
            yield

    def fetch(
        self,
        url: str,
        token: str,
        commit: str,
        watch: str,
        *,
        timeout: float,
        tick: git.Tick,
        name: str = HEAD,
        client: HttpClient | None = None,
        max_wait: float = math.inf,
    ) -> str:
        """Fetch `commit` unless it is here, point the watch's `run` ref to it, and return it. Call this inside `in_use`.

        If it is the watch's base, return at once, even while another process fetches.

        If the host does not serve commits by name, fetch and return the current commit of `name` (HEAD, or the full name of
        a branch or tag). With an idle `client`, a small fetch takes one request and one process. Raises `GitError`, and
        `MirrorBusy` after waiting `max_wait` seconds for another process that fetches.
        """
        if self._has_base(watch, commit):  # without the lock: others may be fetching for a quarter of an hour
            return commit
        with self._lock("fetch", self._raising_busy("fetch", tick, max_wait)):
            self._prepare(object_format(commit))
            ref = f"refs/docora/{watch}/run"
            kept = self._kept(watch) if self._packs() else []
            remote = git.Remote(url, token)
            is_here = commit in kept or (client and self._fetch_pack(client, remote, commit, kept, timeout, tick))
            if not is_here:
                packs, run = self._packs(), self._read_file(ref)
                try:
                    commit = self._fetch_by_git(remote, ref, commit, name, timeout, tick)
                except RepositoryMoved:
                    raise redirect_error(remote, tick) from None
                except BaseException as error:
                    self._clear()  # an incomplete pack may be large
                    if self._read_file(ref) == run:
                        self._remove_packs_except(packs)
                    if isinstance(error, GitError) and error.cause is Cause.OTHER:
                        self._examine(tick)
                    raise
            self._write_ref(ref, commit)
            return commit

    def _has_base(self, watch: str, commit: str) -> bool:
        """Return whether the mirror has the commit as this watch's base."""
        is_base = self._read_file(f"refs/docora/{watch}/base") == commit
        return is_base and (self.directory / "HEAD").exists() and bool(self._packs())

    def _kept(self, watch: str) -> list[str]:
        """Return the commits that refs keep, those of this watch first. The mirror has their whole trees."""
        files = sorted(self._refs(), key=lambda file: file.parent.name != watch)
        commits = [self._read_file(f"refs/docora/{file.parent.name}/{file.name}") for file in files]
        return [commit for commit in dict.fromkeys(commits) if OBJECT_NAME.fullmatch(commit.encode())]

    def _refs(self) -> Iterator[Path]:
        return (self.directory / "refs" / "docora").glob("*/*")

    def _fetch_pack(
        self, client: HttpClient, remote: git.Remote, commit: str, kept: Sequence[str], timeout: float, tick: git.Tick
    ) -> bool:
        """Fetch with one request. Return False if git should fetch instead."""
        shallow = self._read_file("shallow").split()  # the commits whose parents are not here
        pack = fetch_pack(client, remote, commit, haves=kept, shallow=shallow, timeout=timeout, tick=tick)
        if pack is None:
            return False
        self._write_file("shallow", "".join(f"{name}\n" for name in sorted({*shallow, *pack.shallow})))
        # The first pack must contain the whole commit. Later ones add little to the mirror.
        command = ["index-pack", "--stdin", "--fix-thin", *([] if kept else ["--check-self-contained-and-connected"])]
        try:
            with tempfile.TemporaryFile() as file:
                file.write(pack.content)
                file.seek(0)
                self._git(command, stdin=file.fileno(), timeout=timeout, tick=tick)
        except BaseException as error:
            self._clear()
            if isinstance(error, GitError) and error.cause is not Cause.TIMEOUT:  # git would unpack it as long again
                logger.info("pack_not_taken", extra={"cause": str(error)})
                return False
            raise
        return True

    def _fetch_by_git(
        self, remote: git.Remote, ref: str, commit: str, name: str, timeout: float, tick: git.Tick
    ) -> str:
        """Fetch the commit, or `name` if the host does not serve commits by name, into `ref`. Return the commit."""

        def fetch(source: str) -> None:
            options = ["--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"]
            command = ["fetch", *options, "--", remote.url, f"+{source}:{ref}"]
            self._git(command, remote=remote, timeout=timeout, tick=tick)

        try:
            fetch(commit)
            return commit
        except GitError as error:
            if isinstance(error, RepositoryMoved) or error.cause not in {Cause.OTHER, Cause.NOT_FOUND}:
                raise
        try:
            fetch(name)
        except GitError as error:
            if name == HEAD or error.cause is not Cause.NOT_FOUND:
                raise
            raise git_errors.ref_not_served(name) from None
        # The commit that a tag points to.
        return self._git(["rev-parse", "--verify", f"{ref}^{{}}"], short=True).decode("ascii").strip()

    def _examine(self, tick: git.Tick) -> None:
        """Raise `GitError` if an object that a ref keeps cannot be found.

        Called after a failed fetch: git has too many messages about a damaged mirror to recognise them all.
        """
        self._git(["rev-list", "--objects", "--all", "--quiet"], tick=tick)

    def keep_base(self, watch: str, commit: str) -> None:
        """Point the watch's `base` ref to `commit`, which its rows describe, and remove its `run` ref."""
        base, run = f"refs/docora/{watch}/base", f"refs/docora/{watch}/run"
        if self._read_file(base) == commit:
            (self.directory / run).unlink(missing_ok=True)
            return
        self._write_ref(run, commit)
        with _writing_ref(base):
            (self.directory / run).replace(self.directory / base)

    def note_unreadable(self, commit: str) -> None:
        """Note that the commit cannot be read although the mirror was just rebuilt."""
        with contextlib.suppress(OSError):  # the mirror has been removed, or the disk is full
            self._note(commit).touch()

    def drop_unreadable(self, watch: str, commit: str, tick: git.Tick) -> bool:
        """Remove the watch's `run` ref, because its commit cannot be read. Return whether to keep the rest of the mirror.

        That is so if a new mirror did not help within the last `UNREADABLE_SECONDS`, and what other watches need can be
        read.
        """
        with contextlib.suppress(OSError):  # the mirror has been removed
            (self.directory / f"refs/docora/{watch}/run").unlink()
        try:
            is_known = 0 <= time.time() - self._note(commit).stat().st_mtime < UNREADABLE_SECONDS
        except OSError:
            return False
        if not is_known or all(file.parent.name == watch for file in self._refs()):
            return False
        try:
            self._examine(tick)
        except GitError:
            return False
        return True

    def _note(self, commit: str) -> Path:
        return self.directory / f"docora-unreadable-{commit}"

    def remove_stale_refs(self, watch_ids: Callable[[], Collection[str]]) -> None:
        """Remove the refs of watches that are gone, unless another process is fetching. The next repack drops their objects.

        `watch_ids` returns the ids of the repository's watches. It is called under the lock: a new watch is
        stored before its refs are written.
        """
        if self.directory.exists():
            with contextlib.suppress(BlockingIOError), self._lock("fetch", wait=False):
                self._remove_stale_refs(watch_ids())

    def _remove_stale_refs(self, watch_ids: Collection[str]) -> None:
        for folder in (self.directory / "refs" / "docora").glob("*"):
            if folder.name not in watch_ids:
                shutil.rmtree(folder, ignore_errors=True)

    def repack_if_many(self, watch_ids: Callable[[], Collection[str]]) -> bool:
        """Combine many small packs into one and drop what no ref of these watches keeps, unless the mirror is in use.

        `watch_ids` is as in `remove_stale_refs`. If repacking fails, the mirror is damaged or the disk is full: remove it, and
        the next fetch rebuilds it.
        """
        try:
            if len(self._packs()) <= MAX_PACKS:
                return False
            with self._lock("use", wait=False), self._lock("fetch", wait=False):
                try:
                    self._clear()
                    self._remove_stale_refs(watch_ids())
                    self._git(["repack", "-a", "-d", "-q"], timeout=1800.0)
                    self._git(["prune", "--expire=now"], timeout=1800.0)
                except GitError as error:
                    logger.warning("mirror_not_repacked", extra={"cause": str(error)})
                    shutil.rmtree(self.directory, ignore_errors=True)
        except BlockingIOError:
            return False
        except OSError as error:  # the sync that calls this has succeeded
            logger.warning("mirror_not_repacked", extra={"cause": str(error)})
            return False
        return True

    def remove(self, tick: git.Tick = lambda: None, *, wait: bool = True, max_wait: float = math.inf) -> bool:
        """Delete the mirror and its locks once it is not in use. Without `wait`, do nothing if it is.

        Return whether it is gone. Raises `MirrorBusy` if it is still in use after `max_wait` seconds. Do not call this
        inside `in_use`.
        """
        tick = self._raising_busy("use", tick, max_wait)
        try:
            with self._lock("use", tick, wait=wait), self._lock("fetch", tick, wait=wait):
                with contextlib.suppress(OSError):  # first: without it, the rest is not a mirror
                    (self.directory / "HEAD").unlink()
                shutil.rmtree(self.directory, ignore_errors=True)
                for name in ("fetch", "use"):
                    self._lock_file(name).unlink(missing_ok=True)
        except BlockingIOError:
            return False
        return not self.directory.exists()

    def used_at(self) -> float:
        """Return when the mirror was last in use, in Unix time, or 0 if that is unknown."""
        try:
            return self._lock_file("use").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def blobs(self, *, timeout: float = git.LOCAL_TIMEOUT) -> BlobReader:
        """Return a reader of objects. Its process inherits the locks that are held when it is first used."""
        arguments = ["cat-file", "--batch-command"]
        return BlobReader(
            lambda: git.start(arguments, directory=self.directory, fds=self._fds, stdin=subprocess.PIPE, short=True),
            timeout,
        )

    def _packs(self) -> list[Path]:
        return list((self.directory / "objects" / "pack").glob("*.pack"))

    def _remove_packs_except(self, packs: Collection[Path]) -> None:
        """Remove all other packs, which a failed fetch has added. Each attempt may add one of `MAX_FETCH_BYTES`."""
        for pack in set(self._packs()).difference(packs):
            for file in pack.parent.glob(f"{pack.stem}.*"):
                file.unlink(missing_ok=True)

    def _prepare(self, format_name: str) -> None:
        """Create the repository if it is not there, and clear it. Call this while holding the `fetch` lock.

        Raises `GitError` if the host's repository was recreated in another object format, so that the mirror is rebuilt.
        """
        if not (self.directory / "HEAD").exists():
            shutil.rmtree(self.directory, ignore_errors=True)
            make_private(self.directory)
            for folder in ("objects/pack", "refs/heads"):
                (self.directory / folder).mkdir(parents=True)
            self._write_file("config", _CONFIG[format_name])
            self._write_file("HEAD", "ref: refs/heads/main\n")  # last, because it makes the folder a repository
        elif self._read_file("config") == _CONFIG[SHA1 if format_name == SHA256 else SHA256].strip():
            raise git_errors.explain(Cause.CORRUPT, f"the repository's object format changed to {format_name}")
        self._clear()

    def _clear(self) -> None:
        """Remove the files that a killed or failed writer has left. Call this while holding the `fetch` lock.

        With a `.keep` file beside it, a pack would survive every repack.
        """
        for folder, _, names in os.walk(self.directory):
            for name in names:
                if name.startswith("tmp_") or name.endswith((".lock", ".keep", ".temp")):
                    Path(folder, name).unlink(missing_ok=True)

    def _read_file(self, name: str) -> str:
        """Return the text of a small file, such as a ref; empty if there is none."""
        try:
            return (self.directory / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def _write_ref(self, name: str, commit: str) -> None:
        """Write the file of a ref as git does, without starting a process. Only the lease holder writes a watch's refs."""
        if self._read_file(name) != commit:
            with _writing_ref(name):
                self._write_file(name, f"{commit}\n")

    def _write_file(self, name: str, text: str) -> None:
        """Write a small file as git does. A reader sees the old text or the new one."""
        file = self.directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}.lock")
        new.write_text(text, encoding="ascii")
        new.replace(file)

    def _git(self, args: Sequence[str], **options: Any) -> bytes:
        """Run a git command with these options of `git.run`, and return its output."""
        return git.run(args, directory=self.directory, fds=self._fds, **options)

    @contextlib.contextmanager
    def _lock(
        self, name: str, tick: git.Tick = lambda: None, *, shared: bool = False, wait: bool = True
    ) -> Iterator[int]:
        """Hold a lock and yield its descriptor, which git processes that are started meanwhile inherit."""
        make_private(self.directory.parent)
        with file_locks.hold(self._lock_file(name), shared=shared, wait=wait, tick=tick) as fd:
            if not shared:
                os.utime(fd)  # since when it is held
            self._fds.append(fd)
            try:
                yield fd
            finally:
                self._fds.remove(fd)

    def _raising_busy(self, name: str, tick: git.Tick, seconds: float) -> git.Tick:
        """Return a tick that calls `tick` and raises `MirrorBusy` after `seconds`, or `GitError` if the lock's holder hangs."""
        until = time.monotonic() + seconds

        def raise_if_late() -> None:
            tick()
            if time.monotonic() <= until:
                return
            try:
                held_for = time.time() - self._lock_file(name).stat().st_mtime
            except FileNotFoundError:  # its holder has just removed it, with the mirror
                held_for = 0.0
            if held_for > hangs_after():
                raise git_errors.mirror_held(held_for)
            raise MirrorBusy(held_for)

        return raise_if_late

    def _lock_file(self, name: str) -> Path:
        return Path(f"{self.directory}.{name}.lock")


def hangs_after() -> float:
    """Return how many seconds a process may hold a mirror's lock before it must hang: more than all its timeouts together."""
    return 3600.0 + 5 * settings.FETCH_TIMEOUT_SECONDS


@contextlib.contextmanager
def _writing_ref(name: str) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise git_errors.explain(Cause.CORRUPT, f"the ref {name} cannot be written") from error
