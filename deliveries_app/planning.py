"""From a commit to the plan that leads there: a fast one from what has changed, or a full one from the whole tree."""

from collections.abc import Iterator
from dataclasses import dataclass

from deliveries_app import rows
from deliveries_app.models import AppRepository
from deliveries_app.plan import Plan, Terms, make_plan, reason_to_skip
from repositories_app import git
from repositories_app import services as repositories
from repositories_app.mirror import MAX_DIFF_PATHS, Entry, Mirror
from repositories_app.remote import Head

_TICK_EVERY = 2000  # tree entries


@dataclass
class Planned:
    """A plan, the commit that it leads to, and what a fast plan looked at (None: at everything)."""

    plan: Plan
    head: Head
    among: list[bytes] | None


def plan_to(head: Head, pair: AppRepository, terms: Terms, mirror: Mirror, tick: git.Tick) -> Planned:
    """What has to be sent so that the app holds the tree of `head`; also keeps that tree's numbers as a snapshot."""
    planned = _fast_plan(head, pair, terms, mirror) or full_plan(head, pair, terms, mirror, tick)
    plan = planned.plan
    repositories.record_snapshot(pair.repository, head.commit, head.branch, plan.tree_files, plan.tree_bytes)
    return planned


def full_plan(head: Head, pair: AppRepository, terms: Terms, mirror: Mirror, tick: git.Tick) -> Planned:
    """The whole tree joined with every row."""
    entries = _ticking(mirror.tree(head.commit), tick)
    return Planned(make_plan(entries, rows.all_rows(pair.pk), terms), head, None)


def _fast_plan(head: Head, pair: AppRepository, terms: Terms, mirror: Mirror) -> Planned | None:
    """Only what differs from the base commit, what is in doubt and what failed; None when that is not known."""
    base = pair.base_commit
    if not base or pair.base_rules != terms.fingerprint or not mirror.has(base):
        return None
    changed = [] if base == head.commit else mirror.changed_paths(base, head.commit)
    unsettled = rows.unsettled_paths(pair.pk, MAX_DIFF_PATHS)
    if changed is None or unsettled is None:
        return None
    paths = sorted({*changed, *(path.encode() for path in unsettled)})
    before = [entry for entry in mirror.tree(base, paths) if not reason_to_skip(entry, terms.max_file_bytes)]
    names = [path.decode() for path in paths if _is_utf8(path)]
    plan = make_plan(mirror.tree(head.commit, paths), rows.rows_at(pair.pk, names), terms)
    plan.tree_files += pair.tree_files - len(before)
    plan.tree_bytes += pair.tree_bytes - sum(entry.size for entry in before)
    return Planned(plan, head, paths)


def _ticking(entries: Iterator[Entry], tick: git.Tick) -> Iterator[Entry]:
    for number, entry in enumerate(entries):
        if number % _TICK_EVERY == 0:
            tick()
        yield entry


def _is_utf8(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True
