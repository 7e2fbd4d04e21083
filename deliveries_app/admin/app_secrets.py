"""The token and the signing key of an app: replaced with an overlap, shown once, the old ones retired."""

from collections.abc import Callable
from datetime import timedelta

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from deliveries_app.actors import Actor
from deliveries_app.admin import one_time_secrets
from deliveries_app.admin.base import DocoraAdmin
from deliveries_app.admin.forms import RotateKeyForm, RotateTokenForm, error_into, posted
from deliveries_app.models import App
from deliveries_app.services import NotFound, keys, tokens
from deliveries_app.services.tokens import PERMISSION

ONBOARDED, NEW_TOKEN, NEW_KEY = "app", "app token", "app key"
_TITLES = {ONBOARDED: "{} is registered", NEW_TOKEN: "The new token of {}", NEW_KEY: "The new signing key of {}"}


class AppSecretsAdmin(DocoraAdmin[App]):
    """Pages that ask (GET) and act (POST), and the one that shows what was made."""

    def get_urls(self) -> list[URLPattern]:
        secrets = path(
            "secrets/",
            self.admin_site.admin_view(never_cache(require_GET(self.show_secrets))),
            name=self.url_name("secrets"),
        )
        pages: list[tuple[str, Callable[[HttpRequest, App], HttpResponse]]] = [
            ("rotate-token", self.rotate_token),
            ("retire-tokens", self.retire_tokens),
            ("rotate-key", self.rotate_key),
            ("retire-key", self.retire_key),
            ("cancel-key", self.cancel_key),
        ]
        return [secrets, *(self.object_page(slug, view, PERMISSION) for slug, view in pages), *super().get_urls()]

    def has_rotate_permission(self, request: HttpRequest) -> bool:
        return self.can(request, PERMISSION)

    def show_once(self, request: HttpRequest, kind: str, app: App, **secrets: str) -> HttpResponse:
        """The way from the POST that made the secrets to the page that shows them."""
        one_time_secrets.keep(request, kind, app.pk, **secrets)
        return HttpResponseRedirect(reverse(f"admin:{self.url_name('secrets')}"))

    def show_secrets(self, request: HttpRequest) -> HttpResponse:
        """The secrets that this session has just made, once."""
        kept = one_time_secrets.take(request, *_TITLES)
        app = App.objects.filter(pk=kept.pk, ended_at=None).first() if kept else None
        if kept is None or app is None:
            self.message_user(request, "A secret is shown once, and this one was shown.", messages.WARNING)
            return HttpResponseRedirect(reverse(f"admin:{self.url_name('changelist')}"))
        context = {
            **self.admin_site.each_context(request),
            "title": _TITLES[kept.kind].format(app.name),
            "opts": self.opts,
            "app": app,
            "kind": kept.kind,
            "may_ping": self.can(request, "deliveries_app.change_app"),
            "public_url": settings.PUBLIC_URL,
            **kept.secrets,
        }
        return TemplateResponse(request, "admin/deliveries_app/app/secrets.html", context)

    def rotate_token(self, request: HttpRequest, app: App) -> HttpResponse:
        form = RotateTokenForm(posted(request))
        if request.method == "POST" and form.is_valid():
            hours = timedelta(hours=int(form.cleaned_data["overlap"]))
            try:
                made = tokens.rotate_app_token(Actor.of_user(request.user), app, overlap=hours)
            except NotFound as error:
                return self._refused(request, app, error)
            return self.show_once(request, NEW_TOKEN, app, token=made.token)
        live = tokens.live_tokens(app)
        template = "admin/deliveries_app/app/rotate_token.html"
        return self.ask(request, app, "Rotate token", "Make a new token", template, form=form, tokens=live)

    def retire_tokens(self, request: HttpRequest, app: App) -> HttpResponse:
        if request.method == "POST":
            return self._do(
                request,
                app,
                lambda actor: tokens.retire_old_tokens(actor, app),
                "Only the newest token is accepted now.",
            )
        words = [
            "Only the newest token is accepted from then on. An app that still uses an older one is answered 401.",
            "Look at the app's page whether the newest one has been used: then nothing is lost.",
        ]
        return self.ask(request, app, "Retire old tokens", "Retire now", words=words)

    def rotate_key(self, request: HttpRequest, app: App) -> HttpResponse:
        form = RotateKeyForm(posted(request))
        if request.method == "POST" and form.is_valid():
            try:
                made = keys.start_key_rotation(Actor.of_user(request.user), app, form.cleaned_data["client_auth_key"])
            except ValidationError as error:
                error_into(form, error)
            except (keys.KeyRotationError, NotFound) as error:
                return self._refused(request, app, error)
            else:
                return self.show_once(request, NEW_KEY, app, client_auth_key=made.key)
        if app.is_rotating_key:
            return self._refused(
                request, app, "The key is being rotated already: retire the old one, or cancel, first."
            )
        template = "admin/deliveries_app/app/rotate_key.html"
        return self.ask(request, app, "Rotate signing key", "Make a new key", template, form=form)

    def retire_key(self, request: HttpRequest, app: App) -> HttpResponse:
        if request.method == "POST":
            return self._do(
                request,
                app,
                lambda actor: keys.retire_old_key(actor, app),
                "The old key is retired; the new one signs.",
            )
        if not app.is_rotating_key or app.new_key_accepted_at is None:
            words = "There is no old key to retire: the app has not accepted a new one yet."
            return self._refused(request, app, words)
        words_of_it = [
            "From then on everything is signed with the new key alone, which the app has accepted.",
            "A part of the app that still checks with the old key refuses what it gets. The old key cannot be brought back.",
        ]
        return self.ask(request, app, "Retire the old signing key", "Retire it now", words=words_of_it)

    def cancel_key(self, request: HttpRequest, app: App) -> HttpResponse:
        if request.method == "POST":
            return self._do(
                request,
                app,
                lambda actor: keys.cancel_key_rotation(actor, app),
                "The new key is dropped; the old one stays.",
            )
        if not app.is_rotating_key:
            return self._refused(request, app, "The signing key is not being rotated.")
        words = [
            "The new key is dropped, and everything is signed with the old one alone, as before.",
            "If the app has been given the new key already, give it the old one again first.",
        ]
        return self.ask(request, app, "Cancel the rotation of the signing key", "Drop the new key", words=words)

    def _do(self, request: HttpRequest, app: App, act: Callable[[Actor], object], done: str) -> HttpResponse:
        try:
            act(Actor.of_user(request.user))
        except (keys.KeyRotationError, NotFound) as error:
            return self._refused(request, app, error)
        self.message_user(request, done, messages.SUCCESS)
        return HttpResponseRedirect(self.page_of(app))

    def _refused(self, request: HttpRequest, app: App, why: object) -> HttpResponse:
        self.message_user(request, str(why), messages.WARNING)
        return HttpResponseRedirect(self.page_of(app))
