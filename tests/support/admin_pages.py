"""Every page and fragment of the admin that a GET can return, found through its URLs instead of a list.

URL arguments come from the oldest row of each model, so the caller creates the row with the most content first. A URL
with an unknown argument is an error, so that no page is skipped silently.
"""

import re
import time
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import islice, product
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.views.main import ALL_VAR, ORDER_VAR, SEARCH_VAR
from django.contrib.auth.models import User
from django.db.models import Model
from django.test import Client
from django.urls import URLPattern, reverse

from deliveries_app import urls
from deliveries_app.models import App, AppRepository, BulkOperation, Delivery, DriftCheck, SyncRun
from docora.sign_in.middleware import ACTIVE_AT

ROOT = "/admin/"
SELECTED = 60
CHOICES = 8
SEARCHES = ("acme", "src/", "HTTP 500", "Portal 00")
"""Texts for the search box of every page. Each finds different rows."""
NO_PAGE = {403, 404, 405}
"""Adding runs by hand, a fragment of another model, a button that accepts POST only."""

_SKIPPED = {"login", "logout", "password_change", "password_change_done", "autocomplete", "jsi18n", "view_on_site"}
_SEARCH_TERMS = {AppRepository: "repository-0000", Delivery: "src/"}  # they match some rows only


def pages() -> list[str]:
    """Return the pages of the site and of its models, and everything in `deliveries_app.urls`."""
    return [*_site_pages(), *(url for model in admin.site._registry for url in _model_pages(model)), *_fragments()]


def variants(client: Client) -> Iterator[str]:
    """Yield each list with every filter choice, sorted by every column both ways, searched, on page 2, and in full."""
    for model, model_admin in admin.site._registry.items():
        if not model._meta.managed:
            continue
        url = _list(model)
        change_list: Any = client.get(url).context_data["cl"]  # type: ignore[attr-defined]
        for spec in change_list.filter_specs:
            others = (choice for choice in spec.choices(change_list) if not choice["selected"])
            yield from (url + choice["query_string"] for choice in islice(others, CHOICES))
        for number, name in enumerate(change_list.list_display):
            if change_list.get_ordering_field(name) and name in change_list.sortable_by:
                yield from (f"{url}?{ORDER_VAR}={sign}{number}" for sign in ("", "-"))
        yield f"{url}?p=2"
        if model_admin.search_fields:
            yield f"{url}?{urlencode({SEARCH_VAR: _SEARCH_TERMS.get(model, 'acme')})}"
        if change_list.result_count <= change_list.list_max_show_all:
            yield f"{url}?{ALL_VAR}="


def example(model: type[Model]) -> Any:
    """Return the oldest row."""
    return model._default_manager.order_by("pk").first() if model._meta.managed else None


def ids(model: type[Model]) -> str:
    """Return the primary keys of the oldest rows, separated by commas."""
    if not model._meta.managed:  # the queue has no table
        return ""
    pks = model._default_manager.order_by("pk").values_list("pk", flat=True)[:SELECTED]
    return ",".join(map(str, pks))


def _list(model: type[Model]) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


def _site_pages() -> Iterator[str]:
    yield ROOT
    yield from (f"{ROOT}search/?{urlencode({SEARCH_VAR: text})}" for text in SEARCHES)
    for pattern in admin.site.get_urls():
        if isinstance(pattern, URLPattern) and pattern.name not in _SKIPPED and not _is_regular_expression(pattern):
            yield from _filled_in(ROOT, pattern, {})
    for label in {model._meta.app_label for model in admin.site._registry}:
        yield reverse("admin:app_list", args=[label])


def _model_pages(model: type[Model]) -> Iterator[str]:
    row = example(model)
    known = dict.fromkeys(("object_id", "id"), [] if row is None else [row.pk])
    known["watch_pk"] = [example(AppRepository).pk]
    for pattern in admin.site._registry[model].get_urls():
        if isinstance(pattern, URLPattern) and str(pattern.pattern) != "<path:object_id>/":  # only redirects
            for url in _filled_in(_list(model), pattern, known):
                yield url
                takes_selection = str(pattern.pattern) not in {"", "add/", "export/"}
                if not pattern.pattern.converters and takes_selection:
                    yield f"{url}?{urlencode({'ids': ids(model)})}"
                    yield f"{url}?all=1"


def _fragments() -> Iterator[str]:
    """The URL does not say which model `pk` belongs to, so yield one per model. Callers skip those that are a 404."""
    rows: dict[type[Model], Any] = {
        model: example(model) for model in (AppRepository, App, BulkOperation, SyncRun, Delivery, DriftCheck)
    }
    known = {
        "pk": [row.pk for row in rows.values()],
        "app_id": [rows[App].app_id],
        "operation_id": [rows[BulkOperation].operation_id],
        "run_id": [rows[SyncRun].run_id],
    }
    for pattern in urls.urlpatterns:
        for url in _filled_in(ROOT, pattern, known):
            yield f"{url}?{urlencode({'ids': ids(SyncRun if 'rows' in url else AppRepository)})}"


def _is_regular_expression(pattern: URLPattern) -> bool:
    return not hasattr(pattern.pattern, "_route")


def _filled_in(base: str, pattern: URLPattern, known: dict[str, list[Any]]) -> Iterator[str]:
    names = list(pattern.pattern.converters)
    if unknown := [name for name in names if name not in known]:
        raise LookupError(f"{base}{pattern.pattern}: give an example of {unknown} in {__name__}.")
    for values in product(*(known[name] for name in names)):
        rest = iter(values)
        yield base + re.sub(r"<[^>]+>", lambda _: str(next(rest)), str(pattern.pattern))  # noqa: B023  runs within this iteration


def superuser(name: str = "root") -> Client:
    """Return a client signed in as a superuser. Its session is not written once a minute, which would add queries."""
    user, _ = User.objects.get_or_create(username=name, defaults={"is_staff": True, "is_superuser": True})
    client = Client(SERVER_NAME="127.0.0.1")
    client.force_login(user, backend="docora.security.permissions.OneQueryBackend")
    session = client.session
    session[ACTIVE_AT] = time.time() + 3600
    session.save()
    return client


class _Fields(HTMLParser):
    """Collects what a browser would post from a page."""

    def __init__(self) -> None:
        super().__init__()
        self.posted: dict[str, list[str]] = defaultdict(list)
        self._select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name, value = given.get("name"), given.get("value") or ""
        if tag == "select":
            self._select = name or ""
        elif tag == "option" and "selected" in given:
            self.posted[self._select].append(value)
        elif tag == "input" and name and not name.startswith("_"):
            kind = given.get("type")
            if kind != "submit" and (kind not in {"checkbox", "radio"} or "checked" in given):
                self.posted[name].append("on" if kind == "checkbox" else value)


def form_of(client: Client, page: str) -> dict[str, list[str]]:
    """GET the page and return what its button would post."""
    fields = _Fields()
    fields.feed(client.get(page).text)
    return fields.posted


def posted_form(client: Client, url: str, **changes: str | None) -> dict[str, str]:
    """Return what a browser would post from the form on a page. In `changes`, None leaves a checkbox unticked."""
    form = client.get(url).context["adminform"].form
    posted: dict[str, Any] = {}
    for bound in form:
        posted[bound.html_name] = bound.value()
        if bound.field.show_hidden_initial:
            posted[bound.html_initial_name] = "" if bound.value() is None else str(bound.value())
    posted |= changes
    return {name: "on" if value is True else str(value) for name, value in posted.items() if value not in {None, False}}
