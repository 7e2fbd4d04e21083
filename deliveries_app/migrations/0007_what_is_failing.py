"""Watched repositories that were failing before there was a column for it: since when is not known, so since the last
attempt; the root cause as far as the old cause, and the answers to the files that are listed as failed, tell it apart."""

from django.db import migrations
from django.db.models import Case, OuterRef, Q, Subquery, Value, When
from django.db.models.functions import Coalesce, Now

ROOT_CAUSES = {
    "dns": "dns",
    "tls": "tls",
    "connect": "connection",
    "refused_address": "address",
    "auth": "git_auth",
    "not_found": "git_not_found",
    "too_large": "git_content",
    "corrupt": "git_content",
    "other": "git_content",
    "transform": "rules",
    "rules": "rules",
    "internal": "internal",
    "worker": "internal",
    "timeout": "timeout",  # of the endpoint or of the git host: the next attempt tells
    "network": "connection",
}


OF_ANSWERS = [
    (Q(last_status_code__in=[401, 403]), "refused"),
    (Q(last_status_code__range=(400, 499)), "http_4xx"),
    (Q(last_status_code__gte=500), "http_5xx"),
]


def note_what_fails(apps, schema_editor):
    pairs = apps.get_model("deliveries_app", "AppRepository").objects.exclude(last_error="")
    failures = apps.get_model("deliveries_app", "DeliveryFailure").objects.filter(pair=OuterRef("pk"), kind="failed")
    newest = failures.filter(status_code__isnull=False).order_by("-last_at", "-pk")
    pairs.filter(last_error_cause="http").update(
        last_status_code=Subquery(newest.values("status_code")[:1]),
        last_answer=Coalesce(Subquery(newest.values("body")[:1]), Value("")),
    )
    known = [When(last_error_cause=cause, then=Value(root)) for cause, root in ROOT_CAUSES.items()]
    answered = [When(condition, then=Value(root)) for condition, root in OF_ANSWERS]
    pairs.update(
        failing_since=Coalesce("last_scanned_at", Now()),
        root_cause=Case(*known, *answered, default=Value("http_other")),
    )


class Migration(migrations.Migration):
    dependencies = [("deliveries_app", "0006_operating")]

    operations = [migrations.RunPython(note_what_fails, migrations.RunPython.noop)]
