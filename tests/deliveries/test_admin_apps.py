"""Client apps in the admin: registering, settings, pausing, removing."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.admin import apps
from deliveries_app.models import App, AppRepository
from deliveries_app.services import NotFound, change_app, delete_app
from deliveries_app.services.app_settings import change_own_settings
from tests.support.admin_pages import posted_form
from tests.support.audit import by_users
from tests.support.staff import make_app, make_watch

APPS = "/admin/deliveries_app/app/"


def settings_of(client: Client, app: App, **changes: str | None) -> dict[str, str]:
    """Return what a browser would post from the app's page; None leaves a checkbox unticked."""
    return posted_form(client, f"{APPS}{app.pk}/settings/", **changes)


def test_apps_are_filtered_by_status(admin: Client) -> None:
    make_app("Portal")
    paused = make_app("Search")
    App.objects.filter(pk=paused.pk).update(paused=True)
    page = admin.get(APPS).text
    assert "By status" in page
    assert "By paused" not in page
    assert ">Not paused</a>" in page
    shown = admin.get(f"{APPS}?paused__exact=1")
    assert [app.name for app in shown.context["cl"].result_list] == ["Search"]
    shown = admin.get(f"{APPS}?paused__exact=0")
    assert [app.name for app in shown.context["cl"].result_list] == ["Portal"]


def test_settings_that_can_only_be_viewed_have_the_same_help_texts(viewer: Client, settings) -> None:
    """Also a user who can't change a quota sees which one is in effect."""
    settings.MAX_FILES_PER_APP = 5_000
    app = make_app("Portal")
    make_watch(app, "docs")
    page = viewer.get(f"{APPS}{app.pk}/settings/").text
    assert 'name="name"' not in page
    assert "Now used: 100 of 5,000. Blank means the default (5,000), 0 no quota." in page
    assert "Without EMAIL_URL, Docora sends it no email." in page


def test_app_that_is_deleted_while_its_settings_are_saved_stays_as_it_was(admin: Client, monkeypatch) -> None:
    app = make_app("Portal")
    form = settings_of(admin, app, name="Search", base_url="https://elsewhere.example")
    monkeypatch.setattr(apps, "require_recent", lambda request: delete_app(Actor.command(), app))
    assert "Perhaps it was deleted?" in admin.post(f"{APPS}{app.pk}/settings/", form, follow=True).text
    app.refresh_from_db()
    assert (app.name, app.base_url) == ("Portal", "https://x.example")
    assert not by_users()
    delete_app(Actor.command(), app)
    with pytest.raises(NotFound):
        change_app(Actor.command(), app, ["paused"])


def test_endpoint_health_names_its_app(admin: Client) -> None:
    page = admin.get(f"{APPS}{make_app('Portal').pk}/endpoint/").text
    assert "<title>Endpoint health of Portal | Docora</title>" in page


def test_new_secrets_are_shown_once_and_never_stored_in_clear(admin: Client) -> None:
    fields = {"name": "Portal", "base_url": "https://portal.example/hooks", "email": "ops@portal.example"}
    answer = admin.post(f"{APPS}add/", fields)
    assert answer.status_code == 302
    app = App.objects.get()
    assert app.client_auth_key not in str(dict(admin.session))
    page = admin.get(answer.url)
    assert app.app_id in page.text
    assert app.client_auth_key in page.text.replace("&#x2B;", "+")
    assert "docora_" in page.text
    assert "no-store" in page.headers["Cache-Control"]
    assert app.client_auth_key not in admin.get(answer.url, follow=True).text
    assert App.objects.count() == 1


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("name", "ab", "3"),
        ("base_url", "ftp://x.example", "The base URL must start with"),
        ("base_url", "https://u:p@x.example", "credentials"),
        ("email", "nobody", "valid email"),
        ("client_auth_key", "short", "16"),
    ],
)
def test_errors_are_shown_beside_their_fields(admin: Client, field: str, value: str, expected: str) -> None:
    fields = {"name": "Portal", "base_url": "https://x.example", "email": "a@b.example", field: value}
    page = admin.post(f"{APPS}add/", fields)
    assert page.status_code == 200
    assert expected in page.text
    assert not App.objects.exists()


def test_all_errors_are_shown_at_once(admin: Client) -> None:
    fields = {"name": "ab", "base_url": "https://u:p@x.example", "email": "nobody", "website": "javascript:alert(1)"}
    page = admin.post(f"{APPS}add/", fields | {"client_auth_key": "short"})
    assert set(page.context["form"].errors) == {*fields, "client_auth_key"}


def test_key_must_be_entered_again_after_an_error(admin: Client) -> None:
    fields = {"name": "Portal", "base_url": "https://x.example", "email": "nobody", "client_auth_key": "k" * 20}
    page = admin.post(f"{APPS}add/", fields)
    assert "Enter the key again" in page.text
    assert "k" * 20 not in page.text
    assert 'autocomplete="new-password"' in page.text  # otherwise browsers fill in the user's own password
    assert "Enter the key again" not in admin.post(f"{APPS}add/", fields | {"client_auth_key": ""}).text


def test_page_with_errors_has_the_saved_name(admin: Client) -> None:
    app = make_app("Search")
    page = admin.post(f"{APPS}{app.pk}/settings/", settings_of(admin, app, name="Index", base_url="wrong")).text
    assert "<title>Error: Search |" in page
    assert 'value="Index"' in page


def test_settings_are_validated_like_a_registration(admin: Client) -> None:
    app = make_app("Portal")
    for changes in ({"name": "ab"}, {"base_url": "https://x.example/?q=1"}, {"max_in_flight": "0"}):
        assert admin.post(f"{APPS}{app.pk}/change/", settings_of(admin, app, **changes)).status_code == 200
    assert App.objects.get(name="Portal", base_url="https://x.example").max_in_flight == app.max_in_flight


@pytest.mark.parametrize("number", ["0", "257", "100000"])
def test_max_in_flight_is_bounded(admin: Client, number: str) -> None:
    app = make_app("Portal")
    page = admin.post(f"{APPS}{app.pk}/change/", settings_of(admin, app, max_in_flight=number))
    assert page.context["adminform"].form.errors["max_in_flight"]
    assert "violated" not in page.text
    app.refresh_from_db()
    assert app.max_in_flight == 8


def test_resuming_clears_the_pause_reason_and_the_cooldown(admin: Client) -> None:
    app = make_app("Portal")
    later = timezone.now() + timedelta(minutes=30)
    App.objects.filter(pk=app.pk).update(paused=True, paused_reason="410 Gone", cooldown_until=later, down_count=3)
    admin.post(f"{APPS}{app.pk}/change/", settings_of(admin, app, paused=None))
    app.refresh_from_db()
    assert (app.paused, app.paused_reason, app.cooldown_until, app.down_count) == (False, "", None, 0)


def test_resuming_continues_only_what_waited_for_the_end_of_the_cooldown(admin: Client) -> None:
    app = make_app("Portal")
    later = timezone.now() + timedelta(minutes=30)
    App.objects.filter(pk=app.pk).update(paused=True, cooldown_until=later)
    waited = make_watch(app, "docs", next_sync_at=later)
    make_watch(app, "site", next_sync_at=later + timedelta(hours=1))  # the backoff of its own failures
    admin.post(f"{APPS}{app.pk}/change/", settings_of(admin, app, paused=None))
    assert list(AppRepository.objects.due()) == [waited]


def test_saving_a_stale_page_does_not_resume_the_app(admin: Client) -> None:
    app = make_app("Portal")
    posted = settings_of(admin, app, description="New words")
    App.objects.filter(pk=app.pk).update(paused=True, paused_reason="410 Gone")
    admin.post(f"{APPS}{app.pk}/change/", posted)
    app.refresh_from_db()
    assert (app.description, app.paused, app.paused_reason) == ("New words", True, "410 Gone")


def test_saving_a_stale_page_keeps_what_the_app_has_changed(admin: Client) -> None:
    app = make_app("Portal")
    posted = settings_of(admin, app, description="New words")
    own = {"answers_verify": True, "send_sync_completed": True, "max_in_flight": 4}
    change_own_settings(Actor.of_app(app), app, **own)
    App.objects.filter(pk=app.pk).update(max_files=70)
    assert admin.post(f"{APPS}{app.pk}/settings/", posted).status_code == 302
    found = App.objects.values("description", "max_files", *own).get(pk=app.pk)
    assert found == {"description": "New words", "max_files": 70, **own}
    assert [entry.message for entry in by_users()] == ["Description: nothing → New words"]


def test_message_after_saving_a_stale_page_has_the_current_name(admin: Client) -> None:
    app = make_app("Portal")
    posted = settings_of(admin, app, description="New words")
    App.objects.filter(pk=app.pk).update(name="Docs")
    assert "Docs</a>” was changed successfully." in admin.post(f"{APPS}{app.pk}/settings/", posted, follow=True).text


def test_saving_writes_only_changed_settings(admin: Client, monkeypatch) -> None:
    app = make_app("Portal")
    posted = settings_of(admin, app, description="New words")
    written: list[set[str]] = []
    save = App.save

    def spy(self: App, *args, **kwargs) -> None:
        written.append(set(kwargs.get("update_fields") or ["everything"]))
        save(self, *args, **kwargs)

    monkeypatch.setattr(App, "save", spy)
    admin.post(f"{APPS}{app.pk}/change/", posted)
    assert written == [{"description", "updated_at"}]


def test_removing_an_app_ends_and_hides_its_watches(admin: Client) -> None:
    app = make_app("Portal")
    make_watch(app, "docs")
    page = admin.get(f"{APPS}{app.pk}/delete/")
    assert "Portal" in page.text
    admin.post(f"{APPS}{app.pk}/delete/", {"post": "yes"})
    assert App.objects.get().ended_at is not None
    assert not AppRepository.objects.alive().exists()
    assert list(admin.get(APPS).context["cl"].result_list) == []


def test_resync_all_button_needs_repositories(admin: Client) -> None:
    app = make_app("Portal")
    assert "Re-sync all repositories" not in admin.get(f"{APPS}{app.pk}/change/").text
    make_watch(app, "docs")
    assert "Re-sync all repositories" in admin.get(f"{APPS}{app.pk}/change/").text


def test_action_buttons_are_outside_the_settings_form(admin: Client) -> None:
    app = make_app("Portal")
    make_watch(app, "docs")
    page = admin.get(f"{APPS}{app.pk}/settings/").text
    form = page[page.index('id="app_form"') :]
    form = form[: form.index("</form>")]
    assert "force-resync" not in form
    assert "hx-get" not in form
    assert "CHANGE_FORM-action" not in page


def test_query_count_is_constant(admin: Client, django_assert_max_num_queries) -> None:
    app = make_app("Portal")
    for number in range(60):
        make_watch(app, f"many-{number}")
    admin.get(f"{APPS}{app.pk}/change/")
    with django_assert_max_num_queries(15):
        admin.get(f"{APPS}{app.pk}/change/")
