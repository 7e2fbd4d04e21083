"""The groups Viewers and Operators that the migrations create.

Uses a separate database, because transactional tests empty every table, including the groups.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from deliveries_app.admin.users import offered_permissions
from deliveries_app.models import App
from tests.docora.test_docs import text_of
from tests.support.staff import make_app, make_watch, staff

CUSTOM = {
    "resync_apprepository",
    "retry_apprepository",
    "onboard_app",
    "rotate_secret_app",
    "view_queue",
    "control_queue",
    "view_payloads",
}


@pytest.fixture(scope="module")
def database(migrated_sqlite: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{migrated_sqlite}?mode=ro", uri=True)) as connection:
        yield connection


def permissions_of(database: sqlite3.Connection, group: str) -> set[str]:
    """Return the group's permissions as `app_label.codename`."""
    return {
        f"{label}.{codename}"
        for label, codename in database.execute(
            "SELECT t.app_label, p.codename FROM auth_group_permissions gp"
            " JOIN auth_group g ON g.id = gp.group_id JOIN auth_permission p ON p.id = gp.permission_id"
            " JOIN django_content_type t ON t.id = p.content_type_id WHERE g.name = ?",
            [group],
        )
    }


def test_custom_permissions_exist_once(database: sqlite3.Connection) -> None:
    marks = ",".join("?" * len(CUSTOM))
    found = database.execute(f"SELECT codename FROM auth_permission WHERE codename IN ({marks})", [*CUSTOM]).fetchall()
    assert sorted(codename for (codename,) in found) == sorted(CUSTOM)


def test_viewer_permissions(database: sqlite3.Connection) -> None:
    assert permissions_of(database, "Viewers") == {
        "deliveries_app.view_app",
        "deliveries_app.view_apprepository",
        "deliveries_app.view_delivery",
        "deliveries_app.view_syncrun",
        "deliveries_app.view_bulkoperation",
        "deliveries_app.view_queue",
        "repositories_app.view_repository",
    }


def test_operator_permissions(database: sqlite3.Connection) -> None:
    operators, viewers = permissions_of(database, "Operators"), permissions_of(database, "Viewers")
    assert viewers < operators
    assert operators - viewers == {
        "deliveries_app.onboard_app",
        "deliveries_app.change_app",
        "deliveries_app.rotate_secret_app",
        "deliveries_app.add_apprepository",
        "deliveries_app.change_apprepository",
        "deliveries_app.delete_apprepository",
        "deliveries_app.resync_apprepository",
        "deliveries_app.retry_apprepository",
        "deliveries_app.control_queue",
        "deliveries_app.view_payloads",
    }


def test_handbook_says_what_operators_can_do() -> None:
    text = " ".join(text_of("/docs/operations/").split())
    assert (
        "Operators can also re-sync, resend, retry, cancel, pause, replace secrets, register apps and change their settings, and "
        "watch repositories and stop watching them. With the base URL, they decide where an app's files are sent."
        in text
    )


def test_operators_cannot_delete_apps_or_manage_accounts(database: sqlite3.Connection) -> None:
    operators = permissions_of(database, "Operators")
    assert "deliveries_app.delete_app" not in operators
    assert {name for name in operators if not name.startswith(("deliveries_app.", "repositories_app."))} == set()


@pytest.mark.parametrize("group", ["Viewers", "Operators"])
def test_permissions_of_the_groups_are_offered(database: sqlite3.Connection, db, group: str) -> None:
    offered = Permission.objects.filter(offered_permissions())
    names = {f"{label}.{codename}" for label, codename in offered.values_list("content_type__app_label", "codename")}
    assert permissions_of(database, group) <= names


def test_permission_names_match_the_models(database: sqlite3.Connection) -> None:
    """The migration creates them before Django does, so a difference would create duplicates."""
    duplicates = database.execute(
        "SELECT codename FROM auth_permission GROUP BY content_type_id, codename HAVING count(*) > 1"
    ).fetchall()
    assert duplicates == []
    names = dict(database.execute("SELECT codename, name FROM auth_permission").fetchall())
    assert names["resync_apprepository"] == "Can re-sync a watched repository"
    assert names["view_apprepository"] == "Can view watched repository"
    assert names["view_repository"] == "Can view Git repository"


# --- Access to the admin ------------------------------------------------------------------------------------------------

VISIBLE = ("deliveries_app/app", "deliveries_app/apprepository", "deliveries_app/delivery", "deliveries_app/syncrun")
VISIBLE += ("deliveries_app/bulkoperation", "repositories_app/repository")
HIDDEN = ("auth/user", "auth/group")


def member(database: sqlite3.Connection, group: str) -> Client:
    """Sign in a staff user with exactly the group's permissions."""
    return staff(group.lower(), *(name.partition(".")[2] for name in permissions_of(database, group)))


@pytest.mark.parametrize("group", ["Viewers", "Operators"])
def test_members_see_all_lists_except_accounts(database: sqlite3.Connection, db, group: str) -> None:
    client = member(database, group)
    watch = make_watch(make_app("Portal"), "docs")
    assert {model: client.get(f"/admin/{model}/").status_code for model in VISIBLE} == dict.fromkeys(VISIBLE, 200)
    assert {model: client.get(f"/admin/{model}/").status_code for model in HIDDEN} == dict.fromkeys(HIDDEN, 403)
    assert client.get(f"/admin/deliveries_app/app/{watch.app_id}/change/").status_code == 200
    assert client.get(f"/admin/deliveries_app/apprepository/{watch.pk}/change/").status_code == 200


@pytest.mark.parametrize(("group", "status"), [("Viewers", 403), ("Operators", 302)])
def test_what_viewers_and_operators_may_do(database: sqlite3.Connection, db, group: str, status: int) -> None:
    client = member(database, group)
    watch = make_watch(make_app("Portal"), "docs")
    fields = {"name": "Search", "base_url": "https://search.example", "email": "a@b.example"}
    assert client.post("/admin/deliveries_app/app/add/", fields).status_code == status
    assert App.objects.filter(name="Search").exists() is (status == 302)
    body = {"app_id": watch.app.app_id, "repository_id": watch.repository.repository_id}
    response = client.post("/admin/api/resync", body, content_type="application/json")
    assert response.status_code == (200 if status == 302 else 403)
    assert client.post(f"/admin/deliveries_app/app/{watch.app_id}/delete/", {"post": "yes"}).status_code == 403
    assert App.objects.get(pk=watch.app_id).ended_at is None
