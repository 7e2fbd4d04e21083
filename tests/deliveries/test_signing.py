"""Both signatures, checked with published test vectors and the reference client."""

import base64
import hashlib
import hmac
import time

import pytest
from standardwebhooks import Webhook

from deliveries_app.receiver import Refused, verify
from deliveries_app.webhooks.signing import docora_signature, standard_signature

BODY = '{"file":{"path":"ü.txt","content":"\u2028"}}'.encode()
KEYS = {
    "a readable key": "a-key-that-two-parties-share",
    "a non-ASCII key": "schlüssel-für-zwei-parteien",
    "a Standard Webhooks key": "whsec_" + base64.b64encode(bytes(range(24))).decode(),
    "a key with the prefix but no base64": "whsec_this is no base64!",
    "a non-ASCII key with the prefix": "whsec_schlüssel-für-zwei",
    "a key without base64 padding": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
}


def test_docora_signature_test_vector() -> None:
    """Expected value from `printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac a-key-of-16-char`."""
    expected = "a68be791ce9f31c2535a10ae59b394c58bf26a2c878f11aa7ee1382f7a9578a1"
    assert docora_signature("a-key-of-16-char", 1_700_000_000, b'{"a":1}') == f"sha256={expected}"


def test_standard_signature_test_vector() -> None:
    """The vector that all Standard Webhooks libraries share."""
    signature = standard_signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}'
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_key_without_base64_padding() -> None:
    key, now = KEYS["a key without base64 padding"], int(time.time())
    headers = {
        "webhook-id": "msg_w_1",
        "webhook-timestamp": str(now),
        "webhook-signature": standard_signature(key, "msg_w_1", now, BODY),
    }
    Webhook(key).verify(BODY, headers, json_parse=False)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_docora_signature_uses_the_whole_key(key: str) -> None:
    expected = hmac.new(key.encode(), b"1700000000." + BODY, hashlib.sha256).hexdigest()
    assert docora_signature(key, 1_700_000_000, BODY) == f"sha256={expected}"


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_reference_client_verifies_every_key(key: str) -> None:
    now = int(time.time())
    headers = {
        "X-Docora-Timestamp": str(now),
        "X-Docora-Signature": docora_signature(key, now, BODY),
        "webhook-id": "msg_w_1",
        "webhook-timestamp": str(now),
        "webhook-signature": standard_signature(key, "msg_w_1", now, BODY),
    }
    verify(headers, BODY, key, now)
    for changed in (BODY + b" ", BODY.replace(b".txt", b".tx_"), b""):
        with pytest.raises(Refused):
            verify(headers, changed, key, now)
    with pytest.raises(Refused):
        verify(headers | {"webhook-id": "msg_w_2"}, BODY, key, now)
