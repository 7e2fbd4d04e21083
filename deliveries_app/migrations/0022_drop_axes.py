"""Drop the tables of django-axes. They hold names and addresses of failed sign-ins, and their retention job is gone."""

from django.db import migrations
from django.db.migrations.recorder import MigrationRecorder


def forget(apps, schema_editor):
    alias = schema_editor.connection.alias
    for table in ("axes_accessattemptexpiration", "axes_accessattempt", "axes_accessfailurelog", "axes_accesslog"):
        schema_editor.execute(f"DROP TABLE IF EXISTS {table}")
    apps.get_model("contenttypes", "ContentType").objects.using(alias).filter(app_label="axes").delete()
    MigrationRecorder(schema_editor.connection).migration_qs.filter(app="axes").delete()


class Migration(migrations.Migration):
    dependencies = [
        ("deliveries_app", "0021_quotas"),
        ("admin", "0003_logentry_add_action_flag_choices"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]
    operations = [migrations.RunPython(forget, migrations.RunPython.noop, elidable=True)]
