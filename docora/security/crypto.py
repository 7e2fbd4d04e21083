"""Secrets at rest: encrypted columns and hashed tokens.

`ENCRYPTION_KEYS` lists keys, newest first. The first one encrypts and all of them decrypt (`MultiFernet`). To rotate,
put a new key in front and run `rotate_encryption_keys`. A key may be any string of at least 16 characters; the Fernet
key is derived from it, so operators can use secrets that their platform generates.

A column that no key decrypts does not make the query fail: otherwise one lost key would break whole lists, sweeps and
pages. It is read as `Undecryptable`, which raises `DecryptionError` when it is used as a secret.
"""

import base64
import hashlib
import secrets
from functools import lru_cache
from typing import Any, NoReturn

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import Expression
from django.utils.crypto import salted_hmac

from docora.db.fields import TextField


class DecryptionError(Exception):
    """None of the `ENCRYPTION_KEYS` decrypts a stored secret. The message says what to do."""

    silent_variable_failure = True
    """Makes a template show nothing instead: the page with the button that replaces the secret must not fail."""

    def __init__(self) -> None:
        super().__init__(
            "A stored secret can't be decrypted with any key in ENCRYPTION_KEYS. "
            "Add the key that encrypted it to the end of the list, or replace the secret."
        )


def derive_key(secret: str) -> bytes:
    """Derive a 32-byte Fernet key, encoded as base64, from a high-entropy string."""
    digest = hashlib.scrypt(secret.encode(), salt=b"docora.encryption", n=2**12, r=8, p=1, dklen=32)
    return base64.urlsafe_b64encode(digest)


@lru_cache(maxsize=8)
def _fernet(*keys: str) -> MultiFernet:
    return MultiFernet([Fernet(derive_key(key)) for key in keys])


def derive_keys() -> None:
    """Derive and cache the keys before the process forks. This is the slow part of the first `encrypt` or `decrypt`."""
    _fernet(*settings.ENCRYPTION_KEYS)


def key_fingerprint() -> str:
    """Return a fingerprint of the newest key, for processes to compare. Without SECRET_KEY, it reveals nothing."""
    newest = settings.ENCRYPTION_KEYS[0]
    return salted_hmac("docora.encryption_key", newest, algorithm="sha256").hexdigest()[:16]


def encrypt(plain: str) -> str:
    """Return `plain` encrypted with the newest key, as a Fernet token."""
    return _fernet(*settings.ENCRYPTION_KEYS).encrypt(plain.encode()).decode("ascii")


def decrypt(token: str) -> str:
    """Return the plain text. Raises `DecryptionError` if no key decrypts the token."""
    try:
        return _fernet(*settings.ENCRYPTION_KEYS).decrypt(token.encode("ascii")).decode()
    except (InvalidToken, UnicodeError):
        raise DecryptionError from None


def reencrypt(token: str) -> str:
    """Return the secret encrypted with the newest key, or `token` itself if it already is. Raises `DecryptionError`."""
    try:
        _fernet(settings.ENCRYPTION_KEYS[0]).decrypt(token.encode("ascii"))
    except (InvalidToken, UnicodeError):
        return encrypt(decrypt(token))
    return token


def hash_token(token: str) -> str:
    """Return the SHA-256 hex digest of a bearer token. Tokens have 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    """Return a new bearer token for a client app: `docora_` and 64 hex digits."""
    return f"docora_{secrets.token_hex(32)}"


def new_webhook_key() -> str:
    """Return a new signing key in the Standard Webhooks form: `whsec_` and 32 random bytes as base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode("ascii")


class Undecryptable(str):
    """The ciphertext of an encrypted column that none of the keys decrypts.

    It is truthy and can be compared, passed on and saved: the ciphertext is written back unchanged and can be decrypted
    once the key is back. To encode, format or concatenate it raises the error, so it is never sent or used for signing. Other
    methods of `str`, such as `strip`, and `json.dumps` treat it as any text.
    """

    __slots__ = ()

    def _raise(self, *args: object) -> NoReturn:
        raise DecryptionError

    encode = __str__ = __format__ = __add__ = __radd__ = _raise  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "<a secret that cannot be decrypted>"

    @property
    def ciphertext(self) -> str:
        return str.__str__(self)


def require_readable(*secrets_of_a_row: str) -> None:
    """Raise `DecryptionError` if any secret could not be decrypted. Call it before work that needs the secrets."""
    if any(isinstance(secret, Undecryptable) for secret in secrets_of_a_row):
        raise DecryptionError


class EncryptedTextField(TextField):
    """Text that is encrypted in the database and plain on the instance. It cannot be queried; "" is stored as ""."""

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

    def value_to_string(self, obj: models.Model) -> NoReturn:
        """Refuse to be serialized, because the file would hold the plain text.

        `loaddata` must not accept ciphertext instead: with that of another app, an app could use the other one's token.
        """
        raise TypeError(f"{self} is a secret, which would be written in plain text. Back up the database instead")

    def get_lookup(self, lookup_name: str) -> Any:
        raise TypeError("An encrypted column cannot be searched: every encryption of the same text differs.")
