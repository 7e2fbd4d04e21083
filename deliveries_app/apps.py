from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class DeliveriesConfig(AppConfig):
    name = "deliveries_app"
    verbose_name = "Sync"

    def ready(self) -> None:
        from deliveries_app import scheduling
        from deliveries_app.monitoring import alerts
        from deliveries_app.planning import transforms  # noqa: F401  registers its system check
        from deliveries_app.services import sign_ins  # noqa: F401  connects the signal handlers
        from deliveries_app.sync.dead_processes import end_dead_leases
        from docora.server import worker

        worker.death_callbacks += [end_dead_leases, scheduling.enqueue_due]
        worker.maintenance_callbacks.append(alerts.enqueue_if_sweep_is_late)
        post_migrate.connect(_protect_audit_log, sender=self)


def _protect_audit_log(using: str, **_: Any) -> None:
    """Recreate the triggers of the audit log if a migration has removed them."""
    from django.db import connections

    from deliveries_app.models import AuditEntry
    from docora.db import append_only

    connection, table = connections[using], AuditEntry._meta.db_table
    if table in connection.introspection.table_names() and not append_only.is_protected(connection, table):
        append_only.protect(connection, table)
