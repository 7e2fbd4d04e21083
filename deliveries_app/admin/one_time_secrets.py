"""Show new secrets exactly once, on a separate page.

If they were rendered in response to the POST that created them, a refresh would create new ones. So the POST stores them
encrypted in the session and redirects to a GET that shows them.
"""

from collections.abc import Mapping
from typing import Any

from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from deliveries_app.admin.base import DocoraAdmin
from docora.security.crypto import decrypt, encrypt

_SESSION_KEY = "docora_shown_once"


class OneTimeSecretsAdmin[M: Model](DocoraAdmin[M]):
    """A model admin with the page `secrets/`. Its template extends `docora/secrets.html`."""

    secrets_template: str
    secrets_titles: dict[str, str]
    """Maps a kind of page to its title, in which `{}` stands for the row."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(never_cache(require_GET(self.show_secrets)))
        return [path("secrets/", view, name=self.url_name("secrets")), *super().get_urls()]

    def secrets_context(self, owner: M) -> dict[str, Any]:
        """Return what the template needs in addition to the secrets."""
        return {}

    def are_current(self, owner: M, secrets: Mapping[str, str]) -> bool:
        """Return whether these secrets are still the newest."""
        raise NotImplementedError

    def redirect_to_secrets(self, request: HttpRequest, kind: str, owner: M, **secrets: str) -> HttpResponse:
        """Store the secrets and redirect to the page that shows them. This drops earlier ones that were never shown."""
        encrypted = {name: encrypt(value) for name, value in secrets.items()}
        request.session[_SESSION_KEY] = {"kind": kind, "pk": owner.pk, "secrets": encrypted}
        return HttpResponseRedirect(self.url_of("secrets"))

    def show_secrets(self, request: HttpRequest) -> HttpResponse:
        """Show the secrets that this session has just created, once. Users who can only add rows continue to the overview."""
        can_view, overview = self.has_view_permission(request), reverse("admin:index")
        stored: dict[str, Any] = request.session.get(_SESSION_KEY) or {}
        owner = None
        if stored.get("kind") in self.secrets_titles:
            del request.session[_SESSION_KEY]
            owner = self.get_object(request, str(stored["pk"]))
        if owner is None:
            message = "There is nothing to show: credentials are shown only once. Rotating creates new ones."
            return self.redirect_with_warning(request, self.list_url if can_view else overview, message)
        page = self.page_of(owner) if can_view else overview
        secrets = {name: decrypt(value) for name, value in stored["secrets"].items()}
        if not self.are_current(owner, secrets):  # a request sent twice creates two, and the session may hold the first
            message = "Another request has replaced these credentials. They are not shown. Rotating creates new ones."
            return self.redirect_with_warning(request, page, message)
        context = {
            "original": owner,
            "kind": stored["kind"],
            "back": page,
            **self.secrets_context(owner),
            **secrets,
        }
        title = self.secrets_titles[stored["kind"]].format(owner)
        return self.render_page(request, self.secrets_template, title, **context)
