"""Django's pages for users and groups, whose lists can be filtered only by the filters they offer.

Adding or deleting a user or a group, and changing names, roles or passwords, requires a recent sign-in. A form changes only
what was changed on its page.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.contrib.auth import admin as auth
from django.contrib.auth import forms as auth_forms
from django.contrib.auth import get_permission_codename, get_user_model
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connection, transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.text import capfirst

from deliveries_app.admin.base import PlainAdmin
from deliveries_app.audited_admin import AuditedAdmin
from deliveries_app.permissions import Permission as CheckedPermission
from deliveries_app.services.users import detach_history
from docora.apps import added_apps
from docora.db.locks import lock_rows
from docora.sign_in import oidc
from docora.sign_in.forms import SavePasswordOnly
from docora.sign_in.recency import require_recent
from docora.text import parse_pk
from repositories_app.models import GitHubApp

User = get_user_model()
_SENSITIVE_FIELDS = {
    "username", "is_active", "is_staff", "is_superuser", "groups", "user_permissions", "name", "permissions",
}  # fmt: skip

if TYPE_CHECKING:
    from django.contrib.auth.models import User as AuthUser

    DjangoUserAdmin = auth.UserAdmin[AuthUser]
else:
    DjangoUserAdmin = auth.UserAdmin

for model in (User, Group):
    if admin.site.is_registered(model):
        admin.site.unregister(model)


class RequireRecentSignIn(AuditedAdmin):
    """Require a recent sign-in before a user or a group is added, deleted, renamed or given other rights."""

    also_locked = Q(pk__in=[])
    """The rows that are locked besides the one whose form is saved."""

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the row, locked while its form is saved, so that no change of another request is lost."""
        if request.method == "POST" and connection.in_atomic_block:
            self._lock([parse_pk(object_id)])
        return super().get_object(request, object_id, from_field)

    def _lock(self, pks: Any) -> list[int]:
        """Lock the rows with these keys and those that are `also_locked`, and return the keys of all that exist."""
        return lock_rows(self.model._default_manager.filter(Q(pk__in=pks) | self.also_locked))

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if not change or _SENSITIVE_FIELDS & set(form.changed_data):
            require_recent(request)
        super().save_model(request, obj, form, change)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        self.prepare_deletion(request, [obj])
        with transaction.atomic():
            if obj.pk in self._lock([obj.pk]):  # otherwise another request has just deleted it
                self.check_deletion([obj])
                super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self.prepare_deletion(request, queryset)
        with transaction.atomic():
            rows = queryset.filter(pk__in=self._lock(queryset.values("pk")))
            self.check_deletion(rows)
            super().delete_queryset(request, rows)

    def prepare_deletion(self, request: HttpRequest, rows: Iterable[Any]) -> None:
        """Prepare to delete these rows, before the deletion's transaction begins."""
        require_recent(request)

    def check_deletion(self, rows: Iterable[Any]) -> None:
        """Raise `PermissionDenied` if these rows must stay. Called in the deletion's transaction, with the rows locked."""


def _blocked_reason(users: Iterable[Any]) -> str:
    """Return why these users must keep their permissions, or an empty string if they need not."""
    administrators = User._default_manager.filter(is_active=True, is_staff=True, is_superuser=True)
    local = administrators.exclude(socialaccount__provider=oidc.PROVIDER_ID)  # the provider sets the roles of others
    concerned = local.filter(pk__in=[user.pk for user in users])
    if not concerned or administrators.exclude(pk__in=[user.pk for user in users]).exists():
        return ""
    names = ", ".join(user.get_username() for user in concerned)
    verb = "is the only administrator" if len(concerned) == 1 else "are the only administrators"
    return f"{names} {verb}. Make another user a superuser first."


def offered_permissions() -> Q:
    """Match the permissions that Docora checks, and all of the apps that DOCORA_SETTINGS adds.

    Django creates four for each model, most of which do nothing.
    """
    checked = {name.partition(".")[::2] for name in CheckedPermission}
    for model in (User, Group, GitHubApp):  # their pages check Django's own
        actions = ("view", "add", "change", "delete")
        checked |= {(model._meta.app_label, get_permission_codename(action, model._meta)) for action in actions}
    offered = Q(content_type__app_label__in=[app.label for app in added_apps()])
    for label, codename in checked:
        offered |= Q(content_type__app_label=label, codename=codename)
    return offered


class ChangedOnly(forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    """Save only the fields that were changed on the page. Another administrator may have changed the others since.

    Offer only the `offered_permissions` and those that the user or group already has.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # As `compare_with_page`, but an empty list has no input on the page, so the other fields say whether the request comes
        # from the page.
        is_page = not self.is_bound or any(self.add_initial_prefix(name) in self.data for name in self.fields)
        for field in self.fields.values():
            field.show_hidden_initial = is_page and not field.disabled
        for name in {"user_permissions", "permissions"} & self.fields.keys():
            permissions: Any = self.fields[name]
            held = Q(pk__in=getattr(self.instance, name).values("pk")) if self.instance.pk else Q(pk__in=[])
            permissions.queryset = permissions.queryset.filter(offered_permissions() | held)

    @cached_property
    def changed_data(self) -> list[str]:
        """Leave out the fields that already have the new value, because another request has made the same change."""
        names = super().changed_data
        return [name for name in names if self.fields[name].has_changed(self[name].initial, self[name].data)]

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or {}
        return given | {
            name: self.initial[name] for name in given.keys() & self.initial.keys() - set(self.changed_data)
        }


class UserForm(ChangedOnly, auth_forms.UserChangeForm):  # type: ignore[type-arg]
    """Django's form, which refuses to take the last administrator's rights away."""

    def clean(self) -> dict[str, Any]:
        given = super().clean()
        keeps_rights = all(given.get(name, True) for name in ("is_active", "is_staff", "is_superuser"))
        if not keeps_rights and (reason := _blocked_reason([self.instance])):
            raise ValidationError(reason)
        return given


class PasswordForm(SavePasswordOnly, auth_forms.AdminPasswordChangeForm):  # type: ignore[type-arg]
    pass


@admin.register(User)
class UserAdmin(RequireRecentSignIn, PlainAdmin[Any], DjangoUserAdmin):
    form = UserForm
    change_password_form = PasswordForm
    also_locked = Q(is_superuser=True)  # two superusers could otherwise take each other's rights, or delete each other
    # A form refuses times in the hour that the end of summer time repeats.
    readonly_fields = ("last_login", "date_joined")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return whether the page to add a user is offered: Django also requires the permission to change users there."""
        return super().has_add_permission(request) and self.has_change_permission(request)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Return what Django collects, with the last administrator as protected."""
        deleted, counts, permissions, protected = super().get_deleted_objects(objs, request)
        reason = _blocked_reason(objs)
        return deleted, counts, permissions, [*protected, reason] if reason else protected

    def prepare_deletion(self, request: HttpRequest, rows: Iterable[Any]) -> None:
        super().prepare_deletion(request, rows)
        detach_history(rows)

    def check_deletion(self, rows: Iterable[Any]) -> None:
        """Check again, under the lock: another administrator may have been deleted since the page was shown."""
        if reason := _blocked_reason(rows):
            raise PermissionDenied(reason)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Delete without Django's transaction around the view, because `detach_history` commits before the deletion."""
        view: Any = super()
        response: HttpResponse = view._delete_view(request, object_id, extra_context)
        return response

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the user, marked so that changing the password is not recorded a second time by `services.sign_ins`."""
        user: Any = super().get_object(request, object_id, from_field)
        if user is not None:
            user.recorded_by_admin = True
        return user

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """For a user of the identity provider, add a note above the roles: the next sign-in replaces them."""
        fieldsets: Any = super().get_fieldsets(request, obj)
        if obj is None or not oidc.is_account_of(obj):
            return fieldsets
        text = "{} sets the staff status, the superuser status and the groups at each sign-in. Change them there."
        hint = format_html(text, capfirst(settings.OIDC_NAME))  # Django renders it as HTML
        return [
            (title, {**options, "description": hint} if "is_superuser" in options["fields"] else options)
            for title, options in fieldsets
        ]

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        """Change the password and record it in one transaction, which Django does not use here."""
        if request.method == "POST" and self.has_change_permission(request):
            user = self.get_object(request, unquote(id))
            if user is not None and self.change_password_form(user, request.POST).is_valid():
                require_recent(request)
        with transaction.atomic():
            return super().user_change_password(request, id, form_url)


@admin.register(Group)
class GroupAdmin(RequireRecentSignIn, PlainAdmin[Group], auth.GroupAdmin):
    form = ChangedOnly
