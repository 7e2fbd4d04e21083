"""The common base of `pause_syncing` and `resume_syncing`, for all apps or for one."""

from abc import ABC, abstractmethod
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import app_of
from deliveries_app.models import App
from deliveries_app.services import change_app
from docora.cli.output import add_json, write_result


class PausingCommand(BaseCommand, ABC):
    """Subclasses set `paused`, pause or resume all apps, and provide the message for one app."""

    paused: bool

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", nargs="?", help="only this app")
        add_json(parser, "app_id (null for all), paused")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["app_id"]:
            app = app_of(options["app_id"])
            app.paused = self.paused
            change_app(Actor.command(), app, ["paused"])
            message = self.message_for(app)
        else:
            message = self.change_all()
        write_result(self, options, {"app_id": options["app_id"], "paused": self.paused}, message)

    @abstractmethod
    def change_all(self) -> str:
        """Pause or resume all syncing and return a message."""

    @abstractmethod
    def message_for(self, app: App) -> str:
        """Return the message for an app that has just been paused or resumed."""
