"""The `docora` command line: apply options that are settings, then run Django's commands.

`up`, `web` and `demo` have options that override settings: `--data`, `--host`, `--port` and `--demo`. They are put into the
environment before the settings are read, so that this process and its children share one configuration.
"""

import contextlib
import errno
import gc
import io
import os
import re
import secrets
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from django.conf import settings
from django.core.checks import Tags
from django.core.checks.registry import registry
from django.core.management import ManagementUtility
from django.core.management.base import BaseCommand

from docora import __version__
from docora.cli.output import BROKEN_PIPE, INTERRUPTED, USAGE
from docora.conf.installation import choose_settings, program

# The demo repositories and the demo clients run on this machine over plain http. With three
# attempts, the first sync of the failing app has ended before anyone can sign in.
DEMO_SETTINGS = {
    "ALLOW_HTTP": "yes",
    "ALLOWED_PRIVATE_NETWORKS": "127.0.0.0/8",
    "ALLOWED_GIT_HOSTS": "github.com,127.0.0.1:*",
    "MAX_RETRY_ATTEMPTS": "3",
}
_NO_TABLE = {"42P01", "42703"}  # SQLSTATE of a missing table or column; the message is in the server's language
_CANCELLED = "57014"
_NO_RIGHTS = {"42501", "3F000"}  # SQLSTATE; the latter also if no schema of the search_path exists
COMMANDS_WITH_PAGES = {"check", "doctor", "runserver", "testserver", "web"}


def add_instance_options(parser: ArgumentParser) -> None:
    """Add the options of `up`, `web` and `demo` that override settings."""
    parser.add_argument("--host", metavar="HOST", help="listen on this address (HOST)")
    parser.add_argument("--port", metavar="N", help="listen on this port (PORT)")
    parser.add_argument("--data", metavar="DIR", help="the data directory (DATA_DIR)")


def apply_instance_options(arguments: Sequence[str]) -> None:
    """Put the options of an `up`, `web` or `demo` command line into the environment. Do nothing for other commands."""
    if not arguments or arguments[0] not in {"up", "web", "demo"}:
        return
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    add_instance_options(parser)
    parser.add_argument("--demo", action="store_true")
    known, _ = parser.parse_known_args(arguments[1:])
    for name, value in {"HOST": known.host, "PORT": known.port, "DATA_DIR": known.data}.items():
        if value is not None:
            os.environ[name] = value
    if known.demo:  # `demo` itself would only change its own process
        for name, value in DEMO_SETTINGS.items():
            os.environ.setdefault(name, value)


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Return whether a command line only prints a help text. What follows `--` belongs to another program."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return not arguments or arguments[0] == "help" or not {"-h", "--h", "--he", "--hel", "--help"}.isdisjoint(options)


def error_message(error: Exception) -> str:
    """Return the message to print instead of a traceback, or an empty string for an unexpected error."""
    from django.core.exceptions import ImproperlyConfigured
    from django.db import DatabaseError, InterfaceError, InternalError, NotSupportedError, OperationalError
    from django.db.migrations.exceptions import MigrationSchemaMissing

    from docora.db.connection import is_full, is_read_only, pooler_advice, sqlstate
    from docora.redis.connection import RedisError, problem
    from docora.security.crypto import DecryptionError
    from docora.text import cause_of

    if isinstance(error, MigrationSchemaMissing) and isinstance(error.__context__, DatabaseError):
        error = error.__context__  # why the table of migrations cannot be created
    cause = cause_of(error)
    match error:
        case ImproperlyConfigured():
            return f"Docora cannot start: {error}"
        case DatabaseError() if sqlstate(error) in _NO_TABLE or re.search("no such (table|column)", cause):
            return f"The database does not match this version ({cause}). Migrate it: {program()} migrate"
        case DatabaseError() if cause.startswith("invalid connection option"):
            return f"The database cannot be used: {cause}. Remove it from DATABASE_URL."
        case OperationalError() | InterfaceError() if settings.DATABASES["default"]["ENGINE"].endswith("sqlite3"):
            file = settings.DATABASES["default"]["NAME"]
            return f"The database {file} cannot be used: {cause}. {_sqlite_advice(error, file)}"
        case OperationalError() if is_full(error):
            return f"The database's disk is full: {cause}. Free up space on the disk of the database server."
        case OperationalError() if sqlstate(error) == _CANCELLED:
            return f"The database cancelled a statement: {cause}. Check its log and its statement_timeout."
        case OperationalError() | InterfaceError():
            advice = pooler_advice(cause) or "Check DATABASE_URL, and that the database is running."
            return f"The database cannot be used: {cause}. {advice}"
        case DatabaseError() if is_read_only(error):
            return f"The database is read-only: {cause}. Check that DATABASE_URL points to the primary, and the server's disk."
        case DatabaseError() if isinstance(error, NotSupportedError | InternalError) or sqlstate(error) in _NO_RIGHTS:
            return f"The database refused: {cause}. Check the rights of the user in DATABASE_URL, and the server's version."
        case RedisError():
            return " ".join(problem(error))
        case DecryptionError():
            return str(error)
        case OSError(errno=errno.ENOSPC):
            return f"The disk is full: {error.filename or 'the output'} cannot be written."
        case PermissionError() if error.filename:
            return (
                f"{error.filename} cannot be used: {error.strerror}. Run commands as Docora's user, which must own it."
            )
    return ""


def _sqlite_advice(error: Exception, file: str | Path) -> str:
    """Return what to do if SQLite cannot use its file. Its own message doesn't say that the disk is read-only."""
    from docora.db.connection import is_full

    if is_full(error):
        return "Free up space on its disk."
    with contextlib.suppress(OSError):
        if os.statvfs(Path(file).parent).f_flag & os.ST_RDONLY:
            return "Mount its disk writable."
    return "Check its disk, and run commands as Docora's user."


def skip_url_checks() -> None:
    """Remove Django's checks of the URLs from this process.

    They import every page, which takes a third of a command's start and a fifth of a worker's memory.
    """
    registry.registered_checks = {check for check in registry.get_checks() if Tags.urls not in check.tags}


class CommandLine(ManagementUtility):
    """Django's command line, with three differences.

    An unknown command exits with the code for wrong usage, most commands do not check the URLs, and `--version` of a command
    prints Docora's.
    """

    def fetch_command(self, subcommand: str) -> BaseCommand:
        if subcommand in COMMANDS_WITH_PAGES:
            # Registers the admin's models. Django runs checks in any order, and those of the admin need the models.
            import_module(settings.ROOT_URLCONF)
        else:
            skip_url_checks()
        try:
            command = super().fetch_command(subcommand)
        except SystemExit:  # Django has already printed the error
            raise SystemExit(USAGE) from None
        if subcommand != "runserver":  # prints it as Django's
            command.get_version = lambda: __version__  # type: ignore[method-assign]
        command.requires_migrations_checks = False  # its hint names Django's command; `error_message` names Docora's
        gc.freeze()  # what is imported stays, and a work-horse shares it with its worker
        gc.enable()
        return command


def main() -> None:
    _open_closed_streams()
    # Garbage collections find nothing while modules are imported. With the one at exit, they take a third of a start's CPU.
    gc.disable()
    sys.path.append(str(Path.cwd()))  # where FILE_TRANSFORMS may be; children of `up` look there too
    if os.environ.get("NO_COLOR"):
        os.environ.setdefault("DJANGO_COLORS", "nocolor")
    apply_instance_options(sys.argv[1:])
    if asks_for_help(sys.argv[1:]):  # needs no keys, so it creates no data directory for them
        os.environ |= {name: secrets.token_urlsafe(50) for name in ("SECRET_KEY", "ENCRYPTION_KEYS")}
    if isinstance(sys.stdout, io.TextIOWrapper):  # names may contain characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")

    try:
        try:
            if sys.argv[1:] in (["--version"], ["version"]):
                sys.stdout.write(f"{__version__}\n")  # Django would print its own version
                return
            choose_settings()
            CommandLine([program(), *sys.argv[1:]]).execute()
        finally:
            gc.enable()
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        _discard_output()  # the reader has closed the pipe
        raise SystemExit(BROKEN_PIPE) from None
    except Exception as error:
        message = error_message(error)
        if not message or "--traceback" in sys.argv:
            raise
        if isinstance(error, OSError):
            _discard_output()
        raise SystemExit(message) from None


def _open_closed_streams() -> None:
    """Open `/dev/null` for each standard stream that the caller has closed, such as with `>&-`. Python has set it to None."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))


def _discard_output() -> None:
    """Keep Python from writing to stdout when it exits, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
