"""The pages that change a watch: its token, its branch or tag, its push hook secret, and its patterns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern

from deliveries_app.actors import Actor
from deliveries_app.admin.forms import GithubTokenForm, OptionsForm, add_service_error, post_data
from deliveries_app.admin.one_time_secrets import OneTimeSecretsAdmin
from deliveries_app.models import AppRepository
from deliveries_app.permissions import Permission
from deliveries_app.services import change_watch
from deliveries_app.services.push_hooks import hook_url
from deliveries_app.services.watch_settings import renew_push_secret
from docora.sign_in.recency import require_recent
from repositories_app.git.exceptions import GitError

_KIND = "push secret"


@dataclass(frozen=True)
class OptionsPage:
    """A page that edits the options of a watch with these `names`. `noun` is what the message says was saved."""

    slug: str
    title: str
    names: tuple[str, ...]
    noun: str


OPTIONS_PAGES = (
    OptionsPage("ref", "Change branch or tag", ("ref",), "Branch or tag"),
    OptionsPage("patterns", "Edit ignore patterns", ("ignore_patterns",), "Patterns"),
    # The app can also set these itself.
    OptionsPage("app-patterns", "Edit app patterns", ("include_patterns", "exclude_patterns"), "Patterns"),
)


class WatchSettingsAdmin(OneTimeSecretsAdmin[AppRepository]):
    """One page for each setting. GET shows a form or asks for confirmation, POST acts."""

    secrets_template = "admin/deliveries_app/apprepository/secrets.html"
    secrets_titles = {_KIND: "New push hook secret"}

    def get_urls(self) -> list[URLPattern]:
        return [
            self.object_page("token", self.replace_token, Permission.CHANGE_WATCHES),
            self.object_page("push-secret", self.renew_secret, Permission.CHANGE_WATCHES),
            *(
                self.object_page(page.slug, partial(self.edit_options, page=page), Permission.CHANGE_WATCHES)
                for page in OPTIONS_PAGES
            ),
            *super().get_urls(),
        ]

    def secrets_context(self, owner: AppRepository) -> dict[str, Any]:
        return {"hook_url": hook_url(owner)}

    def are_current(self, owner: AppRepository, secrets: Mapping[str, str]) -> bool:
        return owner.push_secret == secrets["secret"]

    def replace_token(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        """Replace the token. The page shows neither the old token nor the new one."""
        had_token = bool(watch.github_token)
        form = GithubTokenForm(post_data(request), has_token=had_token)

        def save(actor: Actor) -> str:
            require_recent(request)
            token = form.cleaned_data["github_token"]
            change_watch(actor, watch, github_token=token)
            done = "Token saved." if token else "Token removed." if had_token else "No token is stored."
            return f"{done} A sync is queued."

        title = "Replace token" if had_token else "Add token"
        return self._edit(request, watch, form, save, "token", title, title)

    def renew_secret(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        if request.method == "POST":
            require_recent(request)
            secret = renew_push_secret(Actor.of_request(request), watch)
            return self.redirect_to_secrets(request, _KIND, watch, secret=secret)
        template = "admin/deliveries_app/apprepository/push_secret.html"
        title = "Rotate push hook secret" if watch.push_secret else "Create push hook secret"
        return self.render_confirmation(request, watch, title, template, hook_url=hook_url(watch))

    def edit_options(self, request: HttpRequest, watch: AppRepository, *, page: OptionsPage) -> HttpResponse:
        """Save those options that were changed on the page."""
        form = OptionsForm(post_data(request), watch, page.names)

        def save(actor: Actor) -> str:
            changed = {name: form.cleaned_data[name] for name in form.changed_data}
            has_changed = change_watch(actor, watch, **changed)
            return f"{page.noun} saved. A sync is queued." if has_changed else "No changes to save."

        return self._edit(request, watch, form, save, page.slug, page.title)

    def _edit(
        self,
        request: HttpRequest,
        watch: AppRepository,
        form: forms.Form,
        save: Callable[[Actor], str],
        slug: str,
        title: str,
        button: str = "Save",
    ) -> HttpResponse:
        """Show the form, or `save` it and show the message that `save` returns."""
        if form.is_valid():
            try:
                message = save(Actor.of_request(request))
            except (ValidationError, GitError) as error:
                add_service_error(form, error)
            else:
                return self.redirect_with_message(request, self.page_of(watch), message)
        template = f"admin/deliveries_app/apprepository/{slug.replace('-', '_')}.html"
        return self.render_confirmation(request, watch, title, template, button=button, form=form)
