import django.db.models.deletion
import repositories_app.models
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    replaces = [
        ('repositories_app', '0001_initial'),
        ('repositories_app', '0002_what_failed_last'),
        ('repositories_app', '0003_twin'),
    ]

    dependencies = []

    operations = [
        migrations.CreateModel(
            name='Repository',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('repository_id', models.CharField(default=repositories_app.models.new_repository_id, editable=False, max_length=50, unique=True)),
                ('canonical_url', models.CharField(max_length=2048, verbose_name='URL')),
                ('twin', models.PositiveSmallIntegerField(db_default=0, default=0, editable=False)),
                ('owner', models.CharField(max_length=255)),
                ('name', models.CharField(max_length=255)),
                ('is_private', models.BooleanField(default=False)),
                ('consecutive_failures', models.PositiveIntegerField(default=0)),
                ('last_failure_at', models.DateTimeField(blank=True, null=True)),
                ('circuit_open_until', models.DateTimeField(blank=True, null=True)),
                ('last_error', models.TextField(blank=True, default='', help_text='The last failure that concerned every watcher.')),
                ('last_error_cause', models.CharField(blank=True, default='', max_length=20)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('updated_at', models.DateTimeField(auto_now=True)),
            ],
            options={
                'verbose_name': 'Git repository',
                'verbose_name_plural': 'Git repositories',
                'ordering': ['owner', 'name', 'pk'],
                'indexes': [models.Index(fields=['owner', 'name', 'id'], name='repository_order'), models.Index(condition=models.Q(('circuit_open_until__isnull', False)), fields=['circuit_open_until'], name='repository_circuit')],
                'constraints': [models.UniqueConstraint(fields=('canonical_url', 'twin'), name='repository_unique_url'), models.CheckConstraint(condition=models.Q(models.Q(('owner', ''), _negated=True), models.Q(('name', ''), _negated=True)), name='repository_has_name')],
            },
        ),
        migrations.CreateModel(
            name='Snapshot',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('commit_sha', models.CharField(max_length=64)),
                ('branch', models.CharField(max_length=255)),
                ('file_count', models.PositiveBigIntegerField(help_text='regular files')),
                ('total_bytes', models.PositiveBigIntegerField()),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('repository', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='snapshots', to='repositories_app.repository')),
            ],
            options={
                'ordering': ['-created_at', '-pk'],
                'indexes': [models.Index(fields=['repository', '-created_at', '-id'], name='snapshot_latest')],
                'constraints': [models.UniqueConstraint(fields=('repository', 'commit_sha'), name='snapshot_unique_commit')],
            },
        ),
    ]
