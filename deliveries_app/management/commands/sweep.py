import signal
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deliveries_app.monitoring import alerts
from deliveries_app.sweep.loop import SweepFailed, sweep_forever, sweep_once
from docora.cli.output import add_json, write_result, wrong_usage
from docora.db import schema
from docora.process import request_stop
from repositories_app.git import remote


class Command(BaseCommand):
    help = (
        "Every SWEEP_INTERVAL_SECONDS, starts the due checks of watched repositories; every second, enqueues due syncs."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true", help="run one round and exit")
        add_json(parser, "enqueued (with --once)")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["json"] and not options["once"]:
            raise wrong_usage("--json needs --once.")
        if options["once"]:
            try:
                with remote.new_client() as client:
                    enqueued = sweep_once(client)
            except SweepFailed:
                raise CommandError("A part of the sweep failed. See its traceback in the log.") from None
            alerts.run_round()
            write_result(self, options, {"enqueued": enqueued}, f"{enqueued} enqueued")
            return
        schema.wait_until_migrated(self.stderr.write)
        signal.signal(signal.SIGTERM, request_stop)
        signal.signal(signal.SIGINT, request_stop)
        sweep_forever()
