"""Every change of a model has a migration, and none breaks processes of the previous version.

These insert rows without the columns that a migration adds.
"""

from collections.abc import Iterator

from django.apps import apps
from django.db import connection, models
from django.db.migrations import AddField, AddIndex, CreateModel, Migration
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState
from django.db.models import NOT_PROVIDED

from docora.db.indexes import AddIndexConcurrently

OURS = ("repositories_app", "deliveries_app")
PREVIOUS_VERSION = [("repositories_app", "0006_github_app"), ("deliveries_app", "0022_drop_axes")]
"""The last migrations of version 1.0.0. The next version may drop the columns that this one no longer uses."""


def required_columns(migration: Migration) -> Iterator[str]:
    """Yield every added column that makes an INSERT of the previous version fail."""
    created = {operation.name_lower for operation in migration.operations if isinstance(operation, CreateModel)}
    for operation in migration.operations:
        if isinstance(operation, AddField) and operation.model_name_lower not in created:
            field = operation.field
            if not (field.null or field.many_to_many or field.db_default is not NOT_PROVIDED):
                yield f"{migration.app_label}.{migration.name}: {operation.model_name}.{operation.name}"


def test_added_columns_have_a_database_default_or_are_nullable() -> None:
    migrations = MigrationLoader(None).disk_migrations.values()
    ours = [migration for migration in migrations if migration.app_label in OURS]
    assert {migration.app_label for migration in ours} == set(OURS)
    assert [column for migration in ours for column in required_columns(migration)] == []


def test_rule_recognises_required_columns() -> None:
    columns = {
        "plain": models.BooleanField(default=False),
        "nullable": models.BooleanField(null=True),
        "with_default": models.BooleanField(default=False, db_default=False),
    }
    migration = Migration("0002_example", "deliveries_app")
    migration.operations = [
        *(AddField("app", name, field) for name, field in columns.items()),
        CreateModel("New", [("id", models.BigAutoField(primary_key=True))]),
        AddField("new", "plain", models.BooleanField(default=False)),
    ]
    assert list(required_columns(migration)) == ["deliveries_app.0002_example: app.plain"]


def test_indexes_of_large_tables_are_built_while_a_service_writes_to_them() -> None:
    """An ordinary one stops all writes to the table until it is complete."""
    large = {"delivery", "deliveryattempt", "syncrun", "auditentry"}
    previous = dict(PREVIOUS_VERSION)["deliveries_app"]
    added = [
        (migration, operation)
        for (app, name), migration in MigrationLoader(None).disk_migrations.items()
        if app == "deliveries_app" and name > previous
        for operation in migration.operations
        if isinstance(operation, AddIndex) and operation.model_name_lower in large
    ]
    assert [migration.name for migration, operation in added if not isinstance(operation, AddIndexConcurrently)] == []
    assert [migration.name for migration, _ in added if migration.atomic or len(migration.operations) > 1] == []
    assert "0031_run_last" in {migration.name for migration, _ in added}


def columns_after(*migrations: tuple[str, str]) -> set[tuple[str, str]]:
    """Return the table and name of every column after these migrations; without any, after all of them."""
    state = MigrationLoader(None).project_state(list(migrations) or None).apps
    ours = [model for label in OURS for model in state.get_app_config(label).get_models()]
    return {(model._meta.db_table, field.column) for model in ours for field in model._meta.concrete_fields}


def test_columns_that_the_previous_version_reads_are_still_there() -> None:
    """Processes of the previous version select every column by name, until they are restarted."""
    assert columns_after(*PREVIOUS_VERSION) - columns_after() == set()


def test_every_change_of_a_model_has_a_migration() -> None:
    """Without one for a new choice, the database refuses it: its check constraint lists the earlier ones."""
    loader = MigrationLoader(None)
    changes = MigrationAutodetector(loader.project_state(), ProjectState.from_apps(apps)).changes(loader.graph)
    operations = {app: [each.describe() for made in changes[app] for each in made.operations] for app in changes}
    assert operations == {}, "run manage.py makemigrations"


def test_database_has_every_default_that_models_declare(db) -> None:
    """Django applies a plain `default` only in Python; a `db_default` must be in the schema."""
    declared = {
        (model._meta.db_table, field.column)
        for label in OURS
        for model in apps.get_app_config(label).get_models()
        for field in model._meta.concrete_fields
        if field.db_default is not NOT_PROVIDED
    }
    assert {("deliveries_app_apprepository", "arriving"), ("repositories_app_repository", "twin")} <= declared
    with connection.cursor() as cursor:
        described = {
            (table, column.name)
            for table in {table for table, _ in declared}
            for column in connection.introspection.get_table_description(cursor, table)
            if column.default is not None
        }
    assert declared <= described
