"""What only the documentation is written with."""

from pathlib import Path
from typing import Any

from django import template
from django.conf import settings
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()


@register.simple_block_tag
def code(content: SafeString, id: str, what: str, kind: str = "") -> SafeString:
    """A block to type or to copy; `what` names it. The script shows the button where something can be copied. `kind`
    `source` is code whose lines are not broken: it scrolls, also by the keyboard."""
    focusable = format_html(' tabindex="0" role="group" aria-label="{}"', what[:1].upper() + what[1:])
    return format_html(
        '<div class="code {}"><pre{}><code id="{}">{}</code></pre>'
        '<button type="button" data-copy="{}" aria-label="Copy {}" hidden>Copy</button></div>',
        kind,
        focusable if kind == "source" else "",
        id,
        SafeString(content.strip("\n")),  # escaped already: it is a piece of the template
        id,
        what,
    )


@register.filter
def get(table: dict[str, str], name: str) -> str:
    """For names that are no variables."""
    return table[name]


@register.inclusion_tag("docs/sample.html")
def sample(name: str, words: str, is_open: bool = False) -> dict[str, Any]:
    """A file that readers copy, read when it is asked for; the tests run these very files."""
    text = (Path(settings.BASE_DIR) / "static" / "docs" / "samples" / name).read_text(encoding="utf-8")
    return {"name": name, "words": words, "is_open": is_open, "text": text, "id": name.replace(".", "-")}
