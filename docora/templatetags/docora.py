"""Small parts of pages, built into every template through `settings.TEMPLATES`. They know no model."""

from datetime import datetime

from django import template
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from docora import text
from docora.conf import installation
from docora.text import format_bytes, format_seconds

register = template.Library()

_STATUS_ICONS = {
    "synced": "check",
    "succeeded": "check",
    "delivered": "check",
    "failed": "cross",
    "scanning": "resync",
    "pending_snapshot": "clock",
    "in doubt": "clock",
}
_STATUS_CLASSES = {
    "synced": "good",
    "succeeded": "good",
    "delivered": "good",
    "failed": "bad",
    "scanning": "busy",
}


@register.simple_tag
def icon(name: str) -> SafeString:
    """A symbol of the sprite; decoration beside a word, so hidden from screen readers."""
    return format_html(
        '<svg class="icon" aria-hidden="true" focusable="false"><use href="#docora-{}"></use></svg>', name
    )


@register.simple_tag
def badge(status: str, word: str) -> SafeString:
    """A status as colour, shape and word."""
    return format_html(
        '<span class="badge badge-{}">{}{}</span>',
        _STATUS_CLASSES.get(status, "neutral"),
        icon(_STATUS_ICONS.get(status, "dot")),
        word,
    )


@register.simple_tag
def program(*, in_full: bool = False) -> str:
    """What the command line is called, for a sentence, or `in_full` for a block to copy."""
    return installation.program(in_full=in_full)


@register.filter
def ago(moment: datetime | None) -> SafeString | str:
    """`3 min ago`, with the exact time on hover."""
    if moment is None:
        return "never"
    seconds = (timezone.now() - moment).total_seconds()
    if abs(seconds) < 10:
        words = "just now"
    elif seconds < 0:
        words = f"in {_rough(-seconds)}"
    else:
        words = f"{_rough(seconds)} ago"
    local = timezone.localtime(moment)
    exact = date_format(local, "Y-m-d H:i:s T")
    return format_html('<time datetime="{}" title="{}">{}</time>', local.isoformat(), exact, words)


def _rough(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds)} s"


@register.filter
def exact(moment: datetime | None) -> str:
    """The time as detail pages show it."""
    return date_format(timezone.localtime(moment), "Y-m-d H:i:s T") if moment else "—"


@register.filter
def number(value: float | None) -> str:
    """Thousands separated."""
    return f"{round(value):,}" if value is not None else "—"


@register.filter
def prose(words: str) -> SafeString:
    """A sentence in which `backticks` mark code."""
    parts = words.split("`")
    return format_html_join(
        "", "{}", ((format_html("<code>{}</code>", part) if index % 2 else part,) for index, part in enumerate(parts))
    )


@register.filter
def size(value: float | None) -> str:
    return format_bytes(value) if value is not None else "—"


@register.filter
def duration(seconds: float | None) -> str:
    return format_seconds(seconds) if seconds is not None else "—"


@register.filter
def milliseconds(seconds: float | None) -> str:
    """The time of one request: `38 ms`, `1.2 s`."""
    if seconds is None:
        return "—"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


@register.filter
def counted(value: int, words: str) -> str:
    """`3|counted:"repository,repositories"` → `3 repositories`."""
    return text.counted(value, *words.split(","))
