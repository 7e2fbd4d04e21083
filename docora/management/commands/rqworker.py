from typing import Any

from django_rq.management.commands import rqworker

from docora.db import schema


class Command(rqworker.Command):  # type: ignore[misc]  # it has no types
    """Run django-rq's worker once the database is migrated. Before that, every job would fail."""

    def handle(self, *args: Any, **options: Any) -> None:
        schema.wait_until_migrated(self.stderr.write)
        super().handle(*args, **options)
