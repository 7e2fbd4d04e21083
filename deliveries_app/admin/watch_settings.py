"""Change a watch: its token, its branch or tag, the secret of its push hook, its patterns."""

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern

from deliveries_app.actors import Actor
from deliveries_app.admin.forms import (
    AppPatternsForm,
    GithubTokenForm,
    PatternsForm,
    RefForm,
    add_service_error,
    post_data,
)
from deliveries_app.admin.one_time_secrets import OneTimeSecretsAdmin
from deliveries_app.models import AppRepository
from deliveries_app.services import NotFound, watch_settings
from deliveries_app.services.watch_settings import PERMISSION
from repositories_app.git.exceptions import GitError

_KIND = "push secret"


class WatchSettingsAdmin(OneTimeSecretsAdmin[AppRepository]):
    """One page for each setting. GET shows a form or asks for confirmation, POST acts."""

    secrets_template = "admin/deliveries_app/apprepository/secrets.html"
    secrets_titles = {_KIND: "New push hook secret"}

    def get_urls(self) -> list[URLPattern]:
        return [
            self.object_page("token", self.replace_token, PERMISSION),
            self.object_page("ref", self.change_ref, PERMISSION),
            self.object_page("push-secret", self.renew_secret, PERMISSION),
            self.object_page("patterns", self.edit_patterns, PERMISSION),
            self.object_page("app-patterns", self.edit_app_patterns, PERMISSION),
            *super().get_urls(),
        ]

    def secrets_context(self, request: HttpRequest, owner: AppRepository) -> dict[str, Any]:
        return {"hook_url": hook_url(owner)}

    def replace_token(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        """Replace the token. The page shows neither the old token nor the new one."""
        form = GithubTokenForm(post_data(request), has_token=bool(watch.github_token))
        if request.method == "POST" and form.is_valid():
            token = form.cleaned_data["github_token"]
            try:
                watch_settings.replace_github_token(Actor.of_request(request), watch, token)
            except (ValidationError, GitError) as error:
                add_service_error(form, error)
            except NotFound:
                return self._not_watched(request, watch)
            else:
                message = f"Token {'saved' if token else 'removed'}. A sync is queued."
                return self.redirect_with_message(request, self.page_of(watch), message)
        template = "admin/deliveries_app/apprepository/token.html"
        title = "Replace token" if watch.github_token else "Add token"
        return self.render_question(request, watch, title, title, template, form=form)

    def change_ref(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        form = RefForm(post_data(request), initial={"ref": watch.ref})
        if request.method == "POST" and form.is_valid():
            try:
                has_changed = watch_settings.set_ref(Actor.of_request(request), watch, form.cleaned_data["ref"])
            except (ValidationError, GitError) as error:
                add_service_error(form, error)
            except NotFound:
                return self._not_watched(request, watch)
            else:
                message = "Branch or tag saved. A sync is queued." if has_changed else "No changes to save."
                return self.redirect_with_message(request, self.page_of(watch), message)
        template = "admin/deliveries_app/apprepository/ref.html"
        return self.render_question(request, watch, "Change branch or tag", "Save", template, form=form)

    def renew_secret(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        if request.method == "POST":
            try:
                secret = watch_settings.renew_push_secret(Actor.of_request(request), watch)
            except NotFound:
                return self._not_watched(request, watch)
            return self.redirect_to_secrets(request, _KIND, watch, secret=secret)
        template = "admin/deliveries_app/apprepository/push_secret.html"
        title = "Rotate push hook secret" if watch.push_secret else "Create push hook secret"
        return self.render_question(request, watch, title, title, template, hook_url=hook_url(watch))

    def edit_patterns(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        form = PatternsForm(post_data(request), initial={"patterns": watch.ignore_patterns})
        if request.method == "POST" and form.is_valid():
            try:
                patterns = watch_settings.set_ignore_patterns(
                    Actor.of_request(request), watch, form.cleaned_data["patterns"]
                )
            except ValidationError as error:
                add_service_error(form, error)
            except NotFound:
                return self._not_watched(request, watch)
            else:
                message = "Patterns saved. A sync is queued." if patterns.changed else "No changes to save."
                return self.redirect_with_message(request, self.page_of(watch), message)
        template = "admin/deliveries_app/apprepository/patterns.html"
        return self.render_question(request, watch, "Edit ignore patterns", "Save", template, form=form)

    def edit_app_patterns(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        """Edit the include and exclude patterns, which the app can also set itself."""
        form = AppPatternsForm(
            post_data(request),
            initial={"include_patterns": watch.include_patterns, "exclude_patterns": watch.exclude_patterns},
        )
        if request.method == "POST" and form.is_valid():
            try:
                patterns = watch_settings.set_app_patterns(
                    Actor.of_request(request),
                    watch,
                    form.cleaned_data["include_patterns"],
                    form.cleaned_data["exclude_patterns"],
                )
            except ValidationError as error:
                add_service_error(form, error)
            except NotFound:
                return self._not_watched(request, watch)
            else:
                message = "Patterns saved. A sync is queued." if patterns.changed else "No changes to save."
                return self.redirect_with_message(request, self.page_of(watch), message)
        template = "admin/deliveries_app/apprepository/app_patterns.html"
        return self.render_question(request, watch, "Edit app patterns", "Save", template, form=form)

    def _not_watched(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        message = f"{watch.app} no longer watches {watch.repository}."
        return self.redirect_with_message(request, self.list_url, message, messages.WARNING)


def hook_url(watch: AppRepository) -> str:
    """Return the URL that the git host sends its push hooks to."""
    return f"{settings.PUBLIC_URL}/api/hooks/push/{watch.repository.repository_id}"
