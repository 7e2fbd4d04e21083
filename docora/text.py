"""Clean untrusted text and format numbers for people."""

import re
import secrets
from collections.abc import Mapping
from datetime import datetime

from django.utils import timezone

from docora.security.redaction import redact

PUBLIC_ID = "[A-Za-z0-9_-]{1,50}"
"""Pattern of the public IDs of apps and repositories. URLs, job IDs and folder names contain them. Imported rows keep theirs."""
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def clean_text(text: str | bytes, limit: int) -> str:
    """Make untrusted text (error bodies, git's stderr) safe to store and show, with at most `limit` characters.

    PostgreSQL rejects NUL, and UTF-8 cannot encode lone surrogates, so storing the raw text could fail.
    """
    if isinstance(text, bytes):
        text = text[: limit * 4].decode("utf-8", "replace")
    text = _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n")).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_line(text: str | bytes, limit: int) -> str:
    """Return untrusted text as `clean_text` does, on one line, so that it cannot add lines to a message."""
    return " ".join(clean_text(text, limit).split())


def first_line(error: BaseException) -> str:
    """Return the first line of an error of a database or of Redis, which names the cause."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cause_of(error: BaseException) -> str:
    """Return the first line of an error of a database or of Redis for people: without secrets and without its full stop."""
    return redact(first_line(error)).rstrip(".")


def printable(text: str) -> str:
    """Replace characters that could control a terminal or start a new line."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def lower_first(text: str) -> str:
    """Lowercase the first letter of a sentence or title, unless it begins a name such as `HTTP`."""
    return text[:1].lower() + text[1:] if text[1:2].islower() or text.startswith("A ") else text


def visible(text: str) -> str:
    """Return the text with control characters, direction marks and invisible characters as escapes: `\\x1b`, `\\u202e`.

    Otherwise a name could look like another one: after U+202E, `cod.exe` looks like `exe.doc`. Tabs and line feeds are
    kept, and also the joiners U+200C and U+200D, which scripts such as Persian and many emoji need.
    """
    return _INVISIBLE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def format_bytes(count: float) -> str:
    """Format a size in SI units, with one decimal below ten: `9.6 MB`, `61 MB`."""
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB", "EB"):
        if count < 999.5 or unit == "EB":
            break
        count /= 1000
    if unit == "bytes":
        return counted(round(count), "byte")
    return f"{count:.1f} {unit}" if count < 9.95 else f"{count:.0f} {unit}"


def format_time(moment: datetime) -> str:
    """Format a time in the server's time zone: `2026-11-24 12:00:00 UTC`."""
    return f"{timezone.localtime(moment):%Y-%m-%d %H:%M:%S %Z}"


def format_seconds(seconds: float) -> str:
    """Format a duration in at most two units: `12 s`, `3 min 20 s`, `2 h 5 min`, `90 d 3 h`."""
    if seconds <= 0.5:
        return "less than a second"
    minutes, seconds = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds} s"
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def format_estimate(seconds: float) -> str:
    """Format an estimated duration, no more exactly than it is known: `less than a minute`, `about 3 min`, `about 2 h`."""
    if seconds < 60:
        return "less than a minute"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {round(seconds / 3600)} h"


def format_share(share: float) -> str:
    """Format a share as a percentage with at most one decimal: `99.2%`, `100%`."""
    return f"{f'{100 * share:.1f}'.removesuffix('.0')}%"


def counted(count: int, singular: str, plural: str = "") -> str:
    """Format a number with its noun: `1 file`, `3,000 files`, `3 repositories`. Pass the `plural` if it is formed otherwise."""
    noun = singular if count == 1 else plural or re.sub("(?<![aeiou])y$", "ie", singular) + "s"
    return f"{count:,} {noun}"


def format_counts(counts: Mapping[str, int]) -> str:
    """Format label → count, without what does not occur: `11 succeeded, 1 failed`."""
    return ", ".join(f"{count:,} {label}" for label, count in counts.items() if count)


def new_id(prefix: str, hex_digits: int = 24) -> str:
    """Return a new public ID such as `repo_` and 24 hex digits."""
    return f"{prefix}_{secrets.token_hex(hex_digits // 2)}"


def can_be_id(text: str) -> bool:
    """Return whether `text` can be looked up as an id or a name. PostgreSQL rejects NUL and surrogates even in a query."""
    return text.isprintable()


def parse_pk(text: str) -> int | None:
    """Return the primary key in `text` (from a URL or form), or None if it is not a number or does not fit a bigint."""
    return int(text) if text.isdecimal() and len(text) < 19 else None


def parse_pks(text: str) -> list[int]:
    """Return the primary keys in a comma-separated list, without parts that `parse_pk` does not accept."""
    return [pk for part in text.split(",") if (pk := parse_pk(part)) is not None]
