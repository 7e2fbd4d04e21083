"""Handle push hooks: signed requests in which a git host reports that a repository may have changed.

They only trigger a sync. The rest of their content is ignored.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable

from django.db import transaction
from django.db.models.functions import Now

from deliveries_app import scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository
from docora.security.crypto import Undecryptable
from docora.text import can_be_id

_SIGNATURE = re.compile("sha256=[0-9a-f]{64}")
ENQUEUED_AT_ONCE = 20  # watches of one repository; the sweep enqueues the others


def is_signed(repository_id: str, signature: str, body: Iterable[bytes]) -> bool:
    """Return whether `signature` (`sha256=` + hex) is the body's HMAC under the secret of one of the repository's watches.

    The body is read once for all secrets and never held in memory; it is not read at all if the signature is malformed.
    Without a secret, or without such a repository, a random secret is used, so that the response time reveals neither.
    """
    if not _SIGNATURE.fullmatch(signature) or not can_be_id(repository_id):
        return False
    watches = AppRepository.objects.alive().filter(repository__repository_id=repository_id)
    known = watches.values_list("push_secret", flat=True)
    readable = [secret.encode() for secret in known if secret and not isinstance(secret, Undecryptable)]
    keys = readable or [secrets.token_bytes(32)]
    macs = [hmac.new(key, digestmod=hashlib.sha256) for key in keys]
    for piece in body:
        for mac in macs:
            mac.update(piece)
    given = signature.encode()
    matches = [hmac.compare_digest(f"sha256={mac.hexdigest()}".encode(), given) for mac in macs]
    return any(matches)  # after comparing all of them, so that the time does not reveal which one matched


def repository_pushed(actor: Actor, repository_id: str) -> int:
    """Make every watch of the repository due now. Return how many there are."""
    actor.require("deliveries_app.resync_apprepository")
    watches = AppRepository.objects.alive().filter(repository__repository_id=repository_id)
    with transaction.atomic():
        due = scheduling.request_sync(watches, pushed_at=Now())
        first = AppRepository.objects.filter(pk__in=due[:ENQUEUED_AT_ONCE])
        for watch in first.select_related("app", "repository"):
            scheduling.enqueue(watch, "high")
    return len(due)
