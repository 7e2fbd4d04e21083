"""The last line of defence: mask everything that looks like a secret before text is logged or shown.

Do not rely on this: code that handles a secret has to keep it out of messages. Redaction is for libraries, hosts and
exceptions that repeat a secret anyway. It recognises a secret only by its pattern or name.
"""

import base64
import functools
import html
import json
import re
from urllib.parse import quote, quote_plus

MASK = "[redacted]"

# The search must stay linear: no alternative may begin again inside the text that it scans. A path of `eyJeyJeyJ…` took 8 s.
_TOKENS = r"""
    (?:
        docora_[0-9a-f]{16,}                                 # an app's token
      | whsec_[A-Za-z0-9+/_=-]{8,}                            # a signing key
      | gh[pousr]_(?:[A-Za-z0-9_-]|\.(?=[A-Za-z0-9_-])){8,} | github_pat_[A-Za-z0-9_]{8,}
      | gl(?:pat|cbt|ptt|dt|rt|soat)-[A-Za-z0-9_.-]{8,}
      | AT(?:ATT3x|CTT3x|BB)[A-Za-z0-9_=-]{8,}                # Bitbucket
      | eC1hY2Nlc3MtdG9rZW46[A-Za-z0-9+/=_-]*                 # base64 of `x-access-token:…`
      | (?:b2F1dGgy|eC10b2tlbi1hdXRo)O[g-v][A-Za-z0-9+/=_-]*  # base64 of `oauth2:…` and `x-token-auth:…`
      | (?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}  # a signed JWT
      | -----BEGIN\ [A-Z\ ]*PRIVATE\ KEY-----[^-]*(?:-----END\ [A-Z\ ]*PRIVATE\ KEY-----)?
      | gAAAAA[A-Za-z0-9_-]{60,}={0,2}                        # an encrypted secret
      | (?<=/accounts/link/)[^/\s"'<>]+                       # a sign-in link
    )
"""
_NAMES = r"(?:client_auth_key|new_auth_key|password|passwd|secret|token|api_?key|sessionid)"
_SUBSTITUTIONS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(_TOKENS, re.VERBOSE), MASK),
    # `Authorization: Basic …` as a header line, in JSON and in a dict's repr. The scheme is kept.
    (
        re.compile(
            r"""((?:authorization|cookie)\\?["']?\s*[:=]\s*\\?["']?(?:(?:basic|bearer|token|digest)\s+)?)"""
            r"""[^\s"'\\,;]+(?:;\s*[^\s"'\\,;]+)*""",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/-]{16,}=*", re.IGNORECASE), rf"\1 {MASK}"),
    # `github_token=…`, `CLIENT_SECRET=…`, `"client_auth_key": "…"`, `token='…'`
    (re.compile(rf"""(?<![A-Za-z0-9])({_NAMES}\\?["']?\s*[:=]\s*\\?["'])[^"'\\]+""", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(rf"""(?<![A-Za-z0-9])({_NAMES}=)[^\s"'&,;)\]]+""", re.IGNORECASE), rf"\1{MASK}"),
    # A password that was not percent-encoded may contain quotes and `@`.
    (re.compile(r"""://(?:[^/\s@"'<>:]*:[^/\s]+|[^/\s"'<>]+)@"""), f"://{MASK}@"),
]
_SECRET_NAME = re.compile(rf"{_NAMES}|authorization|cookie|.*_(?:key|token|secret|password)", re.IGNORECASE)


def redact(text: str) -> str:
    """Mask everything that looks like a token, a signing key, an Authorization value or a password in a URL."""
    for pattern, substitute in _SUBSTITUTIONS:
        text = pattern.sub(substitute, text)
    return text


def unless_password(value: str, text: str = "") -> str:
    """Return `text`, which repeats a setting's value, for an error. By default, it is the value in quotes.

    Return a mask if the value may be a URL with a password.
    """
    return MASK if re.search(":.*@", value) else text or repr(value)


def is_secret_name(name: str) -> bool:
    """Return whether values with this name are secrets."""
    return _SECRET_NAME.fullmatch(name) is not None


def redact_value(value: object, name: object = "") -> object:
    """Mask secrets in a value that is logged under `name`.

    Containers are masked item by item and numbers are kept. Other objects are converted to text first.
    """
    if isinstance(name, str) and is_secret_name(name) and value not in (None, "", True, False):
        return MASK
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact_value(key): redact_value(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_value(item) for item in value]
    return redact(str(value))


def remove_secrets(text: str, *secrets: str) -> str:
    """Mask the given secrets in the forms of `pattern_of`, in which a remote server might repeat them. `redact` the rest.

    Undecryptable secrets are skipped: they were never sent.
    """
    if known := [secret for secret in secrets if type(secret) is str and secret]:
        text = pattern_of(*known).sub(MASK, text)
    return redact(text)


@functools.lru_cache(maxsize=64)
def pattern_of(*secrets: str) -> re.Pattern[str]:
    """Return a pattern of the secrets: as they are, in hex and in base64, each of them also escaped for HTML, JSON or URLs."""
    forms = set(secrets)
    for raw in (secret.encode() for secret in secrets):
        forms |= {raw.hex(), base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()}
    longest_first = sorted(forms, key=len, reverse=True)
    patterns = (f"{re.escape(form)}|{''.join(map(_escaped, form))}" for form in longest_first)
    return re.compile("|".join(patterns), re.IGNORECASE)


def _escaped(character: str) -> str:
    """Return a pattern of a character or one of its escapes. Servers differ in which characters they escape, and how.

    The group is atomic: otherwise, a text of backslashes could be split in exponentially many ways.
    """
    if character.isascii() and character.isalnum():
        return character
    code = ord(character)
    escapes = [html.escape(character), f"&#{code};", f"&#x{code:x};", quote(character, safe=""), quote_plus(character)]
    escapes += [json.dumps(character)[1:-1], f"\\u{code:04x}", f"\\{character}", character]
    return f"(?>{'|'.join(map(re.escape, sorted(escapes, key=len, reverse=True)))})"
