"""The last line of defence: what looks like a secret is taken out of text that is about to be logged or shown.

Nothing relies on it. Code that has a secret in hand keeps it out of messages itself; this is for the library, the host
or the exception that repeats one all the same. It only knows secrets by their look.
"""

import base64
import html
import json
import re
from urllib.parse import quote, quote_plus

MASK = "[redacted]"

_TOKENS = r"""
    (?:
        docora_[0-9a-f]{16,}                                 # an app's token
      | whsec_[A-Za-z0-9+/_=-]{8,}                            # a signing key
      | gh[pousr]_[A-Za-z0-9_]{8,} | github_pat_[A-Za-z0-9_]{8,}
      | gl(?:pat|cbt|ptt|dt|rt|soat)-[A-Za-z0-9_.-]{8,}
      | eC1hY2Nlc3MtdG9rZW46[A-Za-z0-9+/=_-]*                 # base64 of `x-access-token:` and what follows
      | gAAAAA[A-Za-z0-9_-]{60,}={0,2}                        # an encrypted secret
    )
"""
_WORDS = r"(?:github_token|client_auth_key|new_auth_key|push_secret|password|passwd|secret|token|api_?key|sessionid)"
_SUBSTITUTIONS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(_TOKENS, re.VERBOSE), MASK),
    # `Authorization: Basic …`, as a header line, in JSON and in a dict's repr; the scheme stays.
    (
        re.compile(
            r"""((?:authorization|cookie)\\?["']?\s*[:=]\s*\\?["']?(?:(?:basic|bearer|token|digest)\s+)?)"""
            r"""[^\s"'\\,;]+(?:;\s*[^\s"'\\,;]+)*""",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/-]{16,}=*", re.IGNORECASE), rf"\1 {MASK}"),
    # `github_token=…`, `"client_auth_key": "…"`, `token='…'`
    (re.compile(rf"""\b({_WORDS}\\?["']?\s*[:=]\s*\\?["'])[^"'\\]+""", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(rf"""\b({_WORDS}=)[^\s"'&,;)\]]+""", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"://[^/\s@\"'<>]+@"), f"://{MASK}@"),
]
_CERTAINLY_SECRET = re.compile(rf"{_WORDS}|authorization|cookie|.*_(?:key|token|secret|password)", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` without anything that looks like a token, a signing key, an Authorization value or a password in a URL."""
    for pattern, substitute in _SUBSTITUTIONS:
        text = pattern.sub(substitute, text)
    return text


def redact_value(value: object, name: object = "", depth: int = 6) -> object:
    """The same for anything that is logged under `name`: containers are gone through, numbers stay what they are, and
    what is neither is turned into text first."""
    if isinstance(name, str) and _CERTAINLY_SECRET.fullmatch(name) and value not in (None, "", True, False):
        return MASK
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact(value)
    if depth and isinstance(value, dict):
        return {redact_value(key): redact_value(item, key, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [redact_value(item, "", depth - 1) for item in value]
    return redact(repr(value) if isinstance(value, bytes) else str(value))


def without(text: str, *secrets: str) -> str:
    """`text` without these very secrets, in any form in which a stranger who was given them may repeat them, and then
    without whatever looks like one. What could not be decrypted was never given to anybody."""
    forms = {form for secret in secrets if type(secret) is str and secret for form in forms_of(secret)}
    if forms:
        longest_first = sorted(map(re.escape, forms), key=len, reverse=True)
        text = re.sub("|".join(longest_first), MASK, text)
    return redact(text)


def forms_of(secret: str) -> set[str]:
    """How it looks as it is, in HTML, JSON and URLs, in hex and in base64."""
    raw = secret.encode()
    return {
        secret,
        html.escape(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret, safe=""),
        quote_plus(secret),
        raw.hex(),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode(),
    }
