from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("deliveries_app", "0023_failing_since_help_text")]

    operations = [
        migrations.RenameField("alertchannel", "told_begun", "reported_opened"),
        migrations.RenameField("alertchannel", "told_ended", "reported_closed"),
        migrations.RenameField("alertround", "looked_at", "detected_at"),
        migrations.AlterField(
            "app",
            "email",
            models.EmailField(
                "email",
                max_length=255,
                help_text="The app's contact. Notified by email when the base URL, the signing key or the token is changed.",
            ),
        ),
    ]
