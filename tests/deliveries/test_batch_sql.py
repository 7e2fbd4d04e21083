"""The statements written by hand take whatever a path or a name may be."""

import pytest
from django.utils import timezone

from deliveries_app import batch_sql
from deliveries_app.batch_sql import Announced
from deliveries_app.models import AppRepository, Delivery
from tests.support.staff import make_app, make_pair

NOW = timezone.now()
STRANGE = [
    "a,b.txt",
    "{curly}.txt",
    '"quoted".txt',
    'one"quote',
    "back\\slash",
    "ends in \\",
    '\\"',
    "NULL",
    "null",
    " leading and trailing ",
    "new\nline\ttab",
    "größe/日本語/🙂",
    "'; DROP TABLE deliveries_app_delivery; --",
    "100%s",
    "%",
    "$1",
]


@pytest.fixture
def pair(db) -> AppRepository:
    return make_pair(make_app("Portal"), "docs")


def row(path: str, **changes: object) -> Announced:
    plain = Announced(path, "100644", "create", "blob:1", "a" * 64, 5, intent=1, attempts=1, source_path="", remark="")
    return plain._replace(**changes)  # type: ignore[arg-type]


def rows_of(pair: AppRepository) -> dict[str, Delivery]:
    return {delivery.path: delivery for delivery in Delivery.objects.filter(pair=pair)}


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "each alone"])
def test_every_path_is_written_and_acknowledged_as_it_is(pair: AppRepository, together: bool) -> None:
    batches = [sorted(STRANGE)] if together else [[path] for path in STRANGE]
    for paths in batches:
        batch_sql.announce(pair.pk, 1, [row(path, source_path=path, remark=path[:20]) for path in paths], NOW)
    found = rows_of(pair)
    assert sorted(found) == sorted(STRANGE)
    assert all((row.source_path, row.remark) == (path, path[:20]) for path, row in found.items())
    assert not any(delivery.acknowledged for delivery in found.values())
    for path in STRANGE:
        batch_sql.acknowledge(pair.pk, [path], NOW)
        assert rows_of(pair)[path].acknowledged, path
    assert sum(delivery.acknowledged for delivery in rows_of(pair).values()) == len(STRANGE)


def test_nothing_known_and_nothing_at_all_are_told_apart(pair: AppRepository) -> None:
    batch_sql.announce(
        pair.pk, 1, [row("a", source_key=None), row("b", source_key=""), row("c", source_key="NULL")], NOW
    )
    assert {path: delivery.source_key for path, delivery in rows_of(pair).items()} == {"a": None, "b": "", "c": "NULL"}


def test_what_is_announced_again_replaces_what_was_said_and_keeps_what_the_app_holds(pair: AppRepository) -> None:
    batch_sql.announce(pair.pk, 1, [row("a")], NOW)
    batch_sql.acknowledge(pair.pk, ["a"], NOW)
    batch_sql.announce(pair.pk, 2, [row("a", sha="b" * 64, size=1 << 40, intent=(1 << 53) - 1, attempts=3)], NOW)
    delivery = rows_of(pair)["a"]
    assert (delivery.generation, delivery.sha, delivery.size, delivery.intent, delivery.attempts) == (
        2, "b" * 64, 1 << 40, (1 << 53) - 1, 3,
    )  # fmt: skip
    assert (delivery.held_sha, delivery.acknowledged) == ("a" * 64, False)


def test_rows_of_another_watch_are_left_alone(pair: AppRepository) -> None:
    other = make_pair(make_app("Search"), "docs")
    for watch in (pair, other):
        batch_sql.announce(watch.pk, 1, [row("a")], NOW)
    batch_sql.acknowledge(pair.pk, ["a"], NOW)
    assert [rows_of(watch)["a"].acknowledged for watch in (pair, other)] == [True, False]


def test_a_lease_is_extended_for_its_own_claim_only(pair: AppRepository) -> None:
    AppRepository.objects.update(claim=7, generation=3)
    assert not batch_sql.extend_lease(pair.pk, 6, 3, seconds=60, intent_high=9)
    assert not batch_sql.extend_lease(pair.pk, 7, 2, seconds=60, intent_high=9)
    assert batch_sql.extend_lease(pair.pk, 7, 3, seconds=60, intent_high=9)
    pair.refresh_from_db()
    assert pair.intent_high == 9
    assert pair.lease_until is not None
    assert 55 < (pair.lease_until - timezone.now()).total_seconds() < 65
