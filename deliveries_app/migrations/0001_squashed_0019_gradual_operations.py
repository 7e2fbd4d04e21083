import deliveries_app.models.apps
import deliveries_app.models.runs
import deliveries_app.models.watches
import django.db.models.deletion
import django.utils.timezone
import docora.db.fields
import docora.security.crypto
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
    ("deliveries_app", "deliveryattempt"): ["view_payloads"],
}
NAMES = {
    "onboard_app": "Can register a client app",
    "rotate_secret_app": "Can rotate the token and the signing key of an app",
    "resync_apprepository": "Can re-sync a watched repository",
    "retry_apprepository": "Can retry failed syncs and reset circuits",
    "view_queue": "Can view the queue",
    "control_queue": "Can cancel syncs and pause all syncing",
    "view_payloads": "Can view request bodies and responses",
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
    """A new database gets the schema of 0019 at once. One of an earlier version runs the migrations one by one."""

    replaces = [
        ('deliveries_app', '0001_squashed_0012_imported'),
        ('deliveries_app', '0002_rename_columns'),
        ('deliveries_app', '0003_help_texts'),
        ('deliveries_app', '0004_crashes_health_and_pace'),
        ('deliveries_app', '0005_dead_processes'),
        ('deliveries_app', '0006_barriers_and_claims'),
        ('deliveries_app', '0007_seen_commits'),
        ('deliveries_app', '0008_sequence_high_of_removed_watches'),
        ('deliveries_app', '0009_test_pings'),
        ('deliveries_app', '0010_labels'),
        ('deliveries_app', '0011_operation_reason'),
        ('deliveries_app', '0012_app_actions_and_limits'),
        ('deliveries_app', '0013_labels'),
        ('deliveries_app', '0014_app_github_app'),
        ('deliveries_app', '0015_ref_and_patterns'),
        ('deliveries_app', '0016_watch_pause'),
        ('deliveries_app', '0017_failed_attempts'),
        ('deliveries_app', '0018_drift_checks'),
        ('deliveries_app', '0019_gradual_operations'),
    ]

    initial = True

    dependencies = [
        ('auth', '0012_alter_user_first_name_max_length'),
        ('contenttypes', '0002_remove_content_type_name'),
        ('repositories_app', '0006_github_app'),
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
                'permissions': [('view_queue', 'Can view the queue'), ('control_queue', 'Can cancel syncs and pause all syncing')],
                'managed': False,
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='Alert',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('failing', 'watched repository is failing'), ('app_paused', 'app is paused'), ('endpoint_down', 'endpoint is down'), ('circuit_open', 'circuit is open'), ('sweep_late', 'sweep is late'), ('no_worker', 'no worker is running'), ('redis_down', 'Redis is down')], max_length=14)),
                ('subject', models.BigIntegerField(default=0)),
                ('name', models.CharField(blank=True, default='', max_length=620)),
                ('cause', models.CharField(blank=True, default='', help_text='The root cause of the failure.', max_length=14)),
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
                ('name', models.CharField(choices=[('webhook', 'webhook'), ('email', 'email')], max_length=7, unique=True)),
                ('told_begun', models.BigIntegerField(default=0)),
                ('told_ended', models.BigIntegerField(default=0)),
                ('reminded_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('due_at', models.DateTimeField(null=True)),
                ('attempts', models.PositiveIntegerField(default=0, help_text='Consecutive failed attempts.')),
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
                ('app_id', models.CharField(default=deliveries_app.models.apps.new_app_id, editable=False, max_length=50, unique=True, verbose_name='app ID')),
                ('name', models.CharField(max_length=100)),
                ('base_url', models.CharField(help_text='Notifications are sent to {base URL}/create, /update and /delete.', max_length=2048, verbose_name='base URL')),
                ('email', models.EmailField(max_length=255, verbose_name='email')),
                ('website', models.CharField(blank=True, max_length=2048)),
                ('description', models.CharField(blank=True, max_length=500)),
                ('client_auth_key', docora.security.crypto.EncryptedTextField(help_text='Signs notifications.', verbose_name='signing key')),
                ('new_auth_key', docora.security.crypto.EncryptedTextField(blank=True, default='', editable=False, verbose_name='new signing key')),
                ('key_rotation_started_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('new_key_signs', models.BooleanField(default=False, editable=False, help_text='Whether X-Docora-Signature uses the new key, because the app last accepted that one.')),
                ('new_key_accepted_at', models.DateTimeField(blank=True, editable=False, help_text='When the app first accepted the new key. The old key can then be retired.', null=True)),
                ('paused', models.BooleanField(default=False, help_text='While paused, nothing is sent to the app. Syncs wait until it is resumed.')),
                ('paused_reason', models.CharField(blank=True, editable=False, max_length=500)),
                ('down_count', models.PositiveIntegerField(default=0, editable=False, help_text='Consecutive runs that found the endpoint down.')),
                ('max_in_flight', models.PositiveSmallIntegerField(default=deliveries_app.models.apps.default_max_in_flight, help_text='Maximum across all repositories of the app. 1 sends one notification at a time.', verbose_name='concurrent requests')),
                ('send_sync_completed', models.BooleanField(default=False, help_text='Send a /sync_completed notification whenever a sync completes in full.', verbose_name='send sync_completed')),
                ('ended_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('updated_at', models.DateTimeField(auto_now=True)),
                ('cooldown_until', models.DateTimeField(blank=True, editable=False, help_text='The endpoint asked Docora to wait, or is down. Nothing is sent before this time.', null=True)),
                ('pace_gap', models.FloatField(db_default=0.0, default=0.0, editable=False, help_text='Seconds between the starts of two notifications.')),
                ('pace_slots', models.PositiveSmallIntegerField(editable=False, help_text='Concurrent requests that the app accepts, while that is fewer than `max_in_flight`.', null=True)),
                ('paced_at', models.DateTimeField(editable=False, help_text='When the pace was last changed.', null=True)),
                ('sequence_high', models.BigIntegerField(db_default=0, default=0, editable=False, help_text='The highest sequence reserved for a watch that was removed. New watches continue above it.')),
                ('pinged_at', models.DateTimeField(editable=False, help_text='When the app last accepted a test ping.', null=True)),
                ('in_flight_limit', models.PositiveSmallIntegerField(editable=False, help_text="The administrator's limit, while the app itself has chosen fewer concurrent requests.", null=True)),
                ('answers_verify', models.BooleanField(db_default=False, default=False, help_text='The app answers /verify, so its copies can be checked for differences.', verbose_name='check for differences')),
                ('ping_failed_at', models.DateTimeField(editable=False, help_text='When the last test ping failed. Empty if it was accepted.', null=True)),
                ('github_app', models.ForeignKey(blank=True, help_text="Reads the app's repositories on GitHub that have no token of their own. The app can then watch every repository that the GitHub App is installed on.", null=True, on_delete=django.db.models.deletion.PROTECT, related_name='apps', to='repositories_app.githubapp', verbose_name='GitHub App')),
            ],
            options={
                'ordering': ['name', 'pk'],
                'permissions': [('onboard_app', 'Can register a client app'), ('rotate_secret_app', 'Can rotate the token and the signing key of an app')],
                'indexes': [models.Index(fields=['name', 'id'], name='app_order')],
                'constraints': [models.CheckConstraint(condition=models.Q(('max_in_flight__gte', 1)), name='app_max_in_flight'), models.CheckConstraint(condition=models.Q(('name', ''), _negated=True), name='app_has_name')],
            },
        ),
        migrations.CreateModel(
            name='AppRepository',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('watch_id', models.CharField(default=deliveries_app.models.watches.new_watch_id, editable=False, max_length=16, unique=True)),
                ('github_url', models.CharField(help_text='As entered by the app.', max_length=2048, verbose_name='URL')),
                ('github_token', docora.security.crypto.EncryptedTextField(blank=True, default='', verbose_name='token')),
                ('push_secret', docora.security.crypto.EncryptedTextField(blank=True, default='', help_text='The git host signs push hooks with it.', verbose_name='push hook secret')),
                ('ignore_patterns', models.TextField(blank=True, default='', help_text='One pattern per line, as in .gitignore. Matching files are not sent to this app.')),
                ('status', models.CharField(choices=[('pending_snapshot', 'pending'), ('scanning', 'syncing'), ('synced', 'synced'), ('failed', 'failed')], default='pending_snapshot', editable=False, max_length=20)),
                ('generation', models.BigIntegerField(default=1, editable=False)),
                ('resend_floor', models.BigIntegerField(default=1, editable=False)),
                ('next_sync_at', models.DateTimeField(blank=True, default=django.utils.timezone.now, editable=False, null=True)),
                ('next_check_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('retry_count', models.PositiveIntegerField(default=0, editable=False)),
                ('last_error', models.TextField(blank=True, default='', editable=False)),
                ('last_error_cause', models.CharField(blank=True, default='', editable=False, max_length=20)),
                ('root_cause', models.CharField(blank=True, choices=[('dns', 'Endpoint: DNS lookup failed'), ('tls', 'Endpoint: TLS error'), ('connection', 'Endpoint: connection failed'), ('timeout', 'Endpoint: timeout'), ('refused', 'Endpoint: 401 or 403'), ('http_4xx', 'Endpoint: other 4xx'), ('http_5xx', 'Endpoint: 5xx'), ('http_other', 'Endpoint: unexpected response'), ('address', 'Endpoint: address not allowed'), ('git_auth', 'Git: token rejected'), ('git_not_found', 'Git: repository not found'), ('git_host', 'Git: host unreachable'), ('git_content', 'Git: repository unreadable'), ('rules', 'Ignore rules and transforms'), ('internal', 'Docora: internal error')], default='', editable=False, max_length=14)),
                ('last_status_code', models.PositiveSmallIntegerField(blank=True, editable=False, null=True, verbose_name='status code')),
                ('failing_since', models.DateTimeField(blank=True, editable=False, help_text='Time of the first failure since the last success or re-sync.', null=True)),
                ('last_scanned_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='last checked')),
                ('moved_at', models.DateTimeField(blank=True, editable=False, help_text='When a new HEAD was last found.', null=True, verbose_name='last changed')),
                ('last_synced_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='last sync')),
                ('last_commit', models.CharField(blank=True, default='', editable=False, max_length=64)),
                ('branch', models.CharField(blank=True, default='', editable=False, max_length=255)),
                ('base_commit', models.CharField(blank=True, default='', editable=False, max_length=64)),
                ('base_rules', models.CharField(blank=True, default='', editable=False, max_length=64)),
                ('tree_files', models.PositiveBigIntegerField(default=0, editable=False, verbose_name='files')),
                ('tree_bytes', models.PositiveBigIntegerField(default=0, editable=False, verbose_name='bytes')),
                ('files_failing', models.PositiveBigIntegerField(default=0, editable=False)),
                ('left_out', models.JSONField(default=dict, editable=False, help_text='Cause → number of files in the tree that are not sent, or not sent unchanged.')),
                ('lease_until', models.DateTimeField(blank=True, editable=False, null=True)),
                ('lease_slots', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('lease_owner', models.CharField(blank=True, default='', editable=False, max_length=100)),
                ('arriving', models.BooleanField(db_default=False, default=False, editable=False, help_text='Its delivery records are being imported. Nothing is checked or sent until the import is complete.')),
                ('ended_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('request_count', models.BigIntegerField(default=1, editable=False)),
                ('fencing_token', models.BigIntegerField(default=0, editable=False)),
                ('claimed_request_count', models.BigIntegerField(default=0, editable=False)),
                ('slots_requested_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('sequence_high', models.BigIntegerField(default=0, editable=False)),
                ('last_response', models.CharField(blank=True, default='', editable=False, help_text='Start of the response.', max_length=500, verbose_name='response')),
                ('crash_count', models.PositiveSmallIntegerField(db_default=0, default=0, editable=False, help_text='Shared processes that died while syncing this watch, since its last finished attempt.')),
                ('doubt_until', models.DateTimeField(editable=False, help_text='Until then, the app may still be processing requests of a process that died. Only the same target is sent.', null=True)),
                ('lease_process', models.CharField(db_default='', default='', editable=False, help_text='The process that holds the lease.', max_length=200)),
                ('target', models.CharField(db_default='', default='', editable=False, help_text='A hash of what the last attempt sent: the commit, the generation and the rules.', max_length=64)),
                ('lowest_floor', models.BigIntegerField(db_default=1, default=1, editable=False, help_text='The generation in which the repository was watched again. The app may have dropped its copy before that.')),
                ('pushed_at', models.DateTimeField(editable=False, help_text='When a push hook last arrived. HEAD may be read again shortly afterwards.', null=True)),
                ('seen_commit', models.CharField(blank=True, db_default='', default='', editable=False, help_text="HEAD at the last attempt. Empty if it couldn't be read.", max_length=64)),
                ('exclude_patterns', models.TextField(blank=True, db_default='', default='', help_text="The app's own choice: matching files are not sent.")),
                ('include_patterns', models.TextField(blank=True, db_default='', default='', help_text="The app's own choice: only matching files are sent. Empty sends all files.")),
                ('ref', models.CharField(blank=True, db_default='', default='', help_text='As main, v1.2, refs/heads/main or refs/tags/v1.2. Empty follows the default branch.', max_length=255, verbose_name='branch or tag')),
                ('paused_at', models.DateTimeField(editable=False, help_text='While set, nothing is checked or sent. Requests are recorded and wait.', null=True)),
                ('paused_by', models.CharField(blank=True, db_default='', default='', editable=False, max_length=150)),
                ('app', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='watches', to='deliveries_app.app')),
                ('repository', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='watches', to='repositories_app.repository')),
            ],
            options={
                'verbose_name': 'watched repository',
                'verbose_name_plural': 'watched repositories',
                'ordering': ['app__name', 'repository__owner', 'repository__name', 'pk'],
                'permissions': [('resync_apprepository', 'Can re-sync a watched repository'), ('retry_apprepository', 'Can retry failed syncs and reset circuits')],
                'indexes': [models.Index(condition=models.Q(('ended_at', None)), fields=['next_sync_at'], name='watch_due'), models.Index(condition=models.Q(('ended_at', None)), fields=['next_check_at'], name='watch_check'), models.Index(condition=models.Q(('lease_until__isnull', False)), fields=['lease_until'], name='watch_leased'), models.Index(fields=['status', 'app'], name='watch_status'), models.Index(condition=models.Q(('ended_at__isnull', False)), fields=['ended_at'], name='watch_ended'), models.Index(condition=models.Q(('failing_since__isnull', False)), fields=['root_cause', 'app'], name='watch_failing')],
                'constraints': [models.UniqueConstraint(fields=('app', 'repository'), name='watch_unique_pair'), models.CheckConstraint(condition=models.Q(('status__in', ['pending_snapshot', 'scanning', 'synced', 'failed'])), name='watch_status_known'), models.CheckConstraint(condition=models.Q(models.Q(('failing_since', None), ('root_cause', '')), models.Q(('failing_since__isnull', False), models.Q(('root_cause', ''), _negated=True)), _connector='OR'), name='watch_failing_has_cause'), models.CheckConstraint(condition=models.Q(('resend_floor__gte', 1), ('generation__gte', models.F('resend_floor'))), name='watch_floor_reached')],
            },
        ),
        migrations.CreateModel(
            name='AppAction',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('subject', models.CharField(help_text='Name of the app, or of the repository.', max_length=511)),
                ('message', models.CharField(max_length=200)),
                ('address', models.CharField(help_text='IP address that the request came from.', max_length=45)),
                ('created_at', models.DateTimeField(auto_now_add=True, db_index=True)),
                ('app', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='actions', to='deliveries_app.app')),
                ('watch', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='actions', to='deliveries_app.apprepository')),
            ],
            options={
                'ordering': ['-created_at', '-pk'],
                'default_permissions': (),
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
                ('ending', models.CharField(help_text='The last characters of the token, to tell tokens apart.', max_length=4)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('last_used_at', models.DateTimeField(blank=True, null=True)),
                ('expires_at', models.DateTimeField(blank=True, help_text='The token was rotated and expires at this time.', null=True)),
                ('app', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='tokens', to='deliveries_app.app')),
            ],
            options={
                'ordering': ['-created_at', '-pk'],
                'constraints': [models.CheckConstraint(condition=models.Q(('digest', ''), _negated=True), name='token_has_digest')],
            },
        ),
        migrations.CreateModel(
            name='BulkOperation',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('operation_id', models.CharField(default=deliveries_app.models.runs.new_operation_id, editable=False, max_length=50, unique=True)),
                ('kind', models.CharField(choices=[('resync', 're-sync'), ('retry', 'retry'), ('resend', 'resend')], default='resync', max_length=6)),
                ('title', models.CharField(help_text='What was requested.', max_length=200)),
                ('requested_by', models.CharField(max_length=150)),
                ('total', models.PositiveIntegerField(help_text='repositories')),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('ended_at', models.DateTimeField(blank=True, null=True)),
                ('cancelled_at', models.DateTimeField(blank=True, null=True)),
                ('cancelled_by', models.CharField(blank=True, max_length=150)),
                ('reason', models.CharField(blank=True, db_default='', default='', help_text="Why, in the requester's words.", max_length=200)),
                ('canary', models.BooleanField(db_default=False, default=False, help_text='Whether the other repositories of each app wait until its first one has succeeded.')),
                ('held_at', models.DateTimeField(blank=True, help_text='Set while a person has to continue or cancel.', null=True)),
                ('held_reason', models.TextField(blank=True, db_default='', default='', help_text='Why it was held last.')),
                ('next_release_at', models.DateTimeField(blank=True, help_text='With a pace: no release before this time.', null=True)),
                ('pace', models.PositiveIntegerField(blank=True, help_text='Repositories released per minute, at most.', null=True)),
                ('app', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='operations', to='deliveries_app.app')),
                ('user', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'ordering': ['-created_at', '-pk'],
                'indexes': [models.Index(fields=['-created_at', '-id'], name='operation_newest'), models.Index(condition=models.Q(('ended_at', None)), fields=['created_at'], name='operation_open')],
                'constraints': [models.CheckConstraint(condition=models.Q(('kind__in', ['resync', 'retry', 'resend'])), name='operation_kind_known')],
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
                ('source_key', models.CharField(help_text='Blob id and version of the rules that produced the content; empty after an import.', max_length=128, null=True)),
                ('sha', models.CharField(max_length=64, verbose_name='SHA-256')),
                ('size', models.PositiveBigIntegerField()),
                ('generation', models.BigIntegerField()),
                ('acknowledged', models.BooleanField()),
                ('remark', models.CharField(blank=True, db_default='', help_text='A note about the content, such as lfs_pointer.', max_length=20)),
                ('attempts', models.PositiveIntegerField(default=0, verbose_name='failed attempts')),
                ('hold_until', models.DateTimeField(help_text='Not resent before this time, because the client may still be processing it after a timeout.', null=True, verbose_name='on hold until')),
                ('updated_at', models.DateTimeField(verbose_name='last sent')),
                ('sequence', models.BigIntegerField(verbose_name='sequence')),
                ('acknowledged_sha', models.CharField(max_length=64, null=True, verbose_name='acknowledged SHA-256')),
                ('delivered_at', models.DateTimeField(editable=False, null=True, verbose_name='last acknowledged')),
                ('delivered_status', models.SmallIntegerField(editable=False, null=True)),
                ('delivered_ms', models.IntegerField(editable=False, help_text='Duration of its requests.', null=True)),
                ('watch', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='deliveries', to='deliveries_app.apprepository', verbose_name='watched repository')),
            ],
            options={
                'verbose_name_plural': 'deliveries',
                'ordering': ['-pk'],
                'indexes': [models.Index(fields=['path', 'id'], name='delivery_path'), models.Index(condition=models.Q(('acknowledged', False)), fields=['watch', 'path'], name='delivery_in_doubt'), models.Index(condition=models.Q(('source_path', ''), _negated=True), fields=['watch', 'source_path'], name='delivery_source'), models.Index(condition=models.Q(('remark', ''), _negated=True), fields=['watch', 'path'], name='delivery_remarked')],
                'constraints': [models.CheckConstraint(condition=models.Q(('kind__in', ['create', 'update', 'delete'])), name='delivery_kind_known'), models.UniqueConstraint(fields=('watch', 'path'), name='delivery_unique_path')],
            },
        ),
        migrations.CreateModel(
            name='DeliveryAttempt',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('path_digest', models.CharField(max_length=64)),
                ('at', models.DateTimeField()),
                ('event', models.CharField(choices=[('create', 'create'), ('update', 'update'), ('delete', 'delete')], max_length=6)),
                ('cause', models.CharField(max_length=20)),
                ('status_code', models.PositiveSmallIntegerField(null=True)),
                ('message', models.CharField(max_length=500)),
                ('milliseconds', models.PositiveIntegerField()),
                ('headers', models.JSONField()),
                ('request_body', models.TextField()),
                ('response_body', models.TextField()),
                ('app', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='attempts', to='deliveries_app.app')),
                ('watch', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='attempts', to='deliveries_app.apprepository')),
            ],
            options={
                'ordering': ['-pk'],
                'permissions': [('view_payloads', 'Can view request bodies and responses')],
                'default_permissions': (),
                'indexes': [models.Index(fields=['watch', 'path_digest', 'id'], name='attempt_of_path'), models.Index(fields=['app', 'id'], name='attempt_of_app'), models.Index(fields=['at'], name='attempt_time')],
            },
        ),
        migrations.CreateModel(
            name='DeliveryFailure',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('path_digest', models.CharField(max_length=64)),
                ('path', models.TextField(help_text='Shortened if it is too long to be sent.')),
                ('kind', models.CharField(choices=[('failed', 'failed'), ('skipped', 'skipped')], default='failed', max_length=7)),
                ('cause', models.CharField(max_length=20)),
                ('status_code', models.PositiveSmallIntegerField(null=True)),
                ('message', models.CharField(max_length=500)),
                ('body', models.CharField(blank=True, max_length=500)),
                ('attempts', models.PositiveIntegerField(default=1)),
                ('first_at', models.DateTimeField()),
                ('last_at', models.DateTimeField()),
                ('fencing_token', models.BigIntegerField(db_default=0, default=0, editable=False, help_text='The claim that last listed it.')),
                ('watch', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='failures', to='deliveries_app.apprepository')),
            ],
            options={
                'ordering': ['kind', 'path'],
                'indexes': [models.Index(fields=['watch', 'kind'], name='failure_kind')],
                'constraints': [models.CheckConstraint(condition=models.Q(('kind__in', ['failed', 'skipped'])), name='failure_kind_known'), models.UniqueConstraint(fields=('watch', 'path_digest'), name='failure_unique_path')],
            },
        ),
        migrations.CreateModel(
            name='DriftCheck',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('requested_by', models.CharField(max_length=150)),
                ('state', models.CharField(choices=[('queued', 'Queued'), ('checking', 'Checking'), ('equal', 'No differences'), ('differs', 'Differences found'), ('unsupported', 'Not supported'), ('not_checked', 'Not checked'), ('cancelled', 'Cancelled')], default='queued', max_length=11)),
                ('message', models.CharField(blank=True, default='', help_text='Why there is no result.', max_length=500)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('started_at', models.DateTimeField(null=True)),
                ('ended_at', models.DateTimeField(null=True)),
                ('fencing_token', models.BigIntegerField(default=0)),
                ('attempts', models.PositiveSmallIntegerField(default=0)),
                ('commit_sha', models.CharField(blank=True, default='', max_length=64)),
                ('compared', models.PositiveBigIntegerField(default=0)),
                ('missing', models.PositiveBigIntegerField(default=0)),
                ('different', models.PositiveBigIntegerField(default=0)),
                ('extra', models.PositiveBigIntegerField(default=0)),
                ('listed', models.PositiveIntegerField(default=0, help_text='Differences that are listed.')),
                ('sent_at', models.DateTimeField(help_text='When the listed differences were sent.', null=True)),
                ('sent_by', models.CharField(blank=True, default='', max_length=150)),
                ('sent_run', models.CharField(blank=True, default='', help_text='The run_… that sent them.', max_length=50)),
                ('user', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('watch', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='drift_checks', to='deliveries_app.apprepository')),
            ],
            options={
                'verbose_name': 'check for differences',
                'verbose_name_plural': 'checks for differences',
                'ordering': ['-created_at', '-pk'],
                'default_permissions': (),
                'indexes': [models.Index(fields=['-created_at', '-id'], name='drift_newest'), models.Index(fields=['watch', '-created_at', '-id'], name='drift_of_watch')],
                'constraints': [models.UniqueConstraint(condition=models.Q(('ended_at', None)), fields=('watch',), name='drift_one_open'), models.CheckConstraint(condition=models.Q(('state__in', ['queued', 'checking', 'equal', 'differs', 'unsupported', 'not_checked', 'cancelled'])), name='drift_state_known'), models.CheckConstraint(condition=models.Q(models.Q(('ended_at', None), ('state__in', ['queued', 'checking'])), models.Q(('ended_at__isnull', False), models.Q(('state__in', ['queued', 'checking']), _negated=True)), _connector='OR'), name='drift_ends_with_result')],
            },
        ),
        migrations.CreateModel(
            name='DriftFile',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('path', docora.db.fields.BytewiseTextField()),
                ('kind', models.CharField(choices=[('missing', 'Missing'), ('different', 'Different'), ('extra', 'Extra')], max_length=9)),
                ('sha', models.CharField(blank=True, default='', max_length=64, verbose_name='SHA-256')),
                ('sequence', models.BigIntegerField(null=True)),
                ('check_of', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='files', to='deliveries_app.driftcheck')),
            ],
            options={
                'ordering': ['path'],
                'default_permissions': (),
                'constraints': [models.UniqueConstraint(fields=('check_of', 'path'), name='drift_unique_path'), models.CheckConstraint(condition=models.Q(('kind__in', ['missing', 'different', 'extra'])), name='drift_kind_known')],
            },
        ),
        migrations.CreateModel(
            name='HourlyTraffic',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('hour', models.DateTimeField(help_text='Start of the hour.')),
                ('files', models.PositiveBigIntegerField(default=0, help_text='acknowledged')),
                ('bytes', models.PositiveBigIntegerField(default=0)),
                ('failed', models.PositiveBigIntegerField(default=0)),
                ('requests', models.PositiveBigIntegerField(default=0)),
                ('milliseconds', models.PositiveBigIntegerField(default=0)),
                ('acknowledged_at', models.DateTimeField(help_text='The last acknowledgement of this hour.', null=True)),
                ('app', models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='traffic', to='deliveries_app.app')),
            ],
            options={
                'default_permissions': (),
                'indexes': [models.Index(fields=['app', 'hour'], name='traffic_of_app')],
                'constraints': [models.UniqueConstraint(fields=('hour', 'app'), name='traffic_unique_hour')],
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
                ('generation', models.BigIntegerField()),
                ('attempts', models.PositiveIntegerField(default=0)),
                ('due_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('last_error', models.CharField(blank=True, default='', max_length=500)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('sequence', models.BigIntegerField(null=True, verbose_name='sequence')),
                ('fields', models.TextField()),
                ('watch', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='notices', to='deliveries_app.apprepository')),
            ],
            options={
                'ordering': ['pk'],
                'indexes': [models.Index(fields=['due_at'], name='notice_due')],
                'constraints': [models.CheckConstraint(condition=models.Q(('kind__in', ['sync_failed', 'sync_completed'])), name='notice_kind_known')],
            },
        ),
        migrations.CreateModel(
            name='PendingRelease',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('position', models.PositiveIntegerField()),
                ('files', models.PositiveBigIntegerField(default=0)),
                ('size', models.PositiveBigIntegerField(default=0)),
                ('operation', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='pending', to='deliveries_app.bulkoperation')),
                ('watch', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='pending_releases', to='deliveries_app.apprepository')),
            ],
            options={
                'ordering': ['operation', 'position'],
                'default_permissions': (),
                'indexes': [models.Index(fields=['operation', 'position'], name='pending_release_order')],
                'constraints': [models.UniqueConstraint(fields=('operation', 'watch'), name='pending_release_once')],
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
                ('outcome', models.CharField(blank=True, choices=[('succeeded', 'succeeded'), ('failed', 'failed'), ('cancelled', 'cancelled'), ('superseded', 'superseded by a later request'), ('ended', 'cancelled: no longer watched'), ('paused', 'failed: the app was paused')], default='', max_length=10)),
                ('commit_sha', models.CharField(blank=True, default='', max_length=64)),
                ('files_total', models.PositiveBigIntegerField(default=0)),
                ('files_done', models.PositiveBigIntegerField(default=0, help_text='acknowledged by the client')),
                ('files_failed', models.PositiveBigIntegerField(default=0)),
                ('files_skipped', models.PositiveBigIntegerField(default=0)),
                ('left_out', models.JSONField(default=dict, help_text='Cause → number of files in the tree that were not sent, or not sent unchanged.')),
                ('bytes_total', models.PositiveBigIntegerField(default=0)),
                ('bytes_done', models.PositiveBigIntegerField(default=0)),
                ('error', models.TextField(blank=True, default='')),
                ('operation', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='runs', to='deliveries_app.bulkoperation')),
                ('user', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('watch', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='runs', to='deliveries_app.apprepository')),
            ],
            options={
                'ordering': ['-created_at', '-pk'],
                'indexes': [models.Index(fields=['-created_at', '-id'], name='run_newest'), models.Index(fields=['operation', 'outcome'], name='run_of_operation'), models.Index(condition=models.Q(('outcome', '')), fields=['watch', 'generation'], name='run_open'), models.Index(fields=['watch', '-created_at'], name='run_of_watch')],
                'constraints': [models.CheckConstraint(condition=models.Q(('outcome__in', ['', 'succeeded', 'failed', 'cancelled', 'superseded', 'ended', 'paused'])), name='run_outcome_known'), models.CheckConstraint(condition=models.Q(models.Q(('ended_at', None), ('outcome', '')), models.Q(models.Q(('outcome', ''), _negated=True), ('ended_at__isnull', False)), _connector='OR'), name='run_ends_with_outcome')],
            },
        ),
        migrations.CreateModel(
            name='Canary',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('state', models.CharField(choices=[('waiting', 'not released yet'), ('running', 'in progress'), ('passed', 'succeeded'), ('held', 'held'), ('continued', 'continued')], default='waiting', max_length=9)),
                ('since', models.DateTimeField(help_text='When it was released, or when its app was last seen paused.', null=True)),
                ('reason', models.TextField(blank=True, default='', help_text='Why it is held.')),
                ('app', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='deliveries_app.app')),
                ('operation', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='canaries', to='deliveries_app.bulkoperation')),
                ('run', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to='deliveries_app.syncrun')),
            ],
            options={
                'ordering': ['operation', 'pk'],
                'default_permissions': (),
                'constraints': [models.UniqueConstraint(fields=('operation', 'app'), name='canary_of_app'), models.CheckConstraint(condition=models.Q(('state__in', ['waiting', 'running', 'passed', 'held', 'continued'])), name='canary_state_known')],
            },
        ),
        migrations.RunPython(make_groups, migrations.RunPython.noop),
    ]
