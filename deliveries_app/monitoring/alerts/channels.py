"""The alert channels: a webhook and email.

The webhook is called with the same HTTP client as everything else: checked addresses, https, no redirects. It is not
signed, because chat servers and pagers don't verify signatures; they recognise the sender by the secret in the URL. So
neither the URL nor the mail server's password appears in a log.
"""

import smtplib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.conf import settings
from django.core.mail import EmailMessage

from deliveries_app.models import ChannelName
from deliveries_app.monitoring.alerts.messages import Message
from docora.http.client import Request
from docora.security.redaction import remove_secrets
from docora.text import one_line
from repositories_app.git.remote import new_client

_SECONDS = 10.0


@dataclass(frozen=True)
class Channel:
    """A configured channel. `target` describes the recipient.

    `send` returns an empty string, or one sentence that says why it failed. Neither contains secrets.
    """

    name: ChannelName
    target: str
    send: Callable[[Message], str]


def configured() -> list[Channel]:
    """Return the configured channels; an empty list means that alerts are off."""
    channels = []
    if settings.ALERT_WEBHOOK_URL:
        channels.append(Channel(ChannelName.WEBHOOK, "the webhook", _post))
    if settings.ALERT_EMAILS:
        target = f"the mail server, for {', '.join(settings.ALERT_EMAILS)}"
        channels.append(Channel(ChannelName.EMAIL, target, _mail))
    return channels


def _post(message: Message) -> str:
    headers = ("Content-Type: application/json",)
    request = Request("POST", settings.ALERT_WEBHOOK_URL, headers, message.json, timeout=_SECONDS)
    with new_client(max_connections=1) as client:
        outcome = client.request(request)
    if outcome.ok:
        return ""
    return outcome.message if outcome.cause else f"ALERT_WEBHOOK_URL returned HTTP {outcome.status}."


def _mail(message: Message) -> str:
    """Hand the message to the mail server. Later delivery failures are not visible here."""
    return send_mail(message.subject, message.body, settings.ALERT_EMAILS, "no address in ALERT_EMAILS was accepted")


def send_mail(subject: str, body: str, to: Sequence[str], refused: str = "the address was not accepted") -> str:
    """Hand a message to the mail server. Return an empty string, or on failure one sentence that says why, without secrets.

    `refused` is the reason to give if no recipient was accepted.
    """
    headers = {"Auto-Submitted": "auto-generated"}  # suppresses out-of-office replies
    try:
        EmailMessage(subject, body, to=to, headers=headers).send()
    except (OSError, ValueError) as error:  # smtplib errors are OSErrors
        options = settings.MAILERS["default"]["OPTIONS"]
        password = options["password"] or ""
        text = refused if isinstance(error, smtplib.SMTPRecipientsRefused) else _reason(error)
        # Before the text is cut: a part of the password would not be recognised.
        text = remove_secrets(text, password, f"\0{options['username']}\0{password}" if password else "")
        return f"The mail server {options['host']} didn't accept the message: {one_line(text, 200)}."
    return ""


def _reason(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        answer = error.smtp_error
        return f"{error.smtp_code} {answer.decode('utf-8', 'replace') if isinstance(answer, bytes) else answer}"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
