from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("deliveries_app", "0023_failing_since_help_text")]

    operations = [
        migrations.RenameField("alertchannel", "told_begun", "reported_opened"),
        migrations.RenameField("alertchannel", "told_ended", "reported_closed"),
        migrations.RenameField("alertround", "looked_at", "detected_at"),
    ]
