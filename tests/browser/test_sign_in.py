"""Sign-in in a real browser: password, password and code, passkey, and OpenID Connect at a real provider.

Every page is looked at: none violates the content security policy or has accessibility violations. Passkeys are used with a
virtual authenticator, which works under `localhost`.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from allauth.mfa.models import Authenticator
from django.contrib.auth.models import Group, User
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from playwright.sync_api import Page, expect

from docora.sign_in.recency import AUTHENTICATED_AT
from tests.browser.accessibility import FOUR_LOOKS, look_as, violations_in
from tests.browser.conftest import PASSWORD, Browser, Web
from tests.docora.test_sign_in import code_of
from tests.support import identity_provider
from tests.support.identity_provider import IdentityProvider
from tests.support.instance import free_port
from tests.support.staff import make_app

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

SHOTS = os.environ.get("SIGN_IN_SHOTS")  # a folder for screenshots of every page, to look at


@pytest.fixture
def web(transactional_db: None, committed_environment: dict[str, str], tmp_path: Path) -> Iterator[Web]:
    """A web process that uses the provider. Nothing here needs workers."""
    port = str(free_port())
    url = f"http://localhost:{port}"
    provider = IdentityProvider([f"{url}/accounts/oidc/login/callback/"], tmp_path / "provider.log")
    environment = committed_environment | provider.settings() | {"PORT": port, "PUBLIC_URL": url}
    web = Web(environment, tmp_path / "web.log")
    yield web
    web.stop()
    provider.stop()


class Visitor:
    """Walks through the pages and examines each of them."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.wrong: list[str] = []
        self._seen = 0

    def examine(self, name: str) -> None:
        self._seen += 1
        self.wrong += [f"{name}: {problem}" for problem in violations_in(FOUR_LOOKS, self.page)]
        for look in FOUR_LOOKS if SHOTS else ():
            look_as(self.page, look)
            file = f"{self._seen:02}-{name}-{look.scheme}-{look.width}.png"
            self.page.screenshot(path=f"{SHOTS}/{file}", full_page=True)
        look_as(self.page, FOUR_LOOKS[0])

    def enter_password(self) -> None:
        self.page.get_by_label("Username:").fill("anna")
        self.page.get_by_label("Password:").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in", exact=True).click()

    def sign_out(self) -> None:
        self.page.get_by_role("button", name="Sign out").click()
        self.page.get_by_role("link", name="Sign in again").click()

    def expect_overview(self) -> None:
        expect(self.page.get_by_role("heading", name="Overview")).to_be_visible()


def test_password_code_passkey_and_provider(web: Web, browser: Browser) -> None:
    User.objects.create_superuser("anna", password=PASSWORD)
    Group.objects.get_or_create(name="Viewers")
    app = make_app("Portal")
    url = web.environment["PUBLIC_URL"]

    visitors: list[Visitor] = []

    def local_accounts(page: Page) -> None:
        visitor = Visitor(page, url)
        visitors.append(visitor)
        devices = page.context.new_cdp_session(page)
        devices.send("WebAuthn.enable")
        options = {"protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True}
        options |= {"isUserVerified": True, "automaticPresenceSimulation": True}
        device = devices.send("WebAuthn.addVirtualAuthenticator", {"options": options})["authenticatorId"]

        page.goto(f"{url}/admin/deliveries_app/app/")
        visitor.examine("sign-in")
        page.get_by_label("Username:").fill("anna")
        page.get_by_label("Password:").fill("wrong")
        page.get_by_role("button", name="Sign in", exact=True).click()
        expect(page.get_by_text("The username or password is wrong.")).to_be_visible()
        visitor.examine("wrong-password")
        visitor.enter_password()
        expect(page.get_by_role("heading", name="Apps", exact=True)).to_be_visible()

        secret = _set_up_app(visitor)
        visitor.sign_out()
        visitor.enter_password()
        visitor.examine("code")
        page.get_by_label("Code:").fill(code_of(secret))
        page.get_by_role("button", name="Sign in", exact=True).click()
        visitor.expect_overview()

        page.get_by_role("link", name="Account security").click()
        page.get_by_role("link", name="Add a passkey").click()
        visitor.examine("add-passkey")
        devices.send("WebAuthn.setAutomaticPresenceSimulation", {"authenticatorId": device, "enabled": True})
        page.get_by_label("Name:").fill("Laptop")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.get_by_text("Laptop")).to_be_visible()
        visitor.examine("account")
        visitor.sign_out()
        page.get_by_role("button", name="Sign in with a passkey").click()
        visitor.expect_overview()

        page.goto(f"{url}/admin/deliveries_app/app/{app.pk}/settings/")
        page.get_by_label("Base URL").fill("https://moved.example")

    def confirmation_and_provider(page: Page) -> None:
        visitor = visitors[0]
        _confirm_with_the_passkey(visitor)
        page.get_by_role("link", name="Account security").click()
        page.get_by_role("link", name="Remove: Laptop").click()
        visitor.examine("remove-passkey")
        page.get_by_role("button", name="Remove").click()
        expect(page.get_by_role("link", name="Remove: Laptop")).to_have_count(0)
        visitor.sign_out()
        page.evaluate("() => { navigator.credentials.get = () => Promise.reject(new DOMException('No')) }")
        page.get_by_role("button", name="Sign in with a passkey").click()
        expect(page.get_by_text("The passkey wasn't used")).to_be_visible()

        _sign_in_at_the_provider(visitor, "norbert")
        expect(page.get_by_text("None of your groups has access to Docora")).to_be_visible()
        visitor.examine("refused")
        page.context.clear_cookies()
        page.goto(f"{url}/admin/")
        _sign_in_at_the_provider(visitor, "olga")
        visitor.expect_overview()

    browser.drive(local_accounts)
    _age_sessions()
    browser.drive(confirmation_and_provider)
    assert not visitors[0].wrong, "\n".join(visitors[0].wrong)
    # The refusal is a 403. The provider lacks a picture, and its server writes the reason in capitals.
    expected = re.compile(r"status of (403 \(Forbidden\)|404 \(NOT FOUND\))")
    assert [text for text in browser.complaints if not expected.search(text)] == []
    assert User.objects.get(username="olga").is_superuser
    assert not User.objects.filter(username="norbert").exists()
    assert not Authenticator.objects.filter(type="webauthn").exists()
    app.refresh_from_db()
    assert app.base_url == "https://moved.example"


def _set_up_app(visitor: Visitor) -> str:
    page = visitor.page
    page.get_by_role("link", name="Account security").click()
    visitor.examine("account-empty")
    page.get_by_role("link", name="Set up an authenticator app").click()
    visitor.examine("authenticator-app")
    secret = page.locator("#totp-key").inner_text()
    page.get_by_label("Code:").fill(code_of(secret, -1))
    page.get_by_role("button", name="Set up").click()
    expect(page.get_by_role("heading", name="Recovery codes")).to_be_visible()
    visitor.examine("recovery-codes")
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
    expect(page.locator("#recovery-codes")).to_have_text("")  # not kept for the Back button
    page.get_by_role("link", name="Done").click()
    return secret


def _age_sessions() -> None:
    for row in Session.objects.all():
        session = SessionStore(row.session_key)
        session[AUTHENTICATED_AT] = time.time() - 3600
        session.save()


def _confirm_with_the_passkey(visitor: Visitor) -> None:
    """Save a changed base URL when the last sign-in was long ago."""
    page = visitor.page
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("This change needs a recent sign-in")).to_be_visible()
    visitor.examine("confirm")
    page.get_by_role("link", name="Use a passkey or security key").click()
    visitor.examine("confirm-with-passkey")
    page.get_by_role("button", name="Use a passkey or security key").click()
    expect(page.locator("#toasts-polite").get_by_text("was changed successfully")).to_be_visible()


def _sign_in_at_the_provider(visitor: Visitor, name: str) -> None:
    page = visitor.page
    page.get_by_role("link", name="Sign in with Canaille").click()
    page.locator("input[name=login]").fill(name)
    page.locator("form [type=submit]").first.click()
    page.locator("input[name=password]").fill(identity_provider.PASSWORD)
    page.locator("form [type=submit]").first.click()
    page.wait_for_url(f"{visitor.url}/**")
