"""What every admin class of Docora has in common."""

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse


class DocoraAdmin[M: Model](admin.ModelAdmin[M]):
    """Lists say what they are, and count nothing that is large.

    With a `page_template` the change page is a page to read and operate from, with `page_context` in it: no form, so
    that every operating part is a button of its own.
    """

    page_template: str | None = None
    show_full_result_count = False
    list_per_page = 50

    def page_context(self, request: HttpRequest, obj: M) -> dict[str, Any]:
        """What the page shows beside the object itself."""
        return {}

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        title = str(self.opts.verbose_name_plural).capitalize()
        return super().changelist_view(request, {"title": title, **(extra_context or {})})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if self.page_template is None:
            return super().change_view(request, object_id, form_url, extra_context)
        if not self.has_view_permission(request):
            raise PermissionDenied
        obj = self.get_object(request, object_id)
        if obj is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        context = {
            **self.admin_site.each_context(request),
            "title": str(obj),
            "opts": self.opts,
            "original": obj,
            "here": request.get_full_path(),
            **self.page_context(request, obj),
        }
        return TemplateResponse(request, self.page_template, context)


class ReadOnlyAdmin[M: Model](DocoraAdmin[M]):
    """Lists that record what happened: nobody adds, changes or deletes there."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
