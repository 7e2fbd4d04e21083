"""Random histories as a Hypothesis state machine. Any rule may follow any other, and after each `quiet` every copy is HEAD.

`make test` runs a fixed number of histories, `make soak` as many as requested.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.faults.universe import Universe
from tests.faults.workers import Fate
from tests.support.git import Entry

NAMES = ["a", "a/b", "a/b/c", "b", "c", "d/e", "d/f", "g", "large.bin", "größe 🙂.txt"]
IGNORED = ["", "d/\n", "*\n!*/\n!e\n!.docoraignore\n", "/a\n!/a\n", "[bg]\n", "/*/*/c\n", ".docoraignore\n"]
WORDS = [b"one", b"two", b"three", b"four" * 100, b"\xff\x00binary"]

repos, watches, apps = st.sampled_from([0, 1]), st.sampled_from([0, 1, 2]), st.sampled_from([0, 1])
names = st.sampled_from(NAMES)
seeds = st.integers(0, 2**32)


@dataclass
class Summary:
    """Counts over all histories of this process. `duplicates` has the files sent twice for each kill."""

    histories: int = 0
    notifications: int = 0
    events: Counter[str] = field(default_factory=Counter)
    duplicates: list[int] = field(default_factory=list)


def entry(repo: int, word: bytes, kind: int) -> bytes | Entry:
    """Return a tree entry. Its content names the repository, so that contents cannot be confused."""
    content = b"%d: %b" % (repo, word)
    return [content, content, content, Entry.executable(content), Entry.symlink("b")][kind]


USER_ACTIONS = [
    *(f"{verb} {watch}" for verb in ("resync", "retry", "cancel", "unwatch_and_watch", "remove_and_watch") for watch in range(3)),
    *(f"{verb} {app}" for verb in ("resync_all", "retry_all", "cancel_all", "rotate_key", "rotate_token") for app in range(2)),
]  # fmt: skip
INTERFERENCES = [
    *(f"{verb} {watch}" for verb in ("resync", "cancel", "retry") for watch in range(3)),
    "resync_all 0", "cancel_all 0", "retry_all 0", "rotate_key 0", "redis_forgets", "redis_restarts", "lose_mirror 0",
    "lose_mirror 1",
]  # fmt: skip
OUTAGES = ["redis_forgets", "redis_restarts", "database_restarts", "lose_mirror 0", "lose_mirror 1", None]
words, kinds = st.sampled_from(WORDS), st.integers(0, 4)


def random_tree(seed: int) -> dict[str, tuple[bytes, int]]:
    rng = random.Random(seed)
    size = rng.choice([0, 1, *range(4, len(NAMES) + 1)])
    return {name: (rng.choice(WORDS), rng.randrange(5)) for name in rng.sample(NAMES, size)}


def random_fate(seed: int) -> Fate | None:
    rng = random.Random(seed)
    [kind] = rng.choices(["kill", "term", "freeze", "interference", None], weights=[60, 10, 5, 15, 10])
    if kind == "interference":
        kind = rng.choice(INTERFERENCES)
    if not kind:
        return None
    noticed = kind == "kill" and rng.random() < 0.5
    first = rng.choice(["", "", "resync_all 0", "change 0", "change 1"]) if noticed else ""
    return Fate(kind, at=rng.randrange(1, 7), kept=rng.random() < 0.5, noticed=noticed, first=first)


# Drawn through seeds, because Hypothesis itself draws mostly small and simple values.
trees, fates = seeds.map(random_tree), seeds.map(random_fate)


class Convergence(RuleBasedStateMachine):
    """`make` creates the universe of a history in the given folder. `clean` removes its rows."""

    make: ClassVar[Callable[[Path], Universe]]
    clean: ClassVar[Callable[[], None]]
    summary: ClassVar[Summary]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="docora-history-")
        self.universe = type(self).make(Path(self.folder.name))
        self.trees: list[tuple[int, dict[str, tuple[bytes, int]]]] = []

    @rule(repo=repos, tree=trees)
    def rewrite(self, repo: int, tree: dict[str, tuple[bytes, int]]) -> None:
        self.trees.append((repo, tree))
        self.universe.force_push(repo, {name: entry(repo, *tree[name]) for name in _possible(tree)})

    @rule(number=st.integers(0, 20))
    def back_to_an_old_tree(self, number: int) -> None:
        if self.trees:
            repo, tree = self.trees[number % len(self.trees)]
            self.universe.force_push(repo, {name: entry(repo, *tree[name]) for name in _possible(tree)})

    @rule(repo=repos, path=names, word=words, kind=kinds)
    def write(self, repo: int, path: str, word: bytes, kind: int) -> None:
        """Add or change a file. It may replace a directory, or its directory may replace a file."""
        existing = self.universe.paths(repo)
        in_the_way = {other: None for other in existing if other.startswith(f"{path}/") or path.startswith(f"{other}/")}
        self.universe.push(repo, {**in_the_way, path: entry(repo, word, kind)})

    @rule(repo=repos, number=st.integers(0, 20))
    def remove(self, repo: int, number: int) -> None:
        existing = self.universe.paths(repo)
        if existing:
            self.universe.push(repo, {existing[number % len(existing)]: None})

    @rule(repo=repos, number=st.integers(0, 20), name=names)
    def rename(self, repo: int, number: int, name: str) -> None:
        files = self.universe.repos[repo].files()
        if files:
            old = sorted(files)[number % len(files)]
            rest = [path for path in self.universe.paths(repo) if path != old]
            if not any(path == name or path.startswith(f"{name}/") or name.startswith(f"{path}/") for path in rest):
                self.universe.push(repo, {old: None, name: files[old]} if old != name else {name: files[old] + b"."})

    @rule(repo=repos, rules=st.sampled_from(IGNORED), branch=st.sampled_from([None, "main", "trunk", "release/1"]))
    def rearrange(self, repo: int, rules: str, branch: str | None) -> None:
        """Rename the default branch or change `.docoraignore`."""
        if branch:
            self.universe.rename_branch(repo, branch)
        else:
            self.universe.push(repo, {".docoraignore": rules.encode() or None})

    @rule(what=st.sampled_from(USER_ACTIONS))
    def user_action(self, what: str) -> None:
        self.universe.happen(what)

    @rule(watch=watches, rules=st.sampled_from(IGNORED))
    def ignore(self, watch: int, rules: str) -> None:
        self.universe.ignore(watch, rules)

    @rule(seed=seeds, share=st.sampled_from([0.0, 0.1, 0.3, 1.0]))
    def mood(self, seed: int, share: float) -> None:
        self.universe.mood(seed, share)

    @rule(what=st.sampled_from(OUTAGES), repo=repos, seed=seeds)
    def outage(self, what: str | None, repo: int, seed: int) -> None:
        if what:
            self.universe.happen(what)
        else:
            self.universe.damage_mirror(repo, seed)

    @rule(numbers=st.lists(watches, min_size=1, max_size=2), fates=st.lists(fates, min_size=2, max_size=2))
    def work(self, numbers: list[int], fates: list[Fate | None]) -> None:
        self.universe.work(numbers, fates)
        self.universe.check_in_flight()

    @rule(numbers=st.lists(watches, min_size=1, max_size=2), fates=st.lists(fates, min_size=2, max_size=2), tree=trees)
    def work_at_much(self, numbers: list[int], fates: list[Fate | None], tree: dict[str, tuple[bytes, int]]) -> None:
        """Work with files to send, so that the fates take effect."""
        self.rewrite(self.universe.repo_of(numbers[0]), tree)
        self.universe.resync(numbers[0])
        self.work(numbers, fates)

    @rule(seed=seeds, fates=st.lists(fates, min_size=2, max_size=2), tree=trees)
    def bad_neighbour(self, seed: int, fates: list[Fate | None], tree: dict[str, tuple[bytes, int]]) -> None:
        self.rewrite(0, tree)
        self.universe.bad_neighbour(seed, fates)

    @precondition(lambda self: self.universe.busy)
    @rule()
    def quiet(self) -> None:
        self.universe.settle()

    def teardown(self) -> None:
        try:
            self.universe.settle()
            log = self.universe.world.receiver.log
            self.summary.histories += 1
            self.summary.notifications += len(log)
            self.summary.events += self.universe.events
            self.summary.duplicates += self.universe.journal.duplicates(log)
        finally:
            self.universe.close()
            type(self).clean()
            self.folder.cleanup()


def _possible(tree: dict[str, tuple[bytes, int]]) -> list[str]:
    """Return names of which none is a directory of another."""
    kept: list[str] = []
    for name in tree:
        if not any(name.startswith(f"{other}/") or other.startswith(f"{name}/") for other in kept):
            kept.append(name)
    return kept
