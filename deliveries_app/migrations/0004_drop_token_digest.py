"""Apart from the move itself: PostgreSQL does not alter a table that the same transaction has written rows for."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("deliveries_app", "0003_keep_tokens")]

    operations = [migrations.RemoveField(model_name="app", name="token_digest")]
