from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError

from deliveries_app.monitoring.alerts import messages
from deliveries_app.monitoring.alerts.channels import Channel, configured
from deliveries_app.monitoring.alerts.notify import retry_soon
from docora.cli.output import add_json, write_json


class Command(BaseCommand):
    help = "Sends a test alert to ALERT_WEBHOOK_URL and ALERT_EMAILS; exit 1 if it could not be delivered."

    def add_arguments(self, parser: CommandParser) -> None:
        add_json(parser, "channels (a list of target, delivered and problem)")

    def handle(self, *args: Any, **options: Any) -> None:
        results = [(channel, channel.send(messages.test())) for channel in configured()]
        if not results:
            raise CommandError(
                "Alerts are off. Set ALERT_WEBHOOK_URL, or ALERT_EMAILS with EMAIL_URL and DEFAULT_FROM_EMAIL."
            )
        following = {channel.name for channel, problem in results if not problem and _retries_soon(channel)}
        if options["json"]:
            channels = [
                {"target": channel.target, "delivered": not problem, "problem": problem} for channel, problem in results
            ]
            write_json(self.stdout, {"channels": channels})
        else:
            for channel, problem in results:
                if not problem:
                    more = " The alerts that it didn't accept before follow within a minute."
                    self.stdout.write(
                        f"Delivered the test alert to {channel.target}.{more if channel.name in following else ''}"
                    )
        problems = [problem for _, problem in results if problem]
        if problems:
            raise CommandError(f"The test alert could not be delivered. {' '.join(problems)}")


def _retries_soon(channel: Channel) -> bool:
    """Return what `retry_soon` does, or False if the database is down: a test alert doesn't need it."""
    try:
        return retry_soon(channel)
    except (DatabaseError, InterfaceError):
        return False
