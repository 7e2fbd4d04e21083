"""The public documentation pages, generated from the code where possible.

They do not use the database, so they remain available when it is down.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import unescape
from typing import Any, NamedTuple

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils.html import strip_tags
from django.utils.safestring import SafeString
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe

from deliveries_app.api import app as app_calls
from deliveries_app.api import callers, files, paging, push_hooks
from deliveries_app.docs import api_reference, examples, settings_reference
from deliveries_app.models import DriftState, Outcome, Result, WatchState
from deliveries_app.models.deliveries import ATTEMPTS_PER_PATH
from deliveries_app.models.root_causes import RootCause
from deliveries_app.planning import ignore_rules
from deliveries_app.reports.help_texts import LEFT_OUT
from deliveries_app.services import host_checks, sign_ins, watching
from deliveries_app.services.drift import WAIT_SECONDS
from deliveries_app.services.resend import MAX_RESENT, MAX_RESENT_AT_ONCE
from deliveries_app.sync import drift, events, responses, sender
from deliveries_app.sync.failures import KEPT_BYTES
from deliveries_app.sync.lease import HOLD_AFTER_TIMEOUT
from deliveries_app.webhooks.verify import MAX_LISTED
from docora import __version__
from docora.cli import commands
from docora.security import throttle

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
"""Settings of this instance that affect client apps."""


_LONGEST_ESCAPE = 6
"""Characters of the longest escape that JSON uses for one byte of a text."""
_OTHER_FIELDS = 16384
"""Bytes: more than all fields of a body take except the content."""
_HEADING = re.compile(r'<h([23])[^>]* id="([^"]+)"(?: data-method="([A-Z]+)")?>(.*?)</h[23]>', re.DOTALL)


@dataclass
class Entry:
    """A heading in the table of contents, with its subheadings. `method` is the HTTP method of an API call."""

    anchor: str
    title: str
    method: str
    below: list["Entry"] = field(default_factory=list)


def table_of_contents(html: str) -> list[Entry]:
    """Return the `h2` headings that have an id, each with the `h3` headings below it."""
    entries: list[Entry] = []
    for level, anchor, method, title in _HEADING.findall(html):
        siblings = entries if level == "2" else entries[-1].below
        siblings.append(Entry(anchor, unescape(strip_tags(title)), method))
    return entries


def _start() -> dict[str, Any]:
    return {"rescan_min": settings.RESCAN_MIN_INTERVAL_SECONDS, "rescan": settings.RESCAN_INTERVAL_SECONDS}


_SAID_IN_TEXT = {"not_included", "excluded", "ignored"}
"""Causes that the webhook reference explains below its table."""


_LIMITS_OF_SYNCS = {
    "BUSY_SECONDS": events.BUSY_SECONDS,
    "CONTROL_PATHS": responses.CONTROL_PATHS,
    "DOUBT_AFTER": responses.DOUBT_AFTER,
    "GONE_AFTER": responses.GONE_AFTER,
    "HOLD_AFTER_TIMEOUT": HOLD_AFTER_TIMEOUT,
    "LONGEST_WAIT": responses.LONGEST_WAIT,
    "MAX_CHECK_WAITS": drift.MAX_WAITS,
    "MAX_WAITS": sender.MAX_WAITS,
}


def _webhooks() -> dict[str, Any]:
    notifications = examples.examples()
    headers = examples.headers()
    return {
        "examples": notifications,
        "verify_answers": examples.verify_answers(),
        "headers": headers,
        "signed": {name.replace("-", "_"): value for name, value, _ in headers},
        "key": examples.KEY,
        "body": notifications["ping"].variants[0].body.decode(),
        "left_out": [(cause, *text) for cause, text in LEFT_OUT.items() if cause not in _SAID_IN_TEXT],
        "limits": {name: getattr(settings, name) for name in LIMITS} | _LIMITS_OF_SYNCS,
        "largest_body": max(_LONGEST_ESCAPE * settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES)
        + _OTHER_FIELDS,
    }


def _api() -> dict[str, Any]:
    return api_reference.context() | {
        "body": callers.MAX_BODY,
        "hook_body": push_hooks.MAX_BODY,
        "rows": paging.MAX_LIMIT,
        "manifest_lines": files.MAX_MANIFEST_LIMIT,
        "resent": MAX_RESENT,
        "patterns": watching.MAX_PATTERNS,
        "pattern_characters": watching.MAX_CHARACTERS,
        "failures": throttle.FAILURES,
        "failure_seconds": throttle.SECONDS,
        **_slow_calls(),
    }


_DRIFT_STATES = {
    DriftState.QUEUED: "It waits until the repository is in sync, or for a worker.",
    DriftState.CHECKING: "Docora is asking the app for its files.",
    DriftState.EQUAL: "The copy is the same.",
    DriftState.DIFFERS: "Some files differ. Fix the differences, or find out first who changed them.",
    DriftState.UNSUPPORTED: "The app's response doesn't follow the webhook reference. The page says what is wrong with it. "
    "Syncs are not affected.",
    DriftState.NOT_CHECKED: "The app did not respond, was too busy or failed, or the check waited too long. Check again later.",
    DriftState.CANCELLED: "By a user, or because the repository is no longer watched.",
}


def _slow_calls() -> dict[str, Any]:
    """Return the limits of calls that wait for a git host or a client."""
    return {
        "host_checks": host_checks.LIMIT,
        "git_check_seconds": round(host_checks.GIT_CHECK_SECONDS),
        "streams": files.STREAMS,
        "pings": app_calls.PINGS,
    }


def _operations() -> dict[str, Any]:
    return {
        "sections": settings_reference.sections(),
        "commands": commands.reference(),
        "states": WatchState,
        "results": Result,
        "outcomes": Outcome,
        "causes": RootCause,
        "ignore": vars(ignore_rules),
        "hook_body": push_hooks.MAX_BODY,
        "chunk": settings.CHUNK_SIZE_BYTES,
        "record_batch": settings.RECORD_BATCH,
        "web_threads": settings.WEB_THREADS,
        "web_connections": settings.WEB_CONNECTIONS,
        **_slow_calls(),
        "syncs_per_worker": settings.SYNCS_PER_WORKER,
        "lease_seconds": settings.LEASE_SECONDS,
        "most_resent": MAX_RESENT_AT_ONCE,
        "attempts_per_path": ATTEMPTS_PER_PATH,
        "attempt_bytes": KEPT_BYTES,
        "audit": {"per_address": sign_ins.FAILURES_PER_ADDRESS, "in_all": sign_ins.FAILURES_IN_ALL},
        "drift": {"states": list(_DRIFT_STATES.items()), "listed": MAX_LISTED, "wait": WAIT_SECONDS},
    }


class Page(NamedTuple):
    """One page. `label` is its name in the navigation; `context` returns what its template needs."""

    label: str
    title: str
    template: str
    context: Callable[[], dict[str, Any]]


PAGES = {
    "docs": Page("Start", "Documentation", "docs/start.html", _start),
    "docs-webhooks": Page("Webhooks", "Webhook reference", "docs/webhooks.html", _webhooks),
    "docs-api": Page("API", "API reference", "docs/api.html", _api),
    "docs-changes": Page("Changes", "Changes", "docs/changes.html", lambda: {"version": __version__}),
    "docs-operations": Page("Operations", "Operations handbook", "docs/operations.html", _operations),
}
"""The pages by the names of their URLs, in the order of the navigation."""


@csrf_exempt  # so that other methods get a 405, not a 403
@require_safe
def page(request: HttpRequest, name: str) -> HttpResponse:
    """Render the content of a page, then the frame around it, whose table of contents needs the content's headings."""
    here = PAGES[name]
    content = SafeString(render_to_string(here.template, {**here.context(), "server": settings.PUBLIC_URL}, request))
    frame = {
        "here": name,
        "title": here.title,
        "content": content,
        "contents": table_of_contents(content),
        "pages": PAGES,
    }
    return render(request, "docs/page.html", frame)
