"""The text of alerts: one message for everything that began, and one for everything that ended.

A message holds names, root causes and links, but nothing that an app or git host returned. Strangers choose the names, so they
are put on one line and escaped: they cannot form a header, a mention or a link.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
from django.conf import settings
from django.db.models import Case, Count, QuerySet, Value, When
from django.urls import reverse
from django.utils import timezone

from deliveries_app.models import Alert, AlertKind
from deliveries_app.models.root_causes import label_of
from deliveries_app.webhooks.payloads import timestamp
from docora.text import clean_text, one_line

SHOWN = 10  # items listed by name
SEVERAL, TEST = "several", "test"

# Texts for the beginning (one, several) and for the end (one, several). An alert also ends when its subject is removed.
# Messages list the kinds in this order, and after them those that a later version has found, by their value.
_TEXTS: dict[str, tuple[str, str, str, str]] = {
    AlertKind.REDIS_DOWN: ("Redis is down or rejects writes, so no new sync starts",) * 2 + ("Redis works again",) * 2,
    AlertKind.NO_WORKER: ("no worker is running, so nothing is synced",) * 2 + ("workers are running again",) * 2,
    AlertKind.SWEEP_LATE: ("the sweep is not running, so changes are not detected",) * 2
    + ("the sweep is running again",) * 2,
    AlertKind.DISK: ("a disk is almost full or not writable, so syncs may fail",) * 2
    + ("the disk is writable and has free space again",) * 2,
    AlertKind.GIT_HOST_DOWN: (
        "the git host {name} is down",
        "{count} git hosts are down",
        "the git host {name} is no longer down",
        "{count} git hosts are no longer down",
    ),
    AlertKind.CIRCUIT_OPEN: (
        "the circuit of {name} is open",
        "the circuits of {count} git repositories are open",
        "the circuit of {name} is no longer open",
        "the circuits of {count} git repositories are no longer open",
    ),
    AlertKind.ENDPOINT_DOWN: (
        "the endpoint of {name} is down",
        "the endpoints of {count} apps are down",
        "the endpoint of {name} is no longer down",
        "the endpoints of {count} apps are no longer down",
    ),
    AlertKind.APP_PAUSED: (
        "{name} returned HTTP 410 and was paused",
        "{count} apps returned HTTP 410 and were paused",
        "{name} is no longer paused",
        "{count} apps are no longer paused",
    ),
    AlertKind.FAILING: (
        "{name} is failing",
        "{count} watched repositories are failing",
        "{name} is no longer failing",
        "{count} watched repositories are no longer failing",
    ),
}
# The admin's pages of the subjects, and its lists. Other kinds lead to the overview.
_PAGES: dict[str, str] = {
    AlertKind.FAILING: "deliveries_app_apprepository",
    AlertKind.APP_PAUSED: "deliveries_app_app",
    AlertKind.ENDPOINT_DOWN: "deliveries_app_app",
    AlertKind.CIRCUIT_OPEN: "repositories_app_repository",
}
_LISTS: dict[str, tuple[str, str]] = {
    AlertKind.FAILING: ("deliveries_app_failedsync_changelist", ""),
    AlertKind.APP_PAUSED: ("deliveries_app_app_changelist", "?paused__exact=1"),
    AlertKind.ENDPOINT_DOWN: ("deliveries_app_app_changelist", ""),
    AlertKind.CIRCUIT_OPEN: ("repositories_app_repository_changelist", "?circuit=open"),
    AlertKind.NO_WORKER: ("deliveries_app_queue_changelist", ""),
}
_ORDER = [When(kind=kind, then=Value(place)) for place, kind in enumerate(_TEXTS)]
# Chat servers turn these into mentions and links.
_INERT = str.maketrans({"<": "‹", ">": "›", "@": "＠"})


@dataclass(frozen=True)
class Message:
    """`event` is alert or resolved, `counts` lists kind, root cause and count, `items` are the first `SHOWN` alerts.

    `unreported` is the number of resolved alerts that began without a message that was accepted.
    """

    event: str
    counts: Sequence[tuple[str, str, int]]
    items: Sequence[Alert]
    at: datetime
    reminder: bool = False
    unreported: int = 0

    @property
    def total(self) -> int:
        return sum(count for _, _, count in self.counts)

    @property
    def kind(self) -> str:
        """The kind of all alerts, or several, or test."""
        kinds = {kind for kind, _, _ in self.counts}
        return kinds.pop() if len(kinds) == 1 else SEVERAL if kinds else TEST

    @property
    def sentence(self) -> str:
        if not self.counts:
            return f"This is a test alert from Docora at {settings.PUBLIC_URL}."
        introduction = "resolved" if self.event == "resolved" else "still" if self.reminder else "alert"
        found = {kind for kind, _, _ in self.counts}
        kinds = [*(kind for kind in _TEXTS if kind in found), *sorted(found.difference(_TEXTS))]
        return f"Docora, {introduction}: {'; '.join(map(self._clause, kinds))}."

    @property
    def text(self) -> str:
        """The sentence, with a note if the alert about a resolved problem couldn't be delivered."""
        if not self.unreported:
            return self.sentence
        if self.total == 1:
            note = f"The problem lasted {_period(self.items[0], 'from')}, but the alert about it couldn't be delivered."
        else:
            which = "these" if self.unreported == self.total else f"{self.unreported:,} of these"
            note = f"The alerts about {which} problems couldn't be delivered."
        return f"{self.sentence} {note}"

    @property
    def url(self) -> str:
        """The admin page that shows the problem."""
        return _page_of(self.items[0]) if self.total == 1 else _list_of(self.kind)

    @property
    def subject(self) -> str:
        return clean_text(f"[Docora] {self.sentence.removeprefix('Docora, ')}", 150)

    @property
    def body(self) -> str:
        """The body of the email."""
        lines = [self.text, self.url, ""]
        for alert in self.items:
            kind = f" ({alert.get_kind_display()})" if self.kind == SEVERAL and alert.name else ""
            cause = f", {label_of(alert.cause)}" if alert.cause else ""
            lines += [f"- {name_of(alert)}{kind}{cause}, {_period(alert)}", f"  {_page_of(alert)}"]
        if self.total > len(self.items):
            lines.append(f"and {self.total - len(self.items):,} more.")
        return "\n".join(lines).rstrip() + "\n"

    @property
    def json(self) -> bytes:
        """The body of the webhook, as JSON."""
        return orjson.dumps(
            {
                "event": self.event,
                "kind": self.kind,
                "instance": settings.PUBLIC_URL,
                "text": f"{self.text.translate(_INERT)} {self.url}",
                "reminder": self.reminder,
                "total": self.total,
                "counts": [{"kind": kind, "cause": cause, "count": count} for kind, cause, count in self.counts],
                "items": [
                    {
                        "kind": alert.kind,
                        "name": name_of(alert),
                        "cause": alert.cause,
                        "since": timestamp(alert.since),
                        "until": timestamp(alert.ended_at) if alert.ended_at else None,
                        "url": _page_of(alert),
                    }
                    for alert in self.items
                ],
                "at": timestamp(self.at),
            }
        )

    def _clause(self, kind: str) -> str:
        of_kind = [(cause, count) for found, cause, count in self.counts if found == kind]
        count = sum(count for _, count in of_kind)
        first = next((alert for alert in self.items if alert.kind == kind), None)
        template = _TEXTS.get(kind, (kind,) * 4)[2 * (self.event == "resolved") + (count > 1)]
        text = template.format(name=name_of(first) if first else "", count=f"{count:,}")
        causes = [
            f"{number:,} × {label_of(cause)}" if count > 1 else label_of(cause) for cause, number in of_kind if cause
        ]
        if causes and self.event != "resolved":
            text += f" ({', '.join(causes)})"
        return text


def of(event: str, alerts: QuerySet[Alert], *, reminder: bool = False, unreported: int = 0) -> Message | None:
    """Return the message about these alerts, or None if there are none. Takes two queries."""
    counts = list(alerts.order_by().values_list("kind", "cause").annotate(count=Count("pk")).order_by("-count", "kind"))
    if not counts:
        return None
    first = alerts.alias(place=Case(*_ORDER)).order_by("place", "since", "pk")[:SHOWN]
    return Message(event, counts, list(first), timezone.now(), reminder, unreported)


def test() -> Message:
    """Return a test message."""
    return Message("alert", [], [], timezone.now())


def name_of(alert: Alert) -> str:
    """Return the name on one line."""
    return one_line(alert.name, 300) or alert.get_kind_display()


def _period(alert: Alert, preposition: str = "since") -> str:
    since = f"{preposition} {alert.since.astimezone(UTC):%Y-%m-%d %H:%M}"
    return f"{since} until {alert.ended_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if alert.ended_at else f"{since} UTC"


def _page_of(alert: Alert) -> str:
    """Return the URL of the subject's page, or of the relevant list for Docora itself."""
    if alert.kind not in _PAGES:
        return _list_of(alert.kind)
    return settings.PUBLIC_URL + reverse(f"admin:{_PAGES[alert.kind]}_change", args=[alert.subject])


def _list_of(kind: str) -> str:
    name, query = _LISTS.get(kind, ("index", ""))
    return settings.PUBLIC_URL + reverse(f"admin:{name}") + query
