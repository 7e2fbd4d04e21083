"""The existing service's secrets: AES-256-GCM under one key, stored as `iv:tag:ciphertext`, each of them in hex."""

import re

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY = re.compile("[0-9a-fA-F]{64}")
_STORED = re.compile("([0-9a-f]{32}):([0-9a-f]{32}):((?:[0-9a-f]{2})*)", re.IGNORECASE)


class WrongKey(Exception):
    """The key cannot be the existing service's; one sentence for whoever gave it."""


class SourceKey:
    """Its `ENCRYPTION_KEY`, 64 hex digits; `WrongKey` for anything else."""

    def __init__(self, digits: str) -> None:
        if not _KEY.fullmatch(digits):
            raise WrongKey("The encryption key of the existing service has 64 hex digits: give its ENCRYPTION_KEY.")
        self._cipher = AESGCM(bytes.fromhex(digits))

    def decrypt(self, stored: str) -> str | None:
        """The plain text; None if it was not encrypted with this key, or is damaged."""
        parts = _STORED.fullmatch(stored)
        if parts is None:
            return None
        nonce, tag, ciphertext = map(bytes.fromhex, parts.groups())
        try:
            return self._cipher.decrypt(nonce, ciphertext + tag, None).decode()
        except (InvalidTag, UnicodeDecodeError):
            return None
