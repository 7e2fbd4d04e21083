"""The sample receivers keep byte-exact copies through random pushes with every kind of entry.

The suite plays a few pushes; set PUSHES=1000 to play that many.
"""

import os
import random

from deliveries_app.models import App, AppRepository
from deliveries_app.planning.paths import is_unsafe
from tests.support.git import Entry, Repo
from tests.support.world import World
from tests.wire.bodies import CONTENTS, PATHS
from tests.wire.test_receivers import Client, client, sync_and_compare

__all__ = ["client"]

PUSHES = int(os.environ.get("PUSHES", "12"))
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
NAMES = [
    "a",
    "b",
    "d/e",
    "d/f",
    "d/g/h",
    "x y",
    "ä",
    "日本/語",
    ".hidden",
    "e.txt",
    "-dash",
    "a'b\"c",
    "%41",
    "d/e/f/g",
]
STRANGE = [path for path in PATHS.values() if path != "__proto__" and not is_unsafe(path.encode())]


def random_content(rng: random.Random) -> bytes:
    size = rng.choice([0, 1, 3, 100, 5000, 59_999, 60_001, 250_000])
    return rng.choice(
        [
            lambda: rng.choice(list(CONTENTS.values())),
            lambda: rng.randbytes(size),
            lambda: ("é\r\n" * size).encode()[:size].decode("utf-8", "ignore").encode(),
            lambda: LFS_POINTER,
        ]
    )()


def random_change(rng: random.Random, repo: Repo) -> dict[str, bytes | Entry | None]:
    """Return the changes of a push: files written, renamed, deleted, made executable, or turned into folders and back."""
    files = repo.files()
    changes: dict[str, bytes | Entry | None] = {}
    for _ in range(rng.randint(1, 6)):
        path = rng.choice(NAMES + STRANGE)
        what = rng.random()
        if what < 0.45:
            changes[path] = random_content(rng)
        elif what < 0.55:
            changes[path] = Entry.executable(random_content(rng))
        elif what < 0.62:
            changes[path] = Entry.symlink(rng.choice(["a", "../outside", "/etc/passwd"]))
        elif what < 0.67:
            changes[path] = Entry(b"1" * 40, "160000")
        elif files:
            old = rng.choice(list(files))
            if what < 0.85:
                changes[path] = files[old]
            changes[old] = None
    return without_collisions(changes, files)


def without_collisions(
    changes: dict[str, bytes | Entry | None], files: dict[str, bytes]
) -> dict[str, bytes | Entry | None]:
    """Delete what is above or below a path that is written, so that a file can become a folder and a folder a file."""
    written: dict[str, bytes | Entry | None] = {}
    for path, content in changes.items():
        if content is None or not any(
            other.startswith(f"{path}/") or path.startswith(f"{other}/") for other in written
        ):
            written[path] = content
    for path in [path for path, content in written.items() if content is not None]:
        for other in files:
            if other.startswith(f"{path}/") or path.startswith(f"{other}/"):
                written[other] = None
    return written


def test_copies_stay_exact_through_random_pushes(world: World, client: Client, settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 60_000, 50_001
    App.objects.filter(pk=world.app.pk).update(base_url=client.url, send_sync_completed=True)
    world.app.refresh_from_db()
    repo, watch = world.watch({"first": b"1"})
    sync_and_compare(world, client, watch, repo)
    rng = random.Random(int(os.environ.get("SEED", "1")))
    pushed = 0
    while pushed < PUSHES:
        if not (changes := random_change(rng, repo)):
            continue
        before = repo.head
        repo.commit(changes)
        if repo.head == before:
            continue
        pushed += 1
        sync_and_compare(world, client, AppRepository.objects.get(pk=watch.pk), repo)
    assert "stale" not in client.output
