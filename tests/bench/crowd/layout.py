"""Who drawings what, and how that stands: a few repositories are large, most are small, and most are well."""

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
    """How much there is to be of everything; `repositories` are watched ones, of which several may share one."""

    apps: int = 2_000
    repositories: int = 10_000
    deliveries: int = 5_000_000
    runs: int = 1_000_000
    seed: int = 1

    def dice(self, *purpose: object) -> Random:
        """A source of its own for each purpose, so that none depends on how often another one was asked."""
        return Random(f"{self.seed} {purpose}")


class Role(Enum):
    SYNCED = auto()
    FAILED = auto()  # given up until the next rescan
    RETRYING = auto()  # failing, with attempts left
    ASKED = auto()  # a re-sync is requested: everything is cleared
    SENDING = auto()  # in the middle of a re-sync
    NEW = auto()  # watched, and not yet looked at


SHARES = {Role.FAILED: 0.04, Role.RETRYING: 0.01, Role.ASKED: 0.01, Role.SENDING: 0.005}
FAILING = {Role.FAILED, Role.RETRYING}


@dataclass(frozen=True, slots=True)
class Tree:
    """What one git repository holds: `files` with paths in byte order, for each of its watchers the same."""

    number: int
    files: int
    watchers: int

    @property
    def size(self) -> int:
        """The bytes of all files."""
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
    """One app's drawn of one tree; `cause` where it is failing."""

    tree: Tree
    app: int
    role: Role = Role.SYNCED
    cause: RootCause | None = None


def draw(amounts: Amounts) -> list[DrawnWatch]:
    """Every drawn. The first has a tenth of all files; app 0 has a tenth of all drawings, and a few apps have none."""
    dice = amounts.dice("drawings")
    busy = max(1, amounts.apps * 49 // 50)
    drawings = []
    for tree in _trees(amounts):
        first = 0 if tree.number % 8 == 0 or busy == 1 else dice.randrange(1, busy)
        drawings += [DrawnWatch(tree, (first + number) % amounts.apps) for number in range(tree.watchers)]
    _give_roles(drawings, dice)
    return drawings


def _trees(amounts: Amounts) -> Iterator[Tree]:
    """Their files, over all watchers, are exactly as many as there are to be deliveries."""
    watchers = _watchers(amounts)
    new = len(watchers) // 100 or int(len(watchers) > 4)
    weights = [0.0, *(1 / rank for rank in range(1, len(watchers) - new)), *([0.0] * new)][: len(watchers)]
    in_all = sum(weight * count for weight, count in zip(weights, watchers, strict=True)) or 1.0
    shared = amounts.deliveries - amounts.deliveries // 10
    files = [int(shared * weight / in_all) for weight in weights]
    files[0] = amounts.deliveries - sum(number * count for number, count in zip(files, watchers, strict=True))
    return (Tree(number, *facts) for number, facts in enumerate(zip(files, watchers, strict=True)))


def _watchers(amounts: Amounts) -> list[int]:
    """How many apps drawn each repository: one for most, two for every fifth or so, and for a few a hundred."""
    more = amounts.repositories // 5 if amounts.apps > 1 else 0
    watchers = [1] * (amounts.repositories - more)
    popular = 1 + len(watchers) // 160
    for rank in range(popular, len(watchers)):
        wanted = min(amounts.apps, _MOST_WATCHERS) - 1 if rank < popular + _POPULAR else 1
        watchers[rank] += (added := min(more, wanted))
        more -= added
    return watchers


def _give_roles(drawings: list[DrawnWatch], dice: Random) -> None:
    """Failing ones of every root cause, as far as there are drawings enough; the largest one is well."""
    for drawn in drawings:
        if drawn.tree.number and not drawn.tree.files:
            drawn.role = Role.NEW
    rest = [drawn for drawn in drawings if drawn.tree.number and drawn.tree.files]
    dice.shuffle(rest)
    at_least = {Role.FAILED: len(RootCause)}
    for role, share in SHARES.items():
        wanted = max(at_least.get(role, 1), round(share * len(drawings)))
        for number in range(min(wanted, len(rest) // 2)):
            drawn = rest.pop()
            drawn.role = role
            if role in FAILING:
                drawn.cause = list(RootCause)[number % len(RootCause)]
