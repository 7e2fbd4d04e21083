"""New secrets on their way to the one page that shows them.

A page in answer to the POST that made them would be sent again by a refresh, and would make others. So they wait,
encrypted, in the session for the one GET that the POST leads to.
"""

from dataclasses import dataclass, field
from typing import Any

from django.http import HttpRequest

from docora.security.crypto import decrypt, encrypt

_SESSION_KEY = "docora_shown_once"


@dataclass(frozen=True)
class Kept:
    """What is to be shown: the `kind` of occasion, the primary key of whose secrets they are, and they by name."""

    kind: str
    pk: int
    secrets: dict[str, str] = field(repr=False)


def keep(request: HttpRequest, kind: str, pk: int, **secrets: str) -> None:
    """Until the next `take`; what was kept before and never shown is dropped."""
    hidden = {name: encrypt(value) for name, value in secrets.items()}
    request.session[_SESSION_KEY] = {"kind": kind, "pk": pk, "secrets": hidden}


def take(request: HttpRequest, *kinds: str) -> Kept | None:
    """What is kept of one of these kinds, once."""
    kept: dict[str, Any] = request.session.get(_SESSION_KEY) or {}
    if kept.get("kind") not in kinds:
        return None
    del request.session[_SESSION_KEY]
    secrets = {name: decrypt(value) for name, value in kept["secrets"].items()}
    return Kept(kept["kind"], kept["pk"], secrets)
