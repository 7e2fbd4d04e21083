"""The forms that ask for what a service needs; the services say what is wrong with it."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from deliveries_app.actors import Actor
from deliveries_app.models import App
from deliveries_app.services import Onboarded, Watched, onboard_app, watch
from deliveries_app.services.onboarding import validate_base_url, validate_name
from repositories_app.exceptions import GitError, InvalidUrl


class WatchForm(forms.Form):
    """Let an app watch a repository."""

    app = forms.ModelChoiceField(App.objects.filter(ended_at=None))
    github_url = forms.CharField(
        label="URL",
        max_length=2048,
        widget=forms.TextInput(attrs={"class": "vTextField", "placeholder": "https://github.com/owner/name"}),
    )
    github_token = forms.CharField(
        label="Token",
        required=False,
        max_length=255,
        widget=forms.PasswordInput(attrs={"class": "vTextField", "autocomplete": "off"}),
        help_text="Only for a private repository. It is stored encrypted and never shown again.",
    )

    def save(self, actor: Actor) -> Watched | None:
        """Ask git and watch it; None after adding the error in words to the form."""
        facts = self.cleaned_data
        try:
            return watch(actor, facts["app"], facts["github_url"], facts["github_token"])
        except InvalidUrl as error:
            self.add_error("github_url", str(error))
        except GitError as error:
            self.add_error(
                "github_token" if "token" in str(error) and facts["github_token"] else "github_url", str(error)
            )
        except ValidationError as error:
            self.add_error("github_token", error)
        return None


class OnboardForm(forms.Form):
    """Register a client app."""

    name = forms.CharField(min_length=3, max_length=100, widget=forms.TextInput(attrs={"class": "vTextField"}))
    base_url = forms.CharField(
        label="Base URL",
        max_length=2048,
        widget=forms.TextInput(attrs={"class": "vTextField"}),
        help_text="Notifications go to {base URL}/create, /update and /delete.",
    )
    email = forms.EmailField(label="E-mail", widget=forms.EmailInput(attrs={"class": "vTextField"}))
    website = forms.CharField(required=False, max_length=2048, widget=forms.TextInput(attrs={"class": "vTextField"}))
    description = forms.CharField(required=False, max_length=500, widget=forms.Textarea(attrs={"rows": 3}))
    client_auth_key = forms.CharField(
        label="Signing key",
        required=False,
        min_length=16,
        max_length=500,
        widget=forms.TextInput(attrs={"class": "vTextField", "autocomplete": "off"}),
        help_text="16 to 500 characters. One is generated if this stays empty.",
    )

    def save(self, actor: Actor) -> Onboarded | None:
        """None after adding the error in words to the form."""
        try:
            return onboard_app(actor, **self.cleaned_data)
        except ValidationError as error:
            self.add_error(error.code if error.code in self.fields else None, error)
        return None


class AppForm(forms.ModelForm[App]):
    """The settings of an app."""

    class Meta:
        model = App
        fields = (
            "name", "base_url", "email", "website", "description", "paused", "max_in_flight", "send_sync_completed",
        )  # fmt: skip
        widgets = {"description": forms.Textarea(attrs={"rows": 2, "cols": 60})}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # What the page said counts, not what the row says now: a worker may have paused the app since.
        if "paused" in self.fields:  # not for who may only see
            self.fields["paused"].show_hidden_initial = not self.is_bound or "initial-paused" in self.data

    def clean_name(self) -> str:
        return validate_name(self.cleaned_data["name"])

    def clean_base_url(self) -> str:
        return validate_base_url(self.cleaned_data["base_url"])
