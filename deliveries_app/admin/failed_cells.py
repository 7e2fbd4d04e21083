"""The cells of a failed sync's row: each stands in an element of its own, which is refreshed in place."""

from collections.abc import Callable, Sequence

from django.conf import settings
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries_app import failing
from deliveries_app.causes import RootCause
from deliveries_app.failing import State
from deliveries_app.models import AppRepository, Status
from docora.templatetags.docora import ago, badge

SHOWN_ANSWER = 80
_SWAP = SafeString(' hx-swap-oob="true"')
_BADGES = {State.SYNCING: "scanning", State.RETRYING: "pending_snapshot", State.FAILED: "failed"}


def _cause(pair: AppRepository) -> SafeString:
    label = RootCause(pair.root_cause).label
    return format_html("<strong>{}</strong><span>{}</span>{}", label, pair.last_error, _answer(pair))


def _answer(pair: AppRepository) -> SafeString | str:
    """The status code and the first bytes; all that is kept of it on hover."""
    if pair.last_status_code is None:
        return ""
    start = pair.last_answer[:SHOWN_ANSWER] + ("…" if len(pair.last_answer) > SHOWN_ANSWER else "")
    return format_html('<code title="{}">{} {}</code>', pair.last_answer, pair.last_status_code, start)


def _attempts(pair: AppRepository) -> SafeString:
    used = f"{min(pair.retry_count, settings.MAX_RETRY_ATTEMPTS)} of {settings.MAX_RETRY_ATTEMPTS}"
    return format_html(
        '<span>{}</span><span class="quiet">{}</span>',
        "given up" if pair.status == Status.FAILED else used,
        _next(pair),
    )


def _next(pair: AppRepository) -> SafeString | str:
    if pair.status == Status.SCANNING:
        return "being tried now"
    if pair.app.paused:
        return "when the app is resumed"
    moment = failing.next_attempt(pair)
    return "due now" if moment is not None and moment <= timezone.now() else format_html("next {}", ago(moment))


def _since(pair: AppRepository) -> SafeString | str:
    return ago(pair.failing_since)


def _state(pair: AppRepository) -> SafeString:
    state = State(pair.state)  # type: ignore[attr-defined]
    return badge(_BADGES.get(state, state.value), state.label)


_CELLS: dict[str, Callable[[AppRepository], SafeString | str]] = {
    "state": _state,
    "cause": _cause,
    "attempts": _attempts,
    "since": _since,
}


def cell(name: str, pair: AppRepository, *, refresh: bool = False) -> SafeString:
    """One cell of one row; with `refresh`, as what takes its place on the page."""
    return _cell(name, pair.pk, _CELLS[name](pair), refresh=refresh)


def action_cell(pair: AppRepository, button: SafeString) -> SafeString:
    """The button of a row: left alone while it can be pressed."""
    return _cell("action", pair.pk, button, refresh=False)


def _cell(name: str, pk: int, content: SafeString | str, *, refresh: bool) -> SafeString:
    swap = _SWAP if refresh else ""
    return format_html('<div id="failed-{}-{}" class="failed-{}"{}>{}</div>', name, pk, name, swap, content)


def refreshed(pks: Sequence[int]) -> list[SafeString]:
    """The cells of these rows as they are now; a row that is not failing any more says so and offers no button."""
    rows = AppRepository.objects.alive().filter(pk__in=pks).select_related("app", "repository")
    found = {pair.pk: pair for pair in failing.with_state(rows)}
    cells = []
    for pk in pks:
        pair = found.get(pk)
        if pair is not None and pair.is_failing:
            cells += [cell(name, pair, refresh=True) for name in _CELLS]
            continue
        now = badge(pair.status, pair.get_status_display()) if pair else badge("ended", "no longer watched")
        gone = dict.fromkeys([*_CELLS, "action"], "") | {"state": now}
        cells += [_cell(name, pk, content, refresh=True) for name, content in gone.items()]
    return cells
