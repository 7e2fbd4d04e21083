import deliveries_app.models.apps
import deliveries_app.models.runs
import deliveries_app.models.watches
import django.db.models.deletion
import django.utils.timezone
import docora.security.crypto
import docora.db.fields
from django.conf import settings
from django.db import migrations, models


# Viewers see everything. Operators also do the daily work; only superusers delete an app.
VIEWERS = {
    ("deliveries_app", "app"): ["view_app"],
    ("deliveries_app", "apprepository"): ["view_apprepository"],
    ("deliveries_app", "delivery"): ["view_delivery"],
    ("deliveries_app", "syncrun"): ["view_syncrun"],
    ("deliveries_app", "bulkoperation"): ["view_bulkoperation"],
    ("deliveries_app", "queue"): ["view_queue"],
    ("repositories_app", "repository"): ["view_repository"],
}
OPERATORS = {
    ("deliveries_app", "app"): ["onboard_app", "change_app", "rotate_secret_app"],
    ("deliveries_app", "apprepository"): [
        "add_apprepository",
        "change_apprepository",
        "delete_apprepository",
        "resync_apprepository",
        "retry_apprepository",
    ],
    ("deliveries_app", "queue"): ["control_queue"],
}
NAMES = {
    "onboard_app": "Can register a client app",
    "rotate_secret_app": "Can replace the token and the signing key of an app",
    "resync_apprepository": "Can force a re-sync of a watched repository",
    "retry_apprepository": "Can retry a failed watched repository and reset a circuit",
    "view_queue": "Can see the job queue",
    "control_queue": "Can stop jobs and pause the queue",
}


def make_groups(apps, schema_editor):
    """Create the groups Viewers and Operators.

    Django creates permissions only after all migrations. Those created here have the same keys, so Django finds and
    keeps them.
    """
    Group = apps.get_model("auth", "Group")
    for name, tables in (("Viewers", [VIEWERS]), ("Operators", [VIEWERS, OPERATORS])):
        group, _ = Group.objects.get_or_create(name=name)
        group.permissions.add(*(permission for table in tables for permission in permissions(apps, table)))


def permissions(apps, table):
    ContentType = apps.get_model("contenttypes", "ContentType")
    Permission = apps.get_model("auth", "Permission")
    for (app_label, model), codenames in table.items():
        content_type, _ = ContentType.objects.get_or_create(app_label=app_label, model=model)
        verbose = apps.get_model(app_label, model)._meta.verbose_name
        for codename in codenames:
            name = NAMES.get(codename) or f"Can {codename.partition('_')[0]} {verbose}"
            yield Permission.objects.get_or_create(
                content_type=content_type, codename=codename, defaults={"name": name}
            )[0]


class Migration(migrations.Migration):

    initial = True

    replaces = [
        ('deliveries_app', '0001_initial'),
        ('deliveries_app', '0002_client_life'),
        ('deliveries_app', '0003_keep_tokens'),
        ('deliveries_app', '0004_drop_token_digest'),
        ('deliveries_app', '0005_groups'),
        ('deliveries_app', '0006_operating'),
        ('deliveries_app', '0007_what_is_failing'),
        ('deliveries_app', '0008_search_of_paths'),
        ('deliveries_app', '0009_moved_at'),
        ('deliveries_app', '0010_alerts'),
        ('deliveries_app', '0011_arriving'),
        ('deliveries_app', '0012_imported'),
    ]

    dependencies = [
        ('auth', '0012_alter_user_first_name_max_length'),
        ('contenttypes', '0002_remove_content_type_name'),
        ('repositories_app', '0001_squashed_0003_twin'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='Queue',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
            ],
            options={
                'verbose_name_plural': 'queue',
                'permissions': [('view_queue', 'Can see the job queue'), ('control_queue', 'Can stop jobs and pause the queue')],
                'managed': False,
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='Alert',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('failing', 'watched repository fails'), ('app_paused', 'app was paused'), ('endpoint_down', 'endpoint is down'), ('circuit_open', 'circuit is open'), ('sweep_late', 'sweep is late'), ('no_worker', 'no worker is alive'), ('redis_down', 'Redis does not answer')], max_length=14)),
                ('subject', models.BigIntegerField(default=0)),
                ('name', models.CharField(blank=True, default='', max_length=620)),
                ('cause', models.CharField(blank=True, default='', help_text='The root cause of what fails.', max_length=14)),
                ('since', models.DateTimeField(default=django.utils.timezone.now)),
                ('opened', models.BigIntegerField(null=True)),
                ('closed', models.BigIntegerField(null=True)),
                ('ended_at', models.DateTimeField(null=True)),
            ],
            options={
                'default_permissions': (),
                'indexes': [models.Index(condition=models.Q(('ended_at', None)), fields=['opened'], name='alert_opened'), models.Index(condition=models.Q(('ended_at__isnull', False)), fields=['closed'], name='alert_closed'), models.Index(condition=models.Q(('ended_at__isnull', False)), fields=['ended_at'], name='alert_ended')],
                'constraints': [models.UniqueConstraint(condition=models.Q(('ended_at', None)), fields=('kind', 'subject'), name='alert_open_once'), models.CheckConstraint(condition=models.Q(('kind__in', ['failing', 'app_paused', 'endpoint_down', 'circuit_open', 'sweep_late', 'no_worker', 'redis_down'])), name='alert_kind_known'), models.CheckConstraint(condition=models.Q(models.Q(('closed', None), ('ended_at', None)), models.Q(('closed__isnull', False), ('ended_at__isnull', False), ('opened__isnull', False)), _connector='OR'), name='alert_ends_after_it_began')],
            },
        ),
        migrations.CreateModel(
            name='AlertChannel',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(choices=[('webhook', 'webhook'), ('email', 'e-mail')], max_length=7, unique=True)),
                ('told_begun', models.BigIntegerField(default=0)),
                ('told_ended', models.BigIntegerField(default=0)),
                ('reminded_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('due_at', models.DateTimeField(null=True)),
                ('attempts', models.PositiveIntegerField(default=0, help_text='That failed in a row.')),
                ('last_error', models.CharField(blank=True, default='', max_length=500)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now)),
            ],
            options={
                'default_permissions': (),
                'constraints': [models.CheckConstraint(condition=models.Q(('name__in', ['webhook', 'email'])), name='alert_channel_known')],
            },
        ),
        migrations.CreateModel(
            name='AlertRound',
            fields=[
                ('id', models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ('number', models.BigIntegerField(default=0)),
                ('looked_at', models.DateTimeField()),
            ],
            options={
                'default_permissions': (),
                'constraints': [models.CheckConstraint(condition=models.Q(('pk', 1)), name='alert_round_is_one')],
            },
        ),
        migrations.CreateModel(
            name='App',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('app_id', models.CharField(default=deliveries_app.models.apps.new_app_id, editable=False, max_length=50, unique=True, verbose_name='app id')),
                ('name', models.CharField(max_length=100)),
                ('base_url', models.CharField(help_text='Notifications go to {base URL}/create, /update, /delete.', max_length=2048, verbose_name='base URL')),
                ('email', models.EmailField(max_length=255, verbose_name='e-mail')),
                ('website', models.CharField(blank=True, max_length=2048)),
                ('description', models.CharField(blank=True, max_length=500)),
                ('client_auth_key', docora.security.crypto.EncryptedTextField(help_text='Notifications are signed with it.', verbose_name='signing key')),
                ('new_auth_key', docora.security.crypto.EncryptedTextField(blank=True, default='', editable=False, verbose_name='new signing key')),
                ('key_rotation_started_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('new_key_signs', models.BooleanField(default=False, editable=False, help_text='The app accepted the new key last: X-Docora-Signature is made with it.')),
                ('new_key_accepted_at', models.DateTimeField(blank=True, editable=False, help_text='The old key may be retired from then on.', null=True)),
                ('paused', models.BooleanField(default=False, help_text='Nothing is sent to a paused app; what is due waits.')),
                ('paused_reason', models.CharField(blank=True, editable=False, max_length=500)),
                ('not_before', models.DateTimeField(blank=True, editable=False, help_text='The endpoint asked for a rest, or is down: nothing is sent earlier.', null=True)),
                ('down_count', models.PositiveIntegerField(default=0, editable=False, help_text='Runs in a row that found the endpoint down.')),
                ('max_in_flight', models.PositiveSmallIntegerField(default=deliveries_app.models.apps.default_max_in_flight, help_text='Notifications under way at once, over all its repositories. 1 sends strictly one by one.')),
                ('send_sync_completed', models.BooleanField(default=False, help_text='Also send /sync_completed after every complete sync.', verbose_name='send sync completed')),
                ('ended_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('updated_at', models.DateTimeField(auto_now=True)),
            ],
            options={
                'ordering': ['name', 'pk'],
                'permissions': [('onboard_app', 'Can register a client app'), ('rotate_secret_app', 'Can replace the token and the signing key of an app')],
                'indexes': [models.Index(fields=['name', 'id'], name='app_order')],
                'constraints': [models.CheckConstraint(condition=models.Q(('max_in_flight__gte', 1)), name='app_max_in_flight'), models.CheckConstraint(condition=models.Q(('name', ''), _negated=True), name='app_has_name')],
            },
        ),
        migrations.CreateModel(
            name='AppRepository',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('watch_id', models.CharField(default=deliveries_app.models.watches.new_watch_id, editable=False, max_length=16, unique=True)),
                ('github_url', models.CharField(help_text='As the app spelled it.', max_length=2048, verbose_name='URL')),
                ('github_token', docora.security.crypto.EncryptedTextField(blank=True, default='', verbose_name='token')),
                ('push_secret', docora.security.crypto.EncryptedTextField(blank=True, default='', help_text='The git host signs its push hooks with it.', verbose_name='push hook secret')),
                ('ignore_patterns', models.TextField(blank=True, default='', help_text='As in .gitignore, one a line; what they match is not sent to this app.')),
                ('status', models.CharField(choices=[('pending_snapshot', 'pending'), ('scanning', 'syncing'), ('synced', 'synced'), ('failed', 'failed')], default='pending_snapshot', editable=False, max_length=20)),
                ('generation', models.BigIntegerField(default=1, editable=False)),
                ('resend_floor', models.BigIntegerField(default=1, editable=False)),
                ('wanted', models.BigIntegerField(default=1, editable=False)),
                ('next_sync_at', models.DateTimeField(blank=True, default=django.utils.timezone.now, editable=False, null=True)),
                ('next_check_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('retry_count', models.PositiveIntegerField(default=0, editable=False)),
                ('last_error', models.TextField(blank=True, default='', editable=False)),
                ('last_error_cause', models.CharField(blank=True, default='', editable=False, max_length=20)),
                ('root_cause', models.CharField(blank=True, choices=[('dns', 'Endpoint: name not found'), ('tls', 'Endpoint: TLS'), ('connection', 'Endpoint: no connection'), ('timeout', 'Endpoint: timeout'), ('refused', 'Endpoint: 401 or 403'), ('http_4xx', 'Endpoint: other 4xx'), ('http_5xx', 'Endpoint: 5xx'), ('http_other', 'Endpoint: unexpected answer'), ('address', 'Endpoint: address not allowed'), ('git_auth', 'Git: token refused'), ('git_not_found', 'Git: repository not found'), ('git_host', 'Git: host not reached'), ('git_content', 'Git: repository cannot be read'), ('rules', 'Ignore rules and transforms'), ('internal', 'Docora itself')], default='', editable=False, max_length=14)),
                ('last_status_code', models.PositiveSmallIntegerField(blank=True, editable=False, null=True, verbose_name='status code')),
                ('last_answer', models.CharField(blank=True, default='', editable=False, help_text='The first bytes of it.', max_length=500, verbose_name='answer')),
                ('failing_since', models.DateTimeField(blank=True, editable=False, help_text='The first failure after the last success or re-sync.', null=True)),
                ('last_scanned_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='last checked')),
                ('moved_at', models.DateTimeField(blank=True, editable=False, help_text='When HEAD was last seen at another commit.', null=True, verbose_name='last moved')),
                ('last_synced_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='last sync')),
                ('last_commit', models.CharField(blank=True, default='', editable=False, max_length=64)),
                ('branch', models.CharField(blank=True, default='', editable=False, max_length=255)),
                ('base_commit', models.CharField(blank=True, default='', editable=False, max_length=64)),
                ('base_rules', models.CharField(blank=True, default='', editable=False, max_length=64)),
                ('tree_files', models.PositiveBigIntegerField(default=0, editable=False, verbose_name='files')),
                ('tree_bytes', models.PositiveBigIntegerField(default=0, editable=False, verbose_name='bytes')),
                ('files_failing', models.PositiveBigIntegerField(default=0, editable=False)),
                ('left_out', models.JSONField(default=dict, editable=False, help_text='Cause → how many files of the tree are not sent, or not as they are.')),
                ('claim', models.BigIntegerField(default=0, editable=False)),
                ('claim_wanted', models.BigIntegerField(default=0, editable=False)),
                ('lease_until', models.DateTimeField(blank=True, editable=False, null=True)),
                ('lease_slots', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('lease_owner', models.CharField(blank=True, default='', editable=False, max_length=100)),
                ('slots_wanted_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('intent_high', models.BigIntegerField(default=0, editable=False)),
                ('arriving', models.BooleanField(db_default=False, default=False, editable=False, help_text='Its delivery records are being imported: nothing is checked or sent before all of them are here.')),
                ('ended_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('app', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='watches', to='deliveries_app.app')),
                ('repository', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='watches', to='repositories_app.repository')),
            ],
            options={
                'verbose_name': 'watched repository',
                'verbose_name_plural': 'watched repositories',
                'ordering': ['app__name', 'repository__owner', 'repository__name', 'pk'],
                'permissions': [('resync_apprepository', 'Can force a re-sync of a watched repository'), ('retry_apprepository', 'Can retry a failed watched repository and reset a circuit')],
            },
        ),
        migrations.CreateModel(
            name='FailedSync',
            fields=[
            ],
            options={
                'verbose_name': 'failed sync',
                'verbose_name_plural': 'failed syncs',
                'proxy': True,
                'default_permissions': (),
                'indexes': [],
                'constraints': [],
            },
            bases=('deliveries_app.apprepository',),
        ),
        migrations.CreateModel(
            name='AppToken',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('digest', models.CharField(editable=False, max_length=64, unique=True)),
                ('ending', models.CharField(help_text="The token's last characters, to tell one from another.", max_length=4)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('last_used_at', models.DateTimeField(blank=True, null=True)),
                ('expires_at', models.DateTimeField(blank=True, help_text='It was replaced and is accepted until then.', null=True)),
                ('app', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='tokens', to='deliveries_app.app')),
            ],
            options={
                'ordering': ['-created_at', '-pk'],
            },
        ),
        migrations.CreateModel(
            name='BulkOperation',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('operation_id', models.CharField(default=deliveries_app.models.runs.new_operation_id, editable=False, max_length=50, unique=True)),
                ('kind', models.CharField(choices=[('resync', 're-sync'), ('retry', 'retry')], default='resync', max_length=6)),
                ('title', models.CharField(help_text='What was asked for, in words.', max_length=200)),
                ('requested_by', models.CharField(max_length=150)),
                ('total', models.PositiveIntegerField(help_text='repositories')),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('ended_at', models.DateTimeField(blank=True, null=True)),
                ('cancelled_at', models.DateTimeField(blank=True, null=True)),
                ('cancelled_by', models.CharField(blank=True, max_length=150)),
                ('dismissed_at', models.DateTimeField(blank=True, null=True)),
                ('app', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='operations', to='deliveries_app.app')),
                ('user', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'ordering': ['-created_at', '-pk'],
            },
        ),
        migrations.CreateModel(
            name='Delivery',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('path', docora.db.fields.BytewiseTextField()),
                ('source_path', docora.db.fields.BytewiseTextField(blank=True, db_default='', help_text="The file's path in the repository, kept while transforms are in use.")),
                ('mode', models.CharField(max_length=6)),
                ('kind', models.CharField(choices=[('create', 'create'), ('update', 'update'), ('delete', 'delete')], max_length=6)),
                ('source_key', models.CharField(help_text='Blob id and version of the rules that made the content; empty after an import.', max_length=128, null=True)),
                ('sha', models.CharField(max_length=64, verbose_name='SHA-256')),
                ('size', models.PositiveBigIntegerField()),
                ('intent', models.BigIntegerField(verbose_name='sequence')),
                ('generation', models.BigIntegerField()),
                ('acknowledged', models.BooleanField()),
                ('held_sha', models.CharField(max_length=64, null=True, verbose_name='held SHA-256')),
                ('remark', models.CharField(blank=True, db_default='', help_text='What is special about the content, such as lfs_pointer.', max_length=20)),
                ('attempts', models.PositiveIntegerField(default=0, help_text='Failed attempts of this notification.')),
                ('hold_until', models.DateTimeField(help_text='After a timeout the path rests, the client may still be at it.', null=True)),
                ('updated_at', models.DateTimeField()),
                ('pair', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='deliveries', to='deliveries_app.apprepository')),
            ],
            options={
                'verbose_name_plural': 'deliveries',
                'ordering': ['-pk'],
            },
        ),
        migrations.CreateModel(
            name='DeliveryFailure',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('path_digest', models.CharField(max_length=64)),
                ('path', models.TextField(help_text='Shortened where it is too long to be sent.')),
                ('kind', models.CharField(choices=[('failed', 'failed'), ('skipped', 'skipped')], default='failed', max_length=7)),
                ('cause', models.CharField(max_length=20)),
                ('status_code', models.PositiveSmallIntegerField(null=True)),
                ('message', models.CharField(max_length=500)),
                ('body', models.CharField(blank=True, max_length=500)),
                ('attempts', models.PositiveIntegerField(default=1)),
                ('first_at', models.DateTimeField()),
                ('last_at', models.DateTimeField()),
                ('pair', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='failures', to='deliveries_app.apprepository')),
            ],
            options={
                'ordering': ['kind', 'path'],
            },
        ),
        migrations.CreateModel(
            name='HourlyTraffic',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('hour', models.DateTimeField(help_text='Its beginning.')),
                ('files', models.PositiveBigIntegerField(default=0, help_text='acknowledged')),
                ('bytes', models.PositiveBigIntegerField(default=0)),
                ('failed', models.PositiveBigIntegerField(default=0)),
                ('requests', models.PositiveBigIntegerField(default=0)),
                ('milliseconds', models.PositiveBigIntegerField(default=0)),
                ('app', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='traffic', to='deliveries_app.app')),
            ],
            options={
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='Imported',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('app_id', models.CharField(max_length=50)),
                ('repository_id', models.CharField(blank=True, default='', max_length=50)),
            ],
            options={
                'default_permissions': (),
                'constraints': [models.UniqueConstraint(fields=('app_id', 'repository_id'), name='imported_once')],
            },
        ),
        migrations.CreateModel(
            name='Notice',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('sync_failed', 'sync failed'), ('sync_completed', 'sync completed')], max_length=14)),
                ('facts', models.TextField()),
                ('intent', models.BigIntegerField(null=True, verbose_name='sequence')),
                ('generation', models.BigIntegerField()),
                ('attempts', models.PositiveIntegerField(default=0)),
                ('due_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('last_error', models.CharField(blank=True, default='', max_length=500)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('pair', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='notices', to='deliveries_app.apprepository')),
            ],
            options={
                'ordering': ['pk'],
            },
        ),
        migrations.CreateModel(
            name='SyncPause',
            fields=[
                ('id', models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ('since', models.DateTimeField(default=django.utils.timezone.now)),
                ('paused_by', models.CharField(max_length=150)),
            ],
            options={
                'default_permissions': (),
                'constraints': [models.CheckConstraint(condition=models.Q(('pk', 1)), name='pause_is_one')],
            },
        ),
        migrations.CreateModel(
            name='SyncRun',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('run_id', models.CharField(default=deliveries_app.models.runs.new_run_id, editable=False, max_length=50, unique=True)),
                ('app_name', models.CharField(max_length=100, verbose_name='app')),
                ('repository_name', models.CharField(max_length=511, verbose_name='repository')),
                ('reason', models.CharField(choices=[('initial', 'first sync'), ('change', 'change'), ('resync', 're-sync'), ('retry', 'retry')], max_length=10)),
                ('requested_by', models.CharField(max_length=150)),
                ('generation', models.BigIntegerField()),
                ('attempts', models.PositiveIntegerField(default=0)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('started_at', models.DateTimeField(blank=True, null=True)),
                ('ended_at', models.DateTimeField(blank=True, null=True)),
                ('outcome', models.CharField(blank=True, choices=[('succeeded', 'succeeded'), ('failed', 'failed'), ('cancelled', 'cancelled'), ('superseded', 'taken over by a later request'), ('ended', 'no longer watched'), ('paused', 'app paused')], default='', max_length=10)),
                ('commit_sha', models.CharField(blank=True, default='', max_length=64)),
                ('files_total', models.PositiveBigIntegerField(default=0)),
                ('files_done', models.PositiveBigIntegerField(default=0, help_text='acknowledged by the client')),
                ('files_failed', models.PositiveBigIntegerField(default=0)),
                ('files_skipped', models.PositiveBigIntegerField(default=0)),
                ('left_out', models.JSONField(default=dict, help_text='Cause → how many files of the tree were not sent as they are.')),
                ('bytes_total', models.PositiveBigIntegerField(default=0)),
                ('bytes_done', models.PositiveBigIntegerField(default=0)),
                ('error', models.TextField(blank=True, default='')),
                ('operation', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='runs', to='deliveries_app.bulkoperation')),
                ('pair', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='runs', to='deliveries_app.apprepository')),
                ('user', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'ordering': ['-created_at', '-pk'],
            },
        ),
        migrations.AddIndex(
            model_name='apprepository',
            index=models.Index(condition=models.Q(('ended_at', None)), fields=['next_sync_at'], name='watch_due'),
        ),
        migrations.AddIndex(
            model_name='apprepository',
            index=models.Index(condition=models.Q(('ended_at', None)), fields=['next_check_at'], name='watch_check'),
        ),
        migrations.AddIndex(
            model_name='apprepository',
            index=models.Index(condition=models.Q(('lease_until__isnull', False)), fields=['lease_until'], name='watch_leased'),
        ),
        migrations.AddIndex(
            model_name='apprepository',
            index=models.Index(fields=['status', 'app'], name='watch_status'),
        ),
        migrations.AddIndex(
            model_name='apprepository',
            index=models.Index(condition=models.Q(('ended_at__isnull', False)), fields=['ended_at'], name='watch_ended'),
        ),
        migrations.AddIndex(
            model_name='apprepository',
            index=models.Index(condition=models.Q(('failing_since__isnull', False)), fields=['root_cause', 'app'], name='watch_failing'),
        ),
        migrations.AddConstraint(
            model_name='apprepository',
            constraint=models.UniqueConstraint(fields=('app', 'repository'), name='watch_unique_pair'),
        ),
        migrations.AddConstraint(
            model_name='apprepository',
            constraint=models.CheckConstraint(condition=models.Q(('status__in', ['pending_snapshot', 'scanning', 'synced', 'failed'])), name='watch_status_known'),
        ),
        migrations.AddConstraint(
            model_name='apprepository',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('failing_since', None), ('root_cause', '')), models.Q(('failing_since__isnull', False), models.Q(('root_cause', ''), _negated=True)), _connector='OR'), name='watch_failing_has_cause'),
        ),
        migrations.AddConstraint(
            model_name='apprepository',
            constraint=models.CheckConstraint(condition=models.Q(('resend_floor__gte', 1), ('generation__gte', models.F('resend_floor'))), name='watch_floor_reached'),
        ),
        migrations.AddConstraint(
            model_name='apptoken',
            constraint=models.CheckConstraint(condition=models.Q(('digest', ''), _negated=True), name='token_has_digest'),
        ),
        migrations.AddIndex(
            model_name='bulkoperation',
            index=models.Index(fields=['-created_at', '-id'], name='operation_newest'),
        ),
        migrations.AddIndex(
            model_name='bulkoperation',
            index=models.Index(condition=models.Q(('ended_at', None)), fields=['created_at'], name='operation_open'),
        ),
        migrations.AddIndex(
            model_name='bulkoperation',
            index=models.Index(condition=models.Q(('dismissed_at', None)), fields=['ended_at'], name='operation_shown'),
        ),
        migrations.AddConstraint(
            model_name='bulkoperation',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ['resync', 'retry'])), name='operation_kind_known'),
        ),
        migrations.AddIndex(
            model_name='delivery',
            index=models.Index(condition=models.Q(('acknowledged', False)), fields=['pair', 'path'], name='delivery_in_doubt'),
        ),
        migrations.AddIndex(
            model_name='delivery',
            index=models.Index(condition=models.Q(('source_path', ''), _negated=True), fields=['pair', 'source_path'], name='delivery_source'),
        ),
        migrations.AddIndex(
            model_name='delivery',
            index=models.Index(condition=models.Q(('remark', ''), _negated=True), fields=['pair', 'path'], name='delivery_remarked'),
        ),
        migrations.AddIndex(
            model_name='delivery',
            index=models.Index(fields=['path', 'id'], name='delivery_path'),
        ),
        migrations.AddConstraint(
            model_name='delivery',
            constraint=models.UniqueConstraint(fields=('pair', 'path'), name='delivery_unique_path'),
        ),
        migrations.AddConstraint(
            model_name='delivery',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ['create', 'update', 'delete'])), name='delivery_kind_known'),
        ),
        migrations.AddIndex(
            model_name='deliveryfailure',
            index=models.Index(fields=['pair', 'kind'], name='failure_kind'),
        ),
        migrations.AddConstraint(
            model_name='deliveryfailure',
            constraint=models.UniqueConstraint(fields=('pair', 'path_digest'), name='failure_unique_path'),
        ),
        migrations.AddConstraint(
            model_name='deliveryfailure',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ['failed', 'skipped'])), name='failure_kind_known'),
        ),
        migrations.AddIndex(
            model_name='hourlytraffic',
            index=models.Index(fields=['app', 'hour'], name='traffic_of_app'),
        ),
        migrations.AddConstraint(
            model_name='hourlytraffic',
            constraint=models.UniqueConstraint(fields=('hour', 'app'), name='traffic_unique_hour'),
        ),
        migrations.AddIndex(
            model_name='notice',
            index=models.Index(fields=['due_at'], name='notice_due'),
        ),
        migrations.AddConstraint(
            model_name='notice',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ['sync_failed', 'sync_completed'])), name='notice_kind_known'),
        ),
        migrations.AddIndex(
            model_name='syncrun',
            index=models.Index(fields=['-created_at', '-id'], name='run_newest'),
        ),
        migrations.AddIndex(
            model_name='syncrun',
            index=models.Index(condition=models.Q(('outcome', '')), fields=['pair', 'generation'], name='run_open'),
        ),
        migrations.AddIndex(
            model_name='syncrun',
            index=models.Index(fields=['pair', '-created_at'], name='run_of_pair'),
        ),
        migrations.AddIndex(
            model_name='syncrun',
            index=models.Index(fields=['operation', 'outcome'], name='run_of_operation'),
        ),
        migrations.AddConstraint(
            model_name='syncrun',
            constraint=models.CheckConstraint(condition=models.Q(('outcome__in', ['', 'succeeded', 'failed', 'cancelled', 'superseded', 'ended', 'paused'])), name='run_outcome_known'),
        ),
        migrations.AddConstraint(
            model_name='syncrun',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('ended_at', None), ('outcome', '')), models.Q(models.Q(('outcome', ''), _negated=True), ('ended_at__isnull', False)), _connector='OR'), name='run_ends_with_outcome'),
        ),
        migrations.RunPython(make_groups, migrations.RunPython.noop),
    ]
