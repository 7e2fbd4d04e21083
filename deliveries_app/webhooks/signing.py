"""Sign notifications with Docora's own scheme and with Standard Webhooks. Pure; tested with vectors.

Source: the wire contract, and https://www.standardwebhooks.com for the second scheme.
"""

import base64
import hashlib
import hmac

STANDARD_PREFIX = "whsec_"


def _standard_key(key: str) -> bytes:
    """Return the Standard Webhooks key bytes: base64 after `whsec_`, padding optional, otherwise the key's UTF-8."""
    if key.startswith(STANDARD_PREFIX):
        encoded = key.removeprefix(STANDARD_PREFIX)
        try:
            return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError:
            pass  # not base64, so a client that chose such a key verifies with its UTF-8 bytes
    return key.encode()


def docora_signature(key: str, timestamp: int, body: bytes) -> str:
    """Return `sha256=` + hex HMAC-SHA256 over `{timestamp}.{body}`, keyed with the UTF-8 bytes of the key."""
    digest = hmac.digest(key.encode(), b"%d." % timestamp + body, hashlib.sha256)
    return f"sha256={digest.hex()}"


def standard_signature(key: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return `v1,` + base64 HMAC-SHA256 over `{id}.{timestamp}.{body}`."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(_standard_key(key), signed, hashlib.sha256)).decode("ascii")
