"""What `pause_syncing` and `resume_syncing` have in common: of all apps, or of one."""

from abc import ABC, abstractmethod
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import app_of
from deliveries_app.models import App
from deliveries_app.services import change_app
from docora.cli.output import add_json, write_json


class PausingCommand(BaseCommand, ABC):
    """A subclass says in `paused` which of both it is, does it for all apps, and has the words for one."""

    paused: bool

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", nargs="?", help="only this app")
        add_json(parser, "app_id (null for all), paused")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["app_id"]:
            app = app_of(options["app_id"])
            app.paused = self.paused
            change_app(Actor.command(), app, ["paused"])
            words = self.words_of(app)
        else:
            words = self.change_all()
        if options["json"]:
            write_json(self.stdout, {"app_id": options["app_id"], "paused": self.paused})
        else:
            self.stdout.write(words)

    @abstractmethod
    def change_all(self) -> str:
        """Do it, and what to say about it."""

    @abstractmethod
    def words_of(self, app: App) -> str:
        """What to say about one app, to which it has been done."""
