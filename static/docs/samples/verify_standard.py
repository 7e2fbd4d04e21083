"""Verify Docora's notifications with the library from https://www.standardwebhooks.com. Python 3.9 or newer.

    pip install standardwebhooks

Docora sends the three Standard Webhooks headers next to its own, so the libraries for other languages work the same way.
`webhook-id` stays the same when a notification is sent again: store the ids you have processed to process each one only
once. During a key rotation there is one signature per key, and either key verifies.

The signature covers the id, the timestamp and the body, but not the URL or the other headers. verify.py shows how to read
the sequence from the id (`watch_and_sequence`) and how to refuse a body that was sent to the wrong URL (`check_event`).
"""

import base64
from collections.abc import Mapping
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError


def webhook(key: str) -> Webhook:
    """Return a verifier. The library expects base64, which a `whsec_` key is. The bytes of any other key are encoded here."""
    return Webhook(key if key.startswith("whsec_") else base64.b64encode(key.encode()).decode())


def notification(headers: Mapping[str, str], body: bytes, key: str) -> "dict[str, Any] | None":
    """Return the parsed body, or None if the request isn't from Docora or is older than five minutes: respond with 401.

    `body` is the raw body: `request.get_data()` in Flask, `request.body` in Django, `await request.body()` in FastAPI.
    """
    try:
        return webhook(key).verify(body, dict(headers))
    except (WebhookVerificationError, ValueError):  # the signature isn't base64, or the body isn't text
        return None
