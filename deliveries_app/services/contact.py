"""Email an app's contact when the app's base URL, signing key, tokens or contact change.

The message is stored with the change and sent later (`monitoring.alerts.contacts`), so a slow or broken mail server
can't affect the change. Without a mail server, nothing is stored.
"""

from django.conf import settings

from deliveries_app.actors import Actor
from deliveries_app.models import ActorKind, App, ContactMail

_BY = {
    ActorKind.USER: "by an administrator",
    ActorKind.COMMAND: "by an administrator, on the command line",
    ActorKind.SYSTEM: "by Docora",
}


def is_on() -> bool:
    """Return whether a mail server is configured."""
    return bool(settings.MAILERS and settings.DEFAULT_FROM_EMAIL)


def notify_contact(actor: Actor, app: App, text: str) -> None:
    """Store a message for the contact of `app`, at the email address that `app` holds. Call in the change's transaction.

    The contact may belong to another organization, so administrators are not named.
    """
    if is_on():
        by = _BY.get(actor.kind, f"with the app's API token from {actor.address or 'an unknown address'}")
        ContactMail.objects.create(app_id=app.app_id, app_name=app.name, email=app.email, text=f"{by}: {text}")
