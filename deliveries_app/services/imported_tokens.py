"""Recognise imported tokens, which are stored as bcrypt hashes, and replace each hash with a SHA-256 digest on first use.

bcrypt is slow by design, and a token does not say which app it belongs to, so it has to be checked against one hash
after another, at about 0.25 s each. These limits bound the total cost:

- Only strings that look like a token are checked, and only while bcrypt hashes remain.
- One search runs at a time in a process. A few requests wait for it; others raise `Busy`.
- A token that matched no hash is remembered for a while.
- After `throttle.FAILURES` failed searches within a minute, an address gets `Busy`. Only failed searches count, so
  other failures, repeated use of one unknown token, and apps that are recognised never block their address.
"""

import contextlib
import re
import threading
from collections.abc import Iterator

from deliveries_app.models import App, AppToken
from deliveries_app.services import tokens
from docora.redis.connection import RedisError, connection, logging_outage
from docora.security import throttle
from docora.security.crypto import hash_token

try:
    import bcrypt
except ImportError:  # an installation without the extra `import`
    bcrypt = None  # type: ignore[assignment]

HASH = re.compile(r"\$2[aby]\$(0[4-9]|1[0-4])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
"""bcrypt hashes of at most cost 14, which takes about a second to check.

The 22nd character of the salt encodes the last two of its 128 bits. For any character but these four, bcrypt raises `ValueError`.
"""
REMEMBERED_SECONDS = 600
_TOKEN = re.compile("docora_[0-9a-f]{64}")  # 71 bytes; bcrypt takes 72
_FAILURE_KIND = "search"  # for `throttle`
_WAIT_SECONDS = 5.0
MAX_CONCURRENT = 4  # one searches, the others wait; each blocks a thread of the web process

_search = threading.Lock()
_slots = threading.BoundedSemaphore(MAX_CONCURRENT)


class Busy(Exception):
    """The token was not checked. The client can try again after `seconds`."""

    def __init__(self, reason: str, seconds: int) -> None:
        self.seconds = seconds
        super().__init__(f"{reason}: try again in {seconds} seconds.")


class BcryptMissing(Exception):
    """The package that verifies imported tokens is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "Verifying tokens from the existing service requires bcrypt, which is not installed. Install bcrypt or "
            "docora[import]."
        )


def require_bcrypt() -> None:
    """Raise `BcryptMissing` unless imported tokens can be verified."""
    if bcrypt is None:
        raise BcryptMissing


def recognise(token: str, address: str = "") -> App | None:
    """Return the app that this imported token belongs to and store the token's digest, or return None.

    `address` is the client's IP address. Raises `Busy` if the token cannot be checked now, and `BcryptMissing`.
    """
    if not _TOKEN.fullmatch(token) or not (hashes := _hashes()) or _is_remembered(token, hashes):
        return None
    require_bcrypt()
    wait = throttle.seconds_to_wait(_FAILURE_KIND, address)
    if wait is not None:
        raise Busy("Too many unknown tokens were tried from this address", wait)
    with _exclusive_search():
        found = tokens.authenticate(token)  # another request with this token may have just finished its search
        if found is not None:
            return found
        hashes = _hashes()
        for pk, known in hashes.items():
            if bcrypt.checkpw(token.encode(), known.encode()):
                AppToken.objects.filter(pk=pk, digest=known).update(digest=hash_token(token), ending=token[-4:])
                return tokens.authenticate(token)
    _remember(token, hashes)
    throttle.count_failure(_FAILURE_KIND, address)
    return None


def _hashes() -> dict[int, str]:
    """Return primary key → bcrypt hash of every token that is accepted now, in primary key order."""
    live = AppToken.objects.filter(tokens.not_expired(), app__ended_at=None)
    stored = live.filter(digest__startswith="$").order_by("pk").values_list("pk", "digest")
    return {pk: known for pk, known in stored if HASH.fullmatch(known)}


@contextlib.contextmanager
def _exclusive_search() -> Iterator[None]:
    busy = Busy("Other tokens are being recognised for the first time", round(_WAIT_SECONDS))
    with contextlib.ExitStack() as acquired:
        if not _slots.acquire(blocking=False):
            raise busy
        acquired.callback(_slots.release)
        if not _search.acquire(timeout=_WAIT_SECONDS):
            raise busy
        acquired.callback(_search.release)
        yield


def _key(token: str, hashes: dict[int, str]) -> str:
    """Return the Redis key. It changes when another import adds hashes that the token was not checked against."""
    return f"docora:unknown-token:{max(hashes, default=0)}:{hash_token(token)}"


def _is_remembered(token: str, hashes: dict[int, str]) -> bool:
    try:
        return bool(connection().exists(_key(token, hashes)))
    except RedisError:
        return False


def _remember(token: str, hashes: dict[int, str]) -> None:
    with logging_outage("unknown_token_not_cached"):
        connection().set(_key(token, hashes), 1, ex=REMEMBERED_SECONDS)
