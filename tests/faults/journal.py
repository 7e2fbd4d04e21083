"""Check order, ids and contents of all notifications that a client received."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from deliveries_app.models.deliveries import PHASES, Kind
from deliveries_app.receiver import Record

Watch = tuple[str, str]
"""The app's id, and the repository's `owner/name`."""
FILES = {kind.value for kind in Kind}


class Journal:
    """Checks the receiver's log.

    `zombies` are watches whose frozen worker woke up, so that late notifications are allowed. `rotating` are apps whose
    signing key was being replaced, so that refused signatures are allowed.
    """

    def __init__(self) -> None:
        self.zombies: set[Watch] = set()
        self._crashes: list[tuple[Watch, int]] = []
        self.rotating: set[str] = set()
        self._attempts: list[int] = []
        self._beside_the_dead: set[tuple[int, Watch]] = set()
        self._sent: dict[str, tuple[object, ...]] = {}
        self._contents: dict[str, set[str]] = defaultdict(set)

    def begin(self, log: Sequence[Record], beside_the_dead: Watch | None = None) -> None:
        """Note that an attempt starts here, maybe while this watch's client still handles requests of a dead worker."""
        if beside_the_dead:
            self._beside_the_dead.add((len(log), beside_the_dead))
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
        """Note the current contents of the repository."""
        self._contents[repository].update(shas)

    def check(self, log: Sequence[Record]) -> None:
        for record in log:
            assert record.verified or record.app_id in self.rotating, f"wrong signature: {record}"
        files = [record for record in log if record.verified and record.kind in FILES]
        self._check_ids(files)
        for record in _by(files, lambda record: (record.app_id, record.repository, record.path)).values():
            self._check_path(record)
        self._check_phases(log)
        for record in files:
            if record.kind != Kind.DELETE:
                assert record.sha in self._contents[record.repository], f"content of another repository: {record}"

    def _check_ids(self, files: Sequence[Record]) -> None:
        for record in files:
            identity = (record.kind, record.repository, record.path, record.sha, record.sequence, record.chunk)
            assert self._sent.setdefault(record.webhook_id, identity) == identity, f"an id was reused: {record}"

    def _check_path(self, records: Sequence[Record]) -> None:
        """Check that the path's notifications never overlap and that their sequences never fall.

        The same notification may be under way twice: after the death of its sender it is sent again at once.
        """
        watch = (records[0].app_id, records[0].repository)
        if watch in self.zombies:
            return
        ordered = sorted(records, key=lambda record: record.received_at)
        for number, later in enumerate(ordered):
            for earlier in ordered[:number]:
                overlaps = later.received_at < earlier.answered_at
                assert not overlaps or later.sequence == earlier.sequence, f"overlapping: {earlier} and {later}"
                assert later.sequence >= earlier.sequence, f"a sequence fell: {earlier} and {later}"

    def _check_phases(self, log: Sequence[Record]) -> None:
        """Check that within each attempt deletes come before creates, and creates before updates."""
        for start, end in pairwise([*self._attempts, len(log)]):
            attempt = [record for record in log[start:end] if record.verified and record.kind in FILES]
            for watch, records in _by(attempt, lambda record: (record.app_id, record.repository)).items():
                if watch not in self.zombies and (start, watch) not in self._beside_the_dead:
                    order = [PHASES.index(Kind(record.kind)) for record in _by_arrival(records)]
                    assert order == sorted(order), f"out of order: {[(r.kind, r.path) for r in records]}"


def _belongs_to(record: Record, watch: Watch) -> bool:
    return (record.app_id, record.repository) == watch


def _by_arrival(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.received_at)


def _by[Key](records: Sequence[Record], key) -> dict[Key, list[Record]]:
    groups: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups
