"""What every admin class of Docora has in common."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin import helpers
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin
else:

    class ModelAdmin[M](admin.ModelAdmin):
        """Django's class, generic at run time as it is for the type checker."""


class DocoraAdmin[M: Model](ModelAdmin[M]):
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

    def can(self, request: HttpRequest, permission: str) -> bool:
        """Whoever does not see a row does nothing with it either."""
        return self.has_view_permission(request) and request.user.has_perm(permission)

    def object_page(self, slug: str, view: Callable[[HttpRequest, M], HttpResponse], permission: str) -> URLPattern:
        """`<id>/<slug>/`, for those who may; `view` gets the row, as this admin lets the user see it."""

        def checked(request: HttpRequest, object_id: int) -> HttpResponse:
            if not self.can(request, permission):
                raise PermissionDenied
            obj = self.get_object(request, str(object_id))
            if obj is None:
                return self._get_obj_does_not_exist_redirect(request, self.opts, str(object_id))  # type: ignore[attr-defined,no-any-return]
            return view(request, obj)

        return path(f"<int:object_id>/{slug}/", self.admin_site.admin_view(checked), name=self.url_name(slug))

    def url_name(self, view: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{view.replace('-', '_')}"

    def page_of(self, obj: Model) -> str:
        """The address of the row's own page."""
        return reverse(f"admin:{self.url_name('change')}", args=[obj.pk])

    def ask(
        self, request: HttpRequest, obj: M, title: str, verb: str, template: str = "docora/question.html", **more: Any
    ) -> TemplateResponse:
        """A page that says what the button `verb` will do, with the fields of `form` if there is one."""
        form = more.get("form")
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "original": obj,
            "verb": verb,
            "adminform": self.rows_of(form) if form is not None else None,
            "back": self.page_of(obj),
            **more,
        }
        return TemplateResponse(request, template, context)

    def rows_of(self, form: Any) -> helpers.AdminForm:
        """A plain form in the admin's own look."""
        return helpers.AdminForm(form, [(None, {"fields": list(form.fields)})], {}, (), model_admin=self)

    def simple_form(self, request: HttpRequest, form: Any, title: str, verb: str) -> TemplateResponse:
        """A page that is nothing but a form."""
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "adminform": self.rows_of(form),
            "form": form,
            "verb": verb,
            "media": self.media,
        }
        return TemplateResponse(request, "docora/simple_form.html", context)


class ReadOnlyAdmin[M: Model](DocoraAdmin[M]):
    """Lists that record what happened: nobody adds, changes or deletes there."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
