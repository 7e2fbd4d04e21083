"""Failed sign-ins, for superusers: who is locked out, and from which address. Deleting a row lifts its lock."""

from typing import Any

from axes.models import AccessAttempt
from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone

from deliveries_app.admin.base import ReadOnlyAdmin

# The model belongs to axes. Only the labels change here, so its migrations are unaffected.
AccessAttempt._meta.verbose_name, AccessAttempt._meta.verbose_name_plural = "sign-in attempt", "sign-in attempts"
apps.get_app_config("axes").verbose_name = "Access"


@admin.register(AccessAttempt)
class SignInAttemptAdmin(ReadOnlyAdmin[Any]):
    audited_by_services = False
    list_display = ("username", "ip_address", "failures_since_start", "attempt_time", "locked", "user_agent")
    search_fields = ("username", "ip_address")
    ordering = ("-attempt_time",)
    fields = readonly_fields = (*list_display, "path_info")

    @admin.display(boolean=True)
    def locked(self, attempt: Any) -> bool:
        """Whether this row alone causes a lock. Attempts under several names can also lock an address."""
        recent = timezone.now() - attempt.attempt_time < settings.AXES_COOLOFF_TIME
        return bool(recent and attempt.failures_since_start >= settings.AXES_FAILURE_LIMIT)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_active and request.user.is_superuser)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_view_permission(request)
