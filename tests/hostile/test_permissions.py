"""What a user can change with a single permission beside those to view: each form of the admin is sent."""

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import transaction
from django.template.response import SimpleTemplateResponse
from django.test import Client

from deliveries_app.admin.users import offered_permissions
from deliveries_app.models import AppRepository, AuditEntry, BulkOperation
from deliveries_app.models.root_causes import RootCause
from repositories_app.models import GitHubApp
from tests.hostile.conftest import visitor
from tests.hostile.test_admin import CONFIRMATIONS, FORGED, ROUTES, STAFF_PAGES, address, operation
from tests.support.staff import fail

__all__ = ["operation"]

ACTIONS: dict[str, set[str]] = {
    "add_group": {"group.added"},
    "change_app": {"app.changed", "app.paused", "app.pinged"},
    "change_apprepository": {"repository.changed", "repository.paused"},
    "change_group": {"group.changed"},
    "change_user": {"user.password_changed"},
    "control_queue": {"sync.all_paused"},
    "delete_app": {"app.deleted"},
    "delete_apprepository": {"repository.unwatched"},
    "delete_githubapp": {"github_app.deleted"},
    "delete_group": {"group.deleted"},
    "delete_user": {"user.deleted"},
    "onboard_app": {"app.registered"},
    "resync_apprepository": {"sync.cancelled", "sync.resync"},
    "retry_apprepository": {"sync.retry"},
    "rotate_secret_app": {"app.key_rotation_started", "app.token_rotated"},
}
"""Permission → the audited actions that `FORGED` can cause with it. With the other permissions, it can cause none."""


class _Undo(Exception):
    pass


@pytest.mark.parametrize("name", [*ACTIONS, "view"])
def test_single_permission_allows_only_its_own_actions(
    watches, operation: BulkOperation, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimpleTemplateResponse, "rendered_content", "")  # what pages look like doesn't matter
    watch: AppRepository = watches[0]
    fail(watch, RootCause.SERVER_ERROR)
    user = User.objects.create_user("target")
    github_app = GitHubApp.objects.create(name="Acme", host="https://github.com", app_id="1", private_key="none")
    ids = {"user": user.pk, "group": Group.objects.order_by("pk")[0].pk, "githubapp": github_app.pk}
    offered = set(Permission.objects.filter(offered_permissions()).values_list("codename", flat=True))
    assert ACTIONS.keys() <= offered
    harmless = offered - ACTIONS.keys()
    client = visitor("una", *(harmless if name == "view" else {name, *(each for each in harmless if "view_" in each)}))
    done = set()
    for route in ROUTES:
        if route in STAFF_PAGES or route.endswith("/githubapp/<int:object_id>/test/"):  # which asks GitHub
            continue
        model = route.split("/")[3] if route.count("/") > 3 else ""
        path = address(route, watch, operation)
        if model in ids:
            path = path.replace("/1/", f"/{ids[model]}/")
        pk = ids.get(model, watch.app_id if model == "app" else watch.pk)
        query = f"?ids={pk}" if route in CONFIRMATIONS else ""
        done |= actions_of(client, path + query, FORGED | {"_selected_action": str(pk)})
    assert done == ACTIONS.get(name, set())


def actions_of(client: Client, url: str, form: dict[str, str]) -> set[str]:
    """Send the form, undo what it changed, and return the actions that the audit log then had."""
    try:
        with transaction.atomic():
            before = AuditEntry.objects.count()
            assert client.post(url, form).status_code < 500, url
            done = set(AuditEntry.objects.order_by("pk").values_list("action", flat=True)[before:])
            raise _Undo
    except _Undo:
        return done
