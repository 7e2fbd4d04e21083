"""An app's base URL: it is checked once when entered, and a new one offers a re-sync."""

import re

import pytest
from django.test import Client
from django.utils import timezone

from deliveries_app.models import App
from deliveries_app.services.onboarding import unreachable_reason
from tests.deliveries.test_admin_apps import settings_of
from tests.support.staff import make_app, make_watch, staff
from tests.support.world import World

APPS = "/admin/deliveries_app/app/"
UNREACHABLE = "http://127.0.0.1:9/hooks"


@pytest.fixture
def operator(db) -> Client:
    return staff("olga", "view_app", "view_apprepository", "onboard_app", "change_app", "resync_apprepository")


def register(client: Client, **changes: str):
    fields = {"name": "Portal", "base_url": UNREACHABLE, "email": "ops@portal.example"} | changes
    return client.post(f"{APPS}add/", fields, follow=True)


def test_form_says_whether_the_contact_gets_mail(operator: Client, settings) -> None:
    app = make_app("Portal")
    for address in (f"{APPS}add/", f"{APPS}{app.pk}/settings/"):
        settings.MAILERS = {}
        assert "Without EMAIL_URL, Docora sends it no email." in operator.get(address).text
        settings.MAILERS, settings.DEFAULT_FROM_EMAIL = {"default": {"OPTIONS": {}}}, "docora@docora.example"
        assert "Notified by email when" in operator.get(address).text


def test_unreachable_url_is_saved_with_a_warning(operator: Client) -> None:
    page = register(operator)
    assert App.objects.get().base_url == UNREACHABLE
    assert "Portal was saved. Couldn&#x27;t reach 127.0.0.1:9" in page.text
    assert "is registered" in page.text


def test_name_of_another_app_is_saved_with_a_warning(operator: Client) -> None:
    warning = "Another app is already named {}. Rename one so"
    portal = make_app("Portal")
    page = register(operator, name="portal").text
    assert warning.format("portal") in page
    assert "is registered" in page
    search = make_app("Search")
    for name, warned in [("Finder", False), ("Portal", True), ("Portal", False)]:  # the last changes nothing
        posted = settings_of(operator, search, name=name)
        page = operator.post(f"{APPS}{search.pk}/change/", posted, follow=True).text
        assert (warning.format(name) in page) == warned, name
    App.objects.exclude(pk=portal.pk).update(ended_at=timezone.now())
    posted = settings_of(operator, portal, name="PORTAL")
    assert "Another app" not in operator.post(f"{APPS}{portal.pk}/change/", posted, follow=True).text


def test_any_response_counts_as_reachable(world: World, operator: Client) -> None:
    page = register(operator, name="Search", base_url=world.receiver.url)
    assert "was saved" not in page.text
    assert world.requests() == []  # a request without content


@pytest.mark.parametrize(
    ("url", "expected"),
    [(UNREACHABLE, "connection refused"), ("https://10.1.2.3/", "10.1.2.3"), ("https://name.invalid/", "name.invalid")],
)
def test_unreachable_reasons(url: str, expected: str) -> None:
    assert expected in unreachable_reason(url)


def test_secrets_page_shows_next_steps(operator: Client, settings) -> None:
    settings.PUBLIC_URL = "https://docora.example"
    page = register(operator).text
    assert "curl -X PUT https://docora.example/api/repositories" in page
    assert "Bearer $DOCORA_TOKEN" in page
    assert page.count("docora_") == 1
    assert "Send test ping" in page


def test_user_who_can_only_register_apps_is_led_to_the_overview(db) -> None:
    client = staff("rita", "onboard_app")
    page = register(client).text
    assert "is registered" in page
    links = {link for link in re.findall(r'<a\b[^>]*? href="(/admin/[^"#]*)"', page) if "logout" not in link}
    assert {link: client.get(link).status_code for link in links} == dict.fromkeys(links, 200)
    assert '<a class="button" href="/admin/">Done</a>' in page
    again = client.get(f"{APPS}secrets/", follow=True)
    assert (again.status_code, again.redirect_chain) == (200, [("/admin/", 302)])


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("website", "javascript:alert(1)", "The website must be a URL"),
        ("website", "https://", "The website must be a URL"),
        ("website", "https://x.example:99999/", "The website must be a URL"),
        ("description", "x" * 501, "at most 500"),
        ("client_auth_key", "x" * 501, "at most 500"),
        ("email", f"{'x' * 60}@{'y' * 60}.{'z' * 60}.{'w' * 60}.{'v' * 60}.example", "at most 255"),
        ("base_url", "https://a%62.example", "must look like"),
        ("base_url", f"https://x.example/{'a' * 2048}", "at most 2048"),
    ],
)
def test_values_beyond_the_contract_are_refused(operator: Client, field: str, value: str, expected: str) -> None:
    assert expected in register(operator, **{field: value}).text
    assert not App.objects.exists()


def test_values_within_the_contract_are_accepted(operator: Client) -> None:
    fields = {"website": "http://portal.example/über", "description": "x" * 500, "client_auth_key": "ü" * 500}
    assert "is registered" in register(operator, name="abc", **fields).text
    app = App.objects.get()
    assert (app.website, app.description, app.client_auth_key) == tuple(fields.values())


def test_new_url_offers_a_resync(operator: Client) -> None:
    app = make_app("Portal")
    make_watch(app, "docs")
    posted = settings_of(operator, app, base_url=UNREACHABLE)
    page = operator.post(f"{APPS}{app.pk}/change/", posted, follow=True)
    app.refresh_from_db()
    assert app.base_url == UNREACHABLE
    assert page.redirect_chain[-1][0].startswith(f"{APPS}force-resync/?ids={app.pk}&")
    for expected in ("The new endpoint may not have the files yet", "Portal was saved.", "This will re-sync acme/docs"):
        assert expected in page.text
    assert f'href="{APPS}{app.pk}/change/"' in page.text  # nothing happens without confirmation


def test_new_url_without_resync_permission_shows_a_warning(db) -> None:
    client = staff("carl", "view_app", "change_app")
    app = make_app("Portal")
    make_watch(app, "docs")
    page = client.post(f"{APPS}{app.pk}/change/", settings_of(client, app, base_url=UNREACHABLE), follow=True)
    assert page.redirect_chain[-1][0] == f"{APPS}{app.pk}/change/"
    assert "Ask a user with the re-sync permission" in page.text


def test_no_resync_offer_without_watches_or_a_new_url(operator: Client) -> None:
    app = make_app("Portal")
    make_watch(make_app("Search"), "docs")
    page = operator.post(f"{APPS}{app.pk}/change/", settings_of(operator, app, base_url=UNREACHABLE), follow=True)
    assert page.redirect_chain[-1][0] == f"{APPS}{app.pk}/change/"
    assert "may not have the files yet" not in page.text
    make_watch(app, "docs")
    page = operator.post(f"{APPS}{app.pk}/change/", settings_of(operator, app, description="New"), follow=True)
    assert page.redirect_chain[-1][0] == f"{APPS}{app.pk}/change/"


def test_new_url_clears_the_cooldown(operator: Client) -> None:
    app = make_app("Portal")
    App.objects.update(cooldown_until=timezone.now(), down_count=3)
    operator.post(f"{APPS}{app.pk}/change/", settings_of(operator, app, base_url=UNREACHABLE))
    app.refresh_from_db()
    assert (app.cooldown_until, app.down_count) == (None, 0)


def test_app_without_watches_has_a_complete_page(operator: Client) -> None:
    app = make_app("Portal")
    page = operator.get(f"{APPS}{app.pk}/change/").text
    for expected in (
        app.app_id,
        "Send test ping",
        "This app doesn't watch any repositories yet.",
        "Audit log",
    ):
        assert expected in page


def test_forged_change_without_permission_is_refused(db) -> None:
    app = make_app("Portal")
    client = staff("mallory", "view_app", "onboard_app", "rotate_secret_app")
    posted = {"name": "Other", "base_url": UNREACHABLE, "email": "a@b.example", "max_in_flight": "1"}
    assert client.post(f"{APPS}{app.pk}/change/", posted).status_code == 403
    assert staff("norbert", "view_app").post(f"{APPS}add/", posted).status_code == 403
    assert list(App.objects.values_list("name", "base_url")) == [("Portal", "https://x.example")]
