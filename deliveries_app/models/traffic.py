"""How much was sent, by the hour: what charts are drawn from, without a look at millions of deliveries."""

from django.db import models

from deliveries_app.models.apps import App


class HourlyTraffic(models.Model):
    """What was sent to one app within one hour (UTC). `milliseconds`: the sum over its `requests`, of which large files
    need several; `failed` counts files that were not accepted, each time they were tried."""

    app = models.ForeignKey(App, on_delete=models.CASCADE, related_name="traffic", db_index=False)
    hour = models.DateTimeField(help_text="Its beginning.")
    files = models.PositiveBigIntegerField(default=0, help_text="acknowledged")
    bytes = models.PositiveBigIntegerField(default=0)
    failed = models.PositiveBigIntegerField(default=0)
    requests = models.PositiveBigIntegerField(default=0)
    milliseconds = models.PositiveBigIntegerField(default=0)

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["hour", "app"], name="traffic_unique_hour")]
        indexes = [models.Index(fields=["app", "hour"], name="traffic_of_app")]

    def __str__(self) -> str:
        return f"{self.app}, {self.hour:%Y-%m-%d %H:%M}"
