from django.apps import AppConfig


class RepositoriesConfig(AppConfig):
    name = "repositories_app"
    verbose_name = "Sync"
