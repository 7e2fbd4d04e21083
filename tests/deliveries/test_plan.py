"""What is sent about each path (engine.md §2): the rules one by one, then the merge join against a naive dictionary."""

import random
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace

import pytest

from deliveries_app.planning.eligibility import reason_to_skip
from deliveries_app.planning.paths import MAX_PATH_BYTES
from deliveries_app.planning.plan import Change, DeliveryRules, Held, Made, Plan, Row, decide, make_plan
from deliveries_app.planning.transforms import Transforms
from repositories_app.mirror.mirror import Entry
from tests.support.transforms import Shout

DELIVERY_RULES = DeliveryRules(generation=5, floor=4, max_file_bytes=1000)
SHA_A, SHA_B = "a" * 64, "b" * 64


def entry(path: str = "p", blob: str = "A", mode: str = "100644", size: int = 1) -> Entry:
    return Entry(path.encode(), mode, blob, size)


def row(path: str = "p", **changes) -> Row:
    """A row that counts as delivered: content A, acknowledged in this generation."""
    usual = Row(path, "create", "A", SHA_A, 77, 5, True, SHA_A, 0, None)
    return usual._replace(**changes)


def outcome(change: Change | None) -> tuple | None:
    if change is None:
        return None
    return change.kind, change.sequence, change.previous_sha, change.sha, change.lenient


IN_DOUBT = {"acknowledged": False}
RULES = [
    ("no row: it is created", entry(), None, ("create", None, None, "", False)),
    ("the client holds exactly this: nothing", entry(), row(), None),
    ("it holds this since an earlier generation above the floor", entry(), row(generation=4), None),
    ("only the mode changed: nothing", entry(mode="100755"), row(), None),
    ("other content: an update from what it holds", entry(blob="B"), row(), ("update", None, SHA_A, "", False)),
    ("cleared by a re-sync: a create, not an update", entry(), row(generation=3), ("create", None, None, "", False)),
    ("cleared and changed: a create too", entry(blob="B"), row(generation=3), ("create", None, None, "", False)),
    (
        "a create in doubt of this generation: the same again",
        entry(),
        row(**IN_DOUBT, acknowledged_sha=None),
        ("create", 77, None, "", False),
    ),
    (
        "an update in doubt of this generation: the same again, from what is held",
        entry(blob="B"),
        row(**IN_DOUBT, kind="update", source_key="B", sha=SHA_B),
        ("update", 77, SHA_A, "", False),
    ),
    (
        "in doubt with this content, but of another generation: a create under a new number",
        entry(),
        row(**IN_DOUBT, generation=4),
        ("create", None, None, "", False),
    ),
    (
        "in doubt with other content (A → B sent, killed, pushed back to A): never taken for unchanged",
        entry(blob="A"),
        row(**IN_DOUBT, kind="update", source_key="B", sha=SHA_B),
        ("create", None, None, "", False),
    ),
    (
        "a delete in doubt and the file is back: a create",
        entry(),
        row(**IN_DOUBT, kind="delete", source_key=None),
        ("create", None, None, "", False),
    ),
    (
        "a delete in doubt whose row still names this content: a create all the same",
        entry(),
        row(**IN_DOUBT, kind="delete", source_key="A"),
        ("create", None, None, "", False),
    ),
    ("gone: a delete that names what is held", None, row(), ("delete", None, None, SHA_A, False)),
    ("gone after a re-sync: the client may not have it", None, row(generation=3), ("delete", None, None, SHA_A, True)),
    (
        "gone while a create was in doubt: a delete of what was announced",
        None,
        row(**IN_DOUBT, acknowledged_sha=None, sha=SHA_B),
        ("delete", None, None, SHA_B, True),
    ),
    (
        "gone while an update was in doubt: a delete of what was acknowledged last",
        None,
        row(**IN_DOUBT, kind="update", sha=SHA_B),
        ("delete", None, None, SHA_A, True),
    ),
    (
        "a delete in doubt of this generation: the same again",
        None,
        row(**IN_DOUBT, kind="delete"),
        ("delete", 77, None, SHA_A, True),
    ),
    (
        "a delete in doubt of another generation: a new number",
        None,
        row(**IN_DOUBT, kind="delete", generation=4),
        ("delete", None, None, SHA_A, True),
    ),
    ("nothing on either side", None, None, None),
]


@pytest.mark.parametrize(("tree", "held", "expected"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES])
def test_each_rule(tree: Entry | None, held: Row | None, expected: tuple | None) -> None:
    assert outcome(decide("p", tree, held, DELIVERY_RULES)) == expected


def test_an_imported_row_is_compared_once_by_content_unless_the_floor_says_everything() -> None:
    compared = decide("p", entry(blob="B"), row(source_key=None), DELIVERY_RULES)
    assert compared
    assert (compared.kind, compared.compare, compared.sha, compared.previous_sha) == ("update", True, SHA_A, SHA_A)
    cleared = decide("p", entry(blob="B"), row(source_key=None, generation=3), DELIVERY_RULES)
    assert cleared
    assert (cleared.kind, cleared.compare) == ("create", False)


def test_while_transforms_are_in_use_the_path_counts_too_and_what_comes_out_equal_is_adopted() -> None:
    delivery_rules = replace(DELIVERY_RULES, transforms=Transforms((Shout(),)))
    made = Made(b"p", "100644", "A", 1, "source")
    held = row(source_key=delivery_rules.source_key("A", "source"), source_path="source")
    assert decide("p", made, held, delivery_rules) is None
    for other in (replace(made, blob="B"), replace(made, source_path="other")):
        change = decide("p", other, held, delivery_rules)
        assert change
        assert (change.kind, change.compare, change.sha, change.source_path) == (
            "update", True, SHA_A, other.source_path,
        )  # fmt: skip
    back = decide("p", entry(), held, DELIVERY_RULES)  # out of use again
    assert back
    assert (back.kind, back.compare, back.source_path) == ("update", True, "")
    plain = decide("p", entry(blob="B"), row(), DELIVERY_RULES)
    assert plain
    assert not plain.compare


def test_a_held_path_keeps_its_row_only_if_it_came_from_the_same_file() -> None:
    held = Held(b"p", "100644", "A", 1, "source")
    assert decide("p", held, row(source_path="source"), DELIVERY_RULES) is None
    assert decide("p", held, row(source_path="source", **IN_DOUBT), DELIVERY_RULES) is None
    assert decide("p", held, None, DELIVERY_RULES) is None
    assert outcome(decide("p", held, row(source_path="other"), DELIVERY_RULES)) == ("delete", None, None, SHA_A, False)
    assert outcome(decide("p", held, row(source_path="source", kind="delete", **IN_DOUBT), DELIVERY_RULES)) == (
        "delete", 77, None, SHA_A, True,
    )  # fmt: skip
    assert (
        decide("p", Held(b"p", "100644", "A", 1, "p"), row(), DELIVERY_RULES) is None
    )  # sent as it was, before transforms


@pytest.mark.parametrize(
    "changes",
    [{"floor": 5}, {"max_file_bytes": 1}, {"patterns": "a"}, {"transforms": Transforms((Shout(),))}],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_decides_beside_the_tree_is_in_the_fingerprint(changes: dict) -> None:
    assert replace(DELIVERY_RULES, **changes).fingerprint != DELIVERY_RULES.fingerprint
    assert replace(DELIVERY_RULES, generation=9).fingerprint == DELIVERY_RULES.fingerprint


def test_failed_attempts_and_the_rest_after_a_timeout_go_with_the_path_until_something_is_acknowledged() -> None:
    doubtful = row(**IN_DOUBT, attempts=3, hold_until=12.5)
    for tree in (entry(), entry(blob="C"), None):
        change = decide("p", tree, doubtful, DELIVERY_RULES)
        assert change
        assert (change.attempts, change.hold_until) == (3, 12.5)


@pytest.mark.parametrize(
    ("tree", "cause"),
    [
        (entry(), None),
        (entry(mode="100755"), None),
        (entry(mode="120000"), "symlink"),
        (entry(mode="160000"), "submodule"),
        (entry(mode="040000"), "other"),
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
        (entry("ignored/" * 200), "path_too_long"),  # nothing that long is matched with patterns
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_sent_has_a_reason(tree: Entry, cause: str | None) -> None:
    skipped = reason_to_skip(tree, 1000, lambda entry: entry.path.startswith(b"ignored/"))
    assert (skipped.cause if skipped else None) == cause


def test_a_file_that_became_a_link_is_deleted_and_a_skipped_path_never_gets_a_row() -> None:
    plan = make_plan([entry("link", mode="120000"), entry("new-link", mode="120000")], [row("link")], DELIVERY_RULES)
    assert [change.path for change in plan.phase("delete")] == ["link"]
    assert (plan.files, plan.tree_files, plan.left_out.total()) == (1, 0, 2)
    plan.close()


def test_each_phase_starts_with_what_was_not_tried_yet_so_that_poison_files_cannot_starve_the_others() -> None:
    rows = [row(f"{n:02}", **IN_DOUBT, attempts=n % 2) for n in range(10)]
    plan = make_plan([entry(f"{n:02}") for n in range(12)], rows, DELIVERY_RULES)
    assert [change.path for change in plan.phase("create")] == [
        *("00", "02", "04", "06", "08", "10", "11"),
        *("01", "03", "05", "07", "09"),
    ]
    assert plan.count("create") == plan.files == 12
    plan.close()


def test_memory_does_not_grow_with_the_repository() -> None:
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
"""In byte order. By UTF-16, as some languages compare, U+FFFF would come after U+10000."""


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
    """engine.md §2 in the order of its sentences, over dictionaries: path → (kind, sequence, previous_sha, sha)."""
    found: dict[str, tuple] = {}
    wanted = {item.path.decode(): item for item in tree if not reason_to_skip(item, DELIVERY_RULES.max_file_bytes)}
    for path, item in wanted.items():
        if path not in rows:
            found[path] = ("create", None, None)
            continue
        held = rows[path]
        announced_this = (
            held.generation == DELIVERY_RULES.generation
            and held.source_key == item.blob
            and held.kind in ("create", "update")
        )
        if not held.acknowledged and announced_this:
            found[path] = (held.kind, held.sequence, held.acknowledged_sha if held.kind == "update" else None)
        elif not held.acknowledged or held.generation < DELIVERY_RULES.floor:
            found[path] = ("create", None, None)
        elif held.source_key != item.blob:
            found[path] = ("update", None, held.acknowledged_sha)
    for path, held in rows.items():
        if path not in wanted:
            again = not held.acknowledged and held.kind == "delete" and held.generation == DELIVERY_RULES.generation
            found[path] = ("delete", held.sequence if again else None, held.acknowledged_sha or held.sha)
    return found


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


def test_the_merge_join_says_what_plain_dictionaries_say_whatever_the_tree_and_the_rows() -> None:
    chance = random.Random(20260101)
    for _ in range(400):
        tree, rows = random_tree(chance), random_rows(chance)
        plan = make_plan(in_order(tree), in_order(rows), DELIVERY_RULES)
        sent = [item for item in tree.values() if not reason_to_skip(item, DELIVERY_RULES.max_file_bytes)]
        assert (plan.tree_files, plan.tree_bytes) == (len(sent), sum(item.size for item in sent))
        assert planned(plan) == naive(tree.values(), rows)


def test_a_phase_comes_in_byte_order_so_that_the_database_and_git_agree_on_it() -> None:
    plan = make_plan([entry(path) for path in UNIVERSE], [], DELIVERY_RULES)
    paths = [change.path for change in plan.phase("create")]
    plan.close()
    assert [path.encode() for path in paths] == sorted(path.encode() for path in UNIVERSE)


def test_a_fast_plan_over_what_changed_or_is_unsettled_equals_the_full_plan() -> None:
    """The rows equal the base, except rows in doubt and listed failures: everything else may be left out."""
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
        doubtful = random_rows(chance)
        unsettled = {path for path in UNIVERSE if chance.random() < 0.2}
        for path in unsettled:  # in doubt, or listed as failed with or without a row
            rows.pop(path, None)
            if path in doubtful and chance.random() < 0.7:
                rows[path] = doubtful[path]._replace(acknowledged=False)
        among = {path for path in UNIVERSE if base.get(path) != new.get(path)} | unsettled
        full = make_plan(in_order(new), in_order(rows), DELIVERY_RULES)
        fast = make_plan(
            [item for item in in_order(new) if item.path.decode() in among],
            [held for held in in_order(rows) if held.path in among],
            DELIVERY_RULES,
        )
        assert planned(fast) == planned(full)
