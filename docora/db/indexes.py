"""Indexes on large tables, built while a service writes to them."""

from typing import Any

from django.db.migrations import AddIndex


class AddIndexConcurrently(AddIndex):
    """Add an index without a lock that writes wait for. Its migration must set `atomic = False` and contain nothing else.

    It waits for the transactions that began earlier, such as a backup's, and none waits for it. So it has no time limit.
    """

    atomic = False

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if schema_editor.connection.vendor != "postgresql":
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("SHOW lock_timeout")
            (before,) = cursor.fetchone()
        schema_editor.execute("SET lock_timeout = 0")
        # An attempt that was interrupted leaves an unusable index.
        schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {schema_editor.quote_name(self.index.name)}")
        model = to_state.apps.get_model(app_label, self.model_name)
        schema_editor.add_index(model, self.index, concurrently=True)
        schema_editor.execute(f"SET lock_timeout = '{before}'")
