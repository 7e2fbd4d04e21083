"""Plan what to send for a commit: a fast plan from what changed, or a full plan from the whole tree.

The fast plan requires that only the tree has changed since the base: the fingerprint of the `DeliveryRules` is the
same, `.docoraignore` is not among the changed paths, and no transforms are active (a file they drop has no row).
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from django.conf import settings

from deliveries_app.models import AppRepository
from deliveries_app.planning import delivery_rows
from deliveries_app.planning.eligibility import REMARKS, eligible
from deliveries_app.planning.ignore_rules import FILE_NAME, IgnoreRules, PatternRules, read_rules
from deliveries_app.planning.paths import is_utf8
from deliveries_app.planning.plan import DeliveryRules, Plan, PlanRefused, fill, make_plan
from deliveries_app.planning.transformed_tree import TransformedTree
from repositories_app import services as repositories
from repositories_app.git import process as git
from repositories_app.git.exceptions import GitError
from repositories_app.git.protocol import Head
from repositories_app.mirror import tree
from repositories_app.mirror.blobs import BlobReader
from repositories_app.mirror.tree import DIRECTORY, MAX_DIFF_PATHS, Entry

_TICK_EVERY = 200  # tree entries or rows


def plan_to(
    head: Head,
    watch: AppRepository,
    delivery_rules: DeliveryRules,
    reader: BlobReader,
    tick: git.Tick,
) -> Plan:
    """Return what to send to bring the app to `head`, and record the tree's totals as a snapshot.

    Raises `PlanRefused`.
    """
    if delivery_rules.transforms.problem:
        raise PlanRefused(delivery_rules.transforms.problem, "transform")
    plan = _fast_plan(head, watch, delivery_rules, reader, tick)
    plan = plan or full_plan(head, watch, delivery_rules, reader, tick)
    if (head.commit, plan.tree_files, plan.tree_bytes) != (watch.last_commit, watch.tree_files, watch.tree_bytes):
        repositories.record_snapshot(
            watch.repository,
            head.commit,
            head.branch,
            plan.tree_files,
            plan.tree_bytes,
            for_all=not delivery_rules.has_patterns,
        )
    return plan


def full_plan(
    head: Head,
    watch: AppRepository,
    delivery_rules: DeliveryRules,
    reader: BlobReader,
    tick: git.Tick,
) -> Plan:
    """Return a plan from the whole tree and every row."""
    rules = read_rules(reader, head.commit, delivery_rules)
    plan = Plan()
    files = _ticking(tree.files(reader, head.commit, tick), tick)
    rows = _ticking(delivery_rows.all_rows(watch.pk), tick)
    entries = eligible(files, delivery_rules.max_file_bytes, rules.check, plan.skip)
    if delivery_rules.transforms:
        with TransformedTree(plan, delivery_rules, reader, tick) as transformed:
            fill(plan, transformed.files(entries, delivery_rows.rows_by_source(watch.pk)), rows, delivery_rules)
    else:
        fill(plan, entries, rows, delivery_rules)
    plan.skipped.extend(rules.ignored.problems)
    return plan


def _fast_plan(
    head: Head, watch: AppRepository, delivery_rules: DeliveryRules, reader: BlobReader, tick: git.Tick
) -> Plan | None:
    """Plan only the paths that differ from the base commit, are in doubt or failed. Return None if a full plan is needed."""
    base = watch.base_commit
    if not base or watch.base_rules != delivery_rules.fingerprint or delivery_rules.transforms:
        return None
    try:
        changed = {} if base == head.commit else tree.differences(reader, base, head.commit, tick)
    except GitError:  # the base commit is missing or incomplete; the full plan does not need it
        return None
    unsettled = delivery_rows.unsettled_paths(watch.pk, MAX_DIFF_PATHS)
    if changed is None or unsettled is None or FILE_NAME.encode() in changed:
        return None
    unchanged = {path.encode() for path in unsettled} - changed.keys()
    entries = tree.entries(reader, head.commit, unchanged)
    same = {path: (entry, entry) for path, entry in entries.items() if entry.mode != DIRECTORY}
    pairs = changed | {path: same.get(path, (None, None)) for path in unchanged}
    paths = sorted(pairs)
    names = [path.decode() for path in paths if is_utf8(path)]
    rules = read_rules(reader, head.commit, delivery_rules) if paths else PatternRules(IgnoreRules([]))
    after = (entry for path in paths if (entry := pairs[path][1]))
    plan = make_plan(after, delivery_rows.rows_at(watch.pk, names), delivery_rules, rules.check)
    before = (entry for path in paths if (entry := pairs[path][0]))
    _complete_totals(plan, watch, before, delivery_rules, rules)
    if plan.tree_files + plan.left_out.total() > settings.MAX_FILES:
        plan.close()
        return None  # a full plan also counts folders, and refuses the tree
    plan.paths = paths
    return plan


def _complete_totals(
    plan: Plan, watch: AppRepository, before: Iterable[Entry], delivery_rules: DeliveryRules, rules: PatternRules
) -> None:
    """Turn the plan's totals into those of the whole tree.

    These are the watch's totals without the planned paths' share in the base tree (`before`), plus the plan's own.
    """
    left_out = Counter({cause: count for cause, count in watch.left_out.items() if cause not in REMARKS})
    counted = list(
        eligible(before, delivery_rules.max_file_bytes, rules.check, lambda skipped: left_out.subtract([skipped.cause]))
    )
    plan.tree_files += watch.tree_files - len(counted)
    plan.tree_bytes += watch.tree_bytes - sum(entry.size for entry in counted)
    plan.left_out.update(left_out)
    plan.left_out = +plan.left_out


def _ticking[Item](items: Iterator[Item], tick: git.Tick) -> Iterator[Item]:
    for number, item in enumerate(items):
        if number % _TICK_EVERY == 0:
            tick()
        yield item
