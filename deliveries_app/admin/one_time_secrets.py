"""Show new secrets exactly once, on a page of their own.

If they were rendered in response to the POST that created them, a refresh would create new ones. So the POST stores them
encrypted in the session and redirects to a GET that shows them.
"""

from dataclasses import dataclass, field
from typing import Any

from django.contrib import messages
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from deliveries_app.admin.base import DocoraAdmin
from docora.security.crypto import decrypt, encrypt

_SESSION_KEY = "docora_shown_once"


@dataclass(frozen=True)
class StoredSecrets:
    """Secrets to show: the `kind` of page, the primary key of the owner, and the values by name."""

    kind: str
    pk: int
    secrets: dict[str, str] = field(repr=False)


def _store(request: HttpRequest, kind: str, pk: int, secrets: dict[str, str]) -> None:
    """Store the secrets until the next `_take`. Secrets stored earlier and never shown are dropped."""
    encrypted = {name: encrypt(value) for name, value in secrets.items()}
    request.session[_SESSION_KEY] = {"kind": kind, "pk": pk, "secrets": encrypted}


def _take(request: HttpRequest, kinds: tuple[str, ...]) -> StoredSecrets | None:
    """Remove and return the stored secrets if they are of one of these kinds."""
    stored: dict[str, Any] = request.session.get(_SESSION_KEY) or {}
    if stored.get("kind") not in kinds:
        return None
    del request.session[_SESSION_KEY]
    secrets = {name: decrypt(value) for name, value in stored["secrets"].items()}
    return StoredSecrets(stored["kind"], stored["pk"], secrets)


class OneTimeSecretsAdmin[M: Model](DocoraAdmin[M]):
    """A model admin with the page `secrets/`. Its template extends `docora/secrets.html`."""

    secrets_template: str
    secrets_titles: dict[str, str]
    """Maps a kind of page to its title, in which `{}` stands for the row."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(never_cache(require_GET(self.show_secrets)))
        return [path("secrets/", view, name=self.url_name("secrets")), *super().get_urls()]

    def secrets_context(self, request: HttpRequest, owner: M) -> dict[str, Any]:
        """Return what the template needs in addition to the secrets."""
        return {}

    def redirect_to_secrets(self, request: HttpRequest, kind: str, owner: M, **secrets: str) -> HttpResponse:
        """Store the secrets and redirect to the page that shows them."""
        _store(request, kind, owner.pk, secrets)
        return HttpResponseRedirect(reverse(f"admin:{self.url_name('secrets')}"))

    def show_secrets(self, request: HttpRequest) -> HttpResponse:
        """Show the secrets that this session has just created, once."""
        stored = _take(request, tuple(self.secrets_titles))
        owner = self.get_object(request, str(stored.pk)) if stored else None
        if stored is None or owner is None:
            self.message_user(request, "Secrets are shown only once, and this one has been shown.", messages.WARNING)
            return HttpResponseRedirect(reverse(f"admin:{self.url_name('changelist')}"))
        context = {
            **self.admin_site.each_context(request),
            "title": self.secrets_titles[stored.kind].format(owner),
            "opts": self.opts,
            "original": owner,
            "kind": stored.kind,
            "back": self.page_of(owner),
            **self.secrets_context(request, owner),
            **stored.secrets,
        }
        return TemplateResponse(request, self.secrets_template, context)
