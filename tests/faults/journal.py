"""What a client was told, looked at as a whole: order, identity and contents of the notifications."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from deliveries_app.models.deliveries import PHASES, Kind
from deliveries_app.receiver import Record

Watch = tuple[str, str]
"""The app's id, and the repository's `owner/name`."""
FILES = {kind.value for kind in Kind}


class Journal:
    """Looks at each record once. `zombies`: watches at which a frozen worker woke up, whose last word may come late;
    `rotating`: apps whose signing key was being replaced, so that one signature may be refused."""

    def __init__(self) -> None:
        self.zombies: set[Watch] = set()
        self._crashes: list[tuple[Watch, int]] = []
        self.rotating: set[str] = set()
        self._attempts: list[int] = []
        self._told: dict[str, tuple[object, ...]] = {}
        self._contents: dict[str, set[str]] = defaultdict(set)

    def begin(self, log: Sequence[Record]) -> None:
        """An attempt starts here."""
        self._attempts.append(len(log))

    def crashed(self, watch: Watch, log: Sequence[Record]) -> None:
        """The watch's worker was killed, and the client is quiet."""
        self._crashes.append((watch, len(log)))

    def duplicates(self, log: Sequence[Record]) -> list[int]:
        """For each crash: how many notifications came once more though they had been acknowledged before it."""
        return [self._again(watch, log[:end], log[end:]) for watch, end in self._crashes]

    def _again(self, watch: Watch, before: Sequence[Record], after: Sequence[Record]) -> int:
        known = {record.webhook_id for record in before if _is_of(record, watch) and record.status == 200}
        return len(known & {record.webhook_id for record in after if _is_of(record, watch)})

    def learn(self, repository: str, shas: Iterable[str]) -> None:
        """What the repository holds now."""
        self._contents[repository].update(shas)

    def check(self, log: Sequence[Record]) -> None:
        for record in log:
            assert record.verified or record.app_id in self.rotating, f"a signature was wrong: {record}"
        files = [record for record in log if record.verified and record.kind in FILES]
        self._check_ids(files)
        for record in _by(files, lambda record: (record.app_id, record.repository, record.path)).values():
            self._check_path(record)
        self._check_phases(log)
        for record in files:
            if record.kind != Kind.DELETE:
                assert record.sha in self._contents[record.repository], f"a content from elsewhere: {record}"

    def _check_ids(self, files: Sequence[Record]) -> None:
        for record in files:
            says = (record.kind, record.repository, record.path, record.sha, record.sequence, record.chunk)
            assert self._told.setdefault(record.webhook_id, says) == says, f"an id was used again: {record}"

    def _check_path(self, records: Sequence[Record]) -> None:
        """One at a time, and its numbers never fall."""
        watch = (records[0].app_id, records[0].repository)
        if watch in self.zombies:
            return
        came = sorted(records, key=lambda record: record.received_at)
        for earlier, later in pairwise(came):
            assert later.received_at >= earlier.answered_at, f"two at once: {earlier} and {later}"
            assert later.sequence >= earlier.sequence, f"a number fell: {earlier} and {later}"

    def _check_phases(self, log: Sequence[Record]) -> None:
        """Within one attempt every delete comes before the first create, and every create before the first update."""
        for start, end in pairwise([*self._attempts, len(log)]):
            attempt = [record for record in log[start:end] if record.verified and record.kind in FILES]
            for watch, records in _by(attempt, lambda record: (record.app_id, record.repository)).items():
                if watch not in self.zombies:
                    order = [PHASES.index(Kind(record.kind)) for record in _as_they_came(records)]
                    assert order == sorted(order), f"out of order: {[(r.kind, r.path) for r in records]}"


def _is_of(record: Record, watch: Watch) -> bool:
    return (record.app_id, record.repository) == watch


def _as_they_came(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.received_at)


def _by[Key](records: Sequence[Record], key) -> dict[Key, list[Record]]:
    groups: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups
