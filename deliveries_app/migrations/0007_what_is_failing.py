"""Watched repositories that were failing before there was a column for it: since when is not known, so since the last
attempt; the root cause as far as the old cause tells it apart."""

from django.db import migrations
from django.db.models import Case, Value, When
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
    "internal": "internal",
    "worker": "internal",
    "timeout": "timeout",  # of the endpoint or of the git host: the next attempt tells
    "network": "connection",
}


def note_what_fails(apps, schema_editor):
    pairs = apps.get_model("deliveries_app", "AppRepository").objects.exclude(last_error="")
    known = [When(last_error_cause=cause, then=Value(root)) for cause, root in ROOT_CAUSES.items()]
    pairs.update(
        failing_since=Coalesce("last_scanned_at", Now()), root_cause=Case(*known, default=Value("http_other"))
    )


class Migration(migrations.Migration):
    dependencies = [("deliveries_app", "0006_operating")]

    operations = [migrations.RunPython(note_what_fails, migrations.RunPython.noop)]
