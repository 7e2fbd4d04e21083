"""What imports from the existing service have taken."""

from django.db import models


class Imported(models.Model):
    """An app or a watch that an import has taken, by public ids; without a `repository_id` it is the app itself.

    It outlives what it speaks of, so that a further import does not bring back what was removed here since.
    """

    app_id = models.CharField(max_length=50)
    repository_id = models.CharField(max_length=50, blank=True, default="")

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["app_id", "repository_id"], name="imported_once")]

    def __str__(self) -> str:
        return f"{self.app_id} {self.repository_id}".rstrip()
