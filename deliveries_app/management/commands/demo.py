import errno
import signal
import subprocess
import threading
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from deliveries_app.demo.instance import Demo, NotEmpty, UserExists, require_own_instance, wait_for_database
from docora.cli.main import DEMO_SETTINGS, add_instance_options
from docora.cli.output import write_banner
from docora.conf.data_dir import reason_and_advice
from docora.conf.installation import program

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
            help="only check that the instance is empty, or that the demo is already in it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        is_reachable = any(_LOOPBACK in network for network in settings.ALLOWED_PRIVATE_NETWORKS)
        if not (settings.ALLOW_HTTP and is_reachable and "127.0.0.1:*" in settings.ALLOWED_GIT_HOSTS):
            required = " ".join(f"{name}={value}" for name, value in DEMO_SETTINGS.items())
            raise CommandError(f"The demo needs these settings in every process of the instance: {required}")
        if options["check"]:
            _check()
            return
        if not wait_for_database(30.0):
            raise CommandError(f"The database has no tables yet. Start the instance first: {program()} up --demo")
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        demo = _start(settings.DATA_DIR / "demo")
        try:
            try:
                demo.fill()
            except UserExists as error:
                raise CommandError(f"{error}. {_own_instance()}") from None
            demo.wait_for_first_syncs(FIRST_SYNCS_SECONDS, stopped)
            if not stopped.is_set():
                fields = {
                    "Open": f"{settings.PUBLIC_URL}/admin/",
                    "User": "admin",
                    "Password": demo.choices.password,
                }
                others = "The users operator and viewer have the same password and fewer permissions."
                failing = "Newsletter fails on purpose. The description on its page says how to fix it."
                write_banner(self.stdout, "The demo is ready.", fields, others, failing, "Ctrl-C stops it.")
            stopped.wait()
        finally:
            demo.stop()


def _check() -> None:
    try:
        require_own_instance(settings.DATA_DIR / "demo")
    except NotEmpty as error:
        raise CommandError(f"{error}. {_own_instance()}") from None


def _own_instance() -> str:
    return f"Run it in an instance of its own: {program()} up --demo --data DIR, without DATABASE_URL"


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
