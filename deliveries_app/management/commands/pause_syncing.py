from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.finding import app_of
from deliveries_app.services import change_app, pause_syncing
from docora.console import add_json, write_json


class Command(BaseCommand):
    help = "Pauses all syncing, or that of one app. What becomes due meanwhile waits, and nothing is lost."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", nargs="?", help="only this app")
        add_json(parser, "app_id (null for all), paused")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["app_id"]:
            app = app_of(options["app_id"])
            app.paused = True
            change_app(Actor.command(), app, ["paused"])
        else:
            pause_syncing(Actor.command())
        if options["json"]:
            write_json(self.stdout, {"app_id": options["app_id"], "paused": True})
        else:
            self.stdout.write(f"{app} is paused." if options["app_id"] else "All syncing is paused.")
