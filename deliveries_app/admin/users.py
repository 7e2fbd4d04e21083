"""Django's pages for users and groups, whose lists can be filtered only by the filters they offer."""

from typing import TYPE_CHECKING

from django.contrib import admin
from django.contrib.auth import admin as auth
from django.contrib.auth.models import Group, User

from deliveries_app.admin.base import PlainLists

if TYPE_CHECKING:
    DjangoUserAdmin = auth.UserAdmin[User]
else:
    DjangoUserAdmin = auth.UserAdmin

admin.site.unregister([User, Group])


@admin.register(User)
class UserAdmin(PlainLists, DjangoUserAdmin):
    pass


@admin.register(Group)
class GroupAdmin(PlainLists, auth.GroupAdmin):
    pass
