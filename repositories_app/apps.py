from django.apps import AppConfig


class RepositoriesConfig(AppConfig):
    name = "repositories_app"
    verbose_name = "Sync"

    def ready(self) -> None:
        from repositories_app import checks  # noqa: F401  registers the system checks
