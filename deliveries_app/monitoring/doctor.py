"""The checks of `manage.py doctor`: Django's system checks, and checks of the running instance.

Each check returns Django's `CheckMessage`s. An error is shown as a problem, and an info message says what is fine.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Info, Warning
from django.db import connections

from deliveries_app.monitoring import instance_checks, server_checks
from docora.checks import check_proxies
from docora.security.redaction import redact
from docora.text import clean_text, one_line
from repositories_app.checks import check_git_fixes, check_git_host_answers, check_outbound_client

FINE, WARNING, PROBLEM = LEVELS = ("fine", "warning", "problem")

_COVERED = {"docora.E001", "docora.E002", "security.W009", "security.W018"}
"""System checks that repeat other messages: on git's version, SECRET_KEY and DEBUG."""
_CAUSED_BY_HTTP = {"security.W004", "security.W008", "security.W012", "security.W016"}
"""System checks that only repeat that PUBLIC_URL is http."""
_PING_SECONDS = 70.0  # two attempts, each as long as the client allows


@dataclass(frozen=True)
class Check:
    """A check. `needs` names the checks that must pass first, and `seconds` is the time limit."""

    name: str
    run: Callable[[], Sequence[CheckMessage]]
    needs: tuple[str, ...] = ()
    seconds: float = 10.0


@dataclass(frozen=True)
class Result:
    check: str
    level: str
    message: str
    hint: str


def all_checks(*, offline: bool = False, app_id: str | None = None) -> list[Check]:
    """Return the checks in the order in which they run.

    `offline` omits those that need the internet. `app_id` adds a test ping to that app.
    """
    selected = [
        Check("git", check_git_fixes),
        Check("database", server_checks.check_database, seconds=15.0),  # longer than its connect_timeout
        Check("clock", server_checks.check_clock, needs=("database",)),
        Check("connections", server_checks.check_connections, needs=("database",)),
        Check("sqlite", server_checks.check_sqlite, needs=("database",)),
        Check("redis", server_checks.check_redis),
        Check("redis-server", server_checks.check_redis_server, needs=("redis",)),
        Check("settings", check_settings),
        Check("secrets", instance_checks.check_secrets, needs=("database",)),
        Check("audit log", instance_checks.check_audit_log, needs=("database",)),
        Check("files", instance_checks.check_files),
        Check("people", instance_checks.check_accounts, needs=("database",)),
        Check("roles", instance_checks.check_roles, needs=("database",)),
        Check("workers", instance_checks.check_workers, needs=("redis",)),
        Check("sweep", instance_checks.check_sweep, needs=("database", "redis")),
        Check("backlog", instance_checks.check_backlog, needs=("database", "redis")),
        Check("pauses", instance_checks.check_pauses, needs=("database",)),
        Check("outages", instance_checks.check_outages, needs=("database",)),
        Check("alerts", instance_checks.check_alerts, needs=("database",)),
        Check("addresses", check_outbound_client),
        Check("disk", instance_checks.check_disk),
        Check("mirrors", instance_checks.check_mirrors),
        Check("delivery", instance_checks.check_delivery),
    ]
    if not offline:
        selected.append(Check("git-host", check_git_host_answers, seconds=25.0))
    if app_id is not None:
        ping = partial(instance_checks.check_app, app_id)
        selected.append(Check("app", ping, needs=("database",), seconds=_PING_SECONDS))
    return selected


def check_settings() -> list[CheckMessage]:
    """Run all system checks, as `check --deploy` does."""
    ignored = _COVERED if settings.HTTPS else _COVERED | _CAUSED_BY_HTTP
    found = [
        message
        for message in [*checks.run_checks(include_deployment_checks=True), *check_proxies()]
        if message.level >= checks.WARNING and message.id not in ignored and not message.is_silenced()
    ]
    return found or [Info("Django's system checks (check --deploy) found no problems.")]


def run_checks(selected: Sequence[Check]) -> list[Result]:
    """Run the checks in order. Skip a check if one that it needs has a problem, because it would only time out too."""
    results: list[Result] = []
    failed: set[str] = set()
    for check in selected:
        missing = next((name for name in check.needs if name in failed), "")
        messages = [Warning(f"Not checked, because the {missing} check found a problem.")] if missing else _run(check)
        if any(message.level >= checks.ERROR for message in messages):
            failed.add(check.name)
        results += [_result(check, message) for message in messages]
    return results


def _run(check: Check) -> Sequence[CheckMessage]:
    """Run the check in a thread, to enforce its time limit: drivers wait longer for a silent host or a hanging disk.

    A thread that exceeds the limit is abandoned and ends with the process.
    """
    found: list[CheckMessage] = []

    def run() -> None:
        try:
            found.extend(check.run())
        except Exception as error:
            found.append(_failure(error))
        finally:
            connections.close_all()  # only this thread's

    thread = threading.Thread(target=run, name=f"doctor-{check.name}", daemon=True)
    thread.start()
    thread.join(check.seconds)
    if not thread.is_alive():
        return found
    hint = "A server or disk that it uses is not responding."
    return [Error(f"The check didn't finish within {check.seconds:g} s.", hint=hint)]


def _failure(error: Exception) -> CheckMessage:
    """Return the error for a check that raised. The exception's text comes from a library, so it may contain a secret."""
    reason = clean_text(redact(str(error)).partition("\n")[0], 300).rstrip(".")
    text = f"The check failed with {type(error).__name__}{f': {reason}' if reason else ''}."
    return Error(text, hint="If no other problem explains this, report it as a bug.")


def _result(check: Check, message: CheckMessage) -> Result:
    level = PROBLEM if message.level >= checks.ERROR else WARNING if message.level >= checks.WARNING else FINE
    text = f"{message.msg} ({message.id})" if message.id else message.msg
    # Names, paths and responses in the texts must not control the terminal.
    return Result(check.name, level, one_line(text, 2000), one_line(message.hint or "", 2000))
