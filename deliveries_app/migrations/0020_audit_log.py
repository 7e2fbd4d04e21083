from collections.abc import Iterator
from itertools import batched

import django.core.serializers.json
import django.utils.timezone
from django.conf import settings
from django.contrib.admin.models import LogEntry as RealLogEntry
from django.contrib.auth import get_user_model
from django.db import migrations, models

from docora.db import append_only

TABLE = "deliveries_app_auditentry"
BATCH = 2000
ACTIONS = {
    ("app", "Paused"): "app.paused",
    ("app", "Resumed"): "app.resumed",
    ("app", "Started rotating the signing key"): "app.key_rotation_started",
    ("app", "Retired the old signing key"): "app.old_key_retired",
    ("app", "Discarded the new signing key"): "app.new_key_discarded",
    ("app", "Rotated the token"): "app.token_rotated",
    ("app", "Retired old tokens"): "app.tokens_retired",
    ("app", "Registered"): "app.registered",
    ("apprepository", "Paused"): "repository.paused",
    ("apprepository", "Resumed"): "repository.resumed",
    ("syncpause", "Paused all syncing"): "sync.all_paused",
    ("syncpause", "Resumed all syncing"): "sync.all_resumed",
}
STARTS = {"Re-sync": "sync.resync", "Retry": "sync.retry", "Resen": "sync.resend", "Cancelled": "sync.cancelled"}
FLAGS = {1: ("other.added", "Added"), 2: ("other.changed", "Changed"), 3: ("other.deleted", "Deleted")}


def copy_old_entries(apps, schema_editor):
    """Copy what Django's log of users and the log of client apps hold, so that there is one log. Both stay as they are."""
    database = schema_editor.connection.alias
    entries = apps.get_model("deliveries_app", "AuditEntry").objects.using(database)
    for batch in batched(_old_entries(apps, database), BATCH):
        entries.bulk_create([entries.model(**fields) for fields in batch])


def _old_entries(apps, database) -> Iterator[dict[str, object]]:
    of_app, of_watch = _names(apps, database)
    log = apps.get_model("admin", "LogEntry").objects.using(database).select_related("user", "content_type")
    for old in log.order_by("pk").iterator(chunk_size=BATCH):
        model = old.content_type.model if old.content_type else ""
        concerned = {"app": of_app, "apprepository": of_watch}.get(model, {}).get(old.object_id, {})
        action, text = FLAGS[old.action_flag]
        message = RealLogEntry(change_message=old.change_message).get_change_message() or text
        yield {
            "created_at": old.action_time,
            "actor_kind": "user",
            "actor": getattr(old.user, get_user_model().USERNAME_FIELD)[:150],
            "actor_id": str(old.user_id),
            "action": _action(model, message) or action,
            "message": message[:500],
            "subject_type": f"{old.content_type.app_label}.{model}" if old.content_type else "",
            "subject_id": str(old.object_id or "")[:64],
            "subject": old.object_repr,
            **concerned,
        }
    actions = apps.get_model("deliveries_app", "AppAction").objects.using(database)
    for old in actions.order_by("pk").iterator(chunk_size=BATCH):
        model, pk = ("apprepository", str(old.watch_id)) if old.watch_id else ("app", str(old.app_id))
        concerned = of_watch.get(pk, {}) if old.watch_id else of_app.get(pk, {})
        app = of_app.get(str(old.app_id), {})
        yield {
            "created_at": old.created_at,
            "actor_kind": "app",
            "actor": f"app {app.get('app_name', '')}",
            "actor_id": app.get("app_id", ""),
            "address": old.address,
            "action": _action(model, old.message) or "other.changed",
            "message": old.message,
            "subject_type": f"deliveries_app.{model}",
            "subject_id": pk,
            "subject": old.subject,
            **(concerned or app),
        }


def _action(model: str, message: str) -> str | None:
    starts = (action for start, action in STARTS.items() if message.startswith(start))
    return ACTIONS.get((model, message)) or next(starts, None)


def _names(apps, database) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Return what the entries of apps and of watches concern, by the key of the row, for those that still exist."""
    of_app = {
        str(pk): {"app_id": app_id, "app_name": name}
        for pk, app_id, name in apps.get_model("deliveries_app", "App")
        .objects.using(database).values_list("pk", "app_id", "name")
    }
    watches = apps.get_model("deliveries_app", "AppRepository").objects.using(database)
    columns = ("pk", "app_id", "repository__repository_id", "repository__owner", "repository__name")
    of_watch = {
        str(pk): {
            **of_app[str(app)], "repository_id": repository_id, "repository_name": f"{owner}/{name}"
        }
        for pk, app, repository_id, owner, name in watches.values_list(*columns)
    }
    return of_app, of_watch


def protect(apps, schema_editor):
    append_only.protect(schema_editor.connection, TABLE)


def unprotect(apps, schema_editor):
    append_only.unprotect(schema_editor.connection, TABLE)


def nothing(apps, schema_editor):
    """The copies go with the table."""


class Migration(migrations.Migration):
    """Additive: two new tables. The one with the audit log gets the old entries, and then refuses changes."""

    dependencies = [
        ('deliveries_app', '0019_gradual_operations'),
        ('admin', '0003_logentry_add_action_flag_choices'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='AuditEntry',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name='time')),
                ('actor_kind', models.CharField(choices=[('user', 'user'), ('app', 'app, through the API'), ('command', 'command line'), ('system', 'Docora'), ('stranger', 'not signed in')], max_length=8, verbose_name='kind of actor')),
                ('actor', models.CharField(help_text='Name of the user or app, at that time.', max_length=150, verbose_name='by')),
                ('actor_id', models.CharField(blank=True, default='', help_text="The user's key, or the app's ID.", max_length=64, verbose_name="actor's ID")),
                ('address', models.CharField(blank=True, default='', help_text="IP address of the request. For a command, the operating system's user and host.", max_length=150)),
                ('action', models.CharField(max_length=40)),
                ('message', models.CharField(max_length=500)),
                ('subject_type', models.CharField(blank=True, default='', help_text='What was changed, such as deliveries_app.app.', max_length=100)),
                ('subject_id', models.CharField(blank=True, default='', max_length=64, verbose_name="subject's key")),
                ('subject', models.CharField(blank=True, default='', max_length=511, verbose_name='what')),
                ('app_id', models.CharField(blank=True, default='', max_length=50, verbose_name='app ID')),
                ('app_name', models.CharField(blank=True, default='', max_length=100, verbose_name='app')),
                ('repository_id', models.CharField(blank=True, default='', max_length=50, verbose_name='repository ID')),
                ('repository_name', models.CharField(blank=True, default='', max_length=511, verbose_name='repository')),
                ('run_id', models.CharField(blank=True, default='', max_length=50, verbose_name='sync run')),
                ('operation_id', models.CharField(blank=True, default='', max_length=50, verbose_name='bulk operation')),
                ('old', models.JSONField(default=dict, encoder=django.core.serializers.json.DjangoJSONEncoder, help_text='Values before the change. Never a secret.', verbose_name='old values')),
                ('new', models.JSONField(default=dict, encoder=django.core.serializers.json.DjangoJSONEncoder, help_text='Of a secret, only that it was changed.', verbose_name='new values')),
                ('reason', models.CharField(blank=True, default='', help_text='What the person said about it.', max_length=200)),
            ],
            options={
                'verbose_name': 'audit log entry',
                'verbose_name_plural': 'audit log entries',
                'ordering': ['-created_at', '-pk'],
                'permissions': [('export_auditentry', 'Can export the audit log')],
                'default_permissions': ('view',),
                'indexes': [models.Index(fields=['created_at', 'id'], name='audit_order'), models.Index(fields=['app_id', 'created_at', 'id'], name='audit_app'), models.Index(fields=['repository_id', 'created_at', 'id'], name='audit_repository'), models.Index(fields=['actor', 'created_at', 'id'], name='audit_actor'), models.Index(fields=['action', 'created_at', 'id'], name='audit_action'), models.Index(fields=['address', 'created_at', 'id'], name='audit_address'), models.Index(fields=['subject_type', 'subject_id', 'created_at', 'id'], name='audit_subject'), models.Index(fields=['operation_id'], name='audit_operation'), models.Index(fields=['run_id'], name='audit_run')],
            },
        ),
        migrations.CreateModel(
            name='ContactMail',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('app_id', models.CharField(max_length=50)),
                ('app_name', models.CharField(max_length=100)),
                ('email', models.EmailField(max_length=255)),
                ('text', models.TextField()),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('due_at', models.DateTimeField(null=True)),
                ('sent_at', models.DateTimeField(null=True)),
                ('attempts', models.PositiveIntegerField(default=0, help_text='Failed attempts.')),
            ],
            options={
                'default_permissions': (),
                'indexes': [models.Index(condition=models.Q(('sent_at', None)), fields=['created_at'], name='contact_mail_unsent'), models.Index(fields=['created_at'], name='contact_mail_created')],
            },
        ),
        migrations.AlterField(
            model_name='app',
            name='email',
            field=models.EmailField(help_text="The app's contact. Told by email when the base URL, the signing key or the token is changed.", max_length=255, verbose_name='email'),
        ),
        migrations.RunPython(copy_old_entries, nothing),
        migrations.RunPython(protect, unprotect),
    ]
