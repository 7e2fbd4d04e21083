"""Check order, ids and contents of all notifications that the clients receive."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from deliveries_app.models.deliveries import PHASES, Kind
from deliveries_app.receiver import Record

Watch = tuple[str, str]
"""The app's id, and the repository's `owner/name`."""
FILES = {kind.value for kind in Kind}


class Journal:
    """Checks the clients' log. Each call of `check` looks at what is new.

    `zombies` are watches whose frozen worker woke up: what it had sent before may be answered during the next attempt.
    `rotating` are apps whose signing key was being replaced, so that refused signatures are allowed.
    """

    def __init__(self) -> None:
        self.zombies: set[Watch] = set()
        self.rotating: set[str] = set()
        self._crashes: list[tuple[Watch, int]] = []
        self._attempts: list[int] = []
        self._many: set[int] = set()
        self._beside_the_dead: set[tuple[int, Watch]] = set()
        self._sent: dict[str, tuple[object, ...]] = {}
        self._by_path: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
        self._contents: dict[str, set[str]] = defaultdict(set)
        self._checked = 0

    def begin(self, log: Sequence[Record], *, beside_the_dead: Watch | None = None, many: bool = False) -> None:
        """Note that an attempt starts here, maybe while this watch's client still handles requests of a dead worker.

        `many`: a real worker starts as many attempts as it likes.
        """
        if beside_the_dead:
            self._beside_the_dead.add((len(log), beside_the_dead))
        if many:
            self._many.add(len(log))
        self._attempts.append(len(log))

    def crashed(self, watch: Watch, log: Sequence[Record]) -> None:
        """Note that the watch's worker was killed and the client has handled its last requests."""
        self._crashes.append((watch, len(log)))

    def duplicates(self, log: Sequence[Record]) -> list[int]:
        """Return for each crash how many acknowledged notifications were sent again after it."""
        return [self._again(watch, log[:end], log[end:]) for watch, end in self._crashes]

    def _again(self, watch: Watch, before: Sequence[Record], after: Sequence[Record]) -> int:
        known = {record.webhook_id for record in before if _belongs_to(record, watch) and record.status == 200}
        return len(known & {record.webhook_id for record in after if _belongs_to(record, watch)})

    def learn(self, repository: str, shas: Iterable[str]) -> None:
        """Note contents that the repository has, or that transforms make of them."""
        self._contents[repository].update(shas)

    def check(self, log: Sequence[Record]) -> None:
        fresh = log[self._checked :]
        for record in fresh:
            assert record.verified or record.app_id in self.rotating, f"wrong signature: {record}"
        notes = [record for record in fresh if record.verified and record.kind in {*FILES, "sync_completed"}]
        self._check_ids(notes)
        for record in notes:
            self._check_order(record)
            if record.kind in {Kind.CREATE, Kind.UPDATE}:
                assert record.sha in self._contents[record.repository], f"content of another repository: {record}"
        self._check_phases(log)
        self._checked = len(log)

    def _check_ids(self, notes: Sequence[Record]) -> None:
        for record in notes:
            identity = (record.kind, record.repository, record.path, record.sha, record.sequence, record.chunk)
            assert self._sent.setdefault(record.webhook_id, identity) == identity, f"an id was reused: {record}"

    def _check_order(self, record: Record) -> None:
        """Check that the notifications of a path, or the `sync_completed` of a watch, never overlap and that their
        sequences never fall.

        The same notification may be under way twice: after the death of its sender it is sent again at once.
        """
        earlier_ones = self._by_path[record.app_id, record.repository, record.path]
        for other in earlier_ones:
            earlier, later = sorted((other, record), key=lambda one: one.received_at)
            overlaps = later.received_at < earlier.answered_at
            assert not overlaps or later.sequence == earlier.sequence, f"overlapping: {earlier} and {later}"
            assert later.sequence >= earlier.sequence, f"a sequence fell: {earlier} and {later}"
        earlier_ones.append(record)

    def _check_phases(self, log: Sequence[Record]) -> None:
        """Check that within each attempt deletes come before creates, and creates before updates."""
        for start, end in pairwise([*self._attempts, len(log)]):
            if end <= self._checked or start in self._many:
                continue
            attempt = [record for record in log[start:end] if record.verified and record.kind in FILES]
            for watch, records in _by(attempt, lambda record: (record.app_id, record.repository)).items():
                if watch not in self.zombies and (start, watch) not in self._beside_the_dead:
                    order = [PHASES.index(Kind(record.kind)) for record in _by_arrival(records)]
                    assert order == sorted(order), f"out of order: {[(r.kind, r.path) for r in records]}"


def _belongs_to(record: Record, watch: Watch) -> bool:
    return (record.app_id, record.repository) == watch


def _by_arrival(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.received_at)


def _by[Key](records: Sequence[Record], key: Callable[[Record], Key]) -> dict[Key, list[Record]]:
    groups: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups
