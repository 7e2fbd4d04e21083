"""Notifications that are not about one file."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime

from deliveries_app import rows
from deliveries_app.lease import Lease
from deliveries_app.payloads import endpoint, sync_completed_body, webhook_id
from deliveries_app.sender import Destination
from docora.http.client import HttpClient, Request
from repositories_app.remote import wait_for


class NoticeRefused(Exception):
    """The files arrived, but the notice about it was not accepted."""


def tree_sha256(pair_pk: int) -> str:
    """SHA-256 over the lines `{sha}  {path}\\n` of every file that the app acknowledged, in byte order of the paths."""
    digest = hashlib.sha256()
    for path, sha in rows.held(pair_pk):
        digest.update(f"{sha}  {path}\n".encode())
    return digest.hexdigest()


def send_sync_completed(
    client: HttpClient, lease: Lease, to: Destination, files: int, alive: Callable[[], None]
) -> None:
    """Tell the app with one hash what it should hold now; `NoticeRefused` when it does not answer 2xx."""
    now = datetime.now(UTC)
    body = sync_completed_body(to.repository, to.commit, files, tree_sha256(lease.pair.pk), now)
    intent = lease.reserve_intents(1)
    lease.extend()
    headers = to.envelope.headers(body, webhook_id(to.watch_id, intent), intent, int(now.timestamp()))
    request = Request("POST", endpoint(to.base_url, "sync_completed"), headers, body, repeatable=True)
    outcome = wait_for(client, request, alive)
    if not outcome.ok:
        detail = outcome.message if outcome.cause else f"it answered {outcome.status}"
        raise NoticeRefused(f"All files were acknowledged, but /sync_completed was not: {detail}")
