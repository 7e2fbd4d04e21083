"""What an import took, found here already, and could not take, with the reason of each."""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from docora.conf.installation import program

LISTED = 200  # items of each list; beyond that they are counted only

LOSSY = (
    "Files that are neither UTF-8 nor treated as binary by the existing service were delivered by it in a lossy form, and "
    "recorded like any other: Docora does not send them again. An app that needs them whole gets everything again by "
    f"`{program()} resync APP_ID [REPOSITORY_ID]`."
)


class Item(NamedTuple):
    """`what` is the kind of thing, `name` tells which one."""

    what: str
    name: str
    reason: str


@dataclass
class Tally:
    """How many were taken (or would be), were here already and stayed as they are, and were not taken."""

    taken: int = 0
    here: int = 0
    left: int = 0


@dataclass
class Report:
    """`problems` could not be taken, or not whole; `remarks` are worth knowing, and ask for nothing."""

    dry_run: bool = False
    apps: Tally = field(default_factory=Tally)
    repositories: Tally = field(default_factory=Tally)
    watches: Tally = field(default_factory=Tally)
    files: Tally = field(default_factory=Tally)
    problem_count: int = 0
    problems: list[Item] = field(default_factory=list)
    remark_count: int = 0
    remarks: list[Item] = field(default_factory=list)

    def problem(self, what: str, name: str, reason: str) -> None:
        self.problem_count += 1
        if len(self.problems) < LISTED:
            self.problems.append(Item(what, name, reason))

    def remark(self, what: str, name: str, reason: str) -> None:
        self.remark_count += 1
        if len(self.remarks) < LISTED:
            self.remarks.append(Item(what, name, reason))

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        facts = asdict(self)
        for name in ("problems", "remarks"):
            facts[name] = [item._asdict() for item in getattr(self, name)]
        return facts | {"lossy": LOSSY}
