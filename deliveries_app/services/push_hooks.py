"""Handle push hooks: requests in which a git host reports that a repository may have changed.

They only trigger a sync; their content is ignored. A host proves that it knows the secret of a watch: it signs the
body (GitHub, Gitea, Forgejo, Bitbucket) or sends the secret itself (GitLab, Azure DevOps).
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterable, Mapping

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from deliveries_app import scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository
from deliveries_app.permissions import Permission
from docora.db.clock import from_now
from docora.security.crypto import Undecryptable
from docora.text import can_be_id

SIGNATURE_HEADERS = {
    "X-Hub-Signature-256": "sha256=",  # GitHub, and also sent by Gitea and Forgejo
    "X-Hub-Signature": "sha256=",  # Bitbucket; GitHub sends the SHA-1 here, which is not accepted
    "X-Gitea-Signature": "",
    "X-Forgejo-Signature": "",
}
"""Header with the hex HMAC-SHA256 of the body → the prefix before the digits."""
_HEX = re.compile("[0-9a-f]{64}")
ENQUEUED_AT_ONCE = 20  # watches of one repository; the sweep enqueues the others
OTHERS_SECONDS = 5.0
"""Within this time after a watch's last push, a hook that does not prove the watch's own secret only checks the watch."""


def proven_watches(repository_id: str, headers: Mapping[str, str], body: Iterable[bytes]) -> list[int]:
    """Return the primary keys of the repository's watches whose secret, or a signature made with it, is in the headers.

    The body is read only if there is a well-formed signature, once for all secrets, and never held in memory. If the
    repository or its secret does not exist, a random secret is used, so that the response time does not reveal this.
    """
    values = [(headers.get(name, ""), prefix) for name, prefix in SIGNATURE_HEADERS.items()]
    given = [value.removeprefix(prefix) for value, prefix in values if value.startswith(prefix)]
    signatures = list(filter(_HEX.fullmatch, given))
    plain = [text for text in (headers.get("X-Gitlab-Token"), _password(headers.get("Authorization", ""))) if text]
    if not (signatures or plain) or not can_be_id(repository_id):
        return []
    watches = AppRepository.objects.alive().filter(repository__repository_id=repository_id)
    known = watches.values_list("pk", "push_secret")
    keys = {pk: secret.encode() for pk, secret in known if secret and not isinstance(secret, Undecryptable)}
    keys = keys or {0: secrets.token_bytes(32)}
    # All are compared, so that the time does not reveal which one matched.
    matches = [
        (hmac.compare_digest(_digest(key), _digest(secret.encode())), pk)
        for pk, key in keys.items()
        for secret in plain
    ]
    if signatures:
        macs = {pk: hmac.new(key, digestmod=hashlib.sha256) for pk, key in keys.items()}
        for piece in body:
            for mac in macs.values():
                mac.update(piece)
        matches += [
            (hmac.compare_digest(mac.hexdigest(), given), pk) for pk, mac in macs.items() for given in signatures
        ]
    return [pk for is_equal, pk in matches if is_equal]


def _password(authorization: str) -> str:
    """Return the password of HTTP Basic, the only authentication of Azure DevOps. The user name can be anything."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _digest(secret: bytes) -> bytes:
    """Return a digest to compare, which has the same length for every secret."""
    return hashlib.sha256(secret).digest()


def hook_url(watch: AppRepository) -> str:
    """Return the URL that the git host sends its push hooks to."""
    return f"{settings.PUBLIC_URL}/api/hooks/push/{watch.repository.repository_id}"


def repository_pushed(actor: Actor, repository_id: str, proven: Collection[int]) -> int:
    """Make the watches of the repository due now. Return how many there are. `proven` are those whose secret the host knows.

    A failing watch is only checked, once a running attempt has ended, and synced if there is a new commit. Otherwise, pushes
    to other branches, or the hooks of another app, would use up its attempts. The same applies to a watch whose last push was
    less than `OTHERS_SECONDS` ago, unless it is in `proven`: an app that keeps announcing pushes must not use up the rate
    limits of other apps' tokens. A watch that is due later without failing, for example after a cancel, stays so, unless it
    waits only to send a notice again.
    """
    actor.require(Permission.RESYNC)
    watches = AppRepository.objects.alive().filter(repository__repository_id=repository_id)
    with transaction.atomic():
        locked = AppRepository.objects.filter(pk__in=watches.lock())
        was_pushed = Q(pushed_at__gt=from_now(-OTHERS_SECONDS)) & ~Q(pk__in=proven)
        is_only_checked = Q(next_sync_at__gt=Now()) | Q(failing_since__isnull=False) | was_pushed
        to_check = list(locked.filter(is_only_checked).values_list("pk", flat=True))
        due = scheduling.request_sync(locked.exclude(pk__in=to_check), pushed_at=Now())
        # `next_check_at` = `pushed_at` marks a check that a running sync does not postpone.
        checked = locked.filter(pk__in=to_check).update(next_check_at=Now(), pushed_at=Now())
        first = AppRepository.objects.filter(pk__in=due[:ENQUEUED_AT_ONCE])
        for watch in first.select_related("app", "repository"):
            scheduling.enqueue(watch)
    return len(due) + checked
