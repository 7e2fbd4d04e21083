from django.apps import AppConfig


class OnCallConfig(AppConfig):
    name = "on_call"
    verbose_name = "On call"
    default_auto_field = "django.db.models.BigAutoField"
