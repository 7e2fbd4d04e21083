from typing import Any

from django.core.management.base import BaseCommand, CommandError

from deliveries_app.alerts import send_test


class Command(BaseCommand):
    help = "Sends a test to wherever alerts go, ALERT_WEBHOOK_URL and ALERT_EMAILS; exit 1 if it did not arrive."

    def handle(self, *args: Any, **options: Any) -> None:
        results = send_test()
        if not results:
            raise CommandError(
                "Alerts are off. Set ALERT_WEBHOOK_URL, or ALERT_EMAILS with EMAIL_URL and DEFAULT_FROM_EMAIL."
            )
        for result in results:
            if not result.problem:
                self.stdout.write(f"The test alert was taken by {result.target}.")
        problems = [result.problem for result in results if result.problem]
        if problems:
            raise CommandError(f"The test alert did not arrive. {' '.join(problems)}")
