"""Every app's token becomes a row of its own, so that there may be two while one is replaced."""

from django.db import migrations


def keep_tokens(apps, schema_editor):
    App = apps.get_model("deliveries_app", "App")
    AppToken = apps.get_model("deliveries_app", "AppToken")
    AppToken.objects.bulk_create(
        [AppToken(app_id=pk, digest=digest) for pk, digest in App.objects.values_list("pk", "token_digest")],
        batch_size=500,
    )


class Migration(migrations.Migration):
    dependencies = [("deliveries_app", "0002_client_life")]

    operations = [migrations.RunPython(keep_tokens, migrations.RunPython.noop)]
