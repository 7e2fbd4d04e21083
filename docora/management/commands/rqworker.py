from typing import Any

from django_rq.management.commands import rqworker

from docora.db import schema


class Command(rqworker.Command):  # type: ignore[misc]  # it has no types
    """django-rq's own, once the database is migrated: a job that finds no tables would only fail."""

    def handle(self, *args: Any, **options: Any) -> None:
        schema.wait_until_migrated(self.stderr.write)
        super().handle(*args, **options)
