"""The authentication backend. It hashes no password for a name that cannot exist, and reads permissions in one query."""

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import Permission
from django.db.models import QuerySet
from django.http import HttpRequest

from docora.db.compiled import compiled_and_prepared

MAX_USERNAME = 254  # an email address, for other user models; `auth.User` has 150


class OneQueryBackend(ModelBackend):
    """Django's backend, except that a user's own permissions and those of the user's groups take one query, not two.

    Every poll of every open page needs them.
    """

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> Any:
        """Return the user, or None. Refuse an overlong name at once: Django would hash the password for it."""
        if username and len(username) > MAX_USERNAME:
            return None
        return super().authenticate(request, username=username, password=password, **kwargs)

    def get_user(self, user_id: int) -> Any:
        """Return the user of a session, or None."""
        user = next(iter(_user(user_id)), None)
        return user if self.user_can_authenticate(user) else None

    def get_all_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        if user_obj.is_active and not user_obj.is_superuser and not hasattr(user_obj, "_perm_cache"):
            # Django's own cache, which its method below returns.
            user_obj._perm_cache = {f"{app_label}.{codename}" for app_label, codename in _permissions(user_obj.pk)}
        return super().get_all_permissions(user_obj, obj)


@compiled_and_prepared
def _user(user_pk: int) -> QuerySet[Any]:
    return get_user_model()._default_manager.filter(pk=user_pk)


@compiled_and_prepared
def _permissions(user_pk: int) -> "QuerySet[Permission, tuple[str, str]]":
    """Return the app and the codename of each permission that the user or one of the user's groups has."""
    permissions = Permission.objects.order_by().values_list("content_type__app_label", "codename")
    return permissions.filter(user=user_pk).union(permissions.filter(group__user=user_pk)).order_by()
