"""Forms that collect the input of services. The services validate it, and the forms show their errors."""

from collections.abc import Iterable, Sequence
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.widgets import AutocompleteSelect
from django.core.exceptions import ValidationError
from django.http import HttpRequest, QueryDict
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository
from deliveries_app.permissions import Permission
from deliveries_app.services import (
    AlreadyWatched,
    NotFound,
    Onboarded,
    Watched,
    contact,
    onboard_app,
    watch_repository,
)
from deliveries_app.services.keys import validate_key
from deliveries_app.services.onboarding import (
    validate_base_url,
    validate_max_in_flight,
    validate_name,
    validate_website,
)
from deliveries_app.services.quotas import usage_of
from deliveries_app.services.watching import validate_options
from deliveries_app.services.watching_many import MAX_LINES, LineResult, watch_many
from docora.templatetags.docora import number
from docora.text import format_bytes, parse_pk
from repositories_app.git.errors import moved_to
from repositories_app.git.exceptions import GitError, InvalidUrl, RefNotFound
from repositories_app.git.url import as_https

_WIDE = {"class": "vTextField"}
# With "off", browsers fill in the password that they have stored for this site.
_SECRET = {**_WIDE, "autocomplete": "new-password"}


def post_data(request: HttpRequest) -> QueryDict | None:
    """Return the data to bind a form with: the POST data, or None for other methods, with which no form is valid."""
    return request.POST if request.method == "POST" else None


def compare_with_page(form: forms.BaseForm, names: Iterable[str]) -> None:
    """Let `changed_data` compare these fields with the values that the page showed, not with the row.

    The app, a worker or another administrator may have changed the row since.
    """
    for name in names:
        form.fields[name].show_hidden_initial = not form.is_bound or form.add_initial_prefix(name) in form.data


def add_service_error(form: forms.BaseForm, error: Exception) -> None:
    """Add a service's error to the field named by the error's code, or else to the first field."""
    code = getattr(error, "code", None)
    field = code if code in form.fields else next(iter(form.fields))
    form.add_error(field, error if isinstance(error, ValidationError) else str(error))


def _secret_field(label: str, help_text: str, max_length: int, min_length: int | None = None) -> forms.CharField:
    """Return an optional field that is never rendered with its value."""
    secret = forms.PasswordInput(attrs=_SECRET)
    return forms.CharField(
        label=label, required=False, min_length=min_length, max_length=max_length, widget=secret, help_text=help_text
    )


def _key_field(label: str) -> forms.CharField:
    return _secret_field(label, "16 to 500 characters. Leave blank to generate one.", 500, 16)


class _PatternsField(forms.CharField):
    """A list of patterns, one per line. Lines may begin or end with spaces."""

    def __init__(self, label: str, help_text: str) -> None:
        attributes = {"rows": 8, "class": "vLargeTextField patterns", "spellcheck": "false"}
        widget = forms.Textarea(attrs=attributes)
        super().__init__(label=label, required=False, strip=False, max_length=65536, widget=widget, help_text=help_text)

    def to_python(self, value: Any) -> str:
        return "\n".join((super().to_python(value) or "").splitlines())


class _WatchOptionsFields(forms.Form):
    """How a repository is watched: its token, its branch or tag, and the patterns."""

    github_token = _secret_field(
        "Token",
        "Required for private repositories. Stored encrypted and never shown again. If the host needs a user name, such as for "
        "Bitbucket API tokens, enter user:token.",
        255,
    )
    ref = forms.CharField(
        label="Branch or tag",
        required=False,
        max_length=255,
        widget=forms.TextInput(attrs={**_WIDE, "spellcheck": "false", "autocapitalize": "none"}),
        help_text="Such as main or v1.2. Leave blank for the default branch.",
    )
    ignore_patterns = _PatternsField(
        "Ignore patterns",
        "Files that match are not sent. One pattern per line, as in .gitignore. # starts a comment; ! re-includes files.",
    )
    include_patterns = _PatternsField(
        "Include patterns",
        "Only files that match are sent. One pattern per line, as in .gitignore. Leave blank for all. The app can change these.",
    )
    exclude_patterns = _PatternsField(
        "Exclude patterns", "Files that match are not sent, even if they are included. The app can change these."
    )

    def options(self) -> dict[str, Any]:
        """Return the options as arguments of the services."""
        return {name: self.cleaned_data[name] for name in ("github_token", "ref", *PATTERN_FIELDS)}


class OptionsForm(_WatchOptionsFields):
    """Edit the options of a watch with these `names`."""

    def __init__(self, data: QueryDict | None, watch: AppRepository, names: Sequence[str]) -> None:
        super().__init__(data, initial={name: getattr(watch, name) for name in names})
        self.fields = {name: self.fields[name] for name in names}
        compare_with_page(self, names)


PATTERN_FIELDS = ("ignore_patterns", "include_patterns", "exclude_patterns")


def _fieldsets(*fields: str) -> list[Any]:
    """Return these fields, and those for the patterns collapsed, because they are seldom needed."""
    return [(None, {"fields": fields}), ("Patterns", {"fields": PATTERN_FIELDS, "classes": ("collapse",)})]


class _AppSelect(AutocompleteSelect):
    """Ignore values that aren't keys. Django's widget fails with a 500 for them."""

    def optgroups(self, name: str, value: Sequence[str], attrs: dict[str, Any] | None = None) -> list[Any]:
        options: list[Any] = super().optgroups(name, [key for key in value if parse_pk(key) is not None], attrs)
        return options


class WatchForm(_WatchOptionsFields):
    """Let an app watch a repository."""

    app = forms.ModelChoiceField(
        App.objects.filter(ended_at=None),
        # Searches with the app list's own view, which needs the permission to view apps.
        widget=_AppSelect(AppRepository._meta.get_field("app"), admin.site),
    )
    github_url = forms.CharField(
        label="URL",
        max_length=2048,
        widget=forms.TextInput(attrs={"class": "vTextField", "placeholder": "https://github.com/owner/name"}),
        help_text="git@host:owner/name and host/owner/name are read as https URLs.",
    )
    field_order = ("app", "github_url")
    fieldsets = _fieldsets("app", "github_url", "github_token", "ref")

    def save(self, actor: Actor) -> Watched | None:
        """Check the repository with git and watch it. Return None after adding the error to the form.

        A repository that the app already watches is an error, because it would be re-synced without a confirmation.
        """
        data = self.cleaned_data
        try:
            url = as_https(data["github_url"])
            return watch_repository(actor, data["app"], url, must_be_new=True, **self.options())
        except AlreadyWatched as error:
            self.add_error("github_url", _already_watched(actor, error))
        except NotFound as error:
            self.add_error("app", f"{error}.")
        except InvalidUrl as error:
            self.add_error("github_url", str(error))
        except RefNotFound as error:
            self.add_error("ref", str(error))
        except GitError as error:
            is_about_token = "token" in str(error) and data["github_token"]
            self.add_error("github_token" if is_about_token else "github_url", str(error))
        except ValidationError as error:
            add_service_error(self, error)
        return None


def initial_for_moved(watch: AppRepository) -> dict[str, Any]:
    """Return the initial values of the form to watch the new URL of a repository that moved. The token is not among them."""
    options = {name: getattr(watch, name) for name in ("ref", *PATTERN_FIELDS)}
    return {"app": watch.app_id, "github_url": moved_to(watch.last_error), **options}


class WatchManyForm(_WatchOptionsFields):
    """Let an app watch many repositories, with the same settings."""

    urls = forms.CharField(
        label="Repositories",
        max_length=MAX_LINES * 2048,
        widget=forms.Textarea(
            attrs={
                "rows": 10,
                "class": "vLargeTextField patterns",
                "spellcheck": "false",
                "autocapitalize": "none",
                "placeholder": "https://github.com/owner/name\ngit@github.com:owner/other",
            }
        ),
        help_text=f"One per line, at most {MAX_LINES}. git@host:owner/name and host/owner/name are read as https URLs.",
    )
    field_order = ("urls",)
    fieldsets = _fieldsets("urls", "github_token", "ref")

    def clean_urls(self) -> list[str]:
        lines = [line.strip() for line in self.cleaned_data["urls"].splitlines() if line.strip()]
        if len(lines) > MAX_LINES:
            raise ValidationError(f"There are {len(lines):,} lines. Enter at most {MAX_LINES} at a time.")
        return lines

    def save(self, actor: Actor, app: App) -> list[LineResult] | None:
        """Check the repositories with git and watch them. Return None after adding an error to the form."""
        try:
            return watch_many(actor, app, self.cleaned_data["urls"], validate_options(**self.options()))
        except ValidationError as error:
            add_service_error(self, error)
        return None

    def again(self, results: list[LineResult]) -> "WatchManyForm":
        """Return the form to submit next: the remaining lines with the same settings, without the token."""
        names = ("ref", *PATTERN_FIELDS)
        left = "\n".join(result.line for result in results if result.is_open)
        return WatchManyForm(initial={"urls": left} | {name: self.cleaned_data[name] for name in names})


def _already_watched(actor: Actor, error: AlreadyWatched) -> SafeString:
    """Return the message, with a link to the watch's page for users who can view it."""
    if actor.user is None or not actor.user.has_perm(Permission.VIEW_WATCHES):
        return format_html("{}", error)
    page = reverse("admin:deliveries_app_apprepository_change", args=[error.watch.pk])
    return format_html('{} <a href="{}">Open it</a> to re-sync or to change the token.', error, page)


_NO_EMAIL = "The app's contact. Without EMAIL_URL, Docora sends it no email."


class AppRules:
    """Validate an app's fields. All errors are shown at once, each beside its field."""

    cleaned_data: dict[str, Any]

    def clean_name(self) -> str:
        return validate_name(self.cleaned_data["name"])

    def clean_base_url(self) -> str:
        return validate_base_url(self.cleaned_data["base_url"])

    def clean_website(self) -> str:
        return validate_website(self.cleaned_data["website"])


class OnboardForm(AppRules, forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    """Register a client app."""

    name = forms.CharField(min_length=3, max_length=100, widget=forms.TextInput(attrs=_WIDE))
    client_auth_key = _key_field("Signing key")

    class Meta:
        model = App
        fields = ("name", "base_url", "email", "website", "description")
        widgets = {
            "base_url": forms.TextInput(attrs=_WIDE),
            "email": forms.EmailInput(attrs=_WIDE),
            "website": forms.TextInput(attrs=_WIDE),
            "description": forms.Textarea(attrs={"rows": 3, "class": "vLargeTextField"}),
        }
        help_texts = {"website": "Optional. A page about the app."}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not contact.is_on():
            self.fields["email"].help_text = _NO_EMAIL

    def clean_client_auth_key(self) -> str:
        key: str = self.cleaned_data["client_auth_key"]
        return validate_key(key) if key else ""

    def clean(self) -> None:
        # After an error the form is rendered without the key. Submitting that form as it is would generate a different key.
        if self.errors and self.cleaned_data.get("client_auth_key"):
            self.add_error("client_auth_key", "Enter the key again. It isn't shown after an error.")

    def register(self, actor: Actor) -> Onboarded | None:
        """Register the app. Return None after adding the error to the form."""
        try:
            return onboard_app(actor, **self.cleaned_data)
        except ValidationError as error:
            add_service_error(self, error)
        return None


QUOTA_FIELDS = ("max_watches", "max_files", "max_bytes", "max_resyncs_per_hour")


class AppForm(AppRules, forms.ModelForm):  # type: ignore[type-arg]  # not generic at run time
    """Edit the settings of an app."""

    class Meta:
        model = App
        fields = (
            "name", "base_url", "email", "website", "description", "paused", "max_in_flight", "send_sync_completed",
            "answers_verify", "github_app", *QUOTA_FIELDS,
        )  # fmt: skip
        widgets = {"description": forms.Textarea(attrs={"rows": 2, "class": "vLargeTextField"})}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        compare_with_page(self, self.fields)
        self.initial["max_in_flight"] = self.instance.max_in_flight_limit

    def clean_max_in_flight(self) -> int:
        return validate_max_in_flight(self.cleaned_data["max_in_flight"])


def help_texts_of(app: App) -> dict[str, str]:
    """Return the help texts that depend on the app or the instance. Users who can only view the app see them too.

    The text of each quota has its current usage and default.
    """
    defaults = {
        "watches": settings.MAX_WATCHES_PER_APP,
        "files": settings.MAX_FILES_PER_APP,
        "bytes": settings.MAX_BYTES_PER_APP,
        "resyncs_per_hour": settings.MAX_RESYNCS_PER_HOUR,
    }
    texts = {} if contact.is_on() else {"email": _NO_EMAIL}
    for name, one in usage_of(app).items():
        shown = format_bytes if name == "bytes" else number
        used = f"{shown(one.used)} of {shown(one.limit)}" if one.limit is not None else shown(one.used)
        otherwise = shown(defaults[name]) if defaults[name] else "none"
        field: Any = App._meta.get_field(f"max_{name}")
        text = field.help_text + (" Administrators can exceed it." if name == "watches" else "")
        if one.limit is not None or name != "resyncs_per_hour":
            text += f" Now used: {used}."
        texts[f"max_{name}"] = f"{text} Blank means the default ({otherwise}), 0 no quota."
    return texts


class RotateTokenForm(forms.Form):
    """Choose how long the old token is still accepted."""

    overlap = forms.ChoiceField(
        label="Old token",
        choices=[
            ("1", "Keep valid for 1 hour"),
            ("24", "Keep valid for 24 hours"),
            ("168", "Keep valid for 7 days"),
            ("0", "Revoke immediately (compromised)"),
        ],
        initial="24",
    )


class RotateKeyForm(forms.Form):
    """Enter the key that replaces the current one."""

    client_auth_key = _key_field("New signing key")


class GithubTokenForm(forms.Form):
    """Replace the token that reads a repository."""

    github_token = _secret_field(
        "New token", "If the host needs a user name, enter user:token. Leave blank for a public repository.", 255
    )

    def __init__(self, data: QueryDict | None, *, has_token: bool) -> None:
        super().__init__(data)
        if has_token:
            self.fields["github_token"].help_text += " This removes the stored token."
