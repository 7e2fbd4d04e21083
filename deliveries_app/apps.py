from django.apps import AppConfig


class DeliveriesConfig(AppConfig):
    name = "deliveries_app"
    verbose_name = "Sync"
