"""The forms on the confirmation pages of bulk actions."""

from typing import Any

from django import forms
from django.http import QueryDict

from deliveries_app.services import MAX_PACE, Rollout
from deliveries_app.services.requests import MAX_REASON_CHARS

MANY_APPS, MANY_REPOSITORIES = 10, 1000
"""Above either limit, the user has to type the number of repositories."""


class ConfirmationForm(forms.Form):
    """The form of an action that needs no input. Subclasses add fields, some only for many `repositories` or `apps`."""

    def __init__(self, data: QueryDict | None, *, repositories: int, apps: int) -> None:
        super().__init__(data, auto_id="%s", label_suffix="")


class ReasonForm(ConfirmationForm):
    """The reason of a bulk operation."""

    reason = forms.CharField(
        label="Reason (optional)",
        required=False,
        max_length=MAX_REASON_CHARS,
        widget=forms.TextInput(
            attrs={"class": "vTextField", "placeholder": "Shown with the bulk operation and in the audit log"}
        ),
    )


class ResyncForm(ReasonForm):
    """The canary, the pace and the reason of a re-sync, and for many repositories their number.

    The canary is preselected for several apps. A POST without these fields releases all repositories at once.
    """

    canary = forms.BooleanField(required=False)
    pace = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=MAX_PACE,
        widget=forms.NumberInput(attrs={"class": "vIntegerField", "aria-describedby": "pace-unit"}),
    )
    number = forms.CharField(
        required=False,
        max_length=20,
        widget=forms.TextInput(attrs={"class": "vIntegerField", "inputmode": "numeric", "autocomplete": "off"}),
    )

    def __init__(self, data: QueryDict | None, *, repositories: int, apps: int) -> None:
        super().__init__(data, repositories=repositories, apps=apps)
        self._repositories = repositories
        self.is_large = apps > MANY_APPS or repositories > MANY_REPOSITORIES
        self.fields["number"].label = f"Type {repositories:,} to confirm"
        if repositories == 1:
            del self.fields["canary"], self.fields["pace"]
        else:
            what = "one repository per app" if apps > 1 else "one repository"
            self.fields["canary"].initial = apps > 1
            self.fields["canary"].label = f"Canary: sync {what} first, then the rest if it succeeds"
        if not self.is_large:
            del self.fields["number"]

    def clean_number(self) -> str:
        typed: str = self.cleaned_data["number"]
        if typed.translate({ord(separator): None for separator in ",. '\u00a0\u202f"}) != str(self._repositories):
            raise forms.ValidationError(f"Type the number of repositories, {self._repositories:,}.")
        return typed

    @property
    def rollout(self) -> Rollout:
        data: dict[str, Any] = self.cleaned_data
        return Rollout(canary=bool(data.get("canary")), pace=data.get("pace"))
