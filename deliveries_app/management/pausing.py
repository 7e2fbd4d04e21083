"""The common base of `pause_syncing` and `resume_syncing`: for all apps, one app, or one of its repositories."""

from abc import ABC, abstractmethod
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import app_of, watch_of
from deliveries_app.models import App, AppRepository
from deliveries_app.services import change_app
from docora.cli.output import add_json, write_result


class PausingCommand(BaseCommand, ABC):
    """Subclasses set `paused`, pause or resume all apps or one watch, and provide the message for one app."""

    paused: bool

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", nargs="?", help="only this app")
        parser.add_argument("repository_id", nargs="?", help="only this repository of the app; see list_watches")
        add_json(parser, "app_id (null for all), repository_id (if given), paused")

    def handle(self, *args: Any, **options: Any) -> None:
        fields = {"app_id": options["app_id"]}
        if options["repository_id"]:
            watch = watch_of(options["app_id"], options["repository_id"])
            message = self.change_watch(watch)
            fields["repository_id"] = options["repository_id"]
        elif options["app_id"]:
            app = app_of(options["app_id"])
            app.paused = self.paused
            change_app(Actor.command(), app, ["paused"])
            message = self.message_for(app)
        else:
            message = self.change_all()
        write_result(self, options, {**fields, "paused": self.paused}, message)

    @abstractmethod
    def change_all(self) -> str:
        """Pause or resume all syncing and return a message."""

    @abstractmethod
    def change_watch(self, watch: AppRepository) -> str:
        """Pause or resume one watch and return a message."""

    @abstractmethod
    def message_for(self, app: App) -> str:
        """Return the message for an app that has just been paused or resumed."""
