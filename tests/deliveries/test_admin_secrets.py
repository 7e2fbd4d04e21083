"""An app's token and signing key in the admin: rotated, shown once, retired."""

import re
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App
from deliveries_app.services.keys import cancel_key_rotation, start_key_rotation
from deliveries_app.services.tokens import authenticate, rotate_app_token
from tests.support.audit import by_users
from tests.support.staff import make_app, staff

APPS = "/admin/deliveries_app/app/"
PAGES = ("rotate-token", "retire-tokens", "rotate-key", "retire-key", "cancel-key")


@pytest.fixture
def app(db) -> App:
    return make_app("Portal")


@pytest.fixture
def keeper(db) -> Client:
    return staff("karla", "view_app", "rotate_secret_app")


def rotating(app: App, *, accepted: bool = False) -> str:
    """Start a key rotation and return the new key."""
    key = start_key_rotation(Actor.system(), app)
    if accepted:
        App.objects.update(new_key_accepted_at=timezone.now(), new_key_signs=True)
    app.refresh_from_db()
    return key


def state(app: App) -> tuple:
    app.refresh_from_db()
    tokens = tuple(app.tokens.order_by("pk").values_list("digest", "expires_at"))
    return app.client_auth_key, app.new_auth_key, app.key_rotation_started_at, app.new_key_accepted_at, tokens


def shown(page, element: str) -> str:
    """Return the text of a `code` element of a secrets page."""
    return page.text.partition(f'<code id="{element}">')[2].partition("</code>")[0].replace("&#x2B;", "+")


def test_new_token_is_shown_once_and_old_one_expires_as_chosen(keeper: Client, app: App) -> None:
    old = app.tokens.get()
    assert old.ending in keeper.get(f"{APPS}{app.pk}/rotate-token/").text
    answer = keeper.post(f"{APPS}{app.pk}/rotate-token/", {"overlap": "168"})
    page = keeper.get(answer.url)
    token = shown(page, "token")
    assert authenticate(token) == app
    assert "no-store" in page.headers["Cache-Control"]
    assert "Once its settings show that the token has been used, retire the old one." in page.text
    old.refresh_from_db()
    assert old.expires_at - timezone.now() > timedelta(days=6, hours=23)
    assert token not in keeper.get(answer.url, follow=True).text
    assert token not in keeper.get(f"{APPS}{app.pk}/settings/").text
    assert token[-4:] in keeper.get(f"{APPS}{app.pk}/settings/").text


@pytest.mark.parametrize("what", ["token", "key"])
def test_secret_that_was_replaced_before_it_was_shown(keeper: Client, app: App, what: str) -> None:
    """As after two requests at once. It was shown, although it expires soon or was already invalid."""
    answer = keeper.post(f"{APPS}{app.pk}/rotate-{what}/", {"overlap": "1"})
    if what == "token":
        rotate_app_token(Actor.command(), app)
    else:
        cancel_key_rotation(Actor.command(), app)
    page = keeper.get(answer.url, follow=True).text
    assert "Another request has replaced these credentials." in page
    assert '<code id="' not in page


def test_leaked_token_expires_at_once(keeper: Client, app: App) -> None:
    leaked = rotate_app_token(Actor.system(), app).token
    page = keeper.post(f"{APPS}{app.pk}/rotate-token/", {"overlap": "0"}, follow=True).text
    assert "No other token is valid." in page
    assert "retire the old one" not in page
    assert authenticate(leaked) is None
    assert app.tokens.count() == 1


def test_unknown_overlap_is_refused(keeper: Client, app: App) -> None:
    before = state(app)
    assert "not one of the available choices" in keeper.post(f"{APPS}{app.pk}/rotate-token/", {"overlap": "99999"}).text
    assert state(app) == before


def test_old_tokens_are_retired_on_request(keeper: Client, app: App) -> None:
    rotate_app_token(Actor.system(), app)
    app.tokens.exclude(expires_at=None).update(expires_at=timezone.now())
    assert "Retire old tokens" not in keeper.get(f"{APPS}{app.pk}/settings/").text  # they have expired
    newest = rotate_app_token(Actor.system(), app).token
    assert "Retire old tokens" in keeper.get(f"{APPS}{app.pk}/settings/").text
    page = keeper.post(f"{APPS}{app.pk}/retire-tokens/", {"post": "yes"}, follow=True)
    assert "Old tokens retired." in page.text
    assert "Retire old tokens" not in page.text
    assert [token.ending for token in app.tokens.all()] == [newest[-4:]]
    again = keeper.post(f"{APPS}{app.pk}/retire-tokens/", {"post": "yes"}, follow=True)
    assert "There are no old tokens to retire." in again.text
    assert "Old tokens retired." not in again.text


def test_new_key_is_shown_once_and_starts_a_rotation(keeper: Client, app: App) -> None:
    assert "Rotate key" in keeper.get(f"{APPS}{app.pk}/settings/").text
    answer = keeper.post(f"{APPS}{app.pk}/rotate-key/", {"client_auth_key": ""})
    page = keeper.get(answer.url)
    app.refresh_from_db()
    assert app.is_rotating_key
    assert shown(page, "signing-key") == app.new_auth_key != app.client_auth_key
    assert app.new_auth_key not in str(dict(keeper.session))
    own = keeper.get(f"{APPS}{app.pk}/settings/").text
    assert "Key rotation in progress" in own
    assert "Retire old key" not in own
    assert app.new_auth_key not in own
    assert "Rotate key" not in own


def test_given_key_is_validated(keeper: Client, app: App) -> None:
    url = f"{APPS}{app.pk}/rotate-key/"
    assert "at least 16" in keeper.post(url, {"client_auth_key": "short"}).text
    assert "This key is already in use" in keeper.post(url, {"client_auth_key": "k" * 20}).text
    assert not state(app)[1]
    assert shown(keeper.get(keeper.post(url, {"client_auth_key": "x" * 16}).url), "signing-key") == "x" * 16


def test_old_key_is_retired_after_acceptance_of_the_new(keeper: Client, app: App) -> None:
    new = rotating(app)
    url = f"{APPS}{app.pk}/retire-key/"
    assert "accepted the new key yet" in keeper.get(url, follow=True).text
    assert "accepted the new key yet" in keeper.post(url, follow=True).text
    App.objects.update(new_key_accepted_at=timezone.now())
    assert "Retire old key" in keeper.get(f"{APPS}{app.pk}/settings/").text
    assert "Old key retired" in keeper.post(url, follow=True).text
    assert state(app)[:3] == (new, "", None)
    assert "No key rotation is in progress." in keeper.get(url, follow=True).text


def test_cancelled_rotation_can_be_started_again(keeper: Client, app: App) -> None:
    rotating(app)
    assert "already in progress" in keeper.get(f"{APPS}{app.pk}/rotate-key/", follow=True).text
    assert "New key discarded" in keeper.post(f"{APPS}{app.pk}/cancel-key/", follow=True).text
    assert state(app)[:3] == ("k" * 20, "", None)
    for method in (keeper.get, keeper.post):
        assert "There is no new key to discard" in method(f"{APPS}{app.pk}/cancel-key/", follow=True).text
    assert keeper.post(f"{APPS}{app.pk}/rotate-key/").status_code == 302


def confirmed(page: str) -> dict[str, str]:
    """Return what the button of a confirmation page sends."""
    button = re.search(r'<button type="submit" class="button" name="(\w+)" value="([^"]+)">', page)
    assert button
    return {button[1]: button[2]}


@pytest.mark.parametrize("page", ["retire-key", "cancel-key"])
def test_page_of_an_earlier_key_rotation_changes_nothing(keeper: Client, app: App, page: str) -> None:
    url = f"{APPS}{app.pk}/{page}/"
    rotating(app, accepted=True)
    earlier = confirmed(keeper.get(url).text)
    cancel_key_rotation(Actor.command(), app)
    rotating(app, accepted=True)
    before = state(app)
    assert "another one has started since. Nothing was changed." in keeper.post(url, earlier, follow=True).text
    assert state(app) == before
    keeper.post(url, confirmed(keeper.get(url).text))
    assert state(app)[1] == ""


def test_page_of_an_earlier_token_retires_nothing(keeper: Client, app: App) -> None:
    """The app may still use the token that was the newest then."""
    url = f"{APPS}{app.pk}/retire-tokens/"
    rotate_app_token(Actor.command(), app)
    earlier = confirmed(keeper.get(url).text)
    rotate_app_token(Actor.command(), app)
    assert "The token was rotated again since. Nothing was changed." in keeper.post(url, earlier, follow=True).text
    assert app.tokens.count() == 3
    keeper.post(url, confirmed(keeper.get(url).text))
    assert app.tokens.count() == 1


@pytest.mark.parametrize("page", PAGES)
def test_get_changes_nothing(keeper: Client, app: App, page: str) -> None:
    rotate_app_token(Actor.system(), app)
    rotating(app, accepted=True)
    before = state(app)
    for method in (keeper.get, keeper.head):
        assert method(f"{APPS}{app.pk}/{page}/").status_code in {200, 302}
    assert state(app) == before


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("permissions", [("view_app", "change_app"), ("rotate_secret_app",)])
def test_forged_post_without_permission_is_refused(app: App, page: str, permissions: tuple[str, ...]) -> None:
    rotate_app_token(Actor.system(), app)
    rotating(app, accepted=True)
    before = state(app)
    client = staff("mallory", *permissions)
    for method in (client.get, client.post):
        assert method(f"{APPS}{app.pk}/{page}/", {"overlap": "0", "post": "yes"}).status_code == 403
    assert state(app) == before
    if "view_app" in permissions:
        own = client.get(f"{APPS}{app.pk}/settings/").text
        assert all(f"/{page}/" not in own for page in PAGES)


def test_post_without_csrf_token_is_refused(app: App) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(staff("karla", "view_app", "rotate_secret_app").get("/admin/").wsgi_request.user)
    before = state(app)
    for page in PAGES:
        assert client.post(f"{APPS}{app.pk}/{page}/", {"overlap": "0"}).status_code == 403
    assert state(app) == before


def test_secrets_are_shown_to_their_session_only(keeper: Client, app: App) -> None:
    answer = keeper.post(f"{APPS}{app.pk}/rotate-key/")
    other = staff("olga", "view_app", "rotate_secret_app")
    assert "credentials are shown only once" in other.get(answer.url, follow=True).text
    assert keeper.head(answer.url).status_code == 405  # a HEAD does not use up the secrets
    assert shown(keeper.get(answer.url), "signing-key")


def test_removed_app_has_no_pages(keeper: Client, app: App) -> None:
    App.objects.update(ended_at=timezone.now())
    for page in PAGES:
        assert keeper.post(f"{APPS}{app.pk}/{page}/", {"overlap": "0"}).status_code == 302
    assert not state(app)[1]
    assert app.tokens.count() == 1


def test_audit_log_has_changes_without_secrets(keeper: Client, app: App) -> None:
    keeper.post(f"{APPS}{app.pk}/rotate-key/", {"client_auth_key": "x" * 16})
    keeper.post(f"{APPS}{app.pk}/cancel-key/")
    keeper.post(f"{APPS}{app.pk}/rotate-token/", {"overlap": "24"})
    assert by_users(app_id=app.app_id, actor="karla").count() == 3
    page = keeper.get(f"{APPS}{app.pk}/history/").text
    assert "Rotated the token" in page
    assert "x" * 16 not in page
