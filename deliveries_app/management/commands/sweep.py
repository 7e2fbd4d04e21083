import signal
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deliveries_app import alerts
from deliveries_app.sweep import sweep_forever, sweep_once
from docora import schema
from docora.worker import request_stop
from repositories_app import remote


class Command(BaseCommand):
    help = "Checks the watched repositories and enqueues whatever is due, every SWEEP_INTERVAL_SECONDS."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true", help="one round, then end")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["once"]:
            if not schema.is_migrated():
                raise CommandError(f"Nothing was looked for: {schema.NOT_MIGRATED}.")
            with remote.new_client() as client:
                self.stdout.write(f"{sweep_once(client)} enqueued")
            alerts.go_round()
            return
        schema.wait_until_migrated(self.stderr.write)
        signal.signal(signal.SIGTERM, request_stop)
        signal.signal(signal.SIGINT, request_stop)
        sweep_forever()
