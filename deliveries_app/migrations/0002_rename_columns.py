from typing import Any

from django.db import migrations, models
from django.db.models import Q

INDEXES = {
    "delivery": [
        models.Index(fields=["watch", "path"], name="delivery_in_doubt", condition=Q(acknowledged=False)),
        models.Index(fields=["watch", "source_path"], name="delivery_source", condition=~Q(source_path="")),
        models.Index(fields=["watch", "path"], name="delivery_remarked", condition=~Q(remark="")),
    ],
    "deliveryfailure": [models.Index(fields=["watch", "kind"], name="failure_kind")],
    "syncrun": [
        models.Index(fields=["watch", "generation"], name="run_open", condition=Q(outcome="")),
        models.Index(fields=["watch", "-created_at"], name="run_of_watch"),
    ],
}
CONSTRAINTS = {
    "delivery": models.UniqueConstraint(fields=["watch", "path"], name="delivery_unique_path"),
    "deliveryfailure": models.UniqueConstraint(fields=["watch", "path_digest"], name="failure_unique_path"),
}


class OnSQLite:
    """Act on SQLite only.

    PostgreSQL renames a foreign key's column inside its indexes and constraints. On SQLite, Django builds the table anew,
    without those that named the old column.
    """

    def database_forwards(self, app_label: str, schema_editor: Any, *states: Any) -> None:
        if schema_editor.connection.vendor == "sqlite":
            super().database_forwards(app_label, schema_editor, *states)  # type: ignore[misc]

    def database_backwards(self, app_label: str, schema_editor: Any, *states: Any) -> None:
        if schema_editor.connection.vendor == "sqlite":
            super().database_backwards(app_label, schema_editor, *states)  # type: ignore[misc]


class AddIndex(OnSQLite, migrations.AddIndex):
    pass


class AddConstraint(OnSQLite, migrations.AddConstraint):
    pass


class Migration(migrations.Migration):
    """Name columns by the project's vocabulary."""

    dependencies = [("deliveries_app", "0001_squashed_0012_imported")]

    operations = [
        migrations.RenameIndex("syncrun", new_name="run_of_watch", old_name="run_of_pair"),
        migrations.SeparateDatabaseAndState(
            state_operations=[
                *(migrations.RemoveIndex(model, index.name) for model in INDEXES for index in INDEXES[model]),
                *(migrations.RemoveConstraint(model, constraint.name) for model, constraint in CONSTRAINTS.items()),
            ]
        ),
        migrations.RenameField("delivery", "pair", "watch"),
        migrations.RenameField("deliveryfailure", "pair", "watch"),
        migrations.RenameField("syncrun", "pair", "watch"),
        migrations.RenameField("notice", "pair", "watch"),
        migrations.RenameField("delivery", "intent", "sequence"),
        migrations.RenameField("notice", "intent", "sequence"),
        migrations.RenameField("delivery", "held_sha", "acknowledged_sha"),
        migrations.RenameField("notice", "facts", "fields"),
        migrations.RenameField("app", "not_before", "cooldown_until"),
        migrations.RenameField("apprepository", "wanted", "request_count"),
        migrations.RenameField("apprepository", "claim", "fencing_token"),
        migrations.RenameField("apprepository", "claim_wanted", "claimed_request_count"),
        migrations.RenameField("apprepository", "slots_wanted_at", "slots_requested_at"),
        migrations.RenameField("apprepository", "intent_high", "sequence_high"),
        migrations.RenameField("apprepository", "last_answer", "last_response"),
        *(AddIndex(model, index) for model in INDEXES for index in INDEXES[model]),
        *(AddConstraint(model, constraint) for model, constraint in CONSTRAINTS.items()),
    ]
