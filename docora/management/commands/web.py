import os
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from docora.cli.main import add_instance_options
from docora.conf import installation
from docora.db import schema
from docora.server.supervisor import (
    listening_socket,
    port_is_taken,
    python_path,
    socket_is_given,
    taken_port,
    web_command,
)


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
        listener = listening_socket()
        listener.set_inheritable(True)
        command = web_command(listener)
        # Replace this process, so that signals reach the manager, which needs no Django. Each web process that it starts
        # reads `.env` anew.
        environment = installation.given | {"DOCORA_PROCESS": "web", "PYTHONPATH": python_path()}
        os.execve(command[0], command, environment)  # noqa: S606
