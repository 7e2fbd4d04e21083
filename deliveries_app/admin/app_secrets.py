"""An app's token and signing key: rotate them, show the new one once, retire the old one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern

from deliveries_app.actors import Actor
from deliveries_app.admin.forms import RotateKeyForm, RotateTokenForm, add_service_error, post_data
from deliveries_app.admin.one_time_secrets import OneTimeSecretsAdmin
from deliveries_app.models import App
from deliveries_app.permissions import Permission
from deliveries_app.services import keys, tokens
from docora.sign_in.recency import require_recent

ONBOARDED, NEW_TOKEN, NEW_KEY = "app", "app token", "app key"


@dataclass(frozen=True)
class ConfirmedChange:
    """A change to an app's secrets that needs confirmation but no input."""

    slug: str
    title: str
    paragraphs: tuple[str, ...]
    done_message: str
    rotation: Callable[[App], str]
    """Return the id of the rotation that the page shows. The change is refused if another one has started since."""
    run: Callable[[Actor, App, str], object]
    blocked_reason: Callable[[App], str]
    """Return why the change is not possible now, or an empty string if it is."""


def _retire_key_blocked(app: App) -> str:
    if not app.is_rotating_key:
        return keys.NOT_ROTATING
    if app.new_key_accepted_at is None:
        return "The app hasn't accepted the new key yet, so the old key can't be retired."
    return ""


CONFIRMED_CHANGES = (
    ConfirmedChange(
        slug="retire-tokens",
        title="Retire old tokens",
        paragraphs=(
            "Only the newest token will be accepted. Requests with an older token will fail with HTTP 401.",
            "Before you continue, check in the app's settings that the app has used the newest token.",
        ),
        done_message="Old tokens retired.",
        rotation=tokens.newest_id,
        run=tokens.retire_old_tokens,
        blocked_reason=lambda app: "" if len(tokens.live_tokens(app)) > 1 else "There are no old tokens to retire.",
    ),
    ConfirmedChange(
        slug="retire-key",
        title="Retire old key",
        paragraphs=(
            "Docora will sign notifications with the new key only. The app has already accepted it.",
            "Any part of the app that still uses the old key will reject notifications. The old key can't be restored.",
        ),
        done_message="Old key retired. Notifications are signed with the new key only.",
        rotation=keys.rotation_id,
        run=keys.retire_old_key,
        blocked_reason=_retire_key_blocked,
    ),
    ConfirmedChange(
        slug="cancel-key",
        title="Discard new key",
        paragraphs=(
            "Docora will sign notifications with the old key only, as before the rotation.",
            "If the app already uses the new key, switch it back to the old one first.",
        ),
        done_message="New key discarded. Notifications are signed with the old key only.",
        rotation=keys.rotation_id,
        run=keys.cancel_key_rotation,
        blocked_reason=lambda app: "" if app.is_rotating_key else "There is no new key to discard.",
    ),
)


class AppSecretsAdmin(OneTimeSecretsAdmin[App]):
    """The pages that change an app's secrets. On each, GET asks for confirmation and POST acts."""

    secrets_template = "admin/deliveries_app/app/secrets.html"
    secrets_titles = {
        ONBOARDED: "{} is registered",
        NEW_TOKEN: "New token for {}",
        NEW_KEY: "New signing key for {}",
    }

    def get_urls(self) -> list[URLPattern]:
        return [
            self.object_page("rotate-token", self.rotate_token, Permission.REPLACE_SECRETS),
            self.object_page("rotate-key", self.rotate_key, Permission.REPLACE_SECRETS),
            *(
                self.object_page(change.slug, partial(self.confirm_change, change=change), Permission.REPLACE_SECRETS)
                for change in CONFIRMED_CHANGES
            ),
            *super().get_urls(),
        ]

    def secrets_context(self, owner: App) -> dict[str, Any]:
        has_old_token = tokens.live_tokens(owner).count() > 1
        return {"app": owner, "public_url": settings.PUBLIC_URL, "has_old_token": has_old_token}

    def are_current(self, owner: App, secrets: Mapping[str, str]) -> bool:
        token, key = secrets.get("token"), secrets.get("client_auth_key")
        is_valid_key = key is None or key in {owner.client_auth_key, owner.new_auth_key}
        return is_valid_key and (token is None or tokens.is_newest(owner, token))

    def settings_page_of(self, app: App) -> str:
        return self.url_of("settings", app)

    def rotate_token(self, request: HttpRequest, app: App) -> HttpResponse:
        form = RotateTokenForm(post_data(request))
        if form.is_valid():
            require_recent(request)
            overlap = timedelta(hours=int(form.cleaned_data["overlap"]))
            new = tokens.rotate_app_token(Actor.of_request(request), app, overlap=overlap)
            return self.redirect_to_secrets(request, NEW_TOKEN, app, token=new.token)
        template, live = "admin/deliveries_app/app/rotate_token.html", tokens.live_tokens(app)
        back = self.settings_page_of(app)
        return self.render_confirmation(request, app, "Rotate token", template, form=form, tokens=live, back=back)

    def rotate_key(self, request: HttpRequest, app: App) -> HttpResponse:
        form = RotateKeyForm(post_data(request))
        if form.is_valid():
            require_recent(request)
            try:
                new_key = keys.start_key_rotation(Actor.of_request(request), app, form.cleaned_data["client_auth_key"])
            except ValidationError as error:
                add_service_error(form, error)
            except keys.KeyRotationError as error:
                return self._warn(request, app, error)
            else:
                return self.redirect_to_secrets(request, NEW_KEY, app, client_auth_key=new_key)
        if app.is_rotating_key:
            return self._warn(request, app, keys.ALREADY_ROTATING)
        template, back = "admin/deliveries_app/app/rotate_key.html", self.settings_page_of(app)
        return self.render_confirmation(request, app, "Rotate key", template, form=form, back=back)

    def confirm_change(self, request: HttpRequest, app: App, *, change: ConfirmedChange) -> HttpResponse:
        if request.method == "POST":
            require_recent(request)
        if reason := change.blocked_reason(app):
            return self._warn(request, app, reason)
        if request.method == "POST":
            try:
                change.run(Actor.of_request(request), app, request.POST.get("rotation", ""))
            except (keys.KeyRotationError, tokens.NewerToken) as error:
                return self._warn(request, app, error)
            return self.redirect_with_message(request, self.settings_page_of(app), change.done_message)
        return self.render_confirmation(
            request,
            app,
            change.title,
            paragraphs=change.paragraphs,
            rotation=change.rotation(app),
            back=self.settings_page_of(app),
        )

    def _warn(self, request: HttpRequest, app: App, message: object) -> HttpResponse:
        return self.redirect_with_warning(request, self.settings_page_of(app), message)
