"""Push hooks of git hosts: a signed word that a repository may have changed. All it can cause is a check."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable

from django.db import transaction

from deliveries_app import scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository
from docora.security.crypto import Undecryptable

_SIGNATURE = re.compile("sha256=[0-9a-f]{64}")
WOKEN_AT_ONCE = 20  # watches of one repository; the sweep enqueues the others


def is_signed(repository_id: str, signature: str, body: Iterable[bytes]) -> bool:
    """Whether `signature` (`sha256=` and hex) is the HMAC of the body under the secret of one of the repository's
    watches. Secrets of any number of watches cost one pass over the body, which is never held as a whole.

    Where there is no secret, and where there is no such repository, a random one stands in: the work is the same. What
    is no signature at all is not worth reading the body.
    """
    if not _SIGNATURE.fullmatch(signature) or not repository_id.isprintable():
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
    fitting = [hmac.compare_digest(f"sha256={mac.hexdigest()}".encode(), given) for mac in macs]
    return any(fitting)  # all of them are compared first: the time does not tell which one fitted


def repository_pushed(actor: Actor, repository_id: str) -> int:
    """Check every watch of the repository as soon as possible. How many they are."""
    actor.require("deliveries_app.resync_apprepository")
    watches = AppRepository.objects.alive().filter(repository__repository_id=repository_id)
    with transaction.atomic():
        woken = scheduling.request_sync(watches)
        first = AppRepository.objects.filter(pk__in=woken[:WOKEN_AT_ONCE])
        for watch in first.select_related("app", "repository"):
            scheduling.enqueue(watch, "high")
    return len(woken)
