"""Random histories of changing transforms, pushes, crashes, re-syncs and refusals."""

import random

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import Status
from deliveries_app.services import resync_single
from tests.support.histories import assert_promise_kept, maybe_kill_worker, refusing
from tests.support.transforms import transformed, use_transforms
from tests.support.world import World

NAMES = ["a", "b", "docs/a", "docs/c", "drafts/a", "drafts/d", "é/e", "x/y/b"]
CONTENTS = [b"one", b"TWO", b"\0three", b"four" * 100, b""]
LISTS = [
    [],
    ["Shout"],
    ["Swap"],
    ["DropDrafts"],
    ["Flatten"],
    ["Swap", "Shout"],
    ["DropDrafts", "Flatten"],
    ["Shorten"],
]


@pytest.mark.parametrize("seed", range(4))
def test_random_history_with_transforms_ends_in_sync(world: World, settings, seed: int) -> None:
    settings.RECORD_BATCH, settings.MAX_RETRY_ATTEMPTS = 3, 3
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 200, 150
    chance = random.Random(seed)
    use_transforms(settings, *chance.choice(LISTS))
    repo, watch = world.watch({name: chance.choice(CONTENTS) for name in NAMES[:5]})
    for _ in range(12):
        match chance.randrange(6):
            case 0 | 1:
                names = chance.sample(NAMES, chance.randrange(1, len(NAMES)))
                repo.force_push({name: chance.choice(CONTENTS) for name in names})
            case 2 | 3:
                use_transforms(settings, *chance.choice(LISTS))
            case 4:
                maybe_kill_worker(world, watch, chance.randrange(1, 6), processed=chance.random() < 0.5)
            case 5:
                resync_single(Actor.command(), watch)
        world.answer(refusing(*chance.sample(["a", "b", "flat/a", "docs/c"], chance.randrange(3))))
        world.sync(watch)
        world.answer(None)
    world.settle()
    watch.refresh_from_db()
    if watch.status == Status.FAILED:
        world.sync(watch)
    assert_promise_kept(world, repo, watch, transformed(repo.files()))
    assert watch.tree_files == len(world.copy(watch))
