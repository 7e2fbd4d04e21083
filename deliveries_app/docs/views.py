"""The documentation: four public pages, rendered from what the code says of itself wherever that is possible. Nothing is
asked of the database, so they are there when something is wrong."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils.safestring import SafeString
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe

from deliveries_app.api import push_hooks
from deliveries_app.api.openapi import document
from deliveries_app.docs import api_reference, examples, settings_reference
from deliveries_app.models import Outcome, Status
from deliveries_app.models.root_causes import RootCause
from deliveries_app.reports.help_texts import LEFT_OUT
from deliveries_app.sync import responses
from docora.cli import commands
from docora.http import user_agent

PAGES = [
    ("docs", "Start"),
    ("docs-webhooks", "Webhooks"),
    ("docs-api", "API"),
    ("docs-operations", "Operations"),
]
"""Name of the address → what the navigation calls it."""

LIMITS = [
    "CHUNK_THRESHOLD_BYTES",
    "CHUNK_SIZE_BYTES",
    "MAX_FILE_BYTES",
    "MAX_IN_FLIGHT",
    "MAX_RETRY_ATTEMPTS",
    "RESCAN_INTERVAL_SECONDS",
    "RETRY_BASE_DELAY_SECONDS",
    "CIRCUIT_BREAKER_THRESHOLD",
    "CIRCUIT_BREAKER_COOLDOWN_SECONDS",
]
"""Settings of this instance that client apps can tell by how they are treated."""


@dataclass
class Entry:
    """A heading in the list of contents, with those one level below it. `method` is of a call of the API."""

    anchor: str
    words: str = ""
    method: str = ""
    below: list["Entry"] = field(default_factory=list)


class Contents(HTMLParser):
    """The headings `h2` and `h3` of a page that can be linked to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self._open: Entry | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag in {"h2", "h3"} and (anchor := known.get("id")):
            self._open = Entry(anchor, method=known.get("data-method") or "")
            siblings = self.entries if tag == "h2" else self.entries[-1].below
            siblings.append(self._open)

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open.words += data

    def handle_endtag(self, tag: str) -> None:
        if tag in {"h2", "h3"}:
            self._open = None


def _page(request: HttpRequest, name: str, title: str, template: str, context: dict[str, Any]) -> HttpResponse:
    """The content first, then the frame with the contents that are read off it."""
    content = SafeString(render_to_string(template, {**context, "server": settings.PUBLIC_URL}, request))
    frame = {"here": name, "title": title, "content": content, "contents": Contents(content).entries, "pages": PAGES}
    return render(request, "docs/page.html", frame)


@csrf_exempt  # another method is a 405
@require_safe
def start(request: HttpRequest) -> HttpResponse:
    """What Docora is, which page is for whom, and the way to a first notification."""
    return _page(request, "docs", "Documentation", "docs/start.html", {})


@csrf_exempt
@require_safe
def webhooks(request: HttpRequest) -> HttpResponse:
    """What an app is sent, and what it has to do with it."""
    ping = examples.examples()["ping"].variants[0].body
    headers = examples.headers(user_agent())
    context = {
        "examples": examples.examples(),
        "headers": headers,
        "signed": {name: value for name, value, _ in headers},
        "key": examples.KEY,
        "body": ping.decode(),
        "left_out": [words for cause, words in LEFT_OUT.items() if cause not in {"ignored", "ignore_pattern", "other"}],
        "limits": {name: getattr(settings, name) for name in LIMITS} | vars(responses),
    }
    return _page(request, "docs-webhooks", "Webhook reference", "docs/webhooks.html", context)


@csrf_exempt
@require_safe
def api(request: HttpRequest) -> HttpResponse:
    """The reference of the API, from the OpenAPI document."""
    return _page(request, "docs-api", "API reference", "docs/api.html", api_reference.context(document()))


@csrf_exempt
@require_safe
def operations(request: HttpRequest) -> HttpResponse:
    """The handbook of whoever runs Docora."""
    context = {
        "sections": settings_reference.sections(),
        "commands": commands.reference(),
        "statuses": Status,
        "outcomes": Outcome,
        "causes": RootCause,
        "hook_body": push_hooks.MAX_BODY,
        "chunk": settings.CHUNK_SIZE_BYTES,
        "in_doubt": settings.RECORD_BATCH + settings.MAX_IN_FLIGHT,
        "web_threads": settings.WEB_THREADS,
    }
    return _page(request, "docs-operations", "Operations handbook", "docs/operations.html", context)
