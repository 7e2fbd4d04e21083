"""Collect the result of an import: what was imported, what was already here, and what was left out and why."""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from docora.conf.installation import program

MAX_LISTED = 200  # files among the problems; more are only counted. Apps, repositories and watches are few.

LOSSY_COPIES_NOTE = (
    "The existing service delivered files that are neither UTF-8 nor on its list of binary types in a lossy form, and "
    "recorded them like all others, so Docora does not send them again. If an app needs them intact, send everything "
    f"again with `{program()} resync APP_ID [REPOSITORY_ID]`."
)


class Item(NamedTuple):
    """An entry of the report. `what` is the kind of object, such as `app`; `name` identifies it."""

    what: str
    name: str
    reason: str


@dataclass
class Counts:
    """How many objects were imported (or would be), were already here and stay unchanged, and were left out."""

    taken: int = 0
    here: int = 0
    left: int = 0


@dataclass
class Report:
    """The result of an import.

    `problems` were not imported, or only in part. `remarks` are about rows that were, and about what was removed here.
    """

    dry_run: bool = False
    apps: Counts = field(default_factory=Counts)
    repositories: Counts = field(default_factory=Counts)
    watches: Counts = field(default_factory=Counts)
    files: Counts = field(default_factory=Counts)
    problem_count: int = 0
    problems: list[Item] = field(default_factory=list)
    remark_count: int = 0
    remarks: list[Item] = field(default_factory=list)
    _files_left_out = 0  # not a field: not a part of `as_dict`

    def problem(self, what: str, name: str, reason: str) -> None:
        self.problem_count += 1
        if what == "file":
            self._files_left_out += 1
            if self._files_left_out > MAX_LISTED:
                return
        self.problems.append(Item(what, name, reason))

    def remark(self, what: str, name: str, reason: str) -> None:
        self.remark_count += 1
        self.remarks.append(Item(what, name, reason))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-serializable data."""
        data = asdict(self)
        for name in ("problems", "remarks"):
            data[name] = [item._asdict() for item in getattr(self, name)]
        return data | {"lossy": LOSSY_COPIES_NOTE}
