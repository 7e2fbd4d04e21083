import contextlib
import fcntl
import ipaddress
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import IntegrityError, connections
from django.utils import timezone
from redis.exceptions import AuthenticationError, ResponseError

from docora.cli.main import add_instance_options
from docora.cli.output import number_between, write_banner
from docora.conf.data_dir import make_private, unusable
from docora.conf.env import text
from docora.conf.installation import program
from docora.db import schema
from docora.db.connection import CONNECTION_ERRORS
from docora.http.client import HttpClient, Request
from docora.redis import heartbeat
from docora.redis.connection import RedisError, connection, is_embedded
from docora.security.redaction import redact
from docora.security.stored_secrets import examine
from docora.server.supervisor import (
    WEB_ENVIRONMENT,
    Child,
    Supervisor,
    listening_socket,
    manage,
    require_free_port,
    web_command,
)
from docora.server.valkey import storage_of, valkey_command

READY_SECONDS = 60.0
_BACKGROUND_SECONDS = 15.0
_SECRETS_TRIED = 100  # of each column; decrypting them takes a few milliseconds
_SYNCS = 32
"""How many repositories all workers of one `up` sync at once, unless SYNCS_PER_WORKER is set. Each takes a database connection.
With those of the web process and the sweep, that makes 60, of the 100 that PostgreSQL allows by default."""


class Command(BaseCommand):
    help = "Runs everything: web, workers, sweep and, unless REDIS_URL is set, an embedded Valkey. Ctrl-C stops it."
    requires_migrations_checks = False

    _new_administrator = ""

    def add_arguments(self, parser: CommandParser) -> None:
        add_instance_options(parser)
        parser.add_argument(
            "--workers",
            type=number_between(1, 1000),
            default=_default_workers(),
            metavar="N",
            help="sync workers (one per core that Docora may use, from two to four)",
        )
        parser.add_argument(
            "--no-migrate", action="store_true", help="do not migrate; wait until the database is migrated"
        )
        parser.add_argument("--demo", action="store_true", help="with demo repositories, demo clients and demo users")

    def handle(self, *args: Any, **options: Any) -> None:
        require_free_port()
        self._lock_data_directory()
        if options["demo"]:
            call_command("demo", check=True)
        supervisor = Supervisor(self.stderr.write)
        # A signal during the start must also stop the children that already run.
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: sys.exit(0))
        try:
            self._start(supervisor, options)
            supervisor.watch()
        except KeyboardInterrupt:
            pass
        finally:
            supervisor.stop()

    def _start(self, supervisor: Supervisor, options: dict[str, Any]) -> None:
        valkey = None
        if is_embedded():
            # Valkey saves its data on SIGTERM, and gets that signal even if this process is killed.
            valkey = Child("valkey", valkey_command(settings.DATA_DIR), ends_last=True)
            supervisor.add(valkey)
        _wait_for_redis(valkey, self.stderr.write)
        self._prepare_database(migrate=not options["no_migrate"])
        listener = listening_socket()
        started = timezone.now()
        supervisor.add(Child("web", web_command(listener), WEB_ENVIRONMENT, listener=listener))
        for number in range(options["workers"]):
            # Every second worker prefers cleanup to bulk work, so that neither can starve the other.
            queues = ("high", "default", "low") if number % 2 == 0 else ("high", "low", "default")
            command = manage("rqworker", *queues, "--verbosity", "0")
            supervisor.add(Child(f"worker {number + 1}", command, _worker_environment(options["workers"])))
        supervisor.add(Child("sweep", manage("sweep")))
        _wait_for_web()
        if options["demo"]:
            self.stdout.write(
                f"Docora runs at {settings.PUBLIC_URL}/\n"
                "Setting up the demo. Within a minute, once its first syncs have ended, it prints how to sign in. "
                "Ctrl-C stops it."
            )
            self.stdout.flush()
            command = manage("demo", "--port", str(settings.PORT))
            supervisor.add(Child("demo", command, {"PYTHONUTF8": "1"}))  # its clients store paths that aren't ASCII
        else:
            _wait_for_background(started, options["workers"])
            self._print_sign_in()
        connections.close_all()

    def _print_sign_in(self) -> None:
        """Print the address last, and at the first start how to sign in. The password is not printed: logs are kept."""
        fields = {"Open": f"{settings.PUBLIC_URL}/admin/"}
        notes = ["Ctrl-C stops it."]
        if self._new_administrator:
            fields |= {"User": self._new_administrator, "Password": "the value of ADMIN_PASSWORD"}
        elif _has_no_administrator():
            create = f"{program(in_full=True)} createsuperuser"
            notes.insert(0, f"There is no administrator yet. Create one in another terminal: {create}")
        write_banner(self.stdout, "Docora is running.", fields, *notes)

    def _lock_data_directory(self) -> None:
        """Allow only one `up` per data directory: two Valkeys would steal the socket from each other."""
        try:
            make_private(settings.DATA_DIR)
            self._lock = os.open(settings.DATA_DIR / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"Docora is already running with the data directory {settings.DATA_DIR}. "
                "Stop it, or choose another one with --data."
            ) from None
        except OSError as error:
            raise CommandError(unusable(settings.DATA_DIR, error)) from None

    def _prepare_database(self, *, migrate: bool) -> None:
        if migrate:
            call_command("migrate", verbosity=0, interactive=False)
        else:
            schema.wait_until_migrated(self.stderr.write)
        name, password = settings.ADMIN_USERNAME, settings.ADMIN_PASSWORD
        if name and password and not get_user_model()._default_manager.filter(is_superuser=True).exists():
            try:
                validate_password(password, get_user_model()(username=name))
            except ValidationError as error:
                raise CommandError(f"ADMIN_PASSWORD is not accepted: {' '.join(error.messages)}") from None
            with contextlib.suppress(IntegrityError):  # another `up` that started at the same time was faster
                get_user_model().objects.create_superuser(name, password=password)
                self._new_administrator = name
        self._warn_of_lost_keys()

    def _warn_of_lost_keys(self) -> None:
        """Say so if stored secrets can't be decrypted: a lost `keys.json` has been generated anew by now.

        Don't refuse to start, because the secrets can be replaced in the admin.
        """
        if not any(result.unreadable for result in examine(_SECRETS_TRIED).values()):
            return
        source = "ENCRYPTION_KEYS" if text("ENCRYPTION_KEYS") else settings.DATA_DIR / "keys.json"
        self.stderr.write(
            f"Stored secrets can't be decrypted with {source}, so syncs that need them fail. If its keys were lost, stop Docora "
            f"and restore them. {program()} doctor lists these secrets."
        )


def _has_no_administrator() -> bool:
    """Return whether there is no staff user. If the database is down, return False: `up` keeps running and waits for it."""
    try:
        return not get_user_model()._default_manager.filter(is_staff=True).exists()
    except CONNECTION_ERRORS:
        return False


def _wait_for_redis(valkey: Child | None, report: Callable[[str], object]) -> None:
    """Wait until Redis answers. `valkey` is the embedded server, if that is used.

    Call `report` once with a sentence that says what it waits for. Raises `RedisError` after `READY_SECONDS`, or at once if
    waiting won't help, and `CommandError` if the embedded server has ended.
    """
    reported = False
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            connection().ping()
            return
        except (AuthenticationError, ResponseError):
            raise
        except RedisError as error:
            if valkey and not valkey.running:
                folder = storage_of(settings.DATA_DIR)
                raise CommandError(
                    f"The embedded Valkey ended. {folder / 'valkey.log'} says why. If its files are damaged, remove {folder}: "
                    "no work is lost, because it is recorded in the database."
                ) from None
            if time.monotonic() > deadline:
                raise
            if not (valkey or reported):
                report(f"Waiting for Redis: {redact(str(error)).rstrip('.')}. Check REDIS_URL.")
                reported = True
        time.sleep(0.05)


def _wait_for_web() -> None:
    """Wait until `/health` answers, which means that Docora is ready."""
    host = f"[{settings.HOST}]" if ":" in settings.HOST else settings.HOST
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104  compared, not listened on
    everywhere = [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")]
    deadline = time.monotonic() + READY_SECONDS
    with HttpClient(everywhere, allow_http=True) as client:
        while not client.request(Request("GET", f"http://{host}:{settings.PORT}/health", timeout=2.0)).ok:
            if time.monotonic() > deadline:
                raise CommandError("The web process does not answer. Its messages above say why.")
            time.sleep(0.1)


def _default_workers() -> int:
    """Return one worker per core. Even on one core, two are faster: while one waits for git, the other works.

    More than four are the administrator's choice, because each takes about 110 MB of memory.
    """
    return min(4, max(2, len(os.sched_getaffinity(0))))


def _worker_environment(workers: int) -> dict[str, str]:
    """Return the environment of one of `workers` workers.

    Each syncs at least two repositories at once, because it keeps its last thread for an app that uses none.
    """
    if os.environ.get("SYNCS_PER_WORKER"):
        return {}
    return {"SYNCS_PER_WORKER": str(max(2, min(settings.SYNCS_PER_WORKER, _SYNCS // workers)))}


def _wait_for_background(started: datetime, workers: int) -> None:
    """Wait until the sweep and `workers` workers have started since `started`, for at most `_BACKGROUND_SECONDS`.

    Return in either case: the admin shows what is missing.
    """
    deadline = time.monotonic() + _BACKGROUND_SECONDS
    while time.monotonic() < deadline:
        signs = heartbeat.read()
        if signs and signs.sweep and signs.sweep >= started and sum(at >= started for at in signs.workers) >= workers:
            return
        time.sleep(0.1)
