"""GitHub Apps: their credentials, and a test of them. They are assigned to client apps on the app's own page."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern
from django.views.decorators.http import require_POST

from deliveries_app.actors import Actor
from deliveries_app.admin.base import DocoraAdmin, column
from deliveries_app.admin.forms import compare_with_page
from deliveries_app.permissions import Permission
from deliveries_app.services import github_apps
from docora.security.crypto import DecryptionError
from docora.sign_in.recency import require_recent
from docora.text import counted
from repositories_app.git.exceptions import GitError
from repositories_app.models import GitHubApp

SHOWN = 20  # accounts in the message


class SecretTextarea(forms.Textarea):
    """A text area that is never rendered with its value."""

    def format_value(self, value: Any) -> str:
        return ""


class GitHubAppForm(forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    """Edit the credentials. The stored key is not shown, and kept unless another one is entered."""

    key = forms.CharField(
        label="Private key",
        required=False,
        widget=SecretTextarea(
            attrs={"rows": 6, "class": "vLargeTextField patterns", "spellcheck": "false", "autocomplete": "off"}
        ),
    )

    class Meta:
        model = GitHubApp
        fields = ("name", "host", "app_id")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        compare_with_page(self, [name for name in self.fields if name != "key"])
        if "key" in self.fields:  # absent for users who can only view
            stored = "Leave blank to keep the stored key. " if self.instance.pk else ""
            help_text = f"{stored}Paste the .pem file that GitHub generated. Stored encrypted and never shown again."
            self.fields["key"].help_text = help_text
            self.fields["key"].required = not self.instance.pk

    def clean_host(self) -> str:
        return github_apps.validate_host(self.cleaned_data["host"])

    def clean_app_id(self) -> str:
        return github_apps.validate_app_id(self.cleaned_data["app_id"])

    def clean_key(self) -> str:
        key: str = self.cleaned_data["key"]
        return github_apps.validate_private_key(key) if key or not self.instance.pk else ""

    def full_clean(self) -> None:
        super().full_clean()  # which also checks, last, that the name is unique
        if self.errors and self.cleaned_data.get("key"):
            self.add_error("key", "Enter the key again. It isn't shown after an error.")


@admin.register(GitHubApp)
class GitHubAppAdmin(DocoraAdmin[GitHubApp]):
    empty_text = (
        "No GitHub Apps. With one, client apps can watch private repositories on GitHub without a token for each. Add it here, "
        "then choose it in the settings of these apps."
    )
    form = GitHubAppForm
    fields = ("name", "host", "app_id", "key")
    list_display = ("name", "host", "app_id", "used_by")
    search_fields = ("name", "host", "app_id")

    def get_queryset(self, request: HttpRequest) -> QuerySet[GitHubApp]:
        return super().get_queryset(request).annotate(app_count=Count("apps", filter=Q(apps__ended_at=None)))

    used_by = column("assigned to", lambda github_app: counted(int(github_app.app_count), "app"), ordering="app_count")

    def get_fields(self, request: HttpRequest, obj: GitHubApp | None = None) -> Any:
        """Leave the key out for users who can only view, because Django shows the values of read-only fields."""
        fields = super().get_fields(request, obj)
        can_edit = self.has_change_permission(request, obj) if obj else self.has_add_permission(request)
        return fields if can_edit else [name for name in fields if name != "key"]

    def save_model(self, request: HttpRequest, obj: GitHubApp, form: Any, change: bool) -> None:
        require_recent(request)
        changed = [name for name in form.changed_data if name != "key"]
        github_apps.save_github_app(Actor.of_request(request), obj, form.cleaned_data["key"], changed)
        obj.refresh_from_db(fields=["name"])  # for the message; the page may have shown an earlier name

    def delete_model(self, request: HttpRequest, obj: GitHubApp) -> None:
        require_recent(request)
        github_apps.delete_github_app(Actor.of_request(request), obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[GitHubApp]) -> None:
        for github_app in queryset:
            self.delete_model(request, github_app)

    def get_urls(self) -> list[URLPattern]:
        page = self.object_page("test", require_POST(self.test), Permission.CHANGE_GITHUB_APPS)
        return [page, *super().get_urls()]

    def test(self, request: HttpRequest, github_app: GitHubApp) -> HttpResponse:
        """Ask GitHub where the app is installed, and show the answer."""
        page = self.page_of(github_app)
        try:
            accounts = github_apps.list_installations(Actor.of_request(request), github_app)
        except (GitError, DecryptionError) as error:
            return self.redirect_with_message(request, page, error, messages.ERROR)
        if not accounts:
            message = "GitHub accepted the key. The app isn't installed on any account yet."
            return self.redirect_with_warning(request, page, message)
        more = f" and {len(accounts) - SHOWN} more" if len(accounts) > SHOWN else ""
        message = f"GitHub accepted the key. Installed on: {', '.join(accounts[:SHOWN])}{more}."
        return self.redirect_with_message(request, page, message)
