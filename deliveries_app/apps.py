from django.apps import AppConfig


class DeliveriesConfig(AppConfig):
    name = "deliveries_app"
    verbose_name = "Sync"

    def ready(self) -> None:
        from deliveries_app import scheduling
        from deliveries_app.monitoring import alerts
        from deliveries_app.planning import transforms  # noqa: F401  registers its system check
        from deliveries_app.sync import lease
        from docora.server import worker

        worker.death_callbacks += [lease.end_dead_leases, scheduling.enqueue_due]
        worker.maintenance_callbacks.append(alerts.enqueue_if_sweep_is_late)
