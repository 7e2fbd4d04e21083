"""Checks of this instance: secrets, accounts, files, disk, workers, and a delivery to itself.

Only `manage.py doctor` runs them.
"""

import os
import pwd
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime
from ipaddress import ip_network
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.checks import CheckMessage, Error, Info, Warning
from django.db import connection
from django.utils import timezone
from django.utils.text import capfirst

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, AuditEntry
from deliveries_app.monitoring import alerts, health
from deliveries_app.monitoring.counts import OVERDUE_SECONDS, count_watches
from deliveries_app.monitoring.server_checks import from_health
from deliveries_app.receiver import Receiver
from deliveries_app.services import current_pause
from deliveries_app.services.pinging import send_ping
from deliveries_app.services.requests import NotFound
from deliveries_app.webhooks.client import post_ping
from deliveries_app.webhooks.keyring import Keyring
from docora import disk
from docora.conf.data_dir import reason_and_advice
from docora.conf.installation import env_file, program
from docora.db import append_only
from docora.http.client import HttpClient, Outcome
from docora.redis import heartbeat, inspect
from docora.security import crypto
from docora.security.stored_secrets import examine
from docora.sign_in.oidc import PROVIDER_ID, SUPERUSER
from docora.text import can_be_id, counted, format_bytes, format_seconds
from repositories_app.mirror import cache
from repositories_app.models import HostOutage

_SECRETS_READ = 5000  # per column; decrypting them takes about a second
_FULL_BYTES = 1_000_000_000  # logs, the database or one repository fill this quickly
_IDLE_SECONDS = 1.0  # between two readings
_LISTED = 5


def _join_first(names: Iterable[object]) -> str:
    """Return the first names as one text. Say so if there are more."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:_LISTED]) + (" and more" if len(texts) > _LISTED else "")


def _time_since(moment: datetime) -> str:
    return format_seconds((timezone.now() - moment).total_seconds())


def check_secrets() -> list[CheckMessage]:
    """Check that stored secrets can be decrypted: the first `_SECRETS_READ` of each column."""
    results = examine(_SECRETS_READ)
    current = sum(result.current for result in results.values())
    older = sum(result.renewed for result in results.values())
    unreadable = {name: result.unreadable for name, result in results.items() if result.unreadable}
    messages: list[CheckMessage] = []
    if unreadable:
        number = counted(sum(map(len, unreadable.values())), "stored secret")
        rows_text = "; ".join(f"{name}, pk {_join_first(pks)}" for name, pks in unreadable.items())
        text = f"{number} can't be decrypted with any key in ENCRYPTION_KEYS: {rows_text}."
        hint = "Add the key that encrypted them to the end of the list, or replace these secrets."
        messages.append(Error(text, hint=hint))
    if older:
        text = f"{counted(older, 'stored secret uses', 'stored secrets use')} an older key in ENCRYPTION_KEYS."
        hint = f"Run {program()} rotate_encryption_keys before you remove that key."
        messages.append(Warning(text, hint=hint))
    text = f"The newest key in ENCRYPTION_KEYS decrypts {counted(current, 'stored secret')}."
    if any(result.current == _SECRETS_READ for result in results.values()):
        text += f" Of each column, the first {_SECRETS_READ:,} were checked."
    return messages or [Info(text)]


def check_audit_log() -> list[CheckMessage]:
    """Check that the triggers that protect the audit log still exist."""
    if append_only.is_protected(connection, AuditEntry._meta.db_table):
        return [Info("The database refuses changes to the audit log.")]
    text = "The triggers that protect the audit log are gone, so its entries could have been changed or removed."
    return [Error(text, hint=f"Find out who dropped them, then run {program()} migrate to create them again.")]


def check_accounts() -> list[CheckMessage]:
    """Check that a superuser can sign in. If only the provider signs people in, local accounts don't count."""
    staff = get_user_model()._default_manager.filter(is_active=True, is_staff=True)
    hint = f"Create a superuser: {program()} createsuperuser"
    if not (settings.LOCAL_SIGN_IN or settings.REMOTE_USER_HEADER):
        staff = staff.filter(socialaccount__provider=PROVIDER_ID)
        hint = "In OIDC_ROLES, give a group at the provider the role superuser, and sign in as one of its members."
    if staff.filter(is_superuser=True).exists():
        return [Info("An administrator can sign in.")]
    if staff.exists():
        return [Warning("There is no superuser to manage users.", hint=hint)]
    return [Warning("No account can sign in to the admin.", hint=hint)]


def check_roles() -> list[CheckMessage]:
    """Check that the roles in `OIDC_ROLES` and `SECOND_FACTOR_ROLES` exist."""
    named = {role for _, role in settings.OIDC_ROLES} | set(settings.SECOND_FACTOR_ROLES)
    missing = named - {SUPERUSER, *Group.objects.filter(name__in=named).values_list("name", flat=True)}
    if missing:
        text = f"OIDC_ROLES or SECOND_FACTOR_ROLES name groups that don't exist: {_join_first(sorted(missing))}."
        return [Error(text, hint="Create them in the admin, or correct the setting.")]
    return [Info("Every role that the settings name exists.")]


def check_files() -> list[CheckMessage]:
    """Check that other users cannot read keys or enter the folders. Group access may be intended.

    A file of another user that this process reads through its group is fine: the handbook installs the settings that way.
    """
    messages: list[CheckMessage] = []
    for path in (settings.DATA_DIR / "keys.json", env_file()):
        if not path.is_file():
            continue
        found, user = path.stat(), os.geteuid()
        is_own = user in {0, found.st_uid}
        advice = f"chmod 600 {path}" if is_own else f"chown {_name(user)} {path}, then chmod 600 {path}"
        if found.st_mode & stat.S_IRWXO:
            text = f"Every user on this server can read {path}, which may contain keys."
            messages.append(Error(text, hint=advice))
        elif found.st_mode & stat.S_IRWXG and (is_own or found.st_gid not in {os.getegid(), *os.getgroups()}):
            text = f"The group of {path} can read it, and it may contain keys."
            messages.append(Warning(text, hint=f"{advice}, unless this is intended."))
    for path in (settings.DATA_DIR, settings.REPOS_DIR):
        if path.is_dir() and path.stat().st_mode & stat.S_IRWXO:
            text = f"Every user on this server can open {path}, which contains sessions or private repositories."
            messages.append(Warning(text, hint=f"chmod 700 {path}"))
    return messages or [Info("Other users cannot access keys, the data directory and mirrors.")]


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


_WITHOUT_SPACE = {
    "DATA_DIR": "nothing can be recorded",
    "REPOS_DIR": "nothing can be fetched",
    "TMPDIR": "syncs fail, and large pages and requests end early",
}
"""What doesn't work while the disk of a folder is full."""


def check_disk() -> list[CheckMessage]:
    """Check that the folders are writable and have free space. A fetch writes up to `MAX_FETCH_BYTES` into `REPOS_DIR`."""
    folders = {"DATA_DIR": settings.DATA_DIR, "REPOS_DIR": settings.REPOS_DIR}
    return [_check_folder(*named) for named in (folders | disk.temporary_folder(*folders.values())).items()]


def _check_folder(name: str, folder: Path) -> CheckMessage:
    if error := disk.write_error(folder):
        return Error(f"{name} ({folder}) is not writable.", hint=reason_and_advice(error))
    usage = shutil.disk_usage(folder)
    needed = disk.free_bytes_needed(usage.total)
    if name != "TMPDIR":  # often a small disk in memory
        needed = max(needed, _FULL_BYTES)
    text = f"{name} ({folder}) is writable and has {format_bytes(usage.free)} free."
    if usage.free < needed:
        hint = f"Free up space, or move it to a separate disk. Without free space, {_WITHOUT_SPACE[name]}."
        return Error(text, hint=hint)
    if name == "REPOS_DIR" and usage.free < settings.MAX_FETCH_BYTES:
        limit = format_bytes(settings.MAX_FETCH_BYTES)
        return Warning(
            text, hint=f"A fetch may write up to {limit} (MAX_FETCH_BYTES). Free up space, or lower the limit."
        )
    return Info(text)


def check_mirrors() -> list[CheckMessage]:
    size, limit = cache.measure(), settings.REPOS_MAX_BYTES
    text = f"REPOS_DIR contains {counted(size.mirrors, 'mirror')} ({format_bytes(size.bytes)})"
    if not limit:
        return [Info(f"{text}. There is no limit (REPOS_MAX_BYTES).")]
    text = f"{text}. The limit is {format_bytes(limit)} (REPOS_MAX_BYTES)."
    if limit > size.bytes + shutil.disk_usage(settings.REPOS_DIR).free:
        hint = "The disk would be full before this limit is reached. Lower the limit, or free up space."
        return [Warning(text, hint=hint)]
    if size.bytes > limit:
        return [Info(f"{text} A worker on this server removes the excess after its next sync.")]
    return [Info(text)]


def check_workers() -> list[CheckMessage]:
    problem = health.check_workers(heartbeat.read())
    if problem != health.OK:
        return [from_health(problem)]
    workers = inspect.live_workers()
    if others := [worker.name for worker in workers if worker.has_other_key]:
        text = f"Started with another first key in ENCRYPTION_KEYS, or with another SECRET_KEY: {_join_first(others)}."
        hint = "Restart every process with the same keys. Otherwise, some can't read the secrets that others store."
        return [Error(text, hint=hint)]
    # `check_disk` is about this machine.
    problems = {worker.host: worker.disk_problem for worker in workers if worker.host != socket.gethostname()}
    if errors := [Error(f"On {host}, {problem}.") for host, problem in sorted(problems.items()) if problem]:
        return [*errors]
    hosts = [worker.host for worker in workers]
    return [Info(f"{counted(len(hosts), 'worker is', 'workers are')} running on {_join_first(sorted(set(hosts)))}.")]


def check_sweep() -> list[CheckMessage]:
    signs = heartbeat.read()
    problem = health.check_sweep(signs)
    if problem != health.OK or signs is None or signs.sweep_age is None:
        return [from_health(problem)]
    return [Info(f"The sweep last ran {format_seconds(signs.sweep_age)} ago.")]


def check_backlog() -> list[CheckMessage]:
    """Check for repositories that have been due for too long: no worker takes them, or the workers can't keep up."""
    counts = count_watches()
    if not counts.overdue or counts.due_since is None:
        return [Info(f"No repository has been due for more than {format_seconds(OVERDUE_SECONDS)}.")]
    number = counted(counts.overdue, "repository has", "repositories have")
    text = f"{number} been due for more than {format_seconds(OVERDUE_SECONDS)}, the longest for {_time_since(counts.due_since)}"
    is_idle = _has_idle_workers()
    if is_idle:  # every worker is idle for a moment between jobs
        time.sleep(_IDLE_SECONDS)
        is_idle = _has_idle_workers()
    if is_idle:
        hint = (
            "Check that the sweep is running, that all processes use the same REDIS_URL, and that workers listen to the queues "
            "high, default and low. See the logs of the sweep and the workers."
        )
        return [Error(f"{text}, although workers are idle.", hint=hint)]
    hint = "Run more workers (up --workers N)."
    return [Warning(f"{text}: the workers can't keep up, or none is running.", hint=hint)]


def _has_idle_workers() -> bool:
    """Return whether all workers are idle, or some are while no job waits for them."""
    state = inspect.read()
    if state is None:
        return False
    are_idle = [worker.state != "busy" for worker in state.workers if not worker.is_gone]
    return any(are_idle) and (all(are_idle) or not any(state.lengths.values()))


def check_pauses() -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    if pause := current_pause():
        text = f"{pause.paused_by} paused all syncing {_time_since(pause.since)} ago."
        messages.append(Warning(text, hint="Resume syncing on the Queue page."))
    paused = App.objects.filter(ended_at=None, paused=True).order_by("name").values_list("name", flat=True)
    if names := list(paused[: _LISTED + 1]):
        text = f"Nothing is sent to paused apps: {_join_first(names)}."
        messages.append(Warning(text, hint="Resume an app on its page when it is ready."))
    if paused_watches := AppRepository.objects.alive().exclude(paused_at=None).count():
        text = f"{counted(paused_watches, 'watched repository is', 'watched repositories are')} paused."
        hint = "Resume them in the list of watched repositories, filtered by the status Paused."
        messages.append(Warning(text, hint=hint))
    if importing := count_watches().importing:
        number = counted(importing, "watched repository is", "watched repositories are")
        text = f"{number} not fully imported. Nothing is checked or sent until the import is complete."
        hint = f"If no import is running, run {program()} import_docora again."
        messages.append(Warning(text, hint=hint))
    return messages or [Info("Nothing is paused.")]


def check_outages() -> list[CheckMessage]:
    """Check for git hosts that are down: the first `_LISTED`."""
    outages = HostOutage.objects.order_by("since", "pk")[:_LISTED]
    messages: list[CheckMessage] = []
    for outage in outages:
        text = (
            f"The git host {outage} has been down for {_time_since(outage.since)}. Nothing on it is synced meanwhile."
        )
        messages.append(Error(text, hint=outage.error))
    return messages or [Info("No git host is down.")]


def check_alerts() -> list[CheckMessage]:
    """Check that the channels have accepted the last alerts. It sends none."""
    if not alerts.configured():
        return [Info("Alerts are off: ALERT_WEBHOOK_URL and ALERT_EMAILS are empty.")]
    hint = f"Correct the setting or the server. Then run {program()} send_test_alert: what is waiting follows the test."
    messages: list[CheckMessage] = [
        Error(f"{capfirst(channel.get_name_display())} alerts can't be delivered. {channel.last_error}", hint=hint)
        for channel in alerts.undelivered()
    ]
    return messages or [Info("No alert is waiting to be delivered.")]


def check_delivery() -> list[CheckMessage]:
    """Send a signed ping to the reference client on this machine, and one signed with a wrong key.

    This covers the encryption, signing, JSON and HTTP client of every notification. No stored app is used.
    """
    key = crypto.decrypt(crypto.encrypt(crypto.new_webhook_key()))
    with tempfile.TemporaryDirectory() as directory, Receiver(Path(directory), key) as receiver:
        accepted = _ping(receiver.url, key)
        logged = receiver.log[-1] if receiver.log else None
        refused = _ping(receiver.url, crypto.new_webhook_key())
    if not accepted.ok or logged is None or not logged.verified:
        reason = " ".join(filter(None, [accepted.message, logged.outcome if logged else ""]))
        hint = "No app would accept a notification. Check this server's clock, keys and firewall."
        return [Error(f"A signed ping to a local test receiver failed. {reason}", hint=hint)]
    if refused.status != 401:
        text = f"A local test receiver accepted a ping signed with a wrong key. {refused.message}"
        return [Error(text, hint="Signatures are not verified. Report this bug.")]
    milliseconds = f"{accepted.elapsed * 1000:.0f} ms"
    text = f"A local test receiver accepted a signed ping in {milliseconds} and rejected one signed with a wrong key."
    return [Info(text)]


def _ping(url: str, key: str) -> Outcome:
    """Ping with this key. Only this client can call loopback addresses, and the app is never saved."""
    app = App(name="doctor", base_url=url, new_auth_key=key)
    loopback = [ip_network("127.0.0.0/8")]
    with HttpClient(loopback, allow_http=True, max_connections=1) as client:
        return post_ping(client, app, Keyring.of_new_key(app))


def check_app(app_id: str) -> list[CheckMessage]:
    """Send the same test ping as the app's page."""
    app = App.objects.filter(app_id=app_id).first() if can_be_id(app_id) else None
    try:
        if app is None:
            raise NotFound
        ping = send_ping(Actor.command(), app)
    except NotFound:
        return [Error(f"There is no app {app_id}.", hint="Copy the app ID from the app's page. It starts with app_.")]
    except crypto.DecryptionError as error:
        return [Error(str(error))]
    return [Info(f"{app}: {ping.message}") if ping.delivered else Error(f"{app}: {ping.message}", hint=ping.hint)]
