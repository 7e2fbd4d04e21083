"""The planning rules (engine.md §2), one by one and against a naive implementation."""

import random
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace

import pytest

from deliveries_app.planning.eligibility import reason_to_skip
from deliveries_app.planning.paths import MAX_PATH_BYTES
from deliveries_app.planning.plan import (
    Change,
    DeliveryRules,
    Plan,
    RetainedEntry,
    Row,
    TransformedEntry,
    decide,
    make_plan,
)
from deliveries_app.planning.transforms import Transforms
from repositories_app.mirror.tree import Entry
from tests.support.transforms import Shout

DELIVERY_RULES = DeliveryRules(generation=5, floor=4, max_file_bytes=1000)
SHA_A, SHA_B = "a" * 64, "b" * 64


def entry(path: str = "p", blob: str = "A", mode: str = "100644", size: int = 1) -> Entry:
    return Entry(path.encode(), mode, blob, size)


def row(path: str = "p", **changes) -> Row:
    """A delivered row: content A, acknowledged in this generation."""
    default = Row(path, "create", "A", SHA_A, 77, 5, True, SHA_A, 0, None)
    return default._replace(**changes)


def outcome(change: Change | None) -> tuple | None:
    if change is None:
        return None
    return change.kind, change.sequence, change.previous_sha, change.sha, change.lenient


IN_DOUBT = {"acknowledged": False}
RULES = [
    ("no row: create", entry(), None, ("create", None, None, "", False)),
    ("acknowledged with this content: nothing", entry(), row(), None),
    ("acknowledged in an earlier generation above the floor: nothing", entry(), row(generation=4), None),
    ("only the mode changed: nothing", entry(mode="100755"), row(), None),
    ("other content: update from the acknowledged content", entry(blob="B"), row(), ("update", None, SHA_A, "", False)),
    ("cleared by a re-sync: create", entry(), row(generation=3), ("create", None, None, "", False)),
    ("cleared by a re-sync and changed: create", entry(blob="B"), row(generation=3), ("create", None, None, "", False)),
    (
        "create in doubt, this generation: repeat it",
        entry(),
        row(**IN_DOUBT, acknowledged_sha=None),
        ("create", 77, None, "", False),
    ),
    (
        "update in doubt, this generation: repeat it",
        entry(blob="B"),
        row(**IN_DOUBT, kind="update", source_key="B", sha=SHA_B),
        ("update", 77, SHA_A, "", False),
    ),
    (
        "in doubt with this content, another generation: create with a new sequence",
        entry(),
        row(**IN_DOUBT, generation=4),
        ("create", None, None, "", False),
    ),
    (
        "in doubt with other content (B sent, worker killed, A pushed again): create, not unchanged",
        entry(blob="A"),
        row(**IN_DOUBT, kind="update", source_key="B", sha=SHA_B),
        ("create", None, None, "", False),
    ),
    (
        "delete in doubt, file is back: create",
        entry(),
        row(**IN_DOUBT, kind="delete", source_key=None),
        ("create", None, None, "", False),
    ),
    (
        "delete in doubt whose row still has this content: create",
        entry(),
        row(**IN_DOUBT, kind="delete", source_key="A"),
        ("create", None, None, "", False),
    ),
    ("removed: delete with the acknowledged sha", None, row(), ("delete", None, None, SHA_A, False)),
    ("removed after a re-sync: lenient delete", None, row(generation=3), ("delete", None, None, SHA_A, True)),
    (
        "removed while a create was in doubt: lenient delete with the announced sha",
        None,
        row(**IN_DOUBT, acknowledged_sha=None, sha=SHA_B),
        ("delete", None, None, SHA_B, True),
    ),
    (
        "removed while an update was in doubt: lenient delete with the acknowledged sha",
        None,
        row(**IN_DOUBT, kind="update", sha=SHA_B),
        ("delete", None, None, SHA_A, True),
    ),
    (
        "delete in doubt, this generation: repeat it",
        None,
        row(**IN_DOUBT, kind="delete"),
        ("delete", 77, None, SHA_A, True),
    ),
    (
        "delete in doubt, another generation: new sequence",
        None,
        row(**IN_DOUBT, kind="delete", generation=4),
        ("delete", None, None, SHA_A, True),
    ),
    ("neither entry nor row: nothing", None, None, None),
]


@pytest.mark.parametrize(
    ("tree_entry", "row", "expected"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES]
)
def test_planning_rule(tree_entry: Entry | None, row: Row | None, expected: tuple | None) -> None:
    assert outcome(decide("p", tree_entry, row, DELIVERY_RULES)) == expected


def test_imported_row_is_compared_by_content() -> None:
    """Unless a re-sync cleared it: then the file is created again."""
    compared = decide("p", entry(blob="B"), row(source_key=None), DELIVERY_RULES)
    assert compared
    assert (compared.kind, compared.compare, compared.sha, compared.previous_sha) == ("update", True, SHA_A, SHA_A)
    cleared = decide("p", entry(blob="B"), row(source_key=None, generation=3), DELIVERY_RULES)
    assert cleared
    assert (cleared.kind, cleared.compare) == ("create", False)


def test_transformed_file_with_another_source() -> None:
    """The source key includes the source path. If the content turns out equal, the row is adopted."""
    delivery_rules = replace(DELIVERY_RULES, transforms=Transforms((Shout(),)))
    transformed = TransformedEntry(b"p", "100644", "A", 1, "source")
    delivered = row(source_key=delivery_rules.source_key("A", "source"), source_path="source")
    assert decide("p", transformed, delivered, delivery_rules) is None
    for other in (replace(transformed, blob="B"), replace(transformed, source_path="other")):
        change = decide("p", other, delivered, delivery_rules)
        assert change
        assert (change.kind, change.compare, change.sha, change.source_path) == (
            "update", True, SHA_A, other.source_path,
        )  # fmt: skip
    without_transforms = decide("p", entry(), delivered, DELIVERY_RULES)
    assert without_transforms
    assert (without_transforms.kind, without_transforms.compare, without_transforms.source_path) == ("update", True, "")
    plain = decide("p", entry(blob="B"), row(), DELIVERY_RULES)
    assert plain
    assert not plain.compare


def test_retained_entry_keeps_only_the_row_of_its_source() -> None:
    retained = RetainedEntry(b"p", "100644", "A", 1, "source")
    assert decide("p", retained, row(source_path="source"), DELIVERY_RULES) is None
    assert decide("p", retained, row(source_path="source", **IN_DOUBT), DELIVERY_RULES) is None
    assert decide("p", retained, None, DELIVERY_RULES) is None
    assert outcome(decide("p", retained, row(source_path="other"), DELIVERY_RULES)) == (
        "delete",
        None,
        None,
        SHA_A,
        False,
    )
    assert outcome(decide("p", retained, row(source_path="source", kind="delete", **IN_DOUBT), DELIVERY_RULES)) == (
        "delete", 77, None, SHA_A, True,
    )  # fmt: skip
    same_path = RetainedEntry(b"p", "100644", "A", 1, "p")
    assert decide("p", same_path, row(), DELIVERY_RULES) is None  # sent before transforms were active


@pytest.mark.parametrize(
    "changes",
    [{"floor": 5}, {"max_file_bytes": 1}, {"patterns": "a"}, {"transforms": Transforms((Shout(),))}],
    ids=lambda changes: next(iter(changes)),
)
def test_fingerprint_covers_every_rule_outside_the_tree(changes: dict) -> None:
    assert replace(DELIVERY_RULES, **changes).fingerprint != DELIVERY_RULES.fingerprint
    assert replace(DELIVERY_RULES, generation=9).fingerprint == DELIVERY_RULES.fingerprint


def test_change_keeps_attempts_and_hold_of_an_unacknowledged_row() -> None:
    unsettled = row(**IN_DOUBT, attempts=3, hold_until=12.5)
    for tree in (entry(), entry(blob="C"), None):
        change = decide("p", tree, unsettled, DELIVERY_RULES)
        assert change
        assert (change.attempts, change.hold_until) == (3, 12.5)


@pytest.mark.parametrize(
    ("tree", "cause"),
    [
        (entry(), None),
        (entry(mode="100755"), None),
        (entry(mode="120000"), "symlink"),
        (entry(mode="160000"), "submodule"),
        (entry(size=1000), None),
        (entry(size=1001), "too_large"),
        (entry("p" * MAX_PATH_BYTES), None),
        (entry("p" * (MAX_PATH_BYTES + 1)), "path_too_long"),
        (entry("é" * (MAX_PATH_BYTES // 2)), None),
        (entry("é" * (MAX_PATH_BYTES // 2) + "e"), "path_too_long"),  # bytes count, not characters
        (Entry(b"latin-\xe9", "100644", "A", 1), "not_utf8"),
        (Entry(b"surrogate-\xed\xa0\x80", "100644", "A", 1), "not_utf8"),
        (entry("a/../b"), "unsafe_path"),
        (entry("a/../b", mode="120000"), "symlink"),
        (entry("ignored/link", mode="120000"), "ignored"),
        (entry("ignored/" * 200), "path_too_long"),  # paths this long are not matched against patterns
    ],
    ids=lambda value: str(value)[:40],
)
def test_reason_to_skip(tree: Entry, cause: str | None) -> None:
    skipped = reason_to_skip(tree, 1000, lambda entry: "ignored" if entry.path.startswith(b"ignored/") else "")
    assert (skipped.cause if skipped else None) == cause


def test_file_replaced_by_a_link_is_deleted() -> None:
    plan = make_plan([entry("link", mode="120000"), entry("new-link", mode="120000")], [row("link")], DELIVERY_RULES)
    assert [change.path for change in plan.phase("delete")] == ["link"]
    assert (plan.files, plan.tree_files, plan.left_out.total()) == (1, 0, 2)
    plan.close()


def test_phase_starts_with_untried_files() -> None:
    """Files that always fail must not starve the others."""
    rows = [row(f"{n:02}", **IN_DOUBT, attempts=n % 2) for n in range(10)]
    plan = make_plan([entry(f"{n:02}") for n in range(12)], rows, DELIVERY_RULES)
    assert [change.path for change in plan.phase("create")] == [
        *("00", "02", "04", "06", "08", "10", "11"),
        *("01", "03", "05", "07", "09"),
    ]
    assert plan.count("create") == plan.files == 12
    plan.close()


def test_planning_uses_constant_memory() -> None:
    count = 20_000
    tracemalloc.start()
    try:
        entries = (entry(f"{n:08}", chance.choice("AB")) for chance in [random.Random(1)] for n in range(count))
        plan = make_plan(entries, (row(f"{n:08}") for n in range(0, 2 * count, 2)), DELIVERY_RULES)
        assert sum(1 for kind in ("delete", "create", "update") for _ in plan.phase(kind)) == plan.files > count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    plan.close()
    assert peak < 1_000_000


# --- The merge join against brute force ----------------------------------------------------------------------------------

UNIVERSE = sorted(
    [
        *("a", "a/b", "a/b/c", "a.b", "a b", "a-", "a0", "A", "Z", "b", "b/a", "c/d/e", "ab", "é", "e\u0301", "ü/ü"),
        *(
            "\x01",
            "~",
            "\x7f",
            "\u0080",
            "\uffff",
            "\ufffd",
            "\U00010000",
            "\U0001f600",
            "\U0001f600/x",
            "中/文",
            '"',
            "a\\b",
        ),
    ],
    key=str.encode,
)
"""In byte order. Compared as UTF-16, as in some languages, U+FFFF would come after U+10000."""


def random_tree(chance: random.Random, likely: float = 0.6) -> dict[str, Entry]:
    modes = ["100644"] * 8 + ["100755", "120000", "160000"]
    return {
        path: entry(path, chance.choice("ABC"), chance.choice(modes), chance.choice([0, 1, 10, 1000, 1001]))
        for path in UNIVERSE
        if chance.random() < likely
    }


def random_rows(chance: random.Random) -> dict[str, Row]:
    return {
        path: Row(
            path,
            chance.choice(["create", "update", "delete"]),
            chance.choice(["A", "B", "C", None]),
            chance.choice([SHA_A, SHA_B]),
            chance.randrange(1000),
            chance.choice([3, 4, 5]),
            chance.random() < 0.6,
            chance.choice([SHA_A, SHA_B, None]),
            chance.choice([0, 0, 2]),
            None,
        )
        for path in UNIVERSE
        if chance.random() < 0.6
    }


def naive(tree: Iterable[Entry], rows: dict[str, Row]) -> dict[str, tuple]:
    """engine.md §2, sentence by sentence. Return path → (kind, sequence, previous sha or deleted sha)."""
    changes: dict[str, tuple] = {}
    eligible = {item.path.decode(): item for item in tree if not reason_to_skip(item, DELIVERY_RULES.max_file_bytes)}
    for path, item in eligible.items():
        if path not in rows:
            changes[path] = ("create", None, None)
            continue
        row = rows[path]
        announced_this = (
            row.generation == DELIVERY_RULES.generation
            and row.source_key == item.blob
            and row.kind in ("create", "update")
        )
        if not row.acknowledged and announced_this:
            changes[path] = (row.kind, row.sequence, row.acknowledged_sha if row.kind == "update" else None)
        elif not row.acknowledged or row.generation < DELIVERY_RULES.floor:
            changes[path] = ("create", None, None)
        elif row.source_key != item.blob:
            changes[path] = ("update", None, row.acknowledged_sha)
    for path, row in rows.items():
        if path not in eligible:
            repeated = not row.acknowledged and row.kind == "delete" and row.generation == DELIVERY_RULES.generation
            changes[path] = ("delete", row.sequence if repeated else None, row.acknowledged_sha or row.sha)
    return changes


def planned(plan: Plan) -> dict[str, tuple]:
    changes = [change for kind in ("delete", "create", "update") for change in plan.phase(kind)]
    found = {
        change.path: (change.kind, change.sequence, change.sha if change.kind == "delete" else change.previous_sha)
        for change in changes
    }
    assert len(found) == len(changes) == plan.files  # no path twice
    plan.close()
    return found


def in_order(values: dict) -> list:
    return [values[path] for path in UNIVERSE if path in values]


def test_random_plans_equal_naive_plans() -> None:
    chance = random.Random(20260101)
    for _ in range(400):
        tree, rows = random_tree(chance), random_rows(chance)
        plan = make_plan(in_order(tree), in_order(rows), DELIVERY_RULES)
        sent = [item for item in tree.values() if not reason_to_skip(item, DELIVERY_RULES.max_file_bytes)]
        assert (plan.tree_files, plan.tree_bytes) == (len(sent), sum(item.size for item in sent))
        assert planned(plan) == naive(tree.values(), rows)


def test_phase_is_in_byte_order() -> None:
    """The database and git agree on this order."""
    plan = make_plan([entry(path) for path in UNIVERSE], [], DELIVERY_RULES)
    paths = [change.path for change in plan.phase("create")]
    plan.close()
    assert [path.encode() for path in paths] == sorted(path.encode() for path in UNIVERSE)


def test_random_fast_plans_equal_full_plans() -> None:
    """The rows equal the base tree, except for rows in doubt and listed failures. All other paths can be left out."""
    chance = random.Random(20260102)
    for _ in range(300):
        base, new = random_tree(chance), random_tree(chance)
        new = {path: item for path, item in new.items() if path not in base and chance.random() < 0.3}
        new |= {path: item for path, item in base.items() if chance.random() < 0.8}
        for path in base:
            if path in new and chance.random() < 0.2:
                new[path] = entry(path, chance.choice("ABC"), chance.choice(["100644", "100755", "120000"]))
        rows = {
            path: row(path, source_key=item.blob, generation=chance.choice([4, 5]))
            for path, item in base.items()
            if not reason_to_skip(item, DELIVERY_RULES.max_file_bytes)
        }
        in_doubt = random_rows(chance)
        unsettled = {path for path in UNIVERSE if chance.random() < 0.2}
        for path in unsettled:  # in doubt, or listed as failed with or without a row
            rows.pop(path, None)
            if path in in_doubt and chance.random() < 0.7:
                rows[path] = in_doubt[path]._replace(acknowledged=False)
        paths = {path for path in UNIVERSE if base.get(path) != new.get(path)} | unsettled
        full = make_plan(in_order(new), in_order(rows), DELIVERY_RULES)
        fast = make_plan(
            [item for item in in_order(new) if item.path.decode() in paths],
            [row for row in in_order(rows) if row.path in paths],
            DELIVERY_RULES,
        )
        assert planned(fast) == planned(full)
