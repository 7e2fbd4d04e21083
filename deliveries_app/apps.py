from django.apps import AppConfig


class DeliveriesConfig(AppConfig):
    name = "deliveries_app"
    verbose_name = "Sync"

    def ready(self) -> None:
        from deliveries_app import alerts
        from docora import worker

        worker.in_maintenance.append(alerts.look_after_sweep)
