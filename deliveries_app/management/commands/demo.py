import errno
import signal
import subprocess
import threading
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from deliveries_app.demo.instance import USERS, Choices, Demo, NotEmpty, require_own_instance
from docora.cli.main import DEMO_SETTINGS, add_instance_options
from docora.cli.output import write_banner
from docora.conf.data_dir import reason_and_advice
from docora.conf.installation import program
from docora.db import schema

_LOOPBACK = ip_address("127.0.0.1")
FIRST_SYNCS_SECONDS = 60.0
"""How long to wait for the first syncs, which fill the log, before printing how to sign in. They take about 10 s."""


class Command(BaseCommand):
    help = "Adds demo repositories, client apps and users to this instance, and serves the repositories and the apps."

    def add_arguments(self, parser: CommandParser) -> None:
        add_instance_options(parser)
        parser.add_argument(
            "--check",
            action="store_true",
            help="only check that the instance has no apps, or that the demo is already in it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        is_reachable = any(_LOOPBACK in network for network in settings.ALLOWED_PRIVATE_NETWORKS)
        if not (settings.ALLOW_HTTP and is_reachable and "127.0.0.1:*" in settings.ALLOWED_GIT_HOSTS):
            required = " ".join(f"{name}={value}" for name, value in DEMO_SETTINGS.items())
            raise CommandError(f"The demo needs these settings in every process of the instance: {required}")
        if options["check"]:
            try:
                require_own_instance(settings.DATA_DIR / "demo")
            except NotEmpty as error:
                advice = f"Run it in an instance of its own: {program()} up --demo --data DIR, without DATABASE_URL"
                raise CommandError(f"{error}. {advice}") from None
            return
        schema.wait_until_migrated(self.stderr.write)
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        demo = _start(settings.DATA_DIR / "demo")
        try:
            demo.fill()
            demo.wait_for_first_syncs(FIRST_SYNCS_SECONDS, stopped)
            if not stopped.is_set():
                self._print_sign_in(demo.choices)
            stopped.wait()
        finally:
            demo.stop()

    def _print_sign_in(self, choices: Choices) -> None:
        admin, *others = USERS
        fields = {"Open": f"{settings.PUBLIC_URL}/admin/", "User": admin, "Password": choices.password}
        permissions = f"The users {' and '.join(others)} have the same password and fewer permissions."
        if choices.kept_users:
            made = [name for name in USERS if name not in choices.kept_users]
            fields["User"] = " or ".join(made) or "one from before the demo"
            permissions = f"Users from before the demo keep their passwords: {', '.join(choices.kept_users)}."
        failing = "Newsletter fails on purpose. The description on its page says how to fix it."
        write_banner(self.stdout, "The demo is ready.", fields, permissions, failing, "Ctrl-C stops it.")


def _start(folder: Path) -> Demo:
    try:
        demo = Demo(folder)
        demo.start()
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip()
        raise CommandError(f"The demo's repositories cannot be created: {reason}") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise CommandError(f"The demo cannot use {folder}: {reason_and_advice(error)}") from None
        ports = f"{demo.choices.git_port} and {demo.choices.receiver_port}"
        raise CommandError(
            f"The demo's ports {ports} cannot be used ({error.strerror}). Free them, or remove {folder} to use other ports."
        ) from None
    return demo
