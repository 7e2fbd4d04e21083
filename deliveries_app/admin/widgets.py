"""What several admin pages share: the buttons of rows, the contents of cells, and parts of messages."""

from urllib.parse import urlencode

from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries_app.models import App, AppRepository
from docora.templatetags.docora import icon, time_of_day, upcoming
from docora.text import visible
from repositories_app.models import Repository

SWAP = SafeString(' hx-swap-oob="true"')
"""Attribute of a refreshed cell: htmx replaces the cell on the page that has the same id."""
ACTIONS = SafeString('<span class="visually-hidden">Actions</span>')
"""Heading of a column of buttons."""


def resync_link(row: AppRepository | App, back: str, what: str, label: str) -> SafeString:
    """Return a row's button, which links to the page that confirms the re-sync of `what`."""
    url = reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_force_resync")
    return format_html(
        '<a id="resync-{}" class="button button-resync" href="{}?{}" aria-label="Re-sync {}">{}{}</a>',
        row.pk,
        url,
        urlencode({"ids": row.pk, "next": back}),
        what,
        icon("resync"),
        label,
    )


def retry_button(watch: AppRepository, back: str) -> SafeString:
    """Return a failing row's button, which retries immediately.

    It submits the form of `docora/retry_form.html`, which the page includes outside the list's own form.
    """
    url = reverse("admin:deliveries_app_apprepository_retry", args=[watch.pk])
    return format_html(
        '<button type="submit" id="retry-{}" form="retry-now" class="button button-retry" formaction="{}?{}"'
        ' aria-label="Retry {}" title="Sends only unacknowledged files">{}Retry</button>',
        watch.pk,
        url,
        urlencode({"next": back}),
        str(watch),
        icon("retry"),
    )


def resume_button(app: App, back: str, id_: str) -> SafeString:
    """Return the button that resumes a paused app. It submits the same form as `retry_button`."""
    return format_html(
        '<button type="submit" id="{}" form="retry-now" class="button button-quiet" formaction="{}?{}" aria-label="Resume {}">'
        "Resume app</button>",
        id_,
        reverse("admin:deliveries_app_app_resume", args=[app.pk]),
        urlencode({"next": back}),
        app.name,
    )


def circuit_text(repository: Repository) -> SafeString | str:
    until = repository.circuit_open_until
    return format_html("open, next try {}", upcoming(until)) if until and repository.circuit_is_open else ""


def problem(error: str, failing_for: SafeString | str = "", circuit: SafeString | str = "") -> SafeString | str:
    """Return a list's cell with the start of an error, which the row's own page shows in full."""
    parts = [
        format_html('<span class="problem-text">{}</span>', visible(error)) if error else "",
        format_html('<span class="quiet">Failing for {}</span>', failing_for) if failing_for else "",
        format_html('<span class="quiet">Circuit {}</span>', circuit) if circuit else "",
    ]
    return format_html('<span class="problem">{}{}{}</span>', *parts) if any(parts) else ""


def wait_note(watch: AppRepository, what: str) -> str:
    """Return ` The retry starts when the app is resumed.`, or an empty string if it can start now.

    The watch must be read `with_state`.
    """
    app = watch.app
    if watch.is_paused:
        return f" The {what} starts when the repository is resumed."
    if app.paused:
        return f" The {what} starts when the app is resumed."
    if app.is_on_hold and app.cooldown_until and not app.down_count:
        return f" The {what} starts at {time_of_day(app.cooldown_until)}, because the app is too busy."
    if watch.host_retry_at and not watch.repository.circuit_is_open:  # an open circuit lets the first attempt through
        return f" The {what} starts once Docora can reach the git host again."
    return ""
