"""Email the contacts of apps about changed settings. `services.contact` stores the rows to send.

Each contact gets one message with all due rows, and the next one after five minutes at the earliest, so that an app that
rotates its keys in a loop does not flood its contact. A row is claimed by a conditional UPDATE, so two processes never
send the same message; if a process is killed just after sending, the message is sent again. After a failure the rows
wait, twice as long each time; after three days they are deleted.
"""

import logging
from datetime import UTC, timedelta

from django.conf import settings
from django.db.models import F, Q
from django.db.models.functions import Now

from deliveries_app.models import ContactMail
from deliveries_app.monitoring.alerts.channels import send_mail
from deliveries_app.services.contact import is_on
from docora.backoff import backoff
from docora.db.clock import from_now
from docora.text import clean_text, counted, one_line

logger = logging.getLogger(__name__)

SHOWN = 20  # changes in one message
GATHER_SECONDS = 300.0
GIVE_UP_SECONDS = 3 * 86400.0
KEPT = timedelta(days=7)
"""How long rows are kept after they are created, sent or not."""
_CLAIM_SECONDS = 180.0
_BASE_DELAY_SECONDS = 30.0
_MESSAGES = 20  # in one round, because each may wait for a slow server


def send_due() -> None:
    """Send the due messages. Stop at a failure, which usually is the mail server's. Raises `DatabaseError`."""
    if not is_on():
        return
    for _ in range(_MESSAGES):
        rows = _claim()
        if not rows or not _send(rows):
            return


def _claim() -> list[ContactMail]:
    """Claim all due rows of one app and address, oldest first. Return none if nothing is due or another process was faster."""
    is_due = Q(due_at=None) | Q(due_at__lte=Now())
    due = ContactMail.objects.filter(is_due, sent_at=None).order_by("created_at", "pk")
    while (first := due.first()) is not None:
        of_contact = {"app_id": first.app_id, "email": first.email}
        sent = ContactMail.objects.filter(**of_contact, sent_at__gt=from_now(-GATHER_SECONDS)).order_by("-sent_at")
        last = sent.values_list("sent_at", flat=True).first()
        if last is None:
            rows = list(due.filter(**of_contact))
            claimed = due.filter(pk__in=[row.pk for row in rows]).update(due_at=from_now(_CLAIM_SECONDS))
            return rows if claimed == len(rows) else []
        due.filter(**of_contact).update(due_at=last + timedelta(seconds=GATHER_SECONDS))
    return []


def _send(rows: list[ContactMail]) -> bool:
    """Send one message about these rows and record the result. Return whether the mail server accepted it."""
    first, these = rows[0], ContactMail.objects.filter(pk__in=[row.pk for row in rows])
    what = "a security setting was changed" if len(rows) == 1 else f"{len(rows):,} changes of security settings"
    problem = send_mail(
        clean_text(f"[Docora] {one_line(first.app_name, 100)}: {what}", 150), _body(rows), [first.email]
    )
    fields = {"app": first.app_id, "count": len(rows)}
    if not problem:
        these.update(sent_at=Now())
        logger.info("contact_mail_sent", extra=fields)
        return True
    wait = backoff(first.attempts + 1, base=_BASE_DELAY_SECONDS, jitter=0.0)
    these.update(attempts=F("attempts") + 1, due_at=from_now(wait))
    these.filter(created_at__lt=from_now(-GIVE_UP_SECONDS)).delete()
    logger.warning("contact_mail_not_sent", extra={**fields, "cause": problem, "again_in": wait})
    return False


def _body(rows: list[ContactMail]) -> str:
    first = rows[0]
    lines = [
        f"You are the contact of the app {one_line(first.app_name, 100)} ({first.app_id}) at {settings.PUBLIC_URL}.",
        "Docora writes to you whenever the app's base URL, signing key, API token or contact is changed:",
        "",
    ]
    for row in rows[:SHOWN]:
        lines.append(f"- {row.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC, {' '.join(row.text.split())}")
    if len(rows) > SHOWN:
        more = counted(len(rows) - SHOWN, "more change")
        lines.append(f"and {more}. Administrators see all of them in the app's audit log.")
    lines += ["", f"If you did not expect this, tell an administrator of {settings.PUBLIC_URL} immediately."]
    return "\n".join(lines) + "\n"
