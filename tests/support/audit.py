"""What the audit log says, without sign-ins and accounts, which every test has."""

from django.db.models import QuerySet

from deliveries_app.models import ActorKind, AuditEntry


def by_users(**where: object) -> QuerySet[AuditEntry]:
    """Return what people did in the admin, oldest first."""
    entries = AuditEntry.objects.filter(actor_kind=ActorKind.USER, **where)
    return entries.exclude(action__startswith="user.").order_by("pk")


def by_apps(**where: object) -> QuerySet[AuditEntry]:
    """Return what apps did through the API, oldest first."""
    return AuditEntry.objects.filter(actor_kind=ActorKind.APP, **where).order_by("pk")


def messages(entries: QuerySet[AuditEntry]) -> list[str]:
    return list(entries.values_list("message", flat=True))
