from collections.abc import Iterator

from django.apps import AppConfig, apps
from django.conf import settings
from django.contrib.admin.apps import SimpleAdminConfig


def added_apps() -> Iterator[AppConfig]:
    """Yield the apps that DOCORA_SETTINGS adds to Docora's own."""
    for app in apps.get_app_configs():
        if not {app.name, f"{type(app).__module__}.{type(app).__name__}"} & set(settings.OWN_APPS):
            yield app


class DocoraConfig(AppConfig):
    """The project as an app: its commands, template tags and signal handlers."""

    name = "docora"
    verbose_name = "Docora"

    def ready(self) -> None:
        from docora import checks  # noqa: F401  registers the system checks
        from docora.sign_in import receivers  # noqa: F401  connects the signal handlers


class DocoraAdminConfig(SimpleAdminConfig):
    """Django's admin with Docora's site, so that Users and Groups are registered there too.

    `deliveries_app.urls` imports the admin modules: workers and most commands have no pages and start faster without them.
    """

    default_site = "deliveries_app.site.DocoraAdminSite"
