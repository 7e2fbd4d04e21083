from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.models import App, AppRepository
from docora.cli.output import add_json, write_json, write_table


class Command(BaseCommand):
    help = "Lists the client apps with their ids."

    def add_arguments(self, parser: CommandParser) -> None:
        add_json(parser, "one line per app: app_id, name, base_url, email, paused, watches, failing, created_at")
        parser.epilog = "Only the ids: list_apps | cut -f1"

    def handle(self, *args: Any, **options: Any) -> None:
        if options["json"]:
            for app in _apps():
                write_json(self.stdout, app)
        else:
            write_table(self.stdout, ["Id", "Name", "Base URL", "Watches", "Failing", ""], map(_row, _apps()))


def _row(app: dict[str, Any]) -> list[str]:
    numbers = [f"{app['watches']:,}", f"{app['failing']:,}"]
    return [app["app_id"], app["name"], app["base_url"], *numbers, "paused" if app["paused"] else ""]


def _apps() -> Iterator[dict[str, Any]]:
    watches = AppRepository.objects
    apps = App.objects.filter(ended_at=None).annotate(
        watched=watches.alive().count_by("app"), failing=watches.failing().count_by("app")
    )
    names = ("app_id", "name", "base_url", "email", "paused", "watched", "failing", "created_at")
    for row in apps.values(*names):
        yield {"watches" if name == "watched" else name: row[name] for name in names}
