"""git: is it there, is it new enough, and which of its flaws does it have that a stranger's repository could use?

The table is from git's own release notes (`Documentation/RelNotes/` of its source: 2.40.1, 2.39.4 and 2.45.1, 2.43.7 and
2.50.1; for January 2025 the announcement of 2.48.1), which name the CVEs and the maintenance releases that were made
along with the newest one. Only what concerns a client is in it.

They are warnings and not problems. Docora makes bare, shallow fetches over http(s) from one host that was vetted: it
checks nothing out, runs no hooks and no submodules, clones no local repository, asks no credential helper, and takes no
bundle that a host offers. That is what all of these need. But the next one may need less.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from deliveries_app.monitoring.doctor.findings import Finding, fine, problem, warning
from repositories_app.checks import MIN_GIT, git_version

Version = tuple[int, ...]


@dataclass(frozen=True)
class Flaws:
    """What was made known together in `month`, and the releases that mended it, the newest first. Every release after
    the newest of them has the fixes, and none before the oldest."""

    month: str
    names: str
    what: str
    fixed: tuple[Version, ...]

    def are_in(self, version: Version) -> bool:
        if version >= self.fixed[0]:
            return False
        return not any(version[:2] == release[:2] and version >= release for release in self.fixed)

    def fix_for(self, version: Version) -> Version:
        """The nearest release that has the fixes."""
        return min(release for release in self.fixed if release > version)


KNOWN = (
    Flaws(
        "July 2025",
        "CVE-2025-48384, CVE-2025-48385",
        "a submodule's path or an offered bundle can have code run",
        ((2, 50, 1), (2, 49, 1), (2, 48, 2), (2, 47, 3), (2, 46, 4), (2, 45, 4), (2, 44, 4), (2, 43, 7)),
    ),
    Flaws(
        "January 2025",
        "CVE-2024-50349, CVE-2024-52006",
        "a crafted address can mislead credential prompts and helpers",
        (
            (2, 48, 1), (2, 47, 2), (2, 46, 3), (2, 45, 3), (2, 44, 3), (2, 43, 6), (2, 42, 4), (2, 41, 3), (2, 40, 4),
        ),
    ),
    Flaws(
        "May 2024",
        "CVE-2024-32002, CVE-2024-32004, CVE-2024-32020, CVE-2024-32021, CVE-2024-32465",
        "a clone, with submodules or of a local repository, can run code",
        ((2, 45, 1), (2, 44, 1), (2, 43, 4), (2, 42, 2), (2, 41, 1), (2, 40, 2), (2, 39, 4)),
    ),
    Flaws(
        "April 2023",
        "CVE-2023-25652, CVE-2023-25815, CVE-2023-29007",
        "a patch can write outside the tree, and a submodule's name can change the configuration",
        ((2, 40, 1), (2, 39, 3), (2, 38, 5)),
    ),
)  # fmt: skip
_ADVICE = (
    "Upgrade git, unless your distribution has backported the fixes, as its changelog says (Debian's 2.47.3-0+deb13u1 "
    "and the like). Docora checks nothing out and runs no hooks and no submodules, so none of these is known to reach it."
)


def version() -> Iterator[Finding]:
    found = git_version()
    if found is None:
        yield problem(
            f"git was not found, or does not run. Docora needs {_dotted(MIN_GIT)} or newer.",
            "Install it (apt install git), on the PATH of the workers and the sweep.",
        )
        return
    if found < MIN_GIT:
        yield problem(f"git is {_dotted(found)}, but Docora needs {_dotted(MIN_GIT)} or newer.", "Upgrade it.")
    present = [flaws for flaws in KNOWN if flaws.are_in(found)]
    for flaws in present:
        yield warning(
            f"git {_dotted(found)} has the flaws of {flaws.month} ({flaws.names}): {flaws.what}. "
            f"{_dotted(flaws.fix_for(found))} mended them.",
            _ADVICE,
        )
    if found >= MIN_GIT and not present:
        yield fine(f"git {_dotted(found)} is new enough, and has none of the flaws of a client that are known here.")


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
