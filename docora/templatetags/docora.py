"""Template tags and filters without models, available in every template through `settings.TEMPLATES`."""

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any
from unicodedata import bidirectional

from django import template
from django.utils import timezone
from django.utils.html import format_html, format_html_join, strip_tags
from django.utils.safestring import SafeString
from django.utils.text import capfirst

from docora.conf import installation
from docora.text import counted as format_count
from docora.text import format_bytes, format_estimate, format_seconds, format_time
from docora.text import visible as escape_invisible

register = template.Library()
register.filter("estimate", format_estimate)

_STYLES = {
    "up_to_date": ("good", "check"),
    "syncing": ("busy", "resync"),
    "queued": ("neutral", "clock"),
    "retrying": ("warning", "retry"),
    "failed": ("bad", "cross"),
    "paused": ("neutral", "pause"),
    "on_hold": ("warning", "hourglass"),
    "held": ("warning", "hourglass"),
    "running": ("busy", "resync"),
    "succeeded": ("good", "check"),
    "partly_failed": ("warning", "warning"),
    "cancelled": ("neutral", "cancel"),
    "superseded": ("neutral", "skip"),
    "delivered": ("good", "check"),
    "in_doubt": ("neutral", "clock"),
}
"""State or outcome → the badge's colour (`.badge-…` in the stylesheet) and icon."""


@register.simple_tag
def icon(name: str) -> SafeString:
    """Render an icon from the sprite. It accompanies a text label, so it is hidden from screen readers."""
    return format_html(
        '<svg class="icon" aria-hidden="true" focusable="false"><use href="#docora-{}"></use></svg>', name
    )


@register.simple_tag
def progress_bar(percent: int, what: object) -> SafeString:
    """Render a bar that screen readers call `Progress of …`."""
    return format_html('<progress max="100" value="{0}" aria-label="Progress of {1}">{0}%</progress>', percent, what)


@register.simple_tag
def badge(style: str, label: str) -> SafeString:
    """Render a state or an outcome as colour, icon and label. `style` is a key of `_STYLES`; others are neutral."""
    colour, name = _STYLES.get(style, ("neutral", "dot"))
    return format_html('<span class="badge badge-{}">{}{}</span>', colour, icon(name), label)


@register.simple_tag
def state_badge(state: Any) -> SafeString:
    """Render a `WatchState`, or the `Result` of a run or an operation, as a badge."""
    return badge(state.value, state.label)


@register.simple_tag
def status_with_detail(watch: Any) -> SafeString:
    """Render the state of a watch as a badge, and if it is known, until when it waits and for what.

    The watch must have been read `with_state`.
    """
    parts = [part for part in (_until(watch), watch.detail.label) if part]
    if not parts:
        return state_badge(watch.state)
    details = format_html_join(" · ", "{}", ((part,) for part in parts))
    return format_html('{} <span class="state-detail">{}</span>', state_badge(watch.state), details)


def _until(watch: Any) -> SafeString | str:
    """Return `until 14:05 UTC` for a watch on hold, `in 40 s` for one that is retrying, or an empty string."""
    moment = watch.waits_until
    if moment is None or moment <= timezone.now():
        return ""
    if watch.state.value == "on_hold":
        return _time(moment, f"until {time_of_day(moment)}")
    return upcoming(moment)


def time_of_day(moment: datetime) -> str:
    """Return the time without the date, in the server's time zone, such as `14:05 UTC`."""
    return f"{timezone.localtime(moment):%H:%M %Z}"


@register.simple_tag
def time_zone() -> str:
    """Return the abbreviation of the server's time zone, such as `CEST`. Django's `now` omits it in some hours, as in `exact`."""
    return f"{timezone.localtime():%Z}"


@register.filter
def trigger(run: Any) -> str:
    """Say in a table why a run happens and, unless Docora started it, who requested it: `Re-sync by anna`, `Change`."""
    reason = run.reason_label.capitalize()
    return reason if run.requester == "Docora" else f"{reason} by {run.requester}"


@register.simple_tag
def result_cells(cells: Iterable[SafeString], headers: Iterable[dict[str, Any]]) -> SafeString:
    """Render a row of a change list, whose cells Django has rendered, with a role and the column's name in each cell."""
    return format_html_join("", "{}", ((_labelled(*pair),) for pair in zip(cells, headers, strict=True)))


def _labelled(cell: SafeString, header: dict[str, Any]) -> SafeString:
    attributes = _attributes("rowheader" if cell.startswith("<th") else "cell", str(header["text"]))
    if cell.endswith(">—</td>"):  # the site's `empty_value_display`
        attributes += SafeString(" data-empty")
    return SafeString(cell[:3] + attributes + cell[3:])  # after `<td` or `<th`


@lru_cache(maxsize=256)  # the same few for every row
def _attributes(role: str, header: str) -> SafeString:
    text = strip_tags(header)
    return format_html(' role="{}" data-label="{}"', role, capfirst(text))


@register.filter
def audit_value(value: object) -> str:
    """Format a value of the audit log: booleans as yes or no, a dash for nothing, and control characters as escapes."""
    if value is None or value == "":
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape_invisible(str(value))


@register.simple_tag
def program(*, in_full: bool = False) -> str:
    """Return the name of the command for a sentence or, with `in_full`, the command to type, for a block to copy."""
    return installation.program(in_full=in_full)


@register.filter
def ago(moment: datetime | None) -> SafeString | str:
    """Render the time of an event as `3 min ago`, with the exact time on hover.

    A clock that was ahead may have written a later time than now. Then render the exact time, because when it was is unknown.
    """
    if moment is None:
        return "never"
    seconds = (timezone.now() - moment).total_seconds()
    if seconds < -10:
        text = format_time(moment)
    elif seconds < 10:
        text = "just now"
    else:
        text = f"{_rounded(seconds)} ago"
    return _time(moment, text)


@register.filter
def upcoming(moment: datetime) -> SafeString:
    """Render the time of the next try as `in 3 min`, with the exact time on hover."""
    seconds = (moment - timezone.now()).total_seconds()
    return _time(moment, f"in {_rounded(seconds)}" if seconds >= 10 else "in a few seconds")


@register.filter
def elapsed(moment: datetime) -> SafeString:
    """Render the time since a moment, for a sentence such as `failing for 3 min`, with the exact time on hover."""
    seconds = (timezone.now() - moment).total_seconds()
    return _time(moment, _rounded(seconds) if seconds >= 10 else "a few seconds")


def _time(moment: datetime, text: str) -> SafeString:
    return format_html('<time datetime="{}" title="{}">{}</time>', iso(moment), format_time(moment), text)


@register.filter
def iso(moment: datetime) -> str:
    """Format a time for the attribute `datetime`, in which HTML allows at most three digits after the second."""
    return timezone.localtime(moment).isoformat(timespec="milliseconds")


def _rounded(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds)} s"


@register.filter
def exact(moment: datetime | None) -> str:
    """Format a time exactly, for detail pages. Django's format omits the zone in the hour that the end of summer time repeats."""
    return format_time(moment) if moment else "—"


@register.filter(is_safe=True)
@template.defaultfilters.stringfilter
def visible(text: str) -> str:
    """Escape control characters in paths, and in text from git hosts and client apps: see `docora.text.visible`."""
    return escape_invisible(text)


@register.filter
def file_path(path: str) -> SafeString | str:
    """Render a path like `visible`, also line feeds and tabs as escapes, and its folders in order from left to right.

    Browsers would show neighbouring names in Arabic or Hebrew from right to left, so that the file looks like a folder.
    """
    text = escape_invisible(path).replace("\n", "\\n").replace("\t", "\\t")
    if text.isascii() or not any(bidirectional(character) in {"R", "AL"} for character in text):
        return text
    return format_html_join("/", "<bdi>{}</bdi>", ((name,) for name in text.split("/")))


@register.filter
def number(value: float | None) -> str:
    """Format a whole number with thousands separators."""
    return f"{round(value):,}" if value is not None else "—"


@register.filter
def files_of(watch: Any) -> str:
    """Format the number of the watch's acknowledged files, followed by the total if it differs: `362 / 402`.

    Empty if the files have not been counted yet.
    """
    if not watch.is_counted:
        return ""
    acknowledged, files = watch.files_delivered, watch.tree_files
    return number(files) if acknowledged == files else f"{number(acknowledged)} / {number(files)}"


@register.filter
def prose(text: str) -> SafeString:
    """Render text in which `backticks` mark code."""
    parts = text.split("`")
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
    """Format the duration of a request: `38 ms`, `1.2 s`."""
    if seconds is None:
        return "—"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.1f} s"


@register.filter
def counted(value: int, nouns: str) -> str:
    """Format a number with its noun: `3|counted:"file"` gives `3 files`; `"line is,lines are"` has its own plural."""
    return format_count(value, *nouns.split(","))
