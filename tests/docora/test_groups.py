"""The two ready groups, as the migrations of a new installation make them.

A database of its own: transactional tests empty every table, the groups' too.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from django.test import Client

from deliveries_app.models import App
from tests.support.commands import manage
from tests.support.staff import make_app, make_watch, staff

NAMED = {
    "resync_apprepository",
    "retry_apprepository",
    "onboard_app",
    "rotate_secret_app",
    "view_queue",
    "control_queue",
}


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Iterator[sqlite3.Connection]:
    """A new installation after `manage.py migrate`."""
    folder = tmp_path_factory.mktemp("data")
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(folder), "DOCORA_ENV_FILE": os.devnull}
    manage("migrate", "-v", "0", environment=environment, timeout=120).check_returncode()
    with closing(sqlite3.connect(folder / "docora.sqlite3")) as connection:
        yield connection


def permissions_of(database: sqlite3.Connection, group: str) -> set[str]:
    """Its permissions as `app_label.codename`."""
    return {
        f"{label}.{codename}"
        for label, codename in database.execute(
            "SELECT t.app_label, p.codename FROM auth_group_permissions gp"
            " JOIN auth_group g ON g.id = gp.group_id JOIN auth_permission p ON p.id = gp.permission_id"
            " JOIN django_content_type t ON t.id = p.content_type_id WHERE g.name = ?",
            [group],
        )
    }


def test_the_six_permissions_of_docora_exist_once(database: sqlite3.Connection) -> None:
    marks = ",".join("?" * len(NAMED))
    found = database.execute(f"SELECT codename FROM auth_permission WHERE codename IN ({marks})", [*NAMED]).fetchall()
    assert sorted(codename for (codename,) in found) == sorted(NAMED)


def test_viewers_see_everything_and_change_nothing(database: sqlite3.Connection) -> None:
    assert permissions_of(database, "Viewers") == {
        "deliveries_app.view_app",
        "deliveries_app.view_apprepository",
        "deliveries_app.view_delivery",
        "deliveries_app.view_syncrun",
        "deliveries_app.view_bulkoperation",
        "deliveries_app.view_queue",
        "repositories_app.view_repository",
    }


def test_operators_do_the_daily_work(database: sqlite3.Connection) -> None:
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
    }


def test_operators_delete_no_app_and_touch_no_account(database: sqlite3.Connection) -> None:
    operators = permissions_of(database, "Operators")
    assert "deliveries_app.delete_app" not in operators
    assert {name for name in operators if not name.startswith(("deliveries_app.", "repositories_app."))} == set()


def test_the_names_of_the_permissions_are_as_the_models_say(database: sqlite3.Connection) -> None:
    """Made by the migration before Django makes its own: what differed would be renamed or doubled by it."""
    doubled = database.execute(
        "SELECT codename FROM auth_permission GROUP BY content_type_id, codename HAVING count(*) > 1"
    ).fetchall()
    assert doubled == []
    words = dict(database.execute("SELECT codename, name FROM auth_permission").fetchall())
    assert words["resync_apprepository"] == "Can force a re-sync of a watched repository"
    assert words["view_apprepository"] == "Can view watched repository"
    assert words["view_repository"] == "Can view Git repository"


# --- What these permissions open in the admin ---------------------------------------------------------------------------

SEEN = ("deliveries_app/app", "deliveries_app/apprepository", "deliveries_app/delivery", "deliveries_app/syncrun")
SEEN += ("deliveries_app/bulkoperation", "repositories_app/repository")
CLOSED = ("auth/user", "auth/group", "axes/accessattempt")


def member(database: sqlite3.Connection, group: str) -> Client:
    """A staff user with just what the group gives."""
    return staff(group.lower(), *(name.partition(".")[2] for name in permissions_of(database, group)))


@pytest.mark.parametrize("group", ["Viewers", "Operators"])
def test_a_member_sees_every_list_of_docora_and_no_accounts(database: sqlite3.Connection, db, group: str) -> None:
    client = member(database, group)
    watch = make_watch(make_app("Portal"), "docs")
    assert {model: client.get(f"/admin/{model}/").status_code for model in SEEN} == dict.fromkeys(SEEN, 200)
    assert {model: client.get(f"/admin/{model}/").status_code for model in CLOSED} == dict.fromkeys(CLOSED, 403)
    assert client.get(f"/admin/deliveries_app/app/{watch.app_id}/change/").status_code == 200
    assert client.get(f"/admin/deliveries_app/apprepository/{watch.pk}/change/").status_code == 200


@pytest.mark.parametrize(("group", "status"), [("Viewers", 403), ("Operators", 302)])
def test_only_operators_re_sync_and_register_and_nobody_deletes_an_app(
    database: sqlite3.Connection, db, group: str, status: int
) -> None:
    client = member(database, group)
    watch = make_watch(make_app("Portal"), "docs")
    facts = {"name": "Search", "base_url": "https://search.example", "email": "a@b.example"}
    assert client.post("/admin/deliveries_app/app/add/", facts).status_code == status
    assert App.objects.filter(name="Search").exists() is (status == 302)
    asked = {"app_id": watch.app.app_id, "repository_id": watch.repository.repository_id}
    answer = client.post("/admin/api/resync", asked, content_type="application/json")
    assert answer.status_code == (200 if status == 302 else 403)
    assert client.post(f"/admin/deliveries_app/app/{watch.app_id}/delete/", {"post": "yes"}).status_code == 403
    assert App.objects.get(pk=watch.app_id).ended_at is None
