import django.db.models.deletion
from django.db import migrations, models


def let_operators_view_payloads(apps, schema_editor):
    """Give the permission to the group Operators, if it still exists.

    Django creates permissions only after all migrations. The one created here has the same key, so Django finds and keeps it.
    """
    group = apps.get_model("auth", "Group").objects.filter(name="Operators").first()
    if group is None:
        return
    content_type, _ = apps.get_model("contenttypes", "ContentType").objects.get_or_create(
        app_label="deliveries_app", model="deliveryattempt"
    )
    permission, _ = apps.get_model("auth", "Permission").objects.get_or_create(
        content_type=content_type,
        codename="view_payloads",
        defaults={"name": "Can view request bodies and responses"},
    )
    group.permissions.add(permission)


class Migration(migrations.Migration):
    """Additive: the new columns are nullable, without defaults and without constraints, so that no row is read or written."""

    dependencies = [
        ('deliveries_app', '0016_watch_pause'),
        ('auth', '0012_alter_user_first_name_max_length'),
        ('contenttypes', '0002_remove_content_type_name'),
    ]

    operations = [
        migrations.AddField(
            model_name='delivery',
            name='delivered_at',
            field=models.DateTimeField(editable=False, null=True, verbose_name='last acknowledged'),
        ),
        migrations.AddField(
            model_name='delivery',
            name='delivered_status',
            field=models.SmallIntegerField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name='delivery',
            name='delivered_ms',
            field=models.IntegerField(editable=False, help_text='Duration of its requests.', null=True),
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
                'indexes': [
                    models.Index(fields=['watch', 'path_digest', 'id'], name='attempt_of_path'),
                    models.Index(fields=['app', 'id'], name='attempt_of_app'),
                    models.Index(fields=['at'], name='attempt_time'),
                ],
            },
        ),
        migrations.RemoveConstraint(
            model_name='bulkoperation',
            name='operation_kind_known',
        ),
        migrations.AlterField(
            model_name='bulkoperation',
            name='kind',
            field=models.CharField(choices=[('resync', 're-sync'), ('retry', 'retry'), ('resend', 'resend')], default='resync', max_length=6),
        ),
        migrations.AddConstraint(
            model_name='bulkoperation',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ['resync', 'retry', 'resend'])), name='operation_kind_known'),
        ),
        migrations.RunPython(let_operators_view_payloads, migrations.RunPython.noop),
    ]
