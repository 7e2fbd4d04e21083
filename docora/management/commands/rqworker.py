from typing import Any

from django_rq.management.commands import rqworker

from docora.cli.output import wrong_usage
from docora.db import schema
from docora.redis.connection import connection
from docora.redis.queues import QUEUES


class Command(rqworker.Command):  # type: ignore[misc]  # it has no types
    """Run django-rq's worker once the database is migrated. Before that, every job would fail."""

    def handle(self, *args: Any, **options: Any) -> None:
        if unknown := [name for name in args if name not in QUEUES]:
            raise wrong_usage(f"There is no queue {unknown[0]!r}. The queues are {', '.join(QUEUES)}.")
        schema.wait_until_migrated(self.stderr.write)
        connection().ping()  # django-rq would print the error as it is
        super().handle(*args, **options)
