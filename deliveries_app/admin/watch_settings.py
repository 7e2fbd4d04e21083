"""What can be changed about a watched repository: its token, the secret of its push hooks, what is left out."""

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
from deliveries_app.admin.forms import GithubTokenForm, PatternsForm, error_into, posted
from deliveries_app.models import AppRepository
from deliveries_app.services import NotFound, watch_settings
from deliveries_app.services.watch_settings import PERMISSION
from repositories_app.git.exceptions import GitError

_KIND = "push secret"


class WatchSettingsAdmin(DocoraAdmin[AppRepository]):
    """A page for each; GET tells and asks, POST acts."""

    def get_urls(self) -> list[URLPattern]:
        secret = path(
            "secrets/",
            self.admin_site.admin_view(never_cache(require_GET(self.show_secret))),
            name=self.url_name("secrets"),
        )
        return [
            secret,
            self.object_page("token", self.replace_token, PERMISSION),
            self.object_page("push-secret", self.renew_secret, PERMISSION),
            self.object_page("patterns", self.edit_patterns, PERMISSION),
            *super().get_urls(),
        ]

    def replace_token(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        """The old one is never shown, and the new one never again."""
        form = GithubTokenForm(posted(request))
        if request.method == "POST" and form.is_valid():
            token = form.cleaned_data["github_token"]
            try:
                watch_settings.replace_github_token(Actor.of_user(request.user), watch, token)
            except (ValidationError, GitError) as error:
                error_into(form, error)
            except NotFound as error:
                return self._gone(request, error)
            else:
                words = "The token is replaced" if token else "The token is removed"
                self.message_user(request, f"{words}; the repository is read now.", messages.SUCCESS)
                return HttpResponseRedirect(self.page_of(watch))
        template = "admin/deliveries_app/apprepository/token.html"
        return self.ask(request, watch, "Replace the token", "Check and replace", template, form=form)

    def renew_secret(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        if request.method == "POST":
            try:
                secret = watch_settings.renew_push_secret(Actor.of_user(request.user), watch)
            except NotFound as error:
                return self._gone(request, error)
            one_time_secrets.keep(request, _KIND, watch.pk, secret=secret)
            return HttpResponseRedirect(reverse(f"admin:{self.url_name('secrets')}"))
        template = "admin/deliveries_app/apprepository/push_secret.html"
        verb = "Renew the secret" if watch.push_secret else "Make a secret"
        return self.ask(request, watch, "Push hook secret", verb, template, hook_url=hook_url(watch))

    def show_secret(self, request: HttpRequest) -> HttpResponse:
        """The secret that this session has just made, once."""
        kept = one_time_secrets.take(request, _KIND)
        watch = self.get_object(request, str(kept.pk)) if kept else None
        if kept is None or watch is None:
            self.message_user(request, "A secret is shown once, and this one was shown.", messages.WARNING)
            return HttpResponseRedirect(reverse(f"admin:{self.url_name('changelist')}"))
        context = {
            **self.admin_site.each_context(request),
            "title": "The new push hook secret",
            "opts": self.opts,
            "original": watch,
            "hook_url": hook_url(watch),
            "back": self.page_of(watch),
            **kept.secrets,
        }
        return TemplateResponse(request, "admin/deliveries_app/apprepository/secrets.html", context)

    def edit_patterns(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        form = PatternsForm(posted(request), initial={"patterns": watch.ignore_patterns})
        if request.method == "POST" and form.is_valid():
            try:
                patterns = watch_settings.set_ignore_patterns(
                    Actor.of_user(request.user), watch, form.cleaned_data["patterns"]
                )
            except ValidationError as error:
                error_into(form, error)
            except NotFound as error:
                return self._gone(request, error)
            else:
                words = (
                    "The patterns are saved, and a sync is on its way." if patterns.changed else "Nothing was changed."
                )
                self.message_user(request, words, messages.SUCCESS)
                return HttpResponseRedirect(self.page_of(watch))
        template = "admin/deliveries_app/apprepository/patterns.html"
        return self.ask(request, watch, "Ignore patterns", "Save", template, form=form)

    def _gone(self, request: HttpRequest, error: NotFound) -> HttpResponse:
        self.message_user(request, f"{error}: it is not watched any more.", messages.WARNING)
        return HttpResponseRedirect(reverse(f"admin:{self.url_name('changelist')}"))


def hook_url(watch: AppRepository) -> str:
    """Where the git host shall send its push hooks."""
    return f"{settings.PUBLIC_URL}/api/hooks/push/{watch.repository.repository_id}"
