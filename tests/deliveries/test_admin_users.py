"""Forms for users and groups save only what was changed on the page, and lose no change that is made meanwhile."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from django.contrib.auth import base_user
from django.contrib.auth.models import Group, Permission, User
from django.test import Client
from django.utils import timezone

from deliveries_app.models import AuditEntry
from tests.support.admin_pages import form_of, superuser

USERS, GROUPS = "/admin/auth/user/", "/admin/auth/group/"
PASSWORD, NEW_PASSWORD = "the-old-password-1", "the-new-password-2"


def post(client: Client, page: str, form: dict[str, list[str]], **changes: list[str]) -> None:
    assert client.post(page, form | changes).status_code == 302


@pytest.fixture
def olga(db) -> User:
    olga = User.objects.create_superuser("olga", password=PASSWORD)
    olga.groups.add(Group.objects.create(name="movers"))
    return olga


def test_page_that_is_out_of_date_gives_no_rights_back(olga: User) -> None:
    page, root = f"{USERS}{olga.pk}/change/", superuser()
    shown = form_of(root, page)
    assert "initial-password" not in shown
    without_rights = {name: [] for name in ("is_active", "is_staff", "is_superuser", "groups")}
    post(superuser("boss"), page, shown, **without_rights)
    post(root, page, shown, first_name=["Olga"])
    olga.refresh_from_db()
    assert (olga.first_name, olga.is_active, olga.is_staff, olga.is_superuser) == ("Olga", False, False, False)
    assert not olga.groups.exists()
    post(root, page, form_of(root, page), is_staff=["on"])
    olga.refresh_from_db()
    assert (olga.is_active, olga.is_staff, olga.check_password(PASSWORD)) == (False, True, True)


def test_user_who_signed_in_in_the_hour_that_the_end_of_summer_time_repeats(olga: User) -> None:
    repeated = datetime(2026, 11, 1, 5, 30, tzinfo=UTC)
    User.objects.filter(pk=olga.pk).update(last_login=repeated, date_joined=repeated)
    page, root = f"{USERS}{olga.pk}/change/", superuser()
    with timezone.override("America/New_York"):
        post(root, page, form_of(root, page), is_active=[])
    olga.refresh_from_db()
    assert (olga.is_active, olga.last_login) == (False, repeated)


def test_page_that_is_out_of_date_takes_no_group_away(olga: User) -> None:
    page, root = f"{USERS}{olga.pk}/change/", superuser()
    olga.groups.clear()
    shown = form_of(root, page)
    olga.groups.set(Group.objects.filter(name="movers"))
    post(root, page, shown, first_name=["Olga"])
    assert olga.groups.exists()


def test_page_of_a_group_that_is_out_of_date(db) -> None:
    root = superuser()
    post(root, f"{GROUPS}add/", form_of(root, f"{GROUPS}add/"), name=["movers"])
    group = Group.objects.get(name="movers")
    group.permissions.add(Permission.objects.get(codename="delete_app"))
    page = f"{GROUPS}{group.pk}/change/"
    shown = form_of(root, page)
    post(superuser("boss"), page, shown, permissions=[])
    post(root, page, shown, name=["shakers"])
    group.refresh_from_db()
    assert (group.name, group.permissions.count()) == ("shakers", 0)


def test_permission_that_is_not_offered_is_kept_until_it_is_removed(olga: User) -> None:
    """Django creates it for its own tables. Nothing checks it, but a user of an earlier version may have it."""
    root, group = superuser(), Group.objects.get(name="movers")
    unused = Permission.objects.get(codename="view_session")
    for page, holders, field in (
        (f"{USERS}{olga.pk}/change/", olga.user_permissions, "user_permissions"),
        (f"{GROUPS}{group.pk}/change/", group.permissions, "permissions"),
    ):
        offered = f'<option value="{unused.pk}"'
        assert offered not in root.get(page).text
        assert ">Sync | app | Can register a client app<" in root.get(page).text
        holders.add(unused)
        assert f"{offered} selected>" in root.get(page).text
        post(
            root,
            page,
            form_of(root, page),
            **{field: [str(unused.pk), str(Permission.objects.get(codename="view_app").pk)]},
        )
        assert set(holders.values_list("codename", flat=True)) == {"view_session", "view_app"}
        post(root, page, form_of(root, page), **{field: []})
        assert not holders.exists()
        assert offered not in root.get(page).text


def test_form_that_is_sent_twice_is_recorded_once(olga: User) -> None:
    root, group = superuser(), Group.objects.get(name="movers")
    for page, name in ((f"{USERS}{olga.pk}/change/", "first_name"), (f"{GROUPS}{group.pk}/change/", "name")):
        shown = form_of(root, page)
        for _ in range(2):
            post(root, page, shown, **{name: ["New"]})
    changed = AuditEntry.objects.filter(action__in=["user.changed", "group.changed"])
    assert sorted(changed.values_list("message", flat=True)) == ["Changed First name.", "Changed Name."]


@pytest.mark.parametrize("is_own", [True, False])
def test_user_is_deactivated_while_the_new_password_is_hashed(olga: User, monkeypatch, *, is_own: bool) -> None:
    def make_password(password: str) -> str:
        User.objects.filter(pk=olga.pk).update(is_active=False, is_superuser=False)
        return hash_it(password)

    hash_it: Callable[[str], str] = base_user.make_password
    client, page, names = superuser(), f"{USERS}{olga.pk}/password/", ("password1", "password2")
    if is_own:
        client, page, names = Client(), "/admin/password_change/", ("new_password1", "new_password2")
        client.force_login(olga)
    monkeypatch.setattr(base_user, "make_password", make_password)
    form = {"old_password": PASSWORD, "usable_password": "true"} | dict.fromkeys(names, NEW_PASSWORD)
    assert client.post(page, form).status_code == 302
    olga.refresh_from_db()
    assert (olga.is_active, olga.is_superuser, olga.check_password(NEW_PASSWORD)) == (False, False, True)
