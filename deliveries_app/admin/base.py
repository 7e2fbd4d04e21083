"""Base classes of all of Docora's model admins."""

import copy
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin import ShowFacets, helpers
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import BadRequest, PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst

from deliveries_app.services import NotFound
from docora.db.compiled import Compiled, compiled
from docora.text import parse_pk
from docora.web.paginators import ListPaginator

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin
else:

    class ModelAdmin[M](admin.ModelAdmin):
        """Django's class, made generic at run time to match its type stubs."""


def column(description: str, show: Callable[[Any], Any], *, ordering: Any = None) -> "staticmethod[[Any], Any]":
    """Return an attribute of a model admin for `list_display`: the column's heading, and what it shows of a row."""
    return staticmethod(admin.display(show, description=description, ordering=ordering))


class PlainAdmin[M: Model](ModelAdmin[M]):
    """Give lists a plain title, no counts beside the filters, and a 400 for query parameters that no filter uses.

    Forms refuse "Save as new", which no page offers.

    Django accepts any lookup on the model's own columns. Some values make the query itself fail (`created_at__year=99999999`,
    `id__range=1`). Most lookups, and the counts, would scan the whole table.
    """

    show_facets = ShowFacets.NEVER
    paginator = ListPaginator
    empty_text = ""
    """The text of the list while there are no rows at all. If empty, the list only says that there are none."""

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        return any(lookup in _parameters_of(spec) for spec in self.list_filter)

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """Return the list, with the number of the page that it shows: `ListPaginator` shows the last one instead of later ones."""
        changelist: ChangeList = super().get_changelist_instance(request)
        if getattr(changelist, "multi_page", False):
            changelist.page_num = changelist.paginator.validate_number(changelist.page_num)
        return changelist

    def _get_obj_does_not_exist_redirect(self, request: HttpRequest, opts: Any, object_id: str) -> HttpResponse:
        """Redirect as Django does. Its message would begin in lower case."""
        message = f"{capfirst(opts.verbose_name)} with ID “{unquote(object_id)}” doesn't exist. Perhaps it was deleted?"
        self.message_user(request, message, messages.WARNING)
        return HttpResponseRedirect(reverse("admin:index"))

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Refuse "Save as new": Django would do it although no page offers it, and fail to show the form's errors."""
        if "_saveasnew" in request.POST:
            raise BadRequest("Rows are not copied")
        return super().changeform_view(request, *args, **kwargs)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        title = capfirst(self.opts.verbose_name_plural)
        context = {"title": title, "empty_text": self.empty_text}
        return super().changelist_view(request, context | (extra_context or {}))


def _parameters_of(list_filter: Any) -> Collection[str]:
    """Return the query parameters of one entry of `list_filter`."""
    if isinstance(list_filter, str):  # a column, or a relation to a model whose key is `id`
        return {f"{list_filter}__{suffix}" for suffix in ("exact", "isnull", "id__exact")}
    parameters: Collection[str] = list_filter.parameters
    return parameters


class _FilterOnly(ChangeList):
    def get_results(self, request: HttpRequest) -> None:
        """Neither count the rows nor read a page of them."""


class DocoraAdmin[M: Model](PlainAdmin[M]):
    """A model admin whose lists count only the rows that the search and filters find.

    With a `page_template`, the change page is a read-only page with action buttons instead of a form. `page_context`
    returns its context.
    """

    page_template: str | None = None
    list_class: type[ChangeList] = ChangeList
    add_label = ""
    """The label of the button that adds a row, if it is not "Add" and the name of the model."""
    audited_by_services = True
    """Whether the services that this admin calls write the audit log. Otherwise `deliveries_app.audited_admin` writes it."""
    show_full_result_count = False
    list_per_page = 50

    def page_context(self, request: HttpRequest, obj: M) -> dict[str, Any]:
        """Return what `page_template` shows in addition to the object."""
        return {}

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return self.list_class

    def filtered_rows(self, request: HttpRequest) -> QuerySet[M]:
        """Return the rows that the list finds with the request's search and filters, without counting them or reading a page.

        Raises `IncorrectLookupParameters` if a filter is invalid.
        """
        reader = copy.copy(self)  # because all threads share this object
        reader.list_class = type("FilterOnly", (_FilterOnly, self.list_class), {})
        rows: QuerySet[M] = reader.get_changelist_instance(request).queryset
        return rows

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> M | None:
        """Return the row as Django does, but build its SQL only once: building it takes longer than running it.

        So `get_queryset` must not depend on the request.
        """
        pk = parse_pk(object_id)
        if pk is None or from_field:
            return super().get_object(request, object_id, from_field)
        return next(iter(self._rows(pk)), None)

    @cached_property
    def _rows(self) -> Compiled[[int], M]:
        return compiled(lambda pk: self.get_queryset(HttpRequest()).filter(pk=pk))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if self.page_template is None:
            return super().change_view(request, object_id, form_url, extra_context)
        if not self.has_view_permission(request):
            raise PermissionDenied
        obj = self.get_object(request, object_id)
        if obj is None:
            return self.redirect_missing(request, object_id)
        context = {"original": obj, "here": request.get_full_path(), **self.page_context(request, obj)}
        return self.render_page(request, self.page_template, str(obj), **context)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Render or save the form. If the row is removed before it is saved, redirect as if it had never been found."""
        with suppress(NotFound):
            return super().changeform_view(request, object_id, form_url, extra_context)
        return self.redirect_missing(request, str(object_id))

    @admin.display(description=SafeString('<input type="checkbox" id="action-toggle">'))
    def action_checkbox(self, obj: M) -> SafeString:
        """Return the checkbox of a row. Django would render a template for each."""
        html = '<input type="checkbox" name="{}" value="{}" class="action-select" aria-label="Select {}">'
        return format_html(html, helpers.ACTION_CHECKBOX_NAME, obj.pk, str(obj))

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Use the saved row as the title of its form, as with `page_template`, and leave out "Save and add another"."""
        row = context["original"]
        if row is not None:
            if request.method == "POST":  # the form has errors, and has set the other values on the row
                row = self.get_object(request, str(row.pk)) or row
            context |= {"original": row, "title": str(row), "subtitle": None, "show_save_and_add_another": False}
        return super().render_change_form(request, context, *args, **kwargs)

    def can(self, request: HttpRequest, permission: str) -> bool:
        """Return whether the user has the permission. Acting on a row also requires permission to view it."""
        return self.has_view_permission(request) and request.user.has_perm(permission)

    def object_page(
        self, slug: str, view: Callable[[HttpRequest, M], HttpResponse], permission: str | None = None
    ) -> URLPattern:
        """Return the URL pattern `<id>/<slug>/`. Its view checks the permission, then calls `view` with the row.

        Without `permission`, it only checks that the user can view the row, and leaves the rest to the service. If the
        service raises `NotFound`, the row has been removed since.
        """

        def checked(request: HttpRequest, object_id: int) -> HttpResponse:
            if not (self.can(request, permission) if permission else self.has_view_permission(request)):
                raise PermissionDenied
            obj = self.get_object(request, str(object_id))
            if obj is not None:
                with suppress(NotFound):
                    return view(request, obj)
            return self.redirect_missing(request, str(object_id))

        return path(f"<int:object_id>/{slug}/", self.admin_site.admin_view(checked), name=self.url_name(slug))

    def url_name(self, view: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{view.replace('-', '_')}"

    def url_of(self, view: str, row: Model | None = None) -> str:
        """Return the URL of one of this model admin's views."""
        return reverse(f"admin:{self.url_name(view)}", args=[row.pk] if row else [])

    def page_of(self, obj: Model) -> str:
        """Return the URL of the row's change page."""
        return self.url_of("change", obj)

    @property
    def list_url(self) -> str:
        return self.url_of("changelist")

    def redirect_missing(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Redirect to the overview with a message that there is no row with this id."""
        return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)

    def redirect_with_message(
        self, request: HttpRequest, url: str, message: object, level: int = messages.SUCCESS
    ) -> HttpResponseRedirect:
        """Redirect to a page that shows the message."""
        self.message_user(request, str(message), level)
        return HttpResponseRedirect(url)

    def redirect_with_warning(self, request: HttpRequest, url: str, message: object) -> HttpResponseRedirect:
        return self.redirect_with_message(request, url, message, messages.WARNING)

    def render_page(self, request: HttpRequest, template: str, title: str, **context: Any) -> TemplateResponse:
        """Render a template that extends `docora/page.html` or `admin/base_site.html`."""
        frame = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "has_view_permission": self.has_view_permission(request),
        }
        return TemplateResponse(request, template, frame | context)

    def render_confirmation(
        self,
        request: HttpRequest,
        obj: M | None,
        title: str,
        template: str = "docora/question.html",
        *,
        form: Any = None,
        button: str = "",
        **more: Any,
    ) -> TemplateResponse:
        """Render a page that asks before an action on `obj`, which is None if there is no row.

        It shows the fields of `form`, in its `fieldsets` if it has some. The button's label is the title, unless `button`
        is given.
        """
        context: dict[str, Any] = {"form": form, "button": button or title}
        if obj is not None:
            context |= {"original": obj, "back": self.page_of(obj)}
        if form is not None:
            fieldsets = getattr(form, "fieldsets", [(None, {"fields": list(form.fields)})])
            context["adminform"] = helpers.AdminForm(form, fieldsets, {}, (), model_admin=self)
        return self.render_page(request, template, title, **context | more)


class ReadOnlyAdmin[M: Model](DocoraAdmin[M]):
    """A list that cannot be edited, such as a history."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
