from django.db import migrations, models


class Migration(migrations.Migration):
    """The columns get back the names of version 1.0.0, whose processes read them until they are restarted."""

    dependencies = [("deliveries_app", "0027_resends_and_complete_syncs")]

    operations = [
        migrations.AlterField(
            "alertchannel", "reported_opened", models.BigIntegerField(db_column="told_begun", default=0)
        ),
        migrations.AlterField(
            "alertchannel", "reported_closed", models.BigIntegerField(db_column="told_ended", default=0)
        ),
        migrations.AlterField("alertround", "detected_at", models.DateTimeField(db_column="looked_at")),
    ]
