"""Tokens that an import brought as bcrypt hashes: recognised at their first use, and known by their SHA-256 from then on.

bcrypt is slow on purpose, and a hash does not tell whose it is: a token has to be tried against one after the other, a
quarter of a second each. What that may cost together is bounded. Only what looks like a token is tried, and only while
there are such hashes; one search goes on at a time in a process, a few wait for it, others are told to come back; a token
that fitted none is remembered for a while; and an address has `throttle.FAILURES` searches in vain within a minute, after
which it is told to come back. Only those count: a client that fails in any other way, or again and again with one token,
holds up nobody at its address, and neither do apps that are recognised.
"""

import contextlib
import logging
import re
import threading
from collections.abc import Iterator

from django.db.models import Q
from django.db.models.functions import Now

from deliveries_app.models import App, AppToken
from deliveries_app.services import tokens
from docora.redis.connection import RedisError, connection
from docora.security import throttle
from docora.security.crypto import hash_token

try:
    import bcrypt
except ImportError:  # an installation without the extra `import`
    bcrypt = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

HASH = re.compile(r"\$2[aby]\$(0[4-9]|1[0-4])\$[./A-Za-z0-9]{53}")
"""Nothing slower is accepted than a second or so for each try."""
REMEMBERED_SECONDS = 600
_TOKEN = re.compile("docora_[0-9a-f]{64}")  # 71 bytes; bcrypt takes 72
_IN_VAIN = "search"  # of the failures that are counted
_WAIT_SECONDS = 5.0
_AT_ONCE = 4  # the search and those who wait for it: each of them keeps a thread of the web process

_search = threading.Lock()
_places = threading.BoundedSemaphore(_AT_ONCE)


class Busy(Exception):
    """It was not searched for now; try again in so many `seconds`."""

    def __init__(self, words: str, seconds: int) -> None:
        self.seconds = seconds
        super().__init__(f"{words}: try again in {seconds} seconds.")


class BcryptMissing(Exception):
    """The package that verifies imported tokens is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "Tokens of the existing service can only be verified with bcrypt, which is not installed: "
            "install the package bcrypt, or Docora with its extra, docora[import]."
        )


def require_bcrypt() -> None:
    """Raise `BcryptMissing` unless imported tokens can be verified."""
    if bcrypt is None:
        raise BcryptMissing


def recognise(token: str, address: str = "") -> App | None:
    """The app whose imported token this is, from now on known by its digest; None if it is nobody's. `address` is where it
    comes from. Raises `Busy` and `BcryptMissing`."""
    if not _TOKEN.fullmatch(token) or not (hashes := _hashes()) or _is_remembered(token, hashes):
        return None
    require_bcrypt()
    wait = throttle.seconds_to_wait(_IN_VAIN, address)
    if wait is not None:
        raise Busy("Too many unknown tokens were tried from this address", wait)
    with _turn():
        found = tokens.authenticate(token)  # whoever was waited for may have been the same app
        if found is not None:
            return found
        hashes = _hashes()
        for pk, known in hashes.items():
            if bcrypt.checkpw(token.encode(), known.encode()):
                AppToken.objects.filter(pk=pk, digest=known).update(digest=hash_token(token), ending=token[-4:])
                return tokens.authenticate(token)
    _remember(token, hashes)
    throttle.count_failure(_IN_VAIN, address)
    return None


def _hashes() -> dict[int, str]:
    """The key of each token that is known by such a hash and accepted now → the hash, in the order of the keys."""
    live = AppToken.objects.filter(Q(expires_at=None) | Q(expires_at__gt=Now()), app__ended_at=None)
    return dict(live.filter(digest__startswith="$").order_by("pk").values_list("pk", "digest"))


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    busy = Busy("Other tokens are being recognised for the first time", round(_WAIT_SECONDS))
    if not _places.acquire(blocking=False):
        raise busy
    try:
        if not _search.acquire(timeout=_WAIT_SECONDS):
            raise busy
        try:
            yield
        finally:
            _search.release()
    finally:
        _places.release()


def _key(token: str, hashes: dict[int, str]) -> str:
    """Another import brings new hashes, against which the token has not been tried."""
    return f"docora:unknown-token:{max(hashes, default=0)}:{hash_token(token)}"


def _is_remembered(token: str, hashes: dict[int, str]) -> bool:
    try:
        return bool(connection().exists(_key(token, hashes)))
    except (RedisError, OSError):
        return False


def _remember(token: str, hashes: dict[int, str]) -> None:
    try:
        connection().set(_key(token, hashes), 1, ex=REMEMBERED_SECONDS)
    except (RedisError, OSError) as error:
        logger.warning("not_remembered", extra={"cause": str(error)})
