"""Write `sqlite.sql` and `postgresql.sql`: the schema of a checkout, with rows in every table.

`python -m tests.upgrade.make_dumps CHECKOUT` needs a checkout whose migrations end at `deliveries_app.0012_imported`, after
`make setup` in it. It uses only `manage.py migrate` of Docora, so it keeps working when models, modules and packages change.
The same checkout gives the same bytes.
"""

import base64
import datetime
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from cryptography.fernet import Fernet

from tests.support.postgres import PostgresServer

FOLDER = Path(__file__).parent

ENCRYPTION_KEY = "a-key-of-the-upgrade-tests"
SIGNING_KEY = "whsec_bm90LWEtcmVhbC1rZXktYnV0LW9mLXRoZS10ZXN0cyE="
GITHUB_TOKEN = "ghp_not-a-real-token-but-of-the-tests"
APP_TOKEN = "docora_not-a-real-token-but-of-the-tests"
PASSWORD = "a-password-of-the-tests"

BASE_URL = "http://portal.invalid"
WIDGETS_URL = "http://git.invalid/acme/widgets"
PRIVATE_URL = "http://git.invalid/acme/private"
WIDGETS = {
    "README.md": b"# Widgets\n",
    "src/changed.py": b"before = 1\n",
    "src/na\u00efve \u2713.py": b"naive = True\n",
    "src/removed.py": b"gone = 1\n",
}
"""The files of acme/widgets that the app Portal has acknowledged."""
IN_DOUBT, IN_DOUBT_CONTENT, IN_DOUBT_SEQUENCE = "docs/doubt.md", b"In doubt.\n", 1_767_600_000_000_004
"""A file announced to Portal that was never answered."""
PRIVATE = {"README.md": b"# Private\n"}
"""The files of acme/private that an import recorded as acknowledged by Portal."""

_NOW = datetime.datetime(2026, 1, 5, 8, 0, tzinfo=datetime.UTC)
_EARLIER = _NOW - datetime.timedelta(hours=1)
_LONG_AGO = _NOW - datetime.timedelta(days=30)

Row = dict[str, Any]


def encrypted(plain: str) -> str:
    """Return a Fernet token as Docora stores it, with a fixed time and initialization vector."""
    key = hashlib.scrypt(ENCRYPTION_KEY.encode(), salt=b"docora.encryption", n=2**12, r=8, p=1, dklen=32)
    fernet = Fernet(base64.urlsafe_b64encode(key))
    vector = hashlib.sha256(plain.encode()).digest()[:16]
    return fernet._encrypt_from_parts(plain.encode(), int(_NOW.timestamp()), vector).decode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def rows(key_of: Callable[..., int]) -> Iterator[tuple[str, Row]]:
    """Yield (table, row), parents first. `key_of(table, **values)` returns the key of a row that migrations made."""
    yield from accounts(key_of)
    yield from apps()
    yield from repositories()
    yield from watches()
    yield from records()
    yield from history()
    yield from alerts()


def accounts(key_of: Callable[..., int]) -> Iterator[tuple[str, Row]]:
    digest = base64.b64encode(hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), b"salt", 1000)).decode()
    common = {"password": f"pbkdf2_sha256$1000$salt${digest}", "is_staff": True, "is_active": True, "last_login": _NOW}
    common |= {"date_joined": _LONG_AGO, "last_name": ""}
    yield "auth_user", common | {
        "id": 1, "username": "anna", "first_name": "Anna", "email": "anna@docora.example", "is_superuser": True,
    }  # fmt: skip
    yield "auth_user", common | {
        "id": 2, "username": "victor", "first_name": "Victor", "email": "victor@docora.example", "is_superuser": False,
    }  # fmt: skip
    yield "auth_user_groups", {"id": 1, "user_id": 2, "group_id": key_of("auth_group", name="Viewers")}
    resync = key_of("auth_permission", codename="resync_apprepository")
    yield "auth_user_user_permissions", {"id": 1, "user_id": 2, "permission_id": resync}
    yield "django_session", {
        "session_key": "k2v1p3m5q7r9s1t3u5w7x9y1z3a5b7c9", "session_data": "e30:not-signed", "expire_date": _NOW,
    }  # fmt: skip
    yield "django_admin_log", {
        "id": 1, "user_id": 1, "object_id": "1", "object_repr": "Portal", "action_flag": 2, "action_time": _NOW,
        "content_type_id": key_of("django_content_type", app_label="deliveries_app", model="app"),
        "change_message": "Re-sync of 1 repository.",
    }  # fmt: skip
    attempt = {
        "username": "mallory", "ip_address": "192.0.2.1", "user_agent": "Firefox", "http_accept": "text/html",
        "path_info": "/admin/login/", "attempt_time": _NOW,
    }  # fmt: skip
    yield "axes_accessattempt", attempt | {"id": 1, "get_data": "", "post_data": "", "failures_since_start": 3}
    # Docora leaves axes_accessattemptexpiration empty: AXES_USE_ATTEMPT_EXPIRATION is off.
    yield "axes_accessfailurelog", attempt | {"id": 1, "locked_out": False}
    yield "axes_accesslog", attempt | {"id": 1, "username": "anna", "logout_time": _NOW, "session_hash": "0" * 64}


def apps() -> Iterator[tuple[str, Row]]:
    """Yield Portal, which is active, and Search, which is paused during a key rotation."""
    common = {
        "website": "https://docora.example", "description": "An app.", "client_auth_key": encrypted(SIGNING_KEY),
        "not_before": None, "down_count": 0, "max_in_flight": 8, "send_sync_completed": False, "ended_at": None,
        "created_at": _LONG_AGO, "updated_at": _NOW,
    }  # fmt: skip
    yield "deliveries_app_app", common | {
        "id": 1, "app_id": f"app_{1:024}", "name": "Portal", "base_url": BASE_URL, "email": "portal@docora.example",
        "paused": False, "paused_reason": "", "new_auth_key": "", "key_rotation_started_at": None,
        "new_key_signs": False, "new_key_accepted_at": None,
    }  # fmt: skip
    yield "deliveries_app_app", common | {
        "id": 2, "app_id": f"app_{2:024}", "name": "Search", "base_url": "http://search.invalid",
        "email": "search@docora.example", "paused": True, "paused_reason": "The app answered 410.", "down_count": 2,
        "new_auth_key": encrypted(SIGNING_KEY), "key_rotation_started_at": _EARLIER, "new_key_signs": True,
        "new_key_accepted_at": _NOW, "not_before": _NOW, "max_in_flight": 1, "send_sync_completed": True,
    }  # fmt: skip
    token = {"app_id": 1, "created_at": _EARLIER, "last_used_at": _NOW, "expires_at": None}
    yield "deliveries_app_apptoken", token | {"id": 1, "digest": sha256(APP_TOKEN.encode()), "ending": APP_TOKEN[-4:]}
    yield (
        "deliveries_app_apptoken",
        token | {"id": 2, "digest": sha256(b"replaced"), "ending": "aced", "expires_at": _NOW},
    )
    bcrypt = "$2b$04$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
    yield (
        "deliveries_app_apptoken",
        token | {"id": 3, "app_id": 2, "digest": bcrypt, "ending": "", "last_used_at": None},
    )
    yield "deliveries_app_hourlytraffic", {
        "id": 1, "app_id": 1, "hour": _NOW, "files": 4, "bytes": 50, "failed": 1, "requests": 5, "milliseconds": 90,
    }  # fmt: skip
    yield "deliveries_app_syncpause", {"id": 1, "since": _NOW, "paused_by": "anna"}
    yield "deliveries_app_imported", {"id": 1, "app_id": f"app_{2:024}", "repository_id": ""}
    yield "deliveries_app_imported", {"id": 2, "app_id": f"app_{2:024}", "repository_id": f"repo_{3:024}"}


def repositories() -> Iterator[tuple[str, Row]]:
    """Yield three repositories. The circuit of the second is open. The third is the first one's twin, as after an import."""
    common = {
        "twin": 0, "owner": "acme", "is_private": False, "consecutive_failures": 0, "last_failure_at": None,
        "circuit_open_until": None, "last_error": "", "last_error_cause": "", "created_at": _LONG_AGO, "updated_at": _NOW,
    }  # fmt: skip
    yield "repositories_app_repository", common | {
        "id": 1, "repository_id": f"repo_{1:024}", "canonical_url": WIDGETS_URL, "name": "widgets",
    }  # fmt: skip
    yield "repositories_app_repository", common | {
        "id": 2, "repository_id": f"repo_{2:024}", "canonical_url": PRIVATE_URL, "name": "private", "is_private": True,
        "consecutive_failures": 5, "last_failure_at": _EARLIER, "circuit_open_until": _NOW,
        "last_error": "The git host does not answer.", "last_error_cause": "network",
    }  # fmt: skip
    yield "repositories_app_repository", common | {
        "id": 3, "repository_id": f"repo_{3:024}", "canonical_url": WIDGETS_URL, "name": "widgets", "twin": 1,
    }  # fmt: skip
    yield "repositories_app_snapshot", {
        "id": 1, "repository_id": 1, "commit_sha": "1" * 40, "branch": "main", "file_count": 5, "total_bytes": 55,
        "created_at": _NOW,
    }  # fmt: skip


def watches() -> Iterator[tuple[str, Row]]:
    """Yield the watches. Portal has a synced one, a failed one and one that is being imported. Search, which is paused,
    has one whose worker died and one that has ended."""
    common = {
        "github_token": "", "push_secret": "", "ignore_patterns": "", "status": "pending_snapshot", "generation": 1,
        "resend_floor": 1, "wanted": 1, "next_sync_at": _NOW, "next_check_at": _NOW, "retry_count": 0, "last_error": "",
        "last_error_cause": "", "root_cause": "", "last_status_code": None, "last_answer": "", "failing_since": None,
        "last_scanned_at": _NOW, "moved_at": None, "last_synced_at": None, "last_commit": "", "branch": "main",
        "base_commit": "", "base_rules": "", "tree_files": 0, "tree_bytes": 0, "files_failing": 0, "left_out": "{}",
        "claim": 0, "claim_wanted": 0, "lease_until": None, "lease_slots": 0, "lease_owner": "", "slots_wanted_at": None,
        "intent_high": 0, "arriving": False, "ended_at": None, "created_at": _LONG_AGO,
    }  # fmt: skip
    yield "deliveries_app_apprepository", common | {
        "id": 1, "app_id": 1, "repository_id": 1, "watch_id": "0" * 15 + "1", "github_url": WIDGETS_URL,
        "push_secret": encrypted("a-push-secret"), "ignore_patterns": "*.log\nbuild/", "status": "synced",
        "generation": 3, "resend_floor": 2, "wanted": 7, "next_sync_at": None, "moved_at": _EARLIER,
        "last_synced_at": _EARLIER, "last_commit": "1" * 40, "base_commit": "1" * 40, "base_rules": "2" * 64,
        "tree_files": 5, "tree_bytes": 55, "left_out": json.dumps({"symlink": 1}), "claim": 4, "claim_wanted": 7,
        "intent_high": IN_DOUBT_SEQUENCE,
    }  # fmt: skip
    yield "deliveries_app_apprepository", common | {
        "id": 2, "app_id": 1, "repository_id": 2, "watch_id": "0" * 15 + "2", "github_url": PRIVATE_URL,
        "github_token": encrypted(GITHUB_TOKEN), "status": "failed", "next_sync_at": None, "retry_count": 4,
        "last_error": "The git host does not answer.", "last_error_cause": "network", "root_cause": "git_host",
        "failing_since": _EARLIER, "claim": 5, "claim_wanted": 1,
    }  # fmt: skip
    yield "deliveries_app_apprepository", common | {
        "id": 3, "app_id": 1, "repository_id": 3, "watch_id": "0" * 15 + "3", "github_url": f"{WIDGETS_URL}.git",
        "arriving": True,
    }  # fmt: skip
    yield "deliveries_app_apprepository", common | {
        "id": 4, "app_id": 2, "repository_id": 1, "watch_id": "0" * 15 + "4", "github_url": WIDGETS_URL,
        "status": "scanning", "retry_count": 1, "root_cause": "http_5xx", "last_status_code": 503, "last_answer": "busy",
        "last_error": "The app answered 503.", "last_error_cause": "http", "failing_since": _EARLIER, "files_failing": 1,
        "claim": 1, "claim_wanted": 1, "lease_until": _NOW, "lease_slots": 1, "lease_owner": "worker-1",
        "slots_wanted_at": _NOW,
    }  # fmt: skip
    yield "deliveries_app_apprepository", common | {
        "id": 5, "app_id": 2, "repository_id": 2, "watch_id": "0" * 15 + "5", "github_url": PRIVATE_URL,
        "generation": 2, "ended_at": _NOW,
    }  # fmt: skip


def records() -> Iterator[tuple[str, Row]]:
    """Yield the files that Portal acknowledged, one in doubt, and those that could not be sent."""
    common = {
        "pair_id": 1, "source_path": "", "mode": "100644", "generation": 2, "remark": "", "hold_until": None,
        "attempts": 0, "updated_at": _EARLIER,
    }  # fmt: skip
    for number, (path, content) in enumerate(WIDGETS.items(), 1):
        yield "deliveries_app_delivery", common | {
            "id": number, "path": path, "kind": "create", "source_key": blob_id(content), "sha": sha256(content),
            "size": len(content), "intent": IN_DOUBT_SEQUENCE - 10 + number, "acknowledged": True,
            "held_sha": sha256(content),
        }  # fmt: skip
    yield "deliveries_app_delivery", common | {
        "id": 11, "path": IN_DOUBT, "kind": "create", "source_key": blob_id(IN_DOUBT_CONTENT), "generation": 3,
        "sha": sha256(IN_DOUBT_CONTENT), "size": len(IN_DOUBT_CONTENT), "intent": IN_DOUBT_SEQUENCE,
        "acknowledged": False, "held_sha": None, "attempts": 1, "hold_until": _NOW,
    }  # fmt: skip
    for path, content in PRIVATE.items():
        yield "deliveries_app_delivery", common | {
            "id": 12, "pair_id": 2, "path": path, "kind": "create", "source_key": None, "sha": sha256(content),
            "size": 0, "intent": 0, "generation": 1, "acknowledged": True, "held_sha": sha256(content),
        }  # fmt: skip
    yield "deliveries_app_delivery", common | {
        "id": 13, "pair_id": 4, "path": "portal/model.bin", "source_path": "model.bin", "remark": "lfs_pointer",
        "kind": "update", "source_key": f"{'3' * 40}:{'4' * 32}", "sha": "5" * 64, "size": 130, "intent": 9,
        "generation": 1, "acknowledged": True, "held_sha": "5" * 64,
    }  # fmt: skip
    failure = {"attempts": 2, "first_at": _EARLIER, "last_at": _NOW}
    yield "deliveries_app_deliveryfailure", failure | {
        "id": 1, "pair_id": 1, "path": "link", "path_digest": sha256(b"link"), "kind": "skipped", "cause": "symlink",
        "status_code": None, "message": "A symbolic link.", "body": "",
    }  # fmt: skip
    yield "deliveries_app_deliveryfailure", failure | {
        "id": 2, "pair_id": 4, "path": "README.md", "path_digest": sha256(b"README.md"), "kind": "failed",
        "cause": "http", "status_code": 503, "message": "The app answered 503.", "body": "busy",
    }  # fmt: skip


def history() -> Iterator[tuple[str, Row]]:
    """Yield an open and a cancelled operation with their runs, and a due notice."""
    operation = {
        "app_id": 1,
        "requested_by": "anna",
        "user_id": 1,
        "total": 1,
        "created_at": _EARLIER,
        "dismissed_at": None,
    }
    yield "deliveries_app_bulkoperation", operation | {
        "id": 1, "operation_id": f"bulk_{1:016}", "kind": "resync", "title": "Re-sync of 1 repository", "ended_at": _NOW,
        "cancelled_at": _NOW, "cancelled_by": "anna", "dismissed_at": _NOW,
    }  # fmt: skip
    yield "deliveries_app_bulkoperation", operation | {
        "id": 2, "operation_id": f"bulk_{2:016}", "kind": "retry", "title": "Retry of 1 repository", "app_id": 2,
        "ended_at": None, "cancelled_at": None, "cancelled_by": "",
    }  # fmt: skip
    run = {
        "operation_id": None, "requested_by": "anna", "user_id": 1, "generation": 1, "attempts": 1,
        "created_at": _EARLIER, "started_at": _EARLIER, "ended_at": _NOW, "commit_sha": "1" * 40, "files_total": 5,
        "files_done": 5, "files_failed": 0, "files_skipped": 1, "left_out": json.dumps({"symlink": 1}), "bytes_total": 55,
        "bytes_done": 55, "error": "", "app_name": "Portal", "repository_name": "acme/widgets",
    }  # fmt: skip
    yield "deliveries_app_syncrun", run | {
        "id": 1, "run_id": f"run_{1:024}", "pair_id": 1, "reason": "initial", "outcome": "succeeded",
    }  # fmt: skip
    yield "deliveries_app_syncrun", run | {
        "id": 2, "run_id": f"run_{2:024}", "pair_id": 1, "reason": "resync", "outcome": "cancelled", "operation_id": 1,
    }  # fmt: skip
    yield "deliveries_app_syncrun", run | {
        "id": 3, "run_id": f"run_{3:024}", "pair_id": 2, "repository_name": "acme/private", "reason": "change",
        "outcome": "failed", "requested_by": "system", "user_id": None, "error": "The git host does not answer.",
        "files_done": 0, "files_failed": 5, "commit_sha": "",
    }  # fmt: skip
    yield "deliveries_app_syncrun", run | {
        "id": 4, "run_id": f"run_{4:024}", "pair_id": 4, "app_name": "Search", "reason": "retry", "outcome": "",
        "operation_id": 2, "ended_at": None, "files_done": 1, "bytes_done": 10,
    }  # fmt: skip
    body = {
        "event": "sync_failed",
        "repository": {
            "repository_id": f"repo_{2:024}", "github_url": PRIVATE_URL, "owner": "acme", "name": "private",
        },
        "error": {"type": "git_failure", "message": "The git host does not answer.", "reason": "network"},
        "circuit_breaker": {
            "status": "open", "consecutive_failures": 5, "threshold": 5, "cooldown_until": "2026-01-05T08:00:00.000Z",
        },
        "retry_count": 4,
    }  # fmt: skip
    yield "deliveries_app_notice", {
        "id": 1, "pair_id": 2, "kind": "sync_failed", "intent": None, "generation": 1, "attempts": 1, "due_at": _NOW,
        "facts": json.dumps(body, separators=(",", ":")), "last_error": "The app answered 500.",
        "created_at": _EARLIER,
    }  # fmt: skip


def alerts() -> Iterator[tuple[str, Row]]:
    """Yield an open alert and one that is over."""
    yield "deliveries_app_alert", {
        "id": 1, "kind": "failing", "subject": 2, "name": "acme/private \u2192 Portal", "cause": "git_host",
        "since": _EARLIER, "opened": 1, "closed": None, "ended_at": None,
    }  # fmt: skip
    yield "deliveries_app_alert", {
        "id": 2, "kind": "redis_down", "subject": 0, "name": "", "cause": "", "since": _EARLIER, "opened": 1, "closed": 2,
        "ended_at": _NOW,
    }  # fmt: skip
    yield "deliveries_app_alertround", {"id": 1, "number": 2, "looked_at": _NOW}
    yield "deliveries_app_alertchannel", {
        "id": 1, "name": "email", "told_begun": 2, "told_ended": 1, "reminded_at": _NOW, "due_at": _NOW, "attempts": 1,
        "last_error": "No answer.", "created_at": _LONG_AGO,
    }  # fmt: skip


def fill(execute: Callable[..., Any], placeholder: str) -> None:
    """Insert every row. `execute(statement, values)` returns a cursor."""

    def key_of(table: str, **values: str) -> int:
        where = " AND ".join(f"{column} = {placeholder}" for column in values)
        [(key,)] = execute(f"SELECT id FROM {table} WHERE {where}", [*values.values()]).fetchall()
        return int(key)

    execute(f"UPDATE django_migrations SET applied = {placeholder}", [_NOW])
    for table, row in rows(key_of):
        columns, values = ", ".join(f'"{column}"' for column in row), ", ".join([placeholder] * len(row))
        execute(f"INSERT INTO {table} ({columns}) VALUES ({values})", [*row.values()])


def migrate(checkout: Path, url: str, directory: str) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "DATA_DIR": directory,
        "DATABASE_URL": url,
        "DOCORA_ENV_FILE": os.devnull,
    }
    command = [".venv/bin/python", "manage.py", "migrate", "--verbosity", "0"]  # with the packages of that version
    subprocess.run(command, cwd=checkout, env=environment, check=True)


def dump_sqlite(checkout: Path) -> str:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "docora.sqlite3"
        migrate(checkout, f"sqlite:///{file}", directory)
        with closing(sqlite3.connect(file)) as database:

            def execute(statement: str, values: list[Any]) -> sqlite3.Cursor:
                plain = [
                    str(value.replace(tzinfo=None)) if isinstance(value, datetime.datetime) else value
                    for value in values
                ]
                return database.execute(statement, plain)

            fill(execute, "?")
            database.commit()
            return "\n".join(database.iterdump()) + "\n"


def dump_postgresql(checkout: Path) -> str:
    with tempfile.TemporaryDirectory() as directory, PostgresServer() as server:
        migrate(checkout, server.url, directory)
        with psycopg.connect(server.url) as database:
            fill(database.execute, "%s")
            sequences = database.execute(
                "SELECT table_name, column_name FROM information_schema.columns WHERE is_identity = 'YES'"
            ).fetchall()
            for table, column in sequences:
                highest = f"(SELECT coalesce(max({column}), 1) FROM {table})"
                database.execute(f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), {highest})")
        command = [str(server._binary("pg_dump")), "--no-owner", "--no-privileges", "--rows-per-insert=1000"]
        dump = subprocess.run([*command, f"--dbname={server.url}"], capture_output=True, text=True, check=True).stdout
    # Keep plain SQL for any connection. Drop psql's own commands and the session settings.
    noise = ("--", "\\", "SET ", "SELECT pg_catalog.set_config(")
    return "".join(f"{line}\n" for line in dump.splitlines() if line and not line.startswith(noise))


if __name__ == "__main__":
    (FOLDER / "sqlite.sql").write_text(dump_sqlite(Path(sys.argv[1])))
    (FOLDER / "postgresql.sql").write_text(dump_postgresql(Path(sys.argv[1])))
