"""Verifies Docora's notifications with the library of https://www.standardwebhooks.com. Python 3.9 or newer.

    pip install standardwebhooks

Docora sends the three headers of Standard Webhooks beside its own, so its libraries for other languages work in the
same way. `webhook-id` is the same whenever one notification is sent again: keep the ids that you have processed, and
you process each one once. While the signing key of your app is being replaced there are two signatures, one made with
each key, and either key verifies.

The signature covers the id, the time and the body, but neither the address nor the other headers. verify.py shows how to
take the sequence from the id (`watch_and_sequence`), and how to refuse a body at another address (`check_event`).
"""

import base64
from collections.abc import Mapping
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError


def webhook(key: str) -> Webhook:
    """The library wants base64. A key that Docora generated (`whsec_…`) is; of one that you chose the bytes count."""
    return Webhook(key if key.startswith("whsec_") else base64.b64encode(key.encode()).decode())


def notification(headers: Mapping[str, str], body: bytes, key: str) -> "dict[str, Any] | None":
    """What Docora says, or None (answer 401 then) for a request that is not Docora's, or more than 5 minutes old.

    `body` are the bytes as they came: Flask has them as `request.get_data()`, Django as `request.body`, FastAPI as
    `await request.body()`.
    """
    try:
        return webhook(key).verify(body, dict(headers))
    except (WebhookVerificationError, ValueError):  # ValueError: a signature that is no base64, a body that is no text
        return None
