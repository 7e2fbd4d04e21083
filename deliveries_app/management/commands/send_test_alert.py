from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deliveries_app.monitoring.alerts import messages
from deliveries_app.monitoring.alerts.channels import configured
from docora.cli.output import add_json, write_json


class Command(BaseCommand):
    help = "Sends a test alert to ALERT_WEBHOOK_URL and ALERT_EMAILS; exit 1 if it could not be delivered."

    def add_arguments(self, parser: CommandParser) -> None:
        add_json(parser, "channels (a list of target, delivered and problem)")

    def handle(self, *args: Any, **options: Any) -> None:
        results = [(channel.target, channel.send(messages.test())) for channel in configured()]
        if not results:
            raise CommandError(
                "Alerts are off. Set ALERT_WEBHOOK_URL, or ALERT_EMAILS with EMAIL_URL and DEFAULT_FROM_EMAIL."
            )
        if options["json"]:
            channels = [{"target": to, "delivered": not problem, "problem": problem} for to, problem in results]
            write_json(self.stdout, {"channels": channels})
        else:
            for target, problem in results:
                if not problem:
                    self.stdout.write(f"Delivered the test alert to {target}.")
        problems = [problem for _, problem in results if problem]
        if problems:
            raise CommandError(f"The test alert could not be delivered. {' '.join(problems)}")
