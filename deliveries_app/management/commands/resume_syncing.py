from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.finding import app_of
from deliveries_app.services import change_app, current_pause, resume_syncing
from docora.console import add_json, write_json


class Command(BaseCommand):
    help = "Lets all syncing go on that was paused, or that of one app."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", nargs="?", help="only this app")
        add_json(parser, "app_id (null for all), paused")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["app_id"]:
            app = app_of(options["app_id"])
            app.paused = False
            change_app(Actor.command(), app, ["paused"])
            words = f"{app} is not paused any more."
            if current_pause():
                words += " All syncing is still paused: resume_syncing without an app id lets it go on."
        else:
            words = "Syncing goes on." if resume_syncing(Actor.command()) else "Syncing was not paused."
        if options["json"]:
            write_json(self.stdout, {"app_id": options["app_id"], "paused": False})
        else:
            self.stdout.write(words)
