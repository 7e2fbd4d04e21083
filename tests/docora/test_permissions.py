"""A user's permissions are Django's, in one query, and Docora asks only for permissions that exist."""

import re

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser, Group, Permission, User

from deliveries_app.admin.users import offered_permissions
from deliveries_app.permissions import Permission as Asked
from docora.security.permissions import OneQueryBackend

OWN, OF_GROUP, OTHER = "view_app", "resync_apprepository", "delete_app"


@pytest.fixture
def user(db) -> User:
    user = User.objects.create_user("ana", is_staff=True)
    group = Group.objects.create(name="Team")
    user.groups.add(group)
    user.user_permissions.add(Permission.objects.get(codename=OWN))
    group.permissions.add(*Permission.objects.filter(codename__in=[OWN, OF_GROUP]))
    return user


def fresh(user: User) -> User:
    """Return the user without cached permissions."""
    return User.objects.get(pk=user.pk)


def test_own_permissions_and_those_of_groups_in_one_query(user: User, django_assert_num_queries) -> None:
    found = fresh(user)
    with django_assert_num_queries(1):
        permissions = OneQueryBackend().get_all_permissions(found)
        assert found.has_perm(f"deliveries_app.{OF_GROUP}")
        assert not found.has_perm(f"deliveries_app.{OTHER}")
    assert permissions == {f"deliveries_app.{OWN}", f"deliveries_app.{OF_GROUP}"}
    assert permissions == ModelBackend().get_all_permissions(fresh(user))


@pytest.mark.parametrize("change", [{"is_active": False}, {"is_superuser": True}])
def test_inactive_users_and_superusers_as_in_django(user: User, change: dict[str, bool]) -> None:
    User.objects.filter(pk=user.pk).update(**change)
    found = OneQueryBackend().get_all_permissions(fresh(user))
    assert found == ModelBackend().get_all_permissions(fresh(user))
    assert bool(found) == ("is_superuser" in change)


def test_no_permissions_for_an_object_or_an_anonymous_user(user: User) -> None:
    assert OneQueryBackend().get_all_permissions(fresh(user), obj=user) == set()
    assert OneQueryBackend().get_all_permissions(AnonymousUser()) == set()


def test_every_permission_exists(db) -> None:
    """Django creates the permissions in the `Meta` of a model. For another one, `has_perm` says no to all but superusers."""
    exist = {f"{label}.{name}" for label, name in Permission.objects.values_list("content_type__app_label", "codename")}
    assert [permission for permission in Asked if permission not in exist] == [], "add them to `permissions` in a Meta"


def offered() -> dict[str, Permission]:
    """The permissions that the forms of users and groups offer, by name."""
    permissions = Permission.objects.filter(offered_permissions()).select_related("content_type")
    return {f"{permission.content_type.app_label}.{permission.codename}": permission for permission in permissions}


def test_every_offered_permission_is_checked(user: User, rf) -> None:
    """Docora's own by services and pages, Django's by the pages of their models."""
    files = (settings.BASE_DIR / "deliveries_app").rglob("*.py")
    used = {name for file in files for name in re.findall(r"\bPermission\.([A-Z_]+)\b", file.read_text())}
    assert [permission for permission in Asked if permission.name not in used] == []
    assert set(Asked) < offered().keys()
    of_models = {name: permission for name, permission in offered().items() if name not in set(Asked)}
    assert len(of_models) == 9
    group, request = user.groups.get(), rf.get("/")
    for name, permission in of_models.items():
        pages = admin.site.get_model_admin(permission.content_type.model_class())
        action = permission.codename.partition("_")[0]
        needed = [of_models["auth.change_user"]] if name == "auth.add_user" else []
        for permissions, is_open in ((needed, False), ([*needed, permission], True)):
            group.permissions.set(permissions)
            request.user = fresh(user)
            assert pages.get_model_perms(request)[action] is is_open, name


def test_templates_ask_for_known_permissions() -> None:
    files = (settings.BASE_DIR / "templates").rglob("*.html")
    asked = {name for file in files for name in re.findall(r"\bperms\.(\w+\.\w+)", file.read_text())}
    assert len(asked) > 5
    assert asked - set(Asked) == set(), "not in deliveries_app/permissions.py"
