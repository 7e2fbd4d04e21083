"""Template tags of the documentation pages."""

from typing import Any

from django import template
from django.conf import settings
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst

register = template.Library()


@register.simple_block_tag
def code(content: SafeString, id: str, what: str, kind: str = "") -> SafeString:
    """Render a code block with a copy button, which a script makes visible. `what` describes the code.

    With `kind="source"`, lines do not wrap: the block scrolls and can take the keyboard focus.
    """
    focusable = format_html(' tabindex="0" role="group" aria-label="{}"', capfirst(what))
    return format_html(
        '<div class="code {}"><pre{}><code id="{}">{}</code></pre>'
        '<button type="button" data-copy="{}" aria-label="Copy {}" hidden>Copy</button></div>',
        kind,
        focusable if kind == "source" else "",
        id,
        SafeString(content.strip("\n")),  # template output, already escaped
        id,
        what,
    )


@register.inclusion_tag("docs/sample.html")
def sample(name: str, description: str, is_open: bool = False) -> dict[str, Any]:
    """Show a sample file for download. The tests run these files."""
    text = (settings.BASE_DIR / "static" / "docs" / "samples" / name).read_text(encoding="utf-8")
    return {"name": name, "description": description, "is_open": is_open, "text": text, "id": name.replace(".", "-")}
