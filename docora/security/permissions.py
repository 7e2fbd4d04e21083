"""The authentication backend, which reads permissions in one query."""

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import Permission
from django.db.models import QuerySet

from docora.db.compiled import compiled_and_prepared


class OneQueryBackend(ModelBackend):
    """Django's backend, except that a user's own permissions and those of the user's groups take one query, not two.

    Every poll of every open page needs them.
    """

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
