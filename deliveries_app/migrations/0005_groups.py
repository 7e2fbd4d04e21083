"""Two ready groups: Viewers see everything, Operators do the daily work. Deleting an app stays with superusers.

Django makes the permissions only after all migrations; made here by the same keys, they are then found and kept.
"""

from django.db import migrations

VIEWERS = {
    ("deliveries_app", "app"): ["view_app"],
    ("deliveries_app", "apprepository"): ["view_apprepository"],
    ("deliveries_app", "delivery"): ["view_delivery"],
    ("deliveries_app", "syncrun"): ["view_syncrun"],
    ("deliveries_app", "bulkoperation"): ["view_bulkoperation"],
    ("deliveries_app", "queue"): ["view_queue"],
    ("repositories_app", "repository"): ["view_repository"],
}
OPERATORS = {
    ("deliveries_app", "app"): ["onboard_app", "change_app", "rotate_secret_app"],
    ("deliveries_app", "apprepository"): [
        "add_apprepository",
        "change_apprepository",
        "delete_apprepository",
        "resync_apprepository",
        "retry_apprepository",
    ],
    ("deliveries_app", "queue"): ["control_queue"],
}
NAMES = {
    "onboard_app": "Can register a client app",
    "rotate_secret_app": "Can replace the token and the signing key of an app",
    "resync_apprepository": "Can force a re-sync of a watched repository",
    "retry_apprepository": "Can retry a failed watched repository and reset a circuit",
    "view_queue": "Can see the job queue",
    "control_queue": "Can stop jobs and pause the queue",
}


def make_groups(apps, schema_editor):
    Group = apps.get_model("auth", "Group")
    for name, tables in (("Viewers", [VIEWERS]), ("Operators", [VIEWERS, OPERATORS])):
        group, _ = Group.objects.get_or_create(name=name)
        group.permissions.add(*(permission for table in tables for permission in permissions(apps, table)))


def permissions(apps, table):
    ContentType = apps.get_model("contenttypes", "ContentType")
    Permission = apps.get_model("auth", "Permission")
    for (app_label, model), codenames in table.items():
        content_type, _ = ContentType.objects.get_or_create(app_label=app_label, model=model)
        verbose = apps.get_model(app_label, model)._meta.verbose_name
        for codename in codenames:
            name = NAMES.get(codename) or f"Can {codename.partition('_')[0]} {verbose}"
            yield Permission.objects.get_or_create(
                content_type=content_type, codename=codename, defaults={"name": name}
            )[0]


class Migration(migrations.Migration):
    dependencies = [
        ("deliveries_app", "0004_drop_token_digest"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    operations = [migrations.RunPython(make_groups, migrations.RunPython.noop)]
