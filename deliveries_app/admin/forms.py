"""The forms that ask for what a service needs; the services say what is wrong with it."""

from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django.forms.renderers import BaseRenderer
from django.forms.utils import flatatt
from django.http import HttpRequest, QueryDict
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from deliveries_app.actors import Actor
from deliveries_app.models import App
from deliveries_app.services import Onboarded, Watched, onboard_app, watch_repository
from deliveries_app.services.keys import validate_key
from deliveries_app.services.onboarding import (
    validate_base_url,
    validate_max_in_flight,
    validate_name,
    validate_website,
)
from repositories_app.git.exceptions import GitError, InvalidUrl

if TYPE_CHECKING:
    ModelForm = forms.ModelForm[App]
else:
    ModelForm = forms.ModelForm

_WIDE = {"class": "vTextField"}
# With "off", browsers put a password that they have stored for this site into the field.
_SECRET = {**_WIDE, "autocomplete": "new-password"}
_KEY_HELP = "16 to 500 characters. One is generated if this stays empty."
_WEBSITE_HELP = "Optional. An address for people, such as the app's own page."


def posted(request: HttpRequest) -> QueryDict | None:
    """The data that bind a form: also a POST without any is one."""
    return request.POST if request.method == "POST" else None


def error_into(form: forms.Form, error: Exception) -> None:
    """What a service says is wrong, beside the field that it names by its code, else beside the first one."""
    code = getattr(error, "code", None)
    field = code if code in form.fields else next(iter(form.fields))
    form.add_error(field, error if isinstance(error, ValidationError) else str(error))


class LongSelect(forms.Select):
    """For thousands of options: in one go, and not from a template for each."""

    def render(
        self, name: str, value: Any, attrs: dict[str, Any] | None = None, renderer: BaseRenderer | None = None
    ) -> SafeString:
        widget = self.get_context(name, value, attrs)["widget"]
        choices = (choice for _, group, _ in widget["optgroups"] for choice in group)
        options = format_html_join(
            "",
            '<option value="{}"{}>{}</option>',
            ((choice["value"], " selected" if choice["selected"] else "", choice["label"]) for choice in choices),
        )
        return format_html('<select name="{}"{}>{}</select>', name, flatatt(widget["attrs"]), options)


class WatchForm(forms.Form):
    """Let an app watch a repository."""

    app = forms.ModelChoiceField(App.objects.filter(ended_at=None).only("name"), widget=LongSelect)
    github_url = forms.CharField(
        label="URL",
        max_length=2048,
        widget=forms.TextInput(attrs={"class": "vTextField", "placeholder": "https://github.com/owner/name"}),
    )
    github_token = forms.CharField(
        label="Token",
        required=False,
        max_length=255,
        widget=forms.PasswordInput(attrs=_SECRET),
        help_text="Only for a private repository. It is stored encrypted and never shown again.",
    )

    def save(self, actor: Actor) -> Watched | None:
        """Ask git and watch it; None after adding the error in words to the form."""
        facts = self.cleaned_data
        try:
            return watch_repository(actor, facts["app"], facts["github_url"], facts["github_token"])
        except InvalidUrl as error:
            self.add_error("github_url", str(error))
        except GitError as error:
            self.add_error(
                "github_token" if "token" in str(error) and facts["github_token"] else "github_url", str(error)
            )
        except ValidationError as error:
            self.add_error("github_token", error)
        return None


class AppRules:
    """The rules of an app's fields: all that is wrong is said at once, each beside its field."""

    cleaned_data: dict[str, Any]

    def clean_name(self) -> str:
        return validate_name(self.cleaned_data["name"])

    def clean_base_url(self) -> str:
        return validate_base_url(self.cleaned_data["base_url"])

    def clean_website(self) -> str:
        return validate_website(self.cleaned_data["website"])


class OnboardForm(AppRules, forms.Form):
    """Register a client app."""

    name = forms.CharField(min_length=3, max_length=100, widget=forms.TextInput(attrs=_WIDE))
    base_url = forms.CharField(
        label="Base URL",
        max_length=2048,
        widget=forms.TextInput(attrs=_WIDE),
        help_text="Notifications go to {base URL}/create, /update and /delete.",
    )
    email = forms.EmailField(label="E-mail", max_length=255, widget=forms.EmailInput(attrs=_WIDE))
    website = forms.CharField(
        required=False, max_length=2048, widget=forms.TextInput(attrs=_WIDE), help_text=_WEBSITE_HELP
    )
    description = forms.CharField(
        required=False, max_length=500, widget=forms.Textarea(attrs={"rows": 3, "class": "vLargeTextField"})
    )
    client_auth_key = forms.CharField(
        label="Signing key",
        required=False,
        min_length=16,
        max_length=500,
        widget=forms.PasswordInput(attrs=_SECRET),  # never sent back
        help_text=_KEY_HELP,
    )

    def clean_client_auth_key(self) -> str:
        key: str = self.cleaned_data["client_auth_key"]
        return validate_key(key) if key else ""

    def clean(self) -> None:
        if self.errors and self.cleaned_data.get("client_auth_key"):  # empty the next time, and one would be generated
            self.add_error("client_auth_key", "Enter the key again: it is not sent back.")

    def save(self, actor: Actor) -> Onboarded | None:
        """None after adding the error in words to the form."""
        try:
            return onboard_app(actor, **self.cleaned_data)
        except ValidationError as error:
            error_into(self, error)
        return None


class AppForm(AppRules, ModelForm):
    """The settings of an app."""

    class Meta:
        model = App
        fields = (
            "name", "base_url", "email", "website", "description", "paused", "max_in_flight", "send_sync_completed",
        )  # fmt: skip
        widgets = {
            "base_url": forms.TextInput(attrs=_WIDE),
            "website": forms.TextInput(attrs=_WIDE),
            "description": forms.Textarea(attrs={"rows": 2, "class": "vLargeTextField"}),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What the page said counts, not what the row says now: a worker may have paused the app since.
        if "paused" in self.fields:  # not for who may only see
            self.fields["paused"].show_hidden_initial = not self.is_bound or "initial-paused" in self.data

    def clean_max_in_flight(self) -> int:
        return validate_max_in_flight(self.cleaned_data["max_in_flight"])


class RotateTokenForm(forms.Form):
    """How long the token that is replaced is still accepted."""

    overlap = forms.ChoiceField(
        label="The old token",
        choices=[
            ("1", "is accepted for 1 hour more"),
            ("24", "is accepted for 24 hours more"),
            ("168", "is accepted for 7 days more"),
            ("0", "is refused at once: it has leaked"),
        ],
        initial="24",
    )


class RotateKeyForm(forms.Form):
    """The key that replaces the present one."""

    client_auth_key = forms.CharField(
        label="New signing key",
        required=False,
        min_length=16,
        max_length=500,
        widget=forms.PasswordInput(attrs=_SECRET),  # never sent back
        help_text=_KEY_HELP,
    )


class GithubTokenForm(forms.Form):
    """The token that a repository is read with."""

    github_token = forms.CharField(
        label="New token",
        required=False,
        max_length=255,
        widget=forms.PasswordInput(attrs=_SECRET),
        help_text="Empty for a public repository: the stored token is then removed.",
    )


class PatternsForm(forms.Form):
    """What is not sent to the app, beside what the repository's own .docoraignore leaves out."""

    patterns = forms.CharField(
        label="Patterns",
        required=False,
        strip=False,
        max_length=65536,
        widget=forms.Textarea(attrs={"rows": 12, "class": "vLargeTextField patterns", "spellcheck": "false"}),
        help_text="As in .gitignore: one pattern a line, # begins a comment, ! takes something in again.",
    )

    def clean_patterns(self) -> str:
        return "\n".join(self.cleaned_data["patterns"].splitlines())
