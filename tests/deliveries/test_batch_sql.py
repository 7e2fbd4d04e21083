"""The hand-written statements accept any path."""

import pytest
from django.utils import timezone

from deliveries_app.models import AppRepository, Delivery, bulk_sql
from deliveries_app.models.bulk_sql import Acknowledged, Announced
from tests.support.staff import make_app, make_watch

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
def watch(db) -> AppRepository:
    return make_watch(make_app("Portal"), "docs")


def row(path: str, **changes: object) -> Announced:
    plain = Announced(
        path, "100644", "create", "blob:1", "a" * 64, 5, sequence=1, attempts=1, source_path="", remark=""
    )
    return plain._replace(**changes)  # type: ignore[arg-type]


def rows_of(watch: AppRepository) -> dict[str, Delivery]:
    return {delivery.path: delivery for delivery in Delivery.objects.filter(watch=watch)}


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "each alone"])
def test_any_path_is_written_and_acknowledged(watch: AppRepository, together: bool) -> None:
    batches = [sorted(STRANGE)] if together else [[path] for path in STRANGE]
    for paths in batches:
        bulk_sql.announce(watch.pk, 1, [row(path, source_path=path, remark=path[:20]) for path in paths], NOW)
    found = rows_of(watch)
    assert sorted(found) == sorted(STRANGE)
    assert all((row.source_path, row.remark) == (path, path[:20]) for path, row in found.items())
    assert not any(delivery.acknowledged for delivery in found.values())
    answers = [Acknowledged(path, 200 + number, number * 1000) for number, path in enumerate(STRANGE)]
    for batch in [answers] if together else [[answer] for answer in answers]:
        bulk_sql.acknowledge(watch.pk, batch, NOW)
    for answer in answers:
        delivery = rows_of(watch)[answer.path]
        assert delivery.acknowledged, answer.path
        assert (delivery.delivered_status, delivery.delivered_ms) == answer[1:]
        assert delivery.delivered_at == delivery.updated_at


def test_null_differs_from_empty(watch: AppRepository) -> None:
    bulk_sql.announce(
        watch.pk, 1, [row("a", source_key=None), row("b", source_key=""), row("c", source_key="NULL")], NOW
    )
    assert {path: delivery.source_key for path, delivery in rows_of(watch).items()} == {"a": None, "b": "", "c": "NULL"}


def test_new_announcement_keeps_the_acknowledged_state(watch: AppRepository) -> None:
    bulk_sql.announce(watch.pk, 1, [row("a")], NOW)
    bulk_sql.acknowledge(watch.pk, [Acknowledged("a", 201, 1234)], NOW)
    bulk_sql.announce(watch.pk, 2, [row("a", sha="b" * 64, size=1 << 40, sequence=(1 << 53) - 1, attempts=3)], NOW)
    delivery = rows_of(watch)["a"]
    assert (delivery.generation, delivery.sha, delivery.size, delivery.sequence, delivery.attempts) == (
        2, "b" * 64, 1 << 40, (1 << 53) - 1, 3,
    )  # fmt: skip
    assert (delivery.acknowledged_sha, delivery.acknowledged) == ("a" * 64, False)


def test_rows_of_another_watch_are_left_alone(watch: AppRepository) -> None:
    other = make_watch(make_app("Search"), "docs")
    for each in (watch, other):
        bulk_sql.announce(each.pk, 1, [row("a")], NOW)
    bulk_sql.acknowledge(watch.pk, [Acknowledged("a", 200, 7)], NOW)
    assert [rows_of(each)["a"].acknowledged for each in (watch, other)] == [True, False]
