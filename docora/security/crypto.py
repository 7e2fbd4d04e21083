"""Secrets at rest: encrypted columns, hashed tokens.

`ENCRYPTION_KEYS` is a list, newest first: the first one encrypts, every one decrypts (`MultiFernet`), so a key is
rotated by putting a new one in front (`docora.security.reencryption` does the rest). Each entry may be any string of at least 16
characters; the Fernet key is derived from it, so operators can use the secrets that their platform generates.

A column that no key opens is not an error of the query that read it, or one lost key would take whole lists, sweeps and
pages with it: it arrives as `Undecryptable`, which raises `DecryptionError` where it is used as a secret.
"""

import base64
import hashlib
import secrets
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import Expression

if TYPE_CHECKING:
    TextField = models.TextField[str, str]
else:
    TextField = models.TextField


class DecryptionError(Exception):
    """A stored secret fits none of the configured `ENCRYPTION_KEYS`; one sentence for whoever reads it."""

    def __init__(self) -> None:
        super().__init__(
            "A stored secret cannot be decrypted with any of the ENCRYPTION_KEYS. "
            "Add the key that was used when it was stored to the end of the list, or give the secret anew."
        )


def derive_key(secret: str) -> bytes:
    """32 bytes from any string of enough entropy, as the base64 that Fernet wants."""
    digest = hashlib.scrypt(secret.encode(), salt=b"docora.encryption", n=2**12, r=8, p=1, dklen=32)
    return base64.urlsafe_b64encode(digest)


@lru_cache(maxsize=8)
def _fernet(keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(derive_key(key)) for key in keys])


def derive_keys() -> None:
    """The slow part of the first `encrypt` or `decrypt` of a process; those that it forks need not do it again."""
    _fernet(tuple(settings.ENCRYPTION_KEYS))


def encrypt(plain: str) -> str:
    """The Fernet token of `plain` under the newest key."""
    return _fernet(tuple(settings.ENCRYPTION_KEYS)).encrypt(plain.encode()).decode("ascii")


def decrypt(token: str) -> str:
    """The plain text; `DecryptionError` in words when no key fits."""
    try:
        return _fernet(tuple(settings.ENCRYPTION_KEYS)).decrypt(token.encode("ascii")).decode()
    except (InvalidToken, UnicodeError):
        raise DecryptionError from None


def is_current(token: str) -> bool:
    """Whether `token` was made with the newest key."""
    try:
        _fernet(tuple(settings.ENCRYPTION_KEYS[:1])).decrypt(token.encode("ascii"))
    except (InvalidToken, UnicodeError):
        return False
    return True


def hash_token(token: str) -> str:
    """SHA-256 hex of a bearer token. Tokens are 256 random bits, so no slow hash is needed to protect them."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    """A bearer token for a client app: `docora_` and 64 hex digits."""
    return f"docora_{secrets.token_hex(32)}"


def new_webhook_key() -> str:
    """A signing key in the Standard Webhooks form: `whsec_` and the base64 of 32 random bytes."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode("ascii")


class Undecryptable(str):
    """What an encrypted column holds whose key is not known any more: its ciphertext, unchanged.

    It is true and can be compared, passed on and saved (the ciphertext goes back as it came, and is readable again once
    the key is back), but it cannot be turned into bytes, text or a part of either: nothing is signed with it or sent.
    """

    __slots__ = ()

    def _refuse(self, *args: object) -> NoReturn:
        raise DecryptionError

    encode = __str__ = __format__ = __add__ = __radd__ = __mod__ = _refuse  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "<a secret that cannot be decrypted>"

    @property
    def ciphertext(self) -> str:
        return str.__str__(self)


def require_readable(*secrets_of_a_row: str) -> None:
    """Raises `DecryptionError` if any of them could not be decrypted: before work begins that would need it."""
    if any(isinstance(secret, Undecryptable) for secret in secrets_of_a_row):
        raise DecryptionError


class EncryptedTextField(TextField):
    """Text that is encrypted in the database and plain on the instance. Empty stays empty. It cannot be queried."""

    def get_db_prep_save(self, value: Any, connection: BaseDatabaseWrapper) -> Any:
        value = super().get_db_prep_save(value, connection)
        if isinstance(value, Undecryptable):
            return value.ciphertext
        return encrypt(value) if isinstance(value, str) and value else value

    def from_db_value(self, value: str | None, expression: Expression, connection: BaseDatabaseWrapper) -> str | None:
        if not value:
            return value
        try:
            return decrypt(value)
        except DecryptionError:
            return Undecryptable(value)

    def get_lookup(self, lookup_name: str) -> Any:
        if lookup_name == "isnull":
            return super().get_lookup(lookup_name)
        raise TypeError("An encrypted column cannot be searched: every encryption of the same text differs.")
