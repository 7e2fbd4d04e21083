"""A migration leaves the version before it running: its processes write rows that know nothing of a new column."""

from collections.abc import Iterator

from django.db import connection
from django.db.migrations import AddField, CreateModel, Migration
from django.db.migrations.loader import MigrationLoader
from django.db.models import NOT_PROVIDED, Field

OURS = {"repositories_app", "deliveries_app"}

BEFORE_ANYBODY_RAN_IT = {
    ("deliveries_app", "0002_client_life"),
    ("deliveries_app", "0006_operating"),
    ("repositories_app", "0002_what_failed_last"),
}
"""They break the rule, and no process of a version without them is left that could write."""


def columns_added(migration: Migration) -> Iterator[tuple[str, str, Field]]:
    """(model, name, field) of what is added to a table that the version before writes to."""
    new = {operation.name_lower for operation in migration.operations if isinstance(operation, CreateModel)}
    for operation in migration.operations:
        if isinstance(operation, AddField) and operation.model_name_lower not in new:
            yield operation.model_name_lower, operation.name, operation.field


def migrations() -> Iterator[tuple[tuple[str, str], Migration]]:
    for key, migration in sorted(MigrationLoader(None).disk_migrations.items()):
        if key[0] in OURS and not migration.initial:
            yield key, migration


def may_be_left_out(field: Field) -> bool:
    return field.null or field.many_to_many or field.db_default is not NOT_PROVIDED


def test_what_is_added_to_a_table_may_be_left_out_by_who_does_not_know_it() -> None:
    broken = {
        f"{app}.{name}: {model}.{column} needs a db_default"
        for (app, name), migration in migrations()
        for model, column, field in columns_added(migration)
        if (app, name) not in BEFORE_ANYBODY_RAN_IT and not may_be_left_out(field)
    }
    assert broken == set()


def test_what_is_excused_breaks_the_rule() -> None:
    breaking = {
        key for key, migration in migrations() for *_, field in columns_added(migration) if not may_be_left_out(field)
    }
    assert breaking == BEFORE_ANYBODY_RAN_IT


def test_a_process_of_the_version_before_can_go_on_writing(db) -> None:
    """What it writes are the columns that were there already: the database has a value for each of the others."""
    added = {
        (f"{app}_{model}", column)
        for (app, name), migration in migrations()
        for model, column, field in columns_added(migration)
        if not field.null and (app, name) not in BEFORE_ANYBODY_RAN_IT
    }
    assert {("deliveries_app_apprepository", "arriving"), ("repositories_app_repository", "twin")} <= added
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE column_default IS NOT NULL"
        )
        assert added <= set(cursor.fetchall())
