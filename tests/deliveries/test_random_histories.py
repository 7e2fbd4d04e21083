"""Random histories of pushes, crashes, re-syncs, cancels and an unreliable client.

Once everything has settled, the client's copy equals HEAD.
"""

import random

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import Status
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import cancel_request, resync_single
from tests.support.git import Entry
from tests.support.histories import (
    assert_promise_kept,
    at_notification,
    kill_worker_before_first_byte,
    maybe_kill_worker,
    without_ignored,
)
from tests.support.world import World

NAMES = ["a", "a/b", "a/b/c", "b", "c", "d/e", "d/f", "g", "h", "large"]
IGNORED = [b"d/\n", b"*\n!*/\n!e\n!.docoraignore\n", b"/a\n!/a\n", b"[bg]\n.docoraignore\n", b"/*/*/c\n"]
CONTENTS = [b"one", b"two", b"three", b"four" * 100, Entry.symlink("b"), Entry.executable(b"one")]
STEPS = 14


@pytest.mark.parametrize("seed", range(6))
def test_random_history_ends_in_sync(world: World, settings, seed: int) -> None:
    settings.RECORD_BATCH, settings.MAX_RETRY_ATTEMPTS = 3, 3
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 200, 150
    chance = random.Random(seed)
    world.app.max_in_flight = chance.choice([1, 3])
    world.app.send_sync_completed = chance.random() < 0.5
    world.app.save()
    repo, watch = world.watch(random_tree(chance))
    actor = Actor.command()
    for _ in range(STEPS):
        match chance.randrange(9):
            case 0 | 1:
                repo.force_push(random_tree(chance))
            case 2:
                maybe_kill_worker(world, watch, chance.randrange(1, 8), processed=chance.random() < 0.5)
            case 3:
                kill_worker_before_first_byte(world, watch, or_nothing=True)
            case 4:
                resync_single(actor, watch)
            case 5:
                cancel_request(actor, watch)
            case 6:
                act = chance.choice([resync_single, cancel_request])
                world.answer(at_notification(chance.randrange(1, 8), lambda act=act: act(actor, watch)))
                world.sync(watch)
            case 7:
                world.answer(unreliable(chance))
                world.sync(watch)
            case 8:
                world.answer(None)
                world.sync(watch)
        world.answer(None)
    world.settle()
    watch.refresh_from_db()
    if watch.status == Status.FAILED:  # the client used up all attempts: the rescan tries again
        world.sync(watch)
    assert_promise_kept(world, repo, watch, without_ignored(repo.files()))
    assert "differs" not in {record.outcome for record in world.requests("sync_completed")}


def random_tree(chance: random.Random) -> dict[str, bytes | Entry]:
    """Return a tree in which no path is both a file and a directory."""
    tree: dict[str, bytes | Entry] = {}
    for name in chance.sample(NAMES, chance.randrange(3, len(NAMES))):
        if not any(name.startswith(f"{other}/") or other.startswith(f"{name}/") for other in tree):
            tree[name] = chance.choice(CONTENTS)
    if chance.random() < 0.5:
        tree[".docoraignore"] = chance.choice(IGNORED)
    return tree


def unreliable(chance: random.Random):
    """Return a hook that refuses or loses some notifications, with or without storing the file."""
    answers = [
        Answer(500),
        Answer(500, process=True),
        Answer(400),
        Answer(close=True),
        Answer(close=True, process=True),
    ]

    def hook(note: Notification) -> Answer | None:
        return chance.choice(answers) if chance.random() < 0.3 else None

    return hook
