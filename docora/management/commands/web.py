import os
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from docora.cli.main import add_instance_options
from docora.conf import installation
from docora.db import schema
from docora.server.supervisor import WEB_ENVIRONMENT, listening_socket, python_path, require_free_port, web_command


class Command(BaseCommand):
    help = "Runs the web process alone, for systemd, containers and other supervisors."
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        add_instance_options(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        require_free_port()
        # Start even if the database is down: the documentation and the probes work without it.
        schema.wait_until_migrated(self.stderr.write, wait_for_database=False)
        listener = listening_socket()
        listener.set_inheritable(True)
        command = web_command(listener)
        # Replace this process with the manager, which needs no Django, so that signals reach it. Each web process that it
        # starts reads `.env` again.
        environment = installation.original_environment | WEB_ENVIRONMENT | {"PYTHONPATH": python_path()}
        os.execve(command[0], command, environment)  # noqa: S606
