from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management.lookup import ServiceCommand, app_of, watch_of
from deliveries_app.models import AppRepository
from deliveries_app.services import (
    change_app,
    current_pause,
    pause_syncing,
    pause_watches,
    resume_syncing,
    resume_watches,
)
from docora.cli.output import add_json, write_result


class Command(ServiceCommand):
    """`resume_syncing` inherits from this."""

    help = "Pauses syncing for all apps, one app, or one of its repositories. Work that becomes due waits until it is resumed."
    paused = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", nargs="?", help="only this app")
        parser.add_argument("repository_id", nargs="?", help="only this repository of the app; see list_watches")
        add_json(parser, "app_id (null for all), repository_id (if given), paused")

    def handle(self, *args: Any, **options: Any) -> None:
        fields = {"app_id": options["app_id"]}
        done = "is paused." if self.paused else "is no longer paused."
        if options["repository_id"] is not None:
            watch = watch_of(options["app_id"], options["repository_id"])
            change_watches = pause_watches if self.paused else resume_watches
            change_watches(self.actor, AppRepository.objects.filter(pk=watch.pk))
            fields["repository_id"] = options["repository_id"]
            message = f"{watch} {done}"
            if not self.paused and watch.app.paused:
                message += " Its app is still paused: use resume_syncing with only the app's id."
        elif options["app_id"] is not None:
            app = app_of(options["app_id"])
            app.paused = self.paused
            change_app(self.actor, app, ["paused"])
            message = f"{app} {done}"
        elif self.paused:
            pause_syncing(self.actor)
            message = "All syncing is paused."
        else:
            message = "Syncing is resumed." if resume_syncing(self.actor) else "Syncing was not paused."
        if options["app_id"] and not self.paused and current_pause():
            message += " All syncing is still paused: use resume_syncing without an app id."
        write_result(self, options, {**fields, "paused": self.paused}, message)
