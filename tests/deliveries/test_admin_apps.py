"""Client apps in the admin: registering, settings, pausing, removing."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from deliveries_app.models import App, AppRepository
from tests.support.staff import make_app, make_watch

APPS = "/admin/deliveries_app/app/"


@pytest.fixture
def admin(db) -> Client:
    User.objects.create_superuser("root", password="x")
    client = Client()
    client.force_login(User.objects.get(username="root"))
    return client


def settings_of(client: Client, app: App, **changes: str | None) -> dict[str, str]:
    """What a browser would post from the app's page, which it has just read; None: the box is not ticked."""
    form = client.get(f"{APPS}{app.pk}/change/").context["adminform"].form
    posted = {}
    for bound in form:
        posted[bound.html_name] = bound.value()
        if bound.field.show_hidden_initial:
            posted[bound.html_initial_name] = str(bound.value())
    posted |= changes
    return {name: "on" if value is True else str(value) for name, value in posted.items() if value not in {None, False}}


def test_the_secrets_of_a_new_app_are_shown_once_and_kept_nowhere_in_clear(admin: Client) -> None:
    facts = {"name": "Portal", "base_url": "https://portal.example/hooks", "email": "ops@portal.example"}
    answer = admin.post(f"{APPS}add/", facts)
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
    ("field", "value", "words"),
    [
        ("name", "ab", "3"),
        ("base_url", "ftp://x.example", "The base URL must start with"),
        ("base_url", "https://u:p@x.example", "credentials"),
        ("email", "nobody", "valid email"),
        ("client_auth_key", "short", "16"),
    ],
)
def test_what_is_wrong_with_a_new_app_stands_beside_the_field(
    admin: Client, field: str, value: str, words: str
) -> None:
    facts = {"name": "Portal", "base_url": "https://x.example", "email": "a@b.example", field: value}
    page = admin.post(f"{APPS}add/", facts)
    assert page.status_code == 200
    assert words in page.text
    assert not App.objects.exists()


def test_all_that_is_wrong_with_a_new_app_is_said_at_once(admin: Client) -> None:
    facts = {"name": "ab", "base_url": "https://u:p@x.example", "email": "nobody", "website": "javascript:alert(1)"}
    page = admin.post(f"{APPS}add/", facts | {"client_auth_key": "short"})
    assert set(page.context["form"].errors) == {*facts, "client_auth_key"}


def test_a_key_that_the_form_does_not_send_back_is_asked_for_again(admin: Client) -> None:
    facts = {"name": "Portal", "base_url": "https://x.example", "email": "nobody", "client_auth_key": "k" * 20}
    page = admin.post(f"{APPS}add/", facts)
    assert "Enter the key again" in page.text
    assert "k" * 20 not in page.text
    assert 'autocomplete="new-password"' in page.text  # a browser would fill in the password of whoever is signed in
    assert "Enter the key again" not in admin.post(f"{APPS}add/", facts | {"client_auth_key": ""}).text


def test_the_settings_obey_the_rules_of_registering(admin: Client) -> None:
    app = make_app("Portal")
    for changes in ({"name": "ab"}, {"base_url": "https://x.example/?q=1"}, {"max_in_flight": "0"}):
        assert admin.post(f"{APPS}{app.pk}/change/", settings_of(admin, app, **changes)).status_code == 200
    assert App.objects.get(name="Portal", base_url="https://x.example").max_in_flight == app.max_in_flight


@pytest.mark.parametrize("number", ["0", "257", "100000"])
def test_how_much_may_be_under_way_at_once_has_bounds_that_are_told(admin: Client, number: str) -> None:
    app = make_app("Portal")
    page = admin.post(f"{APPS}{app.pk}/change/", settings_of(admin, app, max_in_flight=number))
    assert page.context["adminform"].form.errors["max_in_flight"]
    assert "violated" not in page.text
    app.refresh_from_db()
    assert app.max_in_flight == 8


def test_resuming_forgets_why_it_was_paused_and_the_rest_that_the_endpoint_had(admin: Client) -> None:
    app = make_app("Portal")
    later = timezone.now() + timedelta(minutes=30)
    App.objects.filter(pk=app.pk).update(paused=True, paused_reason="410 Gone", cooldown_until=later, down_count=3)
    admin.post(f"{APPS}{app.pk}/change/", settings_of(admin, app, paused=None))
    app.refresh_from_db()
    assert (app.paused, app.paused_reason, app.cooldown_until, app.down_count) == (False, "", None, 0)


def test_a_page_that_is_older_than_a_pause_does_not_resume_the_app(admin: Client) -> None:
    app = make_app("Portal")
    posted = settings_of(admin, app, description="New words")
    App.objects.filter(pk=app.pk).update(paused=True, paused_reason="410 Gone")
    admin.post(f"{APPS}{app.pk}/change/", posted)
    app.refresh_from_db()
    assert (app.description, app.paused, app.paused_reason) == ("New words", True, "410 Gone")


def test_saving_settings_writes_only_what_was_changed(admin: Client, monkeypatch) -> None:
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


def test_removing_an_app_ends_its_watches_and_hides_both(admin: Client) -> None:
    app = make_app("Portal")
    make_watch(app, "docs")
    page = admin.get(f"{APPS}{app.pk}/delete/")
    assert "Portal" in page.text
    admin.post(f"{APPS}{app.pk}/delete/", {"post": "yes"})
    assert App.objects.get().ended_at is not None
    assert not AppRepository.objects.alive().exists()
    assert list(admin.get(APPS).context["cl"].result_list) == []


def test_the_button_for_all_repositories_is_absent_where_there_is_none(admin: Client) -> None:
    app = make_app("Portal")
    assert "Re-sync all repositories" not in admin.get(f"{APPS}{app.pk}/change/").text
    make_watch(app, "docs")
    assert "Re-sync all repositories" in admin.get(f"{APPS}{app.pk}/change/").text


def test_what_operates_stands_outside_the_form_of_the_settings(admin: Client) -> None:
    app = make_app("Portal")
    make_watch(app, "docs")
    page = admin.get(f"{APPS}{app.pk}/change/").text
    form = page[page.index('id="app_form"') :]
    form = form[: form.index("</form>")]
    assert "force-resync" not in form
    assert "hx-get" not in form
    assert "CHANGE_FORM-action" not in page


def test_the_app_page_takes_the_same_queries_for_many_repositories(
    admin: Client, django_assert_max_num_queries
) -> None:
    app = make_app("Portal")
    for number in range(60):
        make_watch(app, f"many-{number}")
    admin.get(f"{APPS}{app.pk}/change/")
    with django_assert_max_num_queries(15):
        admin.get(f"{APPS}{app.pk}/change/")
