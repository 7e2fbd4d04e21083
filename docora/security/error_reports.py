"""Keep secrets out of Django's error pages and reports, even with DEBUG on.

A client app's key can be any text, so no pattern recognises it, and it is in the local variables of every frame between
database and socket. Reports therefore show the traceback with its source code, but no local variables.
"""

from collections.abc import ItemsView
from types import FrameType
from typing import Any

from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.views.debug import ExceptionReporter, SafeExceptionReporterFilter

from docora.security.redaction import redact


class ReporterFilter(SafeExceptionReporterFilter):
    def cleanse_setting(self, key: str | int, value: Any) -> Any:
        """Also mask ALERT_WEBHOOK_URL: anyone who knows it can post to it."""
        return self.cleansed_substitute if key == "ALERT_WEBHOOK_URL" else super().cleanse_setting(key, value)

    def get_safe_cookies(self, request: HttpRequest) -> dict[str, Any]:
        return dict.fromkeys(request.COOKIES, self.cleansed_substitute)

    def get_post_parameters(self, request: HttpRequest | None) -> dict[str, Any]:
        """Return the names of the posted fields, with masked values."""
        return {} if request is None else dict.fromkeys(request.POST, self.cleansed_substitute)

    def get_traceback_frame_variables(self, request: HttpRequest, tb_frame: FrameType) -> ItemsView[str, Any]:
        hidden: dict[str, Any] = {}
        return hidden.items()


class Reporter(ExceptionReporter):
    """Redact the whole report too: settings have passwords in URLs, and an exception may repeat a server's response."""

    def get_traceback_html(self) -> SafeString:
        return SafeString(redact(super().get_traceback_html()))

    def get_traceback_text(self) -> SafeString:
        return SafeString(redact(super().get_traceback_text()))
