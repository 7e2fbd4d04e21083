"""The audit log of client apps. What users do is in Django's own log, whose entries need a user."""

from django.db import models

from deliveries_app.models.apps import App, AppRepository


class AppAction(models.Model):
    """Something that a client app changed with its token: its settings, or one of the repositories that it watches."""

    app = models.ForeignKey(App, on_delete=models.CASCADE, related_name="actions")
    watch = models.ForeignKey(AppRepository, null=True, on_delete=models.SET_NULL, related_name="actions")
    subject = models.CharField(max_length=511, help_text="Name of the app, or of the repository.")
    message = models.CharField(max_length=200)
    address = models.CharField(max_length=45, help_text="IP address that the request came from.")
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        default_permissions = ()
        ordering = ["-created_at", "-pk"]

    def __str__(self) -> str:
        return self.message
