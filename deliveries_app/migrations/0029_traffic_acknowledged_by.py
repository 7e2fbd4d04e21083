from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("deliveries_app", "0028_alert_columns_keep_their_names")]

    operations = [
        migrations.AddField(
            "hourlytraffic",
            "acknowledged_by",
            models.TextField(
                db_default="", help_text="The base URL that acknowledged last. Empty if an earlier version recorded it."
            ),
        ),
    ]
