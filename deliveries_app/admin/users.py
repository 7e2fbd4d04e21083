"""Django's pages for users and groups, whose lists can be filtered only by the filters they offer."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth import admin as auth
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from deliveries_app.admin.base import PlainLists

if TYPE_CHECKING:
    DjangoUserAdmin = auth.UserAdmin[User]
else:
    DjangoUserAdmin = auth.UserAdmin

admin.site.unregister([User, Group])


@admin.register(User)
class UserAdmin(PlainLists, DjangoUserAdmin):
    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> User | None:
        """Return the user, marked so that changing the password is not recorded a second time by `services.sign_ins`."""
        user: Any = super().get_object(request, object_id, from_field)
        if user is not None:
            user.recorded_by_admin = True
        return user  # type: ignore[no-any-return]

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """Change the password and record it in one transaction, which Django does not use here."""
        with transaction.atomic():
            return super().user_change_password(request, id, form_url)


@admin.register(Group)
class GroupAdmin(PlainLists, auth.GroupAdmin):
    pass
