from django.db import migrations, models

from docora.db.indexes import AddIndexConcurrently


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("deliveries_app", "0030_watch_asking")]

    operations = [
        AddIndexConcurrently(
            model_name="syncrun",
            index=models.Index(fields=["watch", "-ended_at"], name="run_last"),
        ),
    ]
