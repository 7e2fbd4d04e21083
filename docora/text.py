"""Text from strangers, and numbers for people."""

import re
import secrets

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def clean_text(text: str | bytes, limit: int = 500) -> str:
    """Foreign text (error bodies, git's stderr) made safe to store and show: no NUL, no surrogates, at most `limit`
    characters. PostgreSQL refuses NUL, and UTF-8 refuses lone surrogates; neither may turn an error into another."""
    if isinstance(text, bytes):
        text = text[: limit * 4].decode("utf-8", "replace")
    text = _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n")).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def format_bytes(count: float) -> str:
    """SI units, one decimal below ten: `9.6 MB`, `61 MB`."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    if unit == "bytes":
        return f"{count:.0f} byte" if count == 1 else f"{count:.0f} bytes"
    return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"


def format_seconds(seconds: float) -> str:
    """A duration in the two largest units that matter: `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 0.5:
        return "less than a second"
    if seconds < 60:
        return f"{round(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def counted(count: int, singular: str, plural: str) -> str:
    """`1 repository`, `3,000 repositories`."""
    return f"{count:,} {singular if count == 1 else plural}"


def new_id(prefix: str, hex_digits: int = 24) -> str:
    """A public id such as `repo_` + 24 hex digits."""
    return f"{prefix}_{secrets.token_hex(hex_digits // 2)}"
