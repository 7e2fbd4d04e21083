import os
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from docora.cli.main import add_instance_options
from docora.conf import installation
from docora.db import schema
from docora.server.supervisor import port_is_taken, python_path, taken_port, web_command
from docora.server.web import socket_is_given


class Command(BaseCommand):
    help = "Runs the web process alone, for systemd, containers and other supervisors."
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        add_instance_options(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if not socket_is_given() and port_is_taken(settings.HOST, settings.PORT):
            raise CommandError(taken_port())
        # Without its database it is worth something: the documentation, and probes that say what is wrong.
        schema.wait_until_migrated(self.stderr.write, wait_for_database=False)
        command = web_command(settings.PORT)
        # In place of this process, so that signals and the given socket reach the server itself. Each process that it
        # starts reads `.env` as it is then.
        environment = installation.given | {"DOCORA_PROCESS": "web", "PYTHONPATH": python_path()}
        os.execve(command[0], command, environment)  # noqa: S606
