"""Random histories. Any step may follow any other, and whenever everything has settled, every copy equals HEAD.

A seed gives a history: the kinds of the clients, and a list of steps, which are methods of `Universe` with their arguments.
`make test` plays some fixed seeds, `make soak` as many as requested.
"""

import os
import random
import signal
import tempfile
import traceback
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.faults.clients import KINDS
from tests.faults.hosts import FAULTS
from tests.faults.summary import Summary
from tests.faults.universe import PLACES, REFS, TRANSFORMS, Universe
from tests.faults.workers import Fate, Step
from tests.support.git import Entry

STEPS = 15
LONGEST_HISTORY = 150  # seconds
TWINS = {"read.me": "READ.ME", "d/Notes": "d/notes", "straße": "STRASSE", "größe 🙂.txt": "GRÖSSE 🙂.txt"}
TWINS |= {name: unicodedata.normalize("NFD", name) for name in ["é.txt", "x/å"]}
BOTH_TWINS = TWINS | {twin: name for name, twin in TWINS.items()}
NAMES = ["a", "a/b", "a/b/c", "b", "c", "d/e", "d/f", "g", "large.bin", "drafts/a", "flat/b", *TWINS]
IGNORED = ["", "d/\n", "*\n!*/\n!e\n!.docoraignore\n", "/a\n!/a\n", "[bg]\n", "/*/*/c\n", ".docoraignore\n"]
CHOSEN = [
    ("", ""),
    ("d/\nb\n", ""),
    ("", "a\n"),
    ("*\n!/[c-g]\n", "d/e\n"),
    ("/*/*\n", "*/b\n"),
    ("*.bin\n", ""),
    ("", "*\n"),
]
"""Include and exclude patterns of an app."""
FOLLOWED = ["", "dev", "v1", "refs/tags/v1", "refs/heads/dev"]
WORDS = [b"one", b"two", b"three", b"four" * 100, b"\xff\x00binary", b"poison"]


@dataclass(frozen=True)
class History:
    """The kinds of the two apps' clients, the steps, and whether settling uses real workers."""

    seed: int
    kinds: tuple[int, int]
    steps: tuple[Step, ...]
    real_workers: bool

    def __str__(self) -> str:
        who = " and ".join(KINDS[kind].name for kind in self.kinds)
        head = f"seed {self.seed}; clients: {who}; real workers at rest: {self.real_workers}"
        return "\n".join([head, *(f"  {name}{arguments}" for name, arguments in self.steps)])


# --- Drawing ---------------------------------------------------------------------------------------------------------


def _place(rng: random.Random) -> int:
    return rng.randrange(len(PLACES))


def _two(rng: random.Random) -> int:
    """Return the number of an app or of a repository."""
    return rng.randrange(2)


def _seed(rng: random.Random) -> int:
    return rng.randrange(2**32)


def _entry(rng: random.Random, repo: int, weights: Sequence[int] = (50, 5, 3)) -> bytes | Entry:
    """Return a tree entry. Its content names the repository, so that contents cannot be confused."""
    content = b"%d: %b" % (repo, rng.choice(WORDS))
    return rng.choices([content, Entry.executable(content), Entry.symlink("b")], weights)[0]


def _tree(rng: random.Random, repo: int) -> dict[str, bytes | Entry]:
    """Return a tree in which no name is a directory of another. Names that differ by case may be in it."""
    names = rng.sample(NAMES, rng.choice([0, 1, *range(4, len(NAMES) + 1)]))
    if rng.random() < 0.1:
        names += [TWINS[name] for name in names if name in TWINS]
    kept: list[str] = []
    for name in names:
        if not any(name.startswith(f"{other}/") or other.startswith(f"{name}/") for other in kept):
            kept.append(name)
    return {name: _entry(rng, repo) for name in kept}


_MEANWHILE: list[tuple[int, str]] = [
    (4, "resync"), (6, "cancel"), (3, "stop"), (3, "retry"), (4, "watch_again"), (2, "unwatch"), (3, "watch"),
    (2, "resync_all"), (2, "cancel_all"), (1, "retry_all"), (2, "pause"), (2, "resume"), (1, "pause_everything"),
    (1, "resume_everything"), (1, "replace_app"), (2, "limit"), (1, "set_quota"), (2, "announce"), (2, "ignore"), (1, "rotate_key"),
    (1, "replace_token"), (1, "redis_forgets"), (1, "redis_restarts"), (1, "lose_mirror"), (1, "evict_mirrors"),
    (2, "change"), (2, "host_behaves"), (2, "cut_connections"), (1, "reset_circuit"), (1, "transform"),
]  # fmt: skip
"""What may happen while a worker is at work, with weights."""


def _step_meanwhile(rng: random.Random) -> Step:
    weights, names = zip(*_MEANWHILE, strict=True)
    [name] = rng.choices(names, weights)
    return name, DRAWN[name](rng)


def _fate(rng: random.Random, *, real: bool = False) -> Fate | None:
    kinds = {"kill": 45, "term": 8, "freeze": 0 if real else 8, "cut": 6, "meanwhile": 25, "": 8}
    [kind] = rng.choices(list(kinds), list(kinds.values()))
    if not kind:
        return None
    in_statement = rng.random() < (0.25 if kind == "kill" else 0.5) and not (real and kind == "meanwhile")
    noticed = kind == "kill" and not real and rng.random() < 0.4
    step = None
    if kind == "meanwhile":
        step = _step_meanwhile(rng)
    elif noticed and rng.random() < 0.5:
        step = rng.choice([("resync_all", (0,)), ("change", (0,)), ("change", (1,))])
    at = rng.randrange(1, 60) if in_statement else rng.randrange(1, 7)
    if kind == "cut" and in_statement and at % 3:  # not another draw, which would change every seed
        kind = "deadlock"
    return Fate(kind, at, in_statement, rng.random() < 0.5, noticed, step)


def _fates(rng: random.Random) -> tuple[Fate | None, Fate | None]:
    return _fate(rng), _fate(rng)


def _push_tree(rng: random.Random) -> tuple[Any, ...]:
    repo = _two(rng)
    return repo, _tree(rng, repo)


def _add(rng: random.Random) -> tuple[Any, ...]:
    repo = _two(rng)
    return repo, rng.choice(NAMES), _entry(rng, repo)


def _work_at_much(rng: random.Random) -> tuple[Any, ...]:
    place = _place(rng)
    return place, _fates(rng), _tree(rng, PLACES[place][1])


def _work(rng: random.Random) -> tuple[Any, ...]:
    return tuple(rng.sample(range(len(PLACES)), rng.choice([1, 2, 2]))), _fates(rng)


def _import(rng: random.Random) -> tuple[Any, ...]:
    return _two(rng), rng.randrange(len(KINDS) - 1), _seed(rng), rng.random() < 0.7


ACTIONS: dict[str, tuple[float, Callable[[random.Random], tuple[Any, ...]]]] = {
    # Upstream
    "force_push": (4, _push_tree),
    "push_old_tree": (3, lambda rng: (rng.randrange(20),)),
    "add": (5, _add),
    "remove": (3, lambda rng: (_two(rng), rng.randrange(20))),
    "rename": (3, lambda rng: (_two(rng), rng.randrange(20), rng.choice(NAMES))),
    "rename_to_twin": (6, lambda rng: (_two(rng), rng.randrange(20), BOTH_TWINS)),
    "change": (1, lambda rng: (_two(rng),)),
    "rename_branch": (1, lambda rng: (_two(rng), rng.choice(["main", "trunk", "release/1"]))),
    # People
    "resync": (4, lambda rng: (_place(rng),)),
    "retry": (3, lambda rng: (_place(rng),)),
    "cancel": (4, lambda rng: (_place(rng),)),
    "stop": (2, lambda rng: (_place(rng),)),
    "resync_all": (3, lambda rng: (_two(rng),)),
    "retry_all": (2, lambda rng: (_two(rng),)),
    "cancel_all": (2, lambda rng: (_two(rng),)),
    "ignore": (4, lambda rng: (_place(rng), rng.choice(IGNORED))),
    "replace_token": (2, lambda rng: (_place(rng), rng.choice(["", "a-token"]))),
    "pause": (2, lambda rng: (_two(rng),)),
    "resume": (3, lambda rng: (_two(rng),)),
    "pause_everything": (1, lambda rng: ()),
    "resume_everything": (2, lambda rng: ()),
    "limit": (3, lambda rng: (_two(rng), rng.choice([1, 2, 8]))),
    "set_quota": (2, lambda rng: (_two(rng), rng.choice([0, 1, 3, 10]))),
    "announce": (4, lambda rng: (_two(rng), rng.random() < 0.8)),
    "reset_circuit": (1, lambda rng: (_two(rng),)),
    "rotate_token": (1, lambda rng: (_two(rng),)),
    "rotate_key": (3, lambda rng: (_two(rng),)),
    "transform": (3, lambda rng: (rng.randrange(len(TRANSFORMS)),)),
    "evict_mirrors": (1, lambda rng: ()),
    "unwatch": (5, lambda rng: (_place(rng), rng.random() < 0.5)),
    "watch": (6, lambda rng: (_place(rng),)),
    "watch_again": (3, lambda rng: (_place(rng), rng.random() < 0.5)),
    "replace_app": (1.5, lambda rng: (_two(rng), rng.randrange(len(KINDS)))),
    "import_app": (1.5, _import),
    "finish_imports": (0.5, lambda rng: ()),
    # Faults
    "redis_forgets": (1, lambda rng: ()),
    "redis_restarts": (1, lambda rng: ()),
    "database_restarts": (0.7, lambda rng: ()),
    "clock_goes_back": (1, lambda rng: ()),
    "time_passes": (2, lambda rng: (rng.choice([2.0, 40.0, 400.0]),)),
    "lose_mirror": (1, lambda rng: (_two(rng),)),
    "damage_mirror": (2, lambda rng: (_two(rng), _seed(rng))),
    "mood": (7, lambda rng: (_seed(rng), rng.choice([0.0, 0.1, 0.3, 1.0]))),
    "host_behaves": (7, lambda rng: (rng.randrange(len(FAULTS) + 1), _seed(rng))),
    "cut_connections": (0, lambda rng: ()),
    # Workers
    "work": (12, _work),
    "work_at_much": (13, _work_at_much),
    "work_for_real": (4, lambda rng: (_fate(rng, real=True),)),
    "bad_neighbour": (3, lambda rng: (_seed(rng), _fates(rng), _tree(rng, 0))),
    "settle": (5, lambda rng: ()),
}
"""Name of the method → weight, and how its arguments are drawn."""
REF_ACTIONS: dict[str, tuple[float, Callable[[random.Random], tuple[Any, ...]]]] = {
    "push_dev": (5, lambda rng: (repo := _two(rng), _tree(rng, repo) if rng.random() < 0.8 else {})),
    "move_tag": (4, lambda rng: (_two(rng), rng.random() < 0.6, rng.random() < 0.5)),
    "delete_ref": (2, lambda rng: (_two(rng), rng.randrange(len(REFS)))),
    "follow": (8, lambda rng: (_place(rng), rng.choice(FOLLOWED))),
    "choose": (5, lambda rng: (_place(rng), *rng.choice(CHOSEN))),
    "work": (6, lambda rng: (tuple(rng.sample(range(len(PLACES)), 2)), (_fate_with_refs(rng), None))),
}
"""What happens to branches and tags, and to what an app chooses of a repository. Each history gets some of these, drawn apart from
the others, so that a seed keeps its other steps."""
RESEND_ACTIONS: dict[str, tuple[float, Callable[[random.Random], tuple[Any, ...]]]] = {
    "resend": (5, lambda rng: (_place(rng), _seed(rng))),
    "resend_many": (5, lambda rng: (_seed(rng),)),
    "cancel_resend": (3, lambda rng: ()),
    "work": (5, lambda rng: (tuple(rng.sample(range(len(PLACES)), 2)), (_fate_with_resend(rng), _fate(rng)))),
    "mood": (2, lambda rng: (_seed(rng), rng.choice([0.3, 1.0]))),
}
"""What happens to chosen files. Each history gets some of these too, drawn apart from the others."""
DRIFT_ACTIONS: dict[str, tuple[float, Callable[[random.Random], tuple[Any, ...]]]] = {
    "damage": (3, lambda rng: (_place(rng), _seed(rng))),
    "check_drift": (4, lambda rng: (_place(rng),)),
    "check_all": (2, lambda rng: (_two(rng),)),
    "cancel_check": (2, lambda rng: (_place(rng),)),
    "send_differences": (4, lambda rng: (_place(rng),)),
    "answer_checks": (2, lambda rng: (_two(rng), rng.random() < 0.5)),
    "work_at_check": (8, lambda rng: (place := _place(rng), _seed(rng), (_fate_of_check(rng, place), _fate(rng)))),
}
"""Damaged copies, and checks that find the damage. Also drawn apart from the others."""
_DURING_CHECK = {
    "cancel_check": 8, "send_differences": 2, "check_drift": 1, "resync": 3, "unwatch": 1, "change": 2, "pause": 1,
    "pause_everything": 1, "answer_checks": 1, "cut_connections": 1,
}  # fmt: skip
RELEASE_ACTIONS: dict[str, tuple[float, Callable[[random.Random], tuple[Any, ...]]]] = {
    "resync_gradually": (5, lambda rng: (rng.random() < 0.8, rng.choice([None, None, 1, 30]))),
    "hold_resync": (1, lambda rng: (_seed(rng),)),
    "cancel_gradual": (2, lambda rng: ()),
    "continue_gradual": (2, lambda rng: ()),
    "release_and_die": (3, lambda rng: (rng.randrange(4, 25),)),
    "cancel_and_die": (1, lambda rng: (rng.randrange(2, 20),)),
    "time_passes": (1, lambda rng: (rng.choice([61.0, 1900.0]),)),
    "work": (8, lambda rng: (tuple(rng.sample(range(len(PLACES)), 2)), (_fate_with_release(rng), None))),
    "mood": (2, lambda rng: (_seed(rng), rng.choice([0.3, 1.0]))),
}
"""What happens around gradual re-syncs. Half of the histories get some of these, drawn apart as well."""
PAUSE_ACTIONS: dict[str, tuple[float, Callable[[random.Random], tuple[Any, ...]]]] = {
    "pause_one": (3, lambda rng: (_place(rng),)),
    "resume_one": (2, lambda rng: (_place(rng),)),
    "work": (4, lambda rng: (tuple(rng.sample(range(len(PLACES)), 2)), (_fate_with_pause(rng), None))),
}
"""Pauses of single repositories, drawn apart from the others too."""
CONFIG_ACTIONS: dict[str, tuple[float, Callable[[random.Random], tuple[Any, ...]]]] = {
    "move_endpoint": (6, lambda rng: (_two(rng), rng.choice(["", "/v2", "/v3/", *WRONG_SERVERS]))),
    "limit_size": (4, lambda rng: (rng.choice(SIZE_LIMITS),)),
    "reset_to": (3, lambda rng: (_two(rng), rng.randrange(20))),
    "recreate": (2, lambda rng: _recreate(rng)),
    "add": (4, lambda rng: (_two(rng), *rng.choice(ODD_ENTRIES))),
    "at_once": (6, lambda rng: (_one_of_two(rng), _one_of_two(rng))),
    "work": (8, lambda rng: (tuple(rng.sample(range(len(PLACES)), 2)), (_fate_with_config(rng), _fate(rng)))),
    "work_at_much": (
        4,
        lambda rng: (place := _place(rng), (_fate_with_config(rng), None), _tree(rng, PLACES[place][1])),
    ),
}
"""What changes the configuration, or the repository as a whole, while everything runs. Drawn apart from the others too."""
WRONG_SERVERS = ["/401", "/404", "/404", "/410", "/500", "/502"]
SIZE_LIMITS = [50_000_000, 50_000_000, 300, 12]
ODD_ENTRIES: list[tuple[str, object]] = [
    ("a", Entry.submodule("1" * 64)),
    ("d/e", Entry.submodule("2" * 64)),
    ("a/b", Entry.symlink("../c")),
    (os.fsdecode(b"caf\xe9"), b"not UTF-8"),
    ("C:x", b"a drive"),
    ("p" * 1025, b"too long"),
    ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize 5\n" % (b"a" * 64)),
    (".docoraignore", b"d/\n"),
    (".docoraignore", b"[bg]\n"),
    (".docoraignore", Entry.symlink("b")),
    (".docoraignore/a", b"a folder"),
]
"""Entries that are not sent, or that decide what is sent."""
_AT_ONCE = [
    "resync", "retry", "cancel", "stop", "resync_all", "retry_all", "cancel_all", "ignore", "choose", "follow", "replace_token",
    "pause", "resume", "pause_one", "resume_one", "pause_everything", "resume_everything", "limit", "set_quota", "announce",
    "reset_circuit", "rotate_token", "unwatch", "resend", "resend_many", "cancel_resend", "check_drift", "check_all",
    "send_differences", "resync_gradually", "continue_gradual", "move_endpoint", "sweep",
]  # fmt: skip
DRAWN = {name: draw for name, (_, draw) in (CONFIG_ACTIONS | PAUSE_ACTIONS | DRIFT_ACTIONS | ACTIONS).items()}


def draw(seed: int, without: frozenset[str] = frozenset()) -> History:
    """Return the history of a seed, without these actions."""
    rng = random.Random(seed)
    kinds = rng.randrange(len(KINDS)), rng.randrange(len(KINDS))
    weights = [weight for weight, _ in ACTIONS.values()]
    names = rng.choices(list(ACTIONS), weights, k=rng.randrange(STEPS // 2, STEPS + STEPS // 2))
    steps = [(name, DRAWN[name](rng)) for name in names]
    real_workers = rng.random() < 0.2
    _put_among(steps, REF_ACTIONS, random.Random(f"refs of {seed}"), at_most=9)
    _put_among(steps, RESEND_ACTIONS, random.Random(f"resends of {seed}"), at_most=6)
    _put_among(steps, DRIFT_ACTIONS, random.Random(f"damage of {seed}"), at_most=6)
    _put_among(steps, PAUSE_ACTIONS, random.Random(f"pauses of {seed}"), at_most=4)
    _with_releases(random.Random(f"releases of {seed}"), steps)
    _put_among(steps, CONFIG_ACTIONS, random.Random(f"configuration of {seed}"), at_most=7)
    kept = tuple(step for step in steps if step[0] not in without)
    return History(seed, kinds, kept, real_workers=real_workers)


def _fate_with_refs(rng: random.Random) -> Fate:
    """Let something happen to refs or patterns while a worker is at work."""
    [name] = rng.choices(["push_dev", "move_tag", "delete_ref", "follow", "choose"], [3, 3, 1, 6, 4])
    step = name, REF_ACTIONS[name][1](rng)
    return Fate("meanwhile", rng.randrange(1, 7), rng.random() < 0.3, rng.random() < 0.5, step=step)


def _fate_with_pause(rng: random.Random) -> Fate:
    """Pause or resume a repository while a worker is at work."""
    step = rng.choice(["pause_one", "pause_one", "resume_one"]), (_place(rng),)
    return Fate("meanwhile", rng.randrange(1, 7), rng.random() < 0.3, rng.random() < 0.5, step=step)


def _fate_with_config(rng: random.Random) -> Fate:
    """Change the configuration while a worker is at work, or when it has died and another one continues."""
    [name] = rng.choices(["move_endpoint", "limit_size", "reset_to", "add", "at_once"], [4, 3, 1, 2, 3])
    step = name, CONFIG_ACTIONS[name][1](rng)
    noticed = rng.random() < 0.2
    in_statement = not noticed and rng.random() < 0.3
    return Fate(
        "kill" if noticed else "meanwhile", rng.randrange(1, 7), in_statement, rng.random() < 0.5, noticed, step
    )


def _one_of_two(rng: random.Random) -> Step:
    name = rng.choice(_AT_ONCE)
    actions = CONFIG_ACTIONS | RELEASE_ACTIONS | RESEND_ACTIONS | REF_ACTIONS | PAUSE_ACTIONS | DRIFT_ACTIONS | ACTIONS
    return name, () if name == "sweep" else actions[name][1](rng)


def _recreate(rng: random.Random) -> tuple[Any, ...]:
    repo = _two(rng)
    between = rng.choice(["", "", "gone", "empty"])
    return repo, rng.choice(["sha1", "sha1", "sha256"]), _tree(rng, repo), between, _fates(rng)


def _put_among(
    steps: list[Step],
    actions: Mapping[str, tuple[float, Callable[[random.Random], tuple[Any, ...]]]],
    rng: random.Random,
    at_most: int,
) -> None:
    """Put some of these actions among the steps."""
    weights = [weight for weight, _ in actions.values()]
    for name in rng.choices(list(actions), weights, k=rng.randrange(at_most + 1)):
        steps.insert(rng.randrange(len(steps) + 1), (name, actions[name][1](rng)))


def _fate_with_resend(rng: random.Random) -> Fate:
    """Resend chosen files, or cancel a resend, while a worker is at work."""
    [name] = rng.choices(["resend", "resend_many", "cancel_resend"], [3, 3, 2])
    step = name, RESEND_ACTIONS[name][1](rng)
    return Fate("meanwhile", rng.randrange(1, 7), rng.random() < 0.3, rng.random() < 0.5, step=step)


def _fate_of_check(rng: random.Random, place: int) -> Fate | None:
    """Let something happen at one of the few requests or statements of a check."""
    [kind] = rng.choices(["kill", "term", "freeze", "cut", "meanwhile", ""], [34, 8, 8, 6, 42, 15])
    if not kind:
        return None
    in_statement = rng.random() < 0.5
    step = None
    if kind == "meanwhile":
        [name] = rng.choices(list(_DURING_CHECK), list(_DURING_CHECK.values()))
        step = name, (place,) if name in {"cancel_check", "resync"} else DRAWN[name](rng)
    at = rng.randrange(5, 60) if in_statement else rng.randrange(1, 5)
    return Fate(kind, at, in_statement, rng.random() < 0.5, kind == "kill" and rng.random() < 0.4, step)


def _fate_with_release(rng: random.Random) -> Fate | None:
    """Kill a worker, or let something happen to a gradual re-sync while it is at work."""
    if rng.random() < 0.4:
        return _fate(rng)
    [name] = rng.choices(["resync_gradually", "cancel_gradual", "continue_gradual"], [2, 3, 2])
    step = name, RELEASE_ACTIONS[name][1](rng)
    return Fate("meanwhile", rng.randrange(1, 7), rng.random() < 0.3, rng.random() < 0.5, step=step)


def _with_releases(rng: random.Random, steps: list[Step]) -> None:
    """Put a gradual re-sync and what happens around it among the other steps, in this order."""
    if rng.random() < 0.5:
        return
    weights = [weight for weight, _ in RELEASE_ACTIONS.values()]
    names = [
        rng.choice(["resync_gradually", "hold_resync"]),
        *rng.choices(list(RELEASE_ACTIONS), weights, k=rng.randrange(2, 8)),
    ]
    places = sorted(rng.choices(range(len(steps) + 1), k=len(names)))
    for name, place in reversed(list(zip(names, places, strict=True))):
        steps.insert(place, (name, RELEASE_ACTIONS[name][1](rng)))


# --- Playing ---------------------------------------------------------------------------------------------------------


class Player:
    """Plays histories, each in a universe of its own, and sums them up.

    `clean` removes the rows of a universe. Their folders are in `folder`.
    """

    def __init__(self, make: Callable[..., Universe], clean: Callable[[], None], folder: Path) -> None:
        self._make, self._clean, self._folder = make, clean, folder
        self.summary = Summary()

    def play(self, history: History) -> str:
        """Play a history and add it to the summary. Return what diverged: an empty string, or the error."""
        universe, error = self._play(history)
        log = universe.clients.log
        diverged = {str(history.seed): f"{history}\n{error}"} if error else {}
        self.summary.add(
            Summary(
                first_seed=history.seed,
                last_seed=history.seed,
                histories=1,
                notifications=len(log),
                events=universe.events,
                duplicates=universe.journal.duplicates(log),
                diverged=diverged,
            )
        )
        return error

    def shrink(self, history: History, error: str) -> str:
        """Return a shorter history that diverges with the same kind of error: leave out one step after the other."""
        for index in reversed(range(len(history.steps))):
            shorter = replace(history, steps=history.steps[:index] + history.steps[index + 1 :])
            _, found = self._play(shorter)
            if _kind_of(found) == _kind_of(error):
                history, error = shorter, found
        return f"{history}\n{error}"

    def _play(self, history: History) -> tuple[Universe, str]:
        signal.signal(signal.SIGALRM, _end)
        signal.alarm(LONGEST_HISTORY)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            universe = self._make(Path(folder), kinds=history.kinds, real_workers=history.real_workers)
            try:
                return universe, _play(universe, history)
            finally:
                signal.alarm(0)
                universe.close()
                self._clean()


def _end(_number: int, _frame: object) -> None:
    raise TimeoutError(f"the history did not end within {LONGEST_HISTORY} seconds")


def _play(universe: Universe, history: History) -> str:
    step: Step = ("begin", ())
    try:
        for step in history.steps:
            if step[0] != "settle" or universe.busy:
                universe.happen(step)
                universe.check()
        step = ("settle", ())
        universe.settle()
    except Exception as error:
        if os.environ.get("TRACEBACKS"):
            traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)
        here = [frame for frame in frames if "/tests/faults/" in frame.filename][-1]
        return f"{type(error).__name__} in {step[0]}, {here.name}: {error}"
    return ""


def _kind_of(error: str) -> str:
    """Return where an error was found: the same for errors that have the same cause, most of the time."""
    return error.partition(": ")[0].rpartition(", ")[2]
