"""What Django's error pages and reports may show of a request: with DEBUG on, too, nothing that could be a secret.

A client app's key may be any text and sits in the local variables of every frame between the database and the socket, so
no pattern finds it: no local variable is shown at all. The traceback, the code around it and the names remain.
"""

from collections.abc import ItemsView
from types import FrameType
from typing import Any

from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.views.debug import ExceptionReporter, SafeExceptionReporterFilter

from docora.security.redaction import redact


class ReporterFilter(SafeExceptionReporterFilter):
    def is_active(self, request: HttpRequest | None) -> bool:
        """With DEBUG too: the one who causes an error is not the one whose secrets stand in it."""
        return True

    def cleanse_setting(self, key: str | int, value: Any) -> Any:
        """A setting, a header or a cookie; addresses lose their passwords whatever the setting is called. Whoever knows the
        address of a webhook may post to it."""
        if key == "ALERT_WEBHOOK_URL" and value:
            return self.cleansed_substitute
        cleansed = super().cleanse_setting(key, value)
        return redact(str(cleansed)) if isinstance(cleansed, str) else cleansed  # a lazy one is made a text

    def get_safe_cookies(self, request: HttpRequest) -> dict[str, Any]:
        return dict.fromkeys(request.COOKIES, self.cleansed_substitute)

    def get_post_parameters(self, request: HttpRequest | None) -> dict[str, Any]:
        """The names of what was posted."""
        return {} if request is None else dict.fromkeys(request.POST, self.cleansed_substitute)

    def get_traceback_frame_variables(self, request: HttpRequest, tb_frame: FrameType) -> ItemsView[str, Any]:
        hidden: dict[str, Any] = {}
        return hidden.items()


class Reporter(ExceptionReporter):
    """The exception's own words may repeat what a stranger answered."""

    def get_traceback_html(self) -> SafeString:
        return SafeString(redact(super().get_traceback_html()))

    def get_traceback_text(self) -> SafeString:
        return SafeString(redact(super().get_traceback_text()))
