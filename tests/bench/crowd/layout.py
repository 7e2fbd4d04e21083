"""Draw which app watches which repository, and in which state.

A few repositories are large and most are small. Most watches are synced.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from itertools import accumulate
from random import Random

from deliveries_app.models import RootCause

_WORDS = (
    "account",
    "billing",
    "catalog",
    "draft",
    "export",
    "form",
    "guide",
    "index",
    "ledger",
    "model",
    "notes",
    "order",
)
_TOPS = (("assets", "svg"), ("docs", "md"), ("src", "py"))  # in byte order, as the paths below
_FILES_IN_FOLDER = 40
_MOST_WATCHERS = 100
_POPULAR = 5
_SIZES = [round(Random(size).lognormvariate(8, 1.4)) for size in range(997)]  # bytes; the median is 3 kB
_SIZES_SUMMED = [0, *accumulate(_SIZES)]


@dataclass(frozen=True)
class Amounts:
    """How many rows to generate. `repositories` counts watches, several of which may share a repository."""

    apps: int = 2_000
    repositories: int = 10_000
    deliveries: int = 5_000_000
    runs: int = 1_000_000
    seed: int = 1

    def dice(self, *purpose: object) -> Random:
        """Return a separate random source for each purpose, so that no purpose affects the numbers of another."""
        return Random(f"{self.seed} {purpose}")


class Role(Enum):
    SYNCED = auto()
    FAILED = auto()  # given up until the next rescan
    RETRYING = auto()  # failing, with attempts left
    REQUESTED = auto()  # a re-sync is requested: everything is cleared
    SENDING = auto()  # in the middle of a re-sync
    NEW = auto()  # watched, but not yet fetched


SHARES = {Role.FAILED: 0.04, Role.RETRYING: 0.01, Role.REQUESTED: 0.01, Role.SENDING: 0.005}
FAILING = {Role.FAILED, Role.RETRYING}


@dataclass(frozen=True, slots=True)
class Tree:
    """The content of one git repository. `files` is their number; their paths are in byte order."""

    number: int
    files: int
    watchers: int

    @property
    def size(self) -> int:
        """The size of all files in bytes."""
        rounds, rest = divmod(self.files, len(_SIZES))
        return rounds * _SIZES_SUMMED[-1] + _SIZES_SUMMED[rest]

    def path(self, number: int) -> str:
        top, ending = _TOPS[3 * number // self.files]
        folder, place = divmod(number, _FILES_IN_FOLDER)
        return f"{top}/{folder:05d}-{_WORDS[folder % 12]}/{_WORDS[place % 12]}-{place:02d}.{ending}"

    def size_of(self, number: int) -> int:
        return _SIZES[number % len(_SIZES)]


@dataclass(slots=True)
class DrawnWatch:
    """An app's watch of one tree, with its root cause if it is failing."""

    tree: Tree
    app: int
    role: Role = Role.SYNCED
    cause: RootCause | None = None


def draw(amounts: Amounts) -> list[DrawnWatch]:
    """Draw all watches. The first has a tenth of all files, app 0 a tenth of all watches, and a few apps have none."""
    dice = amounts.dice("drawings")
    busy = max(1, amounts.apps * 49 // 50)
    drawn_watches = []
    for tree in _trees(amounts):
        first = 0 if tree.number % 8 == 0 or busy == 1 else dice.randrange(1, busy)
        drawn_watches += [DrawnWatch(tree, (first + number) % amounts.apps) for number in range(tree.watchers)]
    _give_roles(drawn_watches, dice)
    return drawn_watches


def _trees(amounts: Amounts) -> Iterator[Tree]:
    """Yield the trees. Counted once for each watcher, their files are exactly the requested deliveries."""
    watchers = _watchers(amounts)
    new = len(watchers) // 100 or int(len(watchers) > 4)
    weights = [0.0, *(1 / rank for rank in range(1, len(watchers) - new)), *([0.0] * new)][: len(watchers)]
    total_weight = sum(weight * count for weight, count in zip(weights, watchers, strict=True)) or 1.0
    shared = amounts.deliveries - amounts.deliveries // 10
    files = [int(shared * weight / total_weight) for weight in weights]
    files[0] = amounts.deliveries - sum(number * count for number, count in zip(files, watchers, strict=True))
    return (Tree(number, *numbers) for number, numbers in enumerate(zip(files, watchers, strict=True)))


def _watchers(amounts: Amounts) -> list[int]:
    """Return the number of apps that watch each repository: usually one, for about a fifth two, for a few a hundred."""
    more = amounts.repositories // 5 if amounts.apps > 1 else 0
    watchers = [1] * (amounts.repositories - more)
    popular = 1 + len(watchers) // 160
    for rank in range(popular, len(watchers)):
        wanted = min(amounts.apps, _MOST_WATCHERS) - 1 if rank < popular + _POPULAR else 1
        watchers[rank] += (added := min(more, wanted))
        more -= added
    return watchers


def _give_roles(drawn_watches: list[DrawnWatch], dice: Random) -> None:
    """Give some watches other roles, with every root cause if there are enough watches. The largest one stays synced."""
    for drawn in drawn_watches:
        if drawn.tree.number and not drawn.tree.files:
            drawn.role = Role.NEW
    rest = [drawn for drawn in drawn_watches if drawn.tree.number and drawn.tree.files]
    dice.shuffle(rest)
    at_least = {Role.FAILED: len(RootCause)}
    for role, share in SHARES.items():
        wanted = max(at_least.get(role, 1), round(share * len(drawn_watches)))
        for number in range(min(wanted, len(rest) // 2)):
            drawn = rest.pop()
            drawn.role = role
            if role in FAILING:
                drawn.cause = list(RootCause)[number % len(RootCause)]
