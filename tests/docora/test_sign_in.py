"""Signing in: passwords and their limits, second factors, passkeys, links, proxies, idle sessions, and asking again."""

import hashlib
import ipaddress
import json
import re
import secrets
import time
from datetime import timedelta

import pytest
from allauth.account.utils import user_pk_to_url_str
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from django.contrib.auth import get_user
from django.contrib.auth.models import AnonymousUser, Group, Permission, User
from django.contrib.sessions.models import Session
from django.core import signing
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import connection as db_connection
from django.http import HttpResponse
from django.template.loader import render_to_string
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import NoReverseMatch, reverse
from fido2.cose import ES256
from fido2.utils import websafe_encode
from fido2.webauthn import Aaguid, AttestationObject, AttestedCredentialData, AuthenticatorData, CollectedClientData

from deliveries_app.models import App, AppRepository, AuditAction, AuditEntry
from docora.redis.connection import connection
from docora.security.crypto import decrypt
from docora.sign_in import links, recency
from docora.sign_in.adapters import client_address
from docora.sign_in.cache import SharedCache
from repositories_app.models import GitHubApp
from tests.support.staff import make_app, make_watch
from tests.support.valkey import ValkeyServer

PASSWORD, WRONG = "correct horse battery", "wr0ng-password-of-anna"
LOGIN, SECURITY, CONFIRM = "/accounts/login/", "/accounts/security/", "/accounts/reauthenticate/"


@pytest.fixture
def anna(db) -> User:
    return User.objects.create_superuser("anna", password=PASSWORD)


def try_to_sign_in(
    password: str = WRONG, name: str = "anna", address: str = "203.0.113.9", client: Client | None = None, **more: str
) -> HttpResponse:
    return (client or Client(REMOTE_ADDR=address)).post(LOGIN, {"login": name, "password": password, **more})


def locked(response: HttpResponse) -> bool:
    return "Too many failed attempts. Try again in 15 minutes." in response.content.decode()


def signed_in(anna: User) -> Client:
    client = Client()
    client.force_login(anna)
    return client


def make_old(client: Client, seconds: float = 3600, key: str = recency.AUTHENTICATED_AT) -> None:
    session = client.session
    session[key] = time.time() - seconds
    session.save()


# --- Passwords ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "account/login.html", "account/reauthenticate.html", "account/no_access.html", "account/account_inactive.html",
        "account/link.html", "account/link_invalid.html", "mfa/authenticate.html", "mfa/reauthenticate.html",
        "socialaccount/authentication_error.html", "socialaccount/login_cancelled.html", "socialaccount/refused.html",
    ],
)  # fmt: skip
def test_every_page_of_the_sign_in_has_a_heading(db, template: str) -> None:
    request = RequestFactory().get("/accounts/")
    request.user = AnonymousUser()
    page = render_to_string(template, request=request)
    [title] = re.findall(r"<title>(.*) \| Docora</title>", page)
    assert re.findall(r"<h1>(.*)</h1>", page) == [title]


def test_admin_redirects_to_the_sign_in_page_and_back(anna) -> None:
    client = Client()
    page = client.get("/admin/deliveries_app/app/", follow=True)
    assert page.redirect_chain[-1][0] == f"{LOGIN}?next=%2Fadmin%2Fdeliveries_app%2Fapp%2F"
    assert "/admin/deliveries_app/app/" in page.content.decode()
    answer = try_to_sign_in(PASSWORD, client=client, next="/admin/deliveries_app/app/")
    assert (answer.status_code, answer["Location"]) == (302, "/admin/deliveries_app/app/")
    assert client.get("/admin/").status_code == 200
    assert try_to_sign_in(PASSWORD)["Location"] == "/admin/"
    for elsewhere in ("https://evil.example/", "http://localhost/", "http://docora.example/"):
        assert try_to_sign_in(PASSWORD, next=elsewhere)["Location"] == "/admin/"


def test_user_without_access_to_the_admin(db) -> None:
    client = signed_in(User.objects.create_user("otto", password=PASSWORD))
    page = client.get("/admin/", follow=True)
    assert page.status_code == 403
    assert "this account has no access to Docora" in page.content.decode()
    assert client.post("/accounts/logout/")["Location"] == LOGIN
    assert client.get(LOGIN).status_code == 200


def test_sign_in_form_of_django_is_not_used(anna) -> None:
    """It would neither ask for a second factor nor count failures."""
    set_up_totp(signed_in(anna))
    client = signed_in(User.objects.create_user("otto", password=PASSWORD, is_staff=True))
    assert client.get("/admin/login/")["Location"] == "/admin/"
    assert client.post("/admin/login/", {"username": "anna", "password": PASSWORD}).status_code == 405
    assert get_user(client).username == "otto"
    assert Client().post("/admin/login/", {"username": "anna", "password": PASSWORD})["Location"].startswith(LOGIN)


def test_sign_up_and_unused_pages_are_not_routed(client: Client) -> None:
    for path in ("signup/", "password/reset/", "email/", "password/change/", "security/recovery-codes/download/"):
        assert client.get(f"/accounts/{path}").status_code == 404
    for name in ("account_signup", "socialaccount_signup", "socialaccount_connections", "openid_connect_login"):
        with pytest.raises(NoReverseMatch):
            reverse(name)
    answer = client.get("/accounts/logout/")
    assert (answer.status_code, answer["Allow"]) == (405, "POST")
    assert "This address only works from a button or form in Docora" in answer.content.decode()
    assert answer.get("Content-Length", str(len(answer.content))) == str(len(answer.content))


def test_five_failures_lock_a_name_from_an_address_only(anna) -> None:
    User.objects.create_user("otto", password=PASSWORD, is_staff=True)
    assert [locked(try_to_sign_in()) for _ in range(7)] == [False] * 5 + [True] * 2
    assert locked(try_to_sign_in(PASSWORD)), "the right password too"
    assert locked(try_to_sign_in(PASSWORD, name="ANNA")), "in any case"
    assert try_to_sign_in(PASSWORD, address="203.0.113.10").status_code == 302, "anna herself, from her own address"
    assert try_to_sign_in(PASSWORD, name="otto").status_code == 302, "others from the same address"


def test_success_does_not_count_and_does_not_clear_failures(anna) -> None:
    for _ in range(4):
        try_to_sign_in()
    assert [try_to_sign_in(PASSWORD).status_code for _ in range(3)] == [302] * 3
    assert not locked(try_to_sign_in())
    assert locked(try_to_sign_in(PASSWORD))


def test_lock_ends_after_15_minutes_and_is_not_extended(anna, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for minute in range(8):
        monkeypatch.setattr(time, "time", lambda at=now + 60 * minute: at)
        try_to_sign_in()
    monkeypatch.setattr(time, "time", lambda: now + 15 * 60 + 1)
    assert try_to_sign_in(PASSWORD).status_code == 302


def test_failures_under_many_names_lock_the_address(anna) -> None:
    # Names that are too long are refused before anything is hashed; others cost the time of a hash.
    answers = [locked(try_to_sign_in(name=f"guess-{number}")) for number in range(51)]
    assert answers == [False] * 50 + [True]
    assert locked(try_to_sign_in(PASSWORD))
    assert try_to_sign_in(PASSWORD, address="203.0.113.10").status_code == 302


def test_refused_attempts_do_not_count(anna, settings) -> None:
    User.objects.create_user("otto", password=PASSWORD, is_staff=True)
    settings.ACCOUNT_RATE_LIMITS = settings.ACCOUNT_RATE_LIMITS | {"address_failed": "8/15m/ip"}
    assert [locked(try_to_sign_in()) for _ in range(10)] == [False] * 5 + [True] * 5
    assert try_to_sign_in(PASSWORD, name="otto").status_code == 302
    assert [locked(try_to_sign_in(name=f"guess-{number}")) for number in range(3)] == [False] * 3
    assert [locked(try_to_sign_in(name="otto")) for _ in range(6)] == [True] * 6
    settings.ACCOUNT_RATE_LIMITS = settings.ACCOUNT_RATE_LIMITS | {"address_failed": "50/15m/ip"}
    assert [locked(try_to_sign_in(name="otto")) for _ in range(6)] == [False] * 5 + [True]


def test_correct_code_does_not_clear_the_failures_of_the_address(anna) -> None:
    secret = set_up_totp(signed_in(anna))
    for number in range(49):
        try_to_sign_in(name=f"guess-{number}")
    client = Client(REMOTE_ADDR="203.0.113.9")
    try_to_sign_in(PASSWORD, client=client)
    assert client.post(f"{SECURITY}authenticate/", {"code": code_of(secret)})["Location"] == "/admin/"
    assert [locked(try_to_sign_in(name=name)) for name in ("mia", "tom")] == [False, True]


def test_sign_in_with_a_passkey_is_limited(db, settings) -> None:
    """Each request stores a session."""
    settings.ACCOUNT_RATE_LIMITS = settings.ACCOUNT_RATE_LIMITS | {"login": "3/m/ip"}
    path, headers = "/accounts/security/passkeys/sign-in/", {"accept": "application/json"}
    assert [Client().get(path, headers=headers).status_code for _ in range(4)] == [200] * 3 + [429]
    assert Session.objects.count() == 3


def test_name_that_is_too_long_is_not_hashed(anna, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(User, "set_password", lambda self, password: hashed.append(password))
    assert try_to_sign_in(name="x" * 100_000).status_code == 200
    assert hashed == []


def test_failures_are_stored_as_json(anna) -> None:
    try_to_sign_in()
    keys = [key for key in connection().scan_iter("docora:sign_in:*") if b":lock" not in key]
    assert len(keys) == 3  # requests and failures of the address, and failures of the name
    assert all(isinstance(json.loads(connection().get(key)), list) for key in keys)
    assert not any(b"anna" in key for key in keys)


def test_without_redis_failures_are_counted_in_memory(anna, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_servers", ["unix:///nowhere.sock"])
    monkeypatch.setitem(cache.__dict__, "_cache", cache._class(["unix:///nowhere.sock"]))
    cache.memory.clear()
    assert [locked(try_to_sign_in()) for _ in range(6)] == [False] * 5 + [True]
    assert try_to_sign_in(PASSWORD, address="203.0.113.10").status_code == 302
    cache.memory.clear()


def test_failures_are_counted_in_memory_while_redis_refuses_writes(anna, valkey_server: ValkeyServer) -> None:
    """The counts that Redis still returns are old."""
    cache.memory.clear()
    with valkey_server.refusing_writes():
        assert [locked(try_to_sign_in()) for _ in range(7)] == [False] * 5 + [True] * 2
    assert not locked(try_to_sign_in()), "Redis counts again"
    cache.memory.clear()


def test_sign_in_waits_once_for_frozen_redis(anna, valkey_server: ValkeyServer, caplog, monkeypatch) -> None:
    monkeypatch.setattr(SharedCache, "next_try", 0.0)
    cache.memory.clear()
    with valkey_server.frozen():
        assert [locked(try_to_sign_in()) for _ in range(6)] == [False] * 5 + [True]
    assert [record.getMessage() for record in caplog.records].count("cache_in_memory") == 1
    monkeypatch.setattr(SharedCache, "next_try", 0.0)
    assert not locked(try_to_sign_in()), "Redis counts again"
    cache.memory.clear()


@pytest.mark.parametrize(
    ("remote", "counted"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("", "unknown"),
    ],
)
def test_address_that_failures_count_for(remote: str, counted: str) -> None:
    assert client_address(RequestFactory().get("/", REMOTE_ADDR=remote)) == counted


def test_address_behind_a_trusted_proxy(anna, settings) -> None:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.1/32")]
    for _ in range(6):
        client = Client(REMOTE_ADDR="10.0.0.1", headers={"x-forwarded-for": "203.0.113.9"})
        last = client.post(LOGIN, {"login": "anna", "password": WRONG})
    assert locked(last)
    assert try_to_sign_in(PASSWORD, address="10.0.0.1").status_code == 302


def test_old_password_cannot_be_guessed_in_a_session(anna) -> None:
    """An open session does not prove that its user knows the password."""
    client, change = signed_in(anna), "/admin/password_change/"
    new = {"new_password1": "another horse", "new_password2": "another horse"}
    pages = [client.post(change, {"old_password": WRONG, **new}) for _ in range(6)]
    assert [(page.status_code, locked(page)) for page in pages] == [(200, False)] * 5 + [(200, True)]
    assert locked(client.post(change, {"old_password": PASSWORD, **new}))
    client = Client(REMOTE_ADDR="203.0.113.10")
    client.force_login(anna)
    assert client.post(change, {"old_password": PASSWORD, **new}).status_code == 302


def test_local_sign_in_turned_off(anna, settings) -> None:
    assert "Change password" in signed_in(anna).get(SECURITY).content.decode()
    settings.LOCAL_SIGN_IN = False
    assert "Change password" not in signed_in(anna).get("/admin/").content.decode()
    assert "Change password" not in signed_in(anna).get(SECURITY).content.decode()
    assert "Password" not in Client().get(LOGIN).content.decode()
    assert try_to_sign_in(PASSWORD).status_code == 403
    assert Client().post("/accounts/security/passkeys/sign-in/", {"credential": "{}"}).status_code == 403
    client = Client()
    assert client.post(links_path(anna)).status_code == 302
    make_old(client)
    assert client.get(f"{SECURITY}app/add/").status_code == 403, "the password doesn't confirm either"


def test_failed_sign_in_is_logged_without_the_password(anna, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        try_to_sign_in()
    assert [(r.message, r.address) for r in caplog.records if r.name.startswith("docora.sign_in")] == [
        ("sign_in_failed", "203.0.113.9")
    ]
    assert WRONG not in caplog.text


# --- Second factors -----------------------------------------------------------------------------------------------------


def code_of(secret: str, steps: int = 0) -> str:
    """Return the code of this half minute, or of one that is `steps` later. Wait for the next one if this one is about to end:
    the sign-in accepts no code that is two steps old."""
    if (left := 30 - time.time() % 30) < 2:
        time.sleep(left)
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + steps))


def set_up_totp(client: Client) -> str:
    """Set up an authenticator app on the account page. Return its secret."""
    page = client.get(f"{SECURITY}app/add/")
    secret = re.search(r'id="totp-key">(\w+)<', page.content.decode())[1]
    answer = client.post(f"{SECURITY}app/add/", {"code": code_of(secret, -1)})
    assert answer["Location"] == f"{SECURITY}recovery-codes/", answer.content.decode()
    return secret


def test_password_and_code(anna) -> None:
    secret = set_up_totp(signed_in(anna))
    client = Client()
    assert try_to_sign_in(PASSWORD, client=client)["Location"] == f"{SECURITY}authenticate/"
    assert client.get("/admin/").status_code == 302, "the password alone is not enough"
    wrong = client.post(f"{SECURITY}authenticate/", {"code": "000000"})
    assert "The code is wrong." in wrong.content.decode()
    code = code_of(secret)
    assert client.post(f"{SECURITY}authenticate/", {"code": code})["Location"] == "/admin/"
    assert client.get("/admin/").status_code == 200
    again = Client()
    try_to_sign_in(PASSWORD, client=again)
    assert again.post(f"{SECURITY}authenticate/", {"code": code}).status_code == 200, "a code works once"


def test_user_without_a_passkey_is_not_offered_to_use_one(anna, settings) -> None:
    set_up_totp(signed_in(anna))
    settings.ALLOWED_HOSTS = ["docora.example"]
    client = Client(headers={"host": "docora.example"})
    try_to_sign_in(PASSWORD, client=client)
    page = client.get(f"{SECURITY}authenticate/").content.decode()
    assert "Enter the code from your authenticator app" in page
    assert "passkey-button" not in page


def test_recovery_code_works_once(anna) -> None:
    client = signed_in(anna)
    set_up_totp(client)
    codes = client.get(f"{SECURITY}recovery-codes/").context["unused_codes"]
    assert len(codes) == 10
    for expected in (302, 200):
        other = Client()
        try_to_sign_in(PASSWORD, client=other)
        assert other.post(f"{SECURITY}authenticate/", {"code": codes[0]}).status_code == expected


@pytest.mark.parametrize("event", ["factor removed", "user deactivated", "user deleted", "password changed"])
def test_sign_in_ends_if_its_second_factor_is_of_no_use(anna, event: str) -> None:
    secret = set_up_totp(signed_in(anna))
    client = Client()
    try_to_sign_in(PASSWORD, client=client)
    if event == "password changed":
        anna.set_password("another one")
        anna.save()
        assert client.post(f"{SECURITY}authenticate/", {"code": code_of(secret)})["Location"] == LOGIN
        assert client.get("/admin/").status_code == 302
    elif event == "factor removed":
        Authenticator.objects.all().delete()
    elif event == "user deactivated":
        User.objects.update(is_active=False)
    else:
        User.objects.all().delete()
    page = client.get(LOGIN, follow=True)
    assert (page.status_code, page.request["PATH_INFO"]) == (200, LOGIN)


def test_guessing_codes_is_limited(anna) -> None:
    set_up_totp(signed_in(anna))
    client = Client()
    try_to_sign_in(PASSWORD, client=client)
    pages = [client.post(f"{SECURITY}authenticate/", {"code": f"{n:06}"}).content.decode() for n in range(6)]
    assert ["Too many failed attempts" in page for page in pages] == [False] * 5 + [True]


def test_secrets_of_factors_are_encrypted_and_can_be_rotated(anna, settings) -> None:
    secret = set_up_totp(signed_in(anna))
    totp = Authenticator.objects.get(type="totp")
    assert decrypt(totp.data["secret"]) == secret
    settings.ENCRYPTION_KEYS = ["a-new-key-of-docora", *settings.ENCRYPTION_KEYS]
    call_command("rotate_encryption_keys", verbosity=0)
    settings.ENCRYPTION_KEYS = settings.ENCRYPTION_KEYS[:1]
    for factor in Authenticator.objects.all():
        assert decrypt(factor.data.get("secret") or factor.data["seed"])


def test_role_that_requires_a_second_factor(settings, db) -> None:
    settings.SECOND_FACTOR_ROLES = ["Operators"]
    otto = User.objects.create_user("otto", password=PASSWORD, is_staff=True)
    otto.groups.add(Group.objects.get_or_create(name="Operators")[0])
    client = Client()
    try_to_sign_in(PASSWORD, name="otto", client=client)
    assert client.get("/admin/")["Location"] == SECURITY
    assert "Your role requires a second factor" in client.get(SECURITY).content.decode()
    assert client.get("/admin/api/repositories").status_code == 403
    set_up_totp(client)
    assert client.get("/admin/").status_code == 200
    client.post(f"{SECURITY}app/remove/")
    assert client.get("/admin/")["Location"] == SECURITY, "without it again"
    Authenticator.objects.create(user=otto, type="recovery_codes", data={"seed": "x"})
    assert client.get("/admin/")["Location"] == SECURITY, "they only replace a factor"
    assert client.post("/admin/logout/").status_code == 200


def test_role_without_that_requirement(anna, settings) -> None:
    settings.SECOND_FACTOR_ROLES = ["Operators"]
    client = Client()
    try_to_sign_in(PASSWORD, client=client)
    assert client.get("/admin/").status_code == 200
    settings.SECOND_FACTOR_ROLES = ["superuser"]
    assert signed_in(anna).get("/admin/")["Location"] == SECURITY


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "[::1]:8000"])
def test_passkeys_are_hidden_at_an_ip_address(anna, settings, host: str) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    reason = "Passkeys need a host name"
    page = Client().get(LOGIN, headers={"host": host}).content.decode()
    assert reason in page
    assert "passkey-button" not in page
    account = signed_in(anna).get(SECURITY, headers={"host": host}).content.decode()
    assert reason in account
    assert "Add a passkey" not in account
    by_name = signed_in(anna).get(SECURITY, headers={"host": "localhost:8000"}).content.decode()
    assert "Add a passkey" in by_name
    assert reason not in by_name
    Authenticator.objects.create(user=anna, type="webauthn", data={"name": "Laptop", "credential": {}})
    for address, is_offered in ((host, False), ("localhost:8000", True)):
        page = signed_in(anna).get(CONFIRM, headers={"host": address}).content.decode()
        assert ("Use a passkey or security key" in page) == is_offered


@pytest.mark.parametrize(
    "credential",
    ["", "{", "1", "[]", "{}", '"x"', '{"id": 1}', '{"response": "x"}', '{"response": {"userHandle": 1}}', "null"],
)
def test_forged_passkeys_are_refused(db, credential: str) -> None:
    client = Client(raise_request_exception=False)
    client.get("/accounts/security/passkeys/sign-in/", headers={"accept": "application/json"})
    answer = client.post("/accounts/security/passkeys/sign-in/", {"credential": credential})
    assert (answer.status_code, answer.headers.get("Location")) == (302, LOGIN)


def test_passkey_works_only_on_pages_of_the_same_host(anna, settings) -> None:
    """A browser also lets pages of subdomains use it, and they could pass the signature on."""
    settings.ALLOWED_HOSTS = ["docora.example"]
    key, identifier = ec.generate_private_key(ec.SECP256R1()), b"0123456789abcdef"
    host = hashlib.sha256(b"docora.example").digest()
    public = ES256.from_cryptography_key(key.public_key())
    credential_data = AttestedCredentialData.create(Aaguid(bytes(16)), identifier, public)
    stored = AttestationObject.create("none", AuthenticatorData.create(host, 0x45, 0, credential_data), {})
    created = CollectedClientData.create("webauthn.create", bytes(32), "https://docora.example")
    credential = {"id": websafe_encode(identifier), "rawId": websafe_encode(identifier), "type": "public-key"}
    response = {"clientDataJSON": websafe_encode(created), "attestationObject": websafe_encode(stored)}
    passkey = {"name": "Laptop", "credential": credential | {"response": response}}
    Authenticator.objects.create(user=anna, type="webauthn", data=passkey)

    again, second = f"{SECURITY}passkeys/reauthenticate/", f"{SECURITY}authenticate/"

    def use_at(origin: str, client: Client, path: str) -> str:
        page = client.get(path, headers={"accept": "application/json"}).content.decode()
        assert path != second or "passkey-button" in page
        challenge = re.search(r'"challenge": "([^"]+)"', page)[1]
        asked = CollectedClientData.create("webauthn.get", challenge, origin)
        shown = AuthenticatorData.create(host, 0x05, 1)
        signature = key.sign(shown + hashlib.sha256(asked).digest(), ec.ECDSA(hashes.SHA256()))
        response = {"clientDataJSON": asked, "authenticatorData": shown, "signature": signature}
        response["userHandle"] = user_pk_to_url_str(anna).encode()
        encoded = {name: websafe_encode(value) for name, value in response.items()}
        answer = client.post(path, {"credential": json.dumps(credential | {"response": encoded})})
        return answer.headers.get("Location", "")

    for origin, pages in {
        "https://docora.example": ["/admin/"] * 3,
        "https://docora.example:8443": ["/admin/"] * 3,
        "https://pages.docora.example": [LOGIN, "", again],
    }.items():
        client, with_password = Client(headers={"host": "docora.example"}), Client(headers={"host": "docora.example"})
        first = use_at(origin, client, f"{SECURITY}passkeys/sign-in/")
        try_to_sign_in(PASSWORD, client=with_password)
        client.force_login(anna)
        assert [first, use_at(origin, with_password, second), use_at(origin, client, again)] == pages


# --- Links --------------------------------------------------------------------------------------------------------------


def links_path(user: User) -> str:
    user.refresh_from_db()
    return reverse("sign_in_link", args=[links.make_token(user)])


def test_link_signs_in_once_without_second_factor(anna, settings, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_totp(signed_in(anna))
    call_command("sign_in_link", "anna")
    url = capsys.readouterr().out.strip()
    assert url.startswith(f"{settings.PUBLIC_URL}/accounts/link/")
    path = url.removeprefix(settings.PUBLIC_URL)
    client = Client()
    assert "signs you in as <strong>anna</strong>" in client.get(path).content.decode()
    assert client.get("/admin/").status_code == 302, "opening it does not sign in"
    assert client.post(path)["Location"] == SECURITY
    assert client.get("/admin/").status_code == 200
    assert [Client().get(path).status_code, Client().post(path).status_code] == [410, 410]


def test_new_secret_key_ends_sessions_and_links_as_the_handbook_says(anna, settings) -> None:
    client, path = signed_in(anna), links_path(anna)
    assert client.get("/admin/").status_code == 200
    settings.SECRET_KEY = secrets.token_urlsafe(50)
    assert [client.get("/admin/").status_code, client.get(path).status_code] == [302, 410]


@pytest.mark.parametrize("signed_in_before", [True, False])
def test_link_that_is_pressed_twice_at_once_signs_in_once(anna, monkeypatch, signed_in_before: bool) -> None:
    if signed_in_before:
        signed_in(anna)
    path, read = links_path(anna), links.user_of

    def read_while_the_other_signs_in(token: str) -> User:
        user = read(token)
        monkeypatch.setattr(links, "user_of", read)
        assert Client().post(path).status_code == 302
        return user

    monkeypatch.setattr(links, "user_of", read_while_the_other_signs_in)
    late = Client()
    assert late.post(path).status_code == 410
    assert late.get("/admin/").status_code == 302


def test_second_factor_that_no_key_decrypts_can_be_removed_after_a_link(anna, settings) -> None:
    secret = set_up_totp(signed_in(anna))
    settings.ENCRYPTION_KEYS = ["another-key-of-docora"]
    client = Client()
    try_to_sign_in(PASSWORD, client=client)
    refused = client.post(f"{SECURITY}authenticate/", {"code": code_of(secret)})
    assert refused.status_code == 500
    assert "be decrypted with any key in ENCRYPTION_KEYS." in refused.content.decode()
    anna.refresh_from_db()
    page = client.post(f"/accounts/link/{links.make_token(anna)}/", follow=True).content.decode()
    assert f'href="{SECURITY}app/remove/"' in page
    assert client.get(f"{SECURITY}app/remove/").status_code == 200
    client.post(f"{SECURITY}app/remove/")
    assert not Authenticator.objects.exists()
    set_up_totp(client)
    handbook = " ".join(client.get("/docs/operations/").text.split())
    assert "only the syncs and sign-ins that need it fail" in handbook
    assert "authenticator apps no longer sign in" in handbook


def test_link_expires_and_ends_with_another_sign_in(anna, monkeypatch: pytest.MonkeyPatch) -> None:
    path = links_path(anna)
    later = time.time() + links.MAX_AGE_SECONDS + 1
    with monkeypatch.context() as moved:
        moved.setattr(signing.time, "time", lambda: later)
        assert Client().post(path).status_code == 410
    try_to_sign_in(PASSWORD)
    assert Client().post(path).status_code == 410


def test_link_for_an_inactive_or_unknown_user(anna) -> None:
    path = links_path(anna)
    User.objects.update(is_active=False)
    assert Client().post(path).status_code == 410
    assert Client().get("/accounts/link/forged/").status_code == 410
    for name in ("anna", "nobody"):
        with pytest.raises(CommandError):
            call_command("sign_in_link", name)


# --- Proxies, idle sessions ---------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(settings) -> str:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.1/32")]
    settings.REMOTE_USER_HEADER = "X-Remote-User"
    settings.AUTHENTICATION_BACKENDS = [*settings.AUTHENTICATION_BACKENDS, recency.PROXY_BACKEND]
    place = settings.MIDDLEWARE.index("django.contrib.auth.middleware.AuthenticationMiddleware") + 1
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE[:place],
        "docora.sign_in.proxy.ProxyUserMiddleware",
        *settings.MIDDLEWARE[place:],
    ]
    return "10.0.0.1"


def test_user_of_the_proxy(anna, proxy: str) -> None:
    client = Client(REMOTE_ADDR=proxy)
    assert client.get("/admin/", headers={"x-remote-user": "anna"}).status_code == 200
    assert client.get("/admin/", headers={"x-remote-user": "anna"}).status_code == 200
    assert client.get("/admin/").status_code == 302, "without the header, the session ends"


def test_session_that_began_with_a_password_behind_the_proxy(anna, proxy: str) -> None:
    client = Client(REMOTE_ADDR=proxy)
    try_to_sign_in(PASSWORD, client=client)
    for headers in ({}, {"x-remote-user": "mallory"}):
        assert client.get("/admin/", headers=headers).status_code == 200
    User.objects.create_superuser("otto")
    client.get("/admin/", headers={"x-remote-user": "otto"})
    assert get_user(client).username == "otto"


@pytest.mark.parametrize(("address", "name"), [("203.0.113.9", "anna"), ("10.0.0.1", "mallory"), ("10.0.0.1", "")])
def test_header_that_does_not_count(anna, proxy: str, address: str, name: str) -> None:
    answer = Client(REMOTE_ADDR=address).get("/admin/", headers={"x-remote-user": name})
    assert answer.status_code == 302
    assert User.objects.count() == 1
    failures = AuditEntry.objects.filter(action=AuditAction.SIGN_IN_FAILED)
    assert failures.count() == (name == "mallory")


def test_name_of_the_proxy_is_utf_8(db, proxy: str) -> None:
    User.objects.create_superuser("josé")
    client = Client(REMOTE_ADDR=proxy)
    headers = {"x-remote-user": "josé".encode().decode("latin-1")}  # as WSGI servers pass headers
    assert client.get("/admin/", headers=headers).status_code == 200
    assert client.get("/admin/", headers={"x-remote-user": "jos\xe9"}).status_code == 302, "not UTF-8"


def test_only_pages_with_a_session_use_the_name_of_the_proxy(anna, proxy: str) -> None:
    client = Client(REMOTE_ADDR=proxy, headers={"x-remote-user": "anna"})
    assert client.get("/docs/").status_code == 200
    assert Session.objects.count() == 0
    assert client.get("/accounts/security/").status_code == 200


def test_user_of_the_proxy_is_not_asked_to_confirm(anna, proxy: str) -> None:
    app = make_app("Portal")
    client = Client(REMOTE_ADDR=proxy, headers={"x-remote-user": "anna"})
    client.get("/admin/")
    make_old(client)
    client.post(f"/admin/deliveries_app/app/{app.pk}/settings/", app_form(app, base_url="https://new.example"))
    app.refresh_from_db()
    assert app.base_url == "https://new.example"


def test_idle_session_ends_and_polls_do_not_keep_it_alive(anna, settings) -> None:
    client = signed_in(anna)
    make_old(client, settings.SESSION_IDLE_SECONDS - 10, "active_at")
    before = client.session["active_at"]
    assert client.get("/admin/live/overview/", headers={"hx-request": "true"}).status_code == 200
    assert client.session["active_at"] == before
    client.get("/admin/")
    assert client.session["active_at"] > before
    make_old(client, settings.SESSION_IDLE_SECONDS + 1, "active_at")
    assert client.get("/admin/").status_code == 302
    assert "_auth_user_id" not in client.session


def test_session_that_was_used_while_the_clock_was_ahead_ends(anna, settings) -> None:
    client = signed_in(anna)
    make_old(client, -3600, "active_at")
    assert client.get("/accounts/security/").status_code == 200
    assert client.session["active_at"] <= time.time()
    make_old(client, -settings.SESSION_IDLE_SECONDS - 10, "active_at")
    assert client.get("/accounts/security/").status_code == 302
    assert "_auth_user_id" not in client.session


def test_session_of_a_deactivated_user_ends(anna) -> None:
    client = signed_in(anna)
    for is_active in (False, True):
        User.objects.update(is_active=is_active)
        assert client.get("/admin/").status_code == 302


@pytest.mark.parametrize("limit", [28800, 0])
def test_activity_is_written_at_most_once_a_minute(anna, settings, limit: int) -> None:
    settings.SESSION_IDLE_SECONDS = limit
    client = signed_in(anna)
    for seconds, writes in ((30, 0), (90, 1)):
        make_old(client, seconds, "active_at")
        with CaptureQueriesContext(db_connection) as queries:
            client.get("/admin/password_change/")
        assert sum(query["sql"].startswith("UPDATE") for query in queries) == writes


def test_session_with_a_short_limit_stays_open_while_it_is_used(
    anna, settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SESSION_IDLE_SECONDS = 60
    client, now = signed_in(anna), time.time()
    for seconds in (30, 59, 89):
        monkeypatch.setattr(time, "time", lambda at=now + seconds: at)
        assert client.get("/admin/password_change/").status_code == 200


# --- Confirming that it's you -------------------------------------------------------------------------------------------


def app_form(app: App, **changes: object) -> dict[str, object]:
    fields = {"name": app.name, "base_url": app.base_url, "email": app.email, "website": "", "description": ""}
    return fields | {"max_in_flight": 8, "initial-paused": "False", "answers_verify": "", **changes}


def test_base_url_changes_only_after_a_recent_sign_in(anna) -> None:
    app = make_app("Portal")
    client, page = signed_in(anna), f"/admin/deliveries_app/app/{app.pk}/settings/"
    make_old(client)
    answer = client.post(page, app_form(app, description="Unchanged URL."))
    assert answer["Location"] == f"/admin/deliveries_app/app/{app.pk}/change/", "other settings need none"
    form = app_form(app, base_url="https://new.example", description="Kept.")
    answer = client.post(page, form)
    assert answer["Location"] == f"{CONFIRM}?next={page.replace('/', '%2F')}"
    app.refresh_from_db()
    assert (app.base_url, app.description) == ("https://x.example", "Unchanged URL.")
    raw = [row.get_decoded() for row in Session.objects.all()]
    assert "new.example" not in json.dumps(raw), "what was entered is encrypted in the session"
    assert client.post(answer["Location"], {"password": WRONG, "next": page}).status_code == 200
    assert client.post(answer["Location"], {"password": PASSWORD, "next": page}).status_code == 302
    app.refresh_from_db()
    assert (app.base_url, app.description) == ("https://new.example", "Kept.")
    assert client.post(page, app_form(app, base_url="https://newer.example")).status_code == 302
    app.refresh_from_db()
    assert app.base_url == "https://newer.example", "asked once"


def test_github_app_is_assigned_only_after_a_recent_sign_in(anna) -> None:
    """With it, the app can have every repository sent to it that the GitHub App can read."""
    app = make_app("Portal")
    github_app = GitHubApp.objects.create(name="Docora", host="https://github.com", app_id="1", private_key="x")
    client, page = signed_in(anna), f"/admin/deliveries_app/app/{app.pk}/settings/"
    make_old(client)
    answer = client.post(page, app_form(app, github_app=github_app.pk))
    app.refresh_from_db()
    assert (answer["Location"].startswith(CONFIRM), app.github_app) == (True, None)
    client.post(answer["Location"], {"password": PASSWORD, "next": page})
    app.refresh_from_db()
    assert app.github_app == github_app


def test_kept_form_is_dropped_when_the_user_went_elsewhere(anna) -> None:
    app = make_app("Portal")
    client = signed_in(anna)
    make_old(client)
    client.post(f"/admin/deliveries_app/app/{app.pk}/settings/", app_form(app, base_url="https://new.example"))
    answer = client.post(f"{CONFIRM}?next={SECURITY}", {"password": PASSWORD, "next": SECURITY})
    assert answer["Location"] == SECURITY
    assert recency.NOT_SAVED in client.get(SECURITY).content.decode()
    app.refresh_from_db()
    assert app.base_url == "https://x.example"


def test_kept_form_expires(anna, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app("Portal")
    client, page = signed_in(anna), f"/admin/deliveries_app/app/{app.pk}/settings/"
    make_old(client)
    client.post(page, app_form(app, base_url="https://new.example"))
    monkeypatch.setattr(recency, "KEPT_SECONDS", -1)
    assert client.post(CONFIRM, {"password": PASSWORD, "next": page})["Location"] == page
    assert recency.NOT_SAVED in client.get(page).content.decode()
    app.refresh_from_db()
    assert app.base_url == "https://x.example"


def test_kept_form_becomes_invalid(anna) -> None:
    client, page = signed_in(anna), "/admin/auth/group/add/"
    make_old(client)
    client.post(page, {"name": "Everyone"})
    Group.objects.create(name="Everyone")
    assert client.post(CONFIRM, {"password": PASSWORD, "next": page})["Location"] == page
    assert recency.NOT_SAVED in client.get(page).content.decode()


def test_kept_form_of_a_popup(anna) -> None:
    """Django answers it with a page that closes the popup and selects the new group."""
    client, page = signed_in(anna), "/admin/auth/group/add/?_to_field=id&_popup=1"
    make_old(client)
    client.post(page, {"name": "Everyone", "_to_field": "id", "_popup": "1"})
    answer = client.post(CONFIRM, {"password": PASSWORD, "next": page})
    assert (answer.status_code, Group.objects.filter(name="Everyone").count()) == (200, 1)
    assert "data-popup-response" in answer.content.decode()
    assert recency.NOT_SAVED not in client.get(page).content.decode()


def test_every_sensitive_page_asks(anna) -> None:
    app = make_app("Portal")
    watch = make_watch(app, "docs")
    otto = User.objects.create_user("otto", password=PASSWORD, is_staff=True)
    group, permission = Group.objects.create(name="Reviewers"), Permission.objects.get(codename="delete_app")
    github_app = GitHubApp.objects.create(name="Docora", host="github.com", app_id="1", private_key="x")
    client, admin = signed_in(anna), "/admin/deliveries_app"
    make_old(client)
    new = "a-long-enough-passphrase"
    user_form = {"username": "otto", "is_active": "on"}
    for page, form in {
        f"{admin}/app/{app.pk}/rotate-token/": {"overlap": "1"},
        f"{admin}/app/{app.pk}/rotate-key/": {"client_auth_key": ""},
        f"{admin}/app/{app.pk}/retire-tokens/": {"post": "yes"},
        f"{admin}/apprepository/{watch.pk}/token/": {"github_token": "ghp_another"},
        f"{admin}/apprepository/{watch.pk}/push-secret/": {"post": "yes"},
        f"/admin/auth/user/{otto.pk}/change/": user_form | {"is_superuser": "on", "is_staff": "on"},
        f"/admin/auth/user/{otto.pk}/change/?": user_form | {"username": "ottilie", "is_staff": "on"},
        f"/admin/auth/user/{otto.pk}/change/?staff": user_form,
        f"/admin/auth/user/{otto.pk}/change/?active": {"username": "otto", "is_staff": "on"},
        f"/admin/auth/user/{otto.pk}/change/?groups": user_form | {"is_staff": "on", "groups": group.pk},
        f"/admin/auth/user/{otto.pk}/change/?rights": user_form | {"is_staff": "on", "user_permissions": permission.pk},
        f"/admin/auth/user/{otto.pk}/delete/": {"post": "yes"},
        "/admin/auth/user/": {"action": "delete_selected", "_selected_action": otto.pk, "post": "yes"},
        f"/admin/auth/user/{otto.pk}/password/": {"password1": new, "password2": new, "usable_password": "true"},
        "/admin/auth/user/add/": {"username": "mia", "password1": new, "password2": new, "usable_password": "true"},
        "/admin/auth/group/add/": {"name": "Everyone"},
        f"/admin/auth/group/{group.pk}/change/": {"name": "Renamed"},
        f"/admin/auth/group/{group.pk}/change/?": {"name": "Reviewers", "permissions": permission.pk},
        f"/admin/auth/group/{group.pk}/delete/": {"post": "yes"},
        "/admin/auth/group/": {"action": "delete_selected", "_selected_action": group.pk, "post": "yes"},
        f"/admin/repositories_app/githubapp/{github_app.pk}/delete/": {"post": "yes"},
        "/admin/repositories_app/githubapp/": {
            "action": "delete_selected",
            "_selected_action": github_app.pk,
            "post": "yes",
        },
    }.items():
        answer = client.post(page, form)
        assert answer.status_code == 302, page
        assert answer["Location"].startswith(CONFIRM), page
    otto.refresh_from_db()
    watch.refresh_from_db()
    assert (otto.is_superuser, otto.check_password(PASSWORD), watch.github_token) == (False, True, "ghp_secret")
    assert app.tokens.count() == 1
    assert not Group.objects.filter(name="Everyone").exists()
    assert Group.objects.filter(name="Reviewers").exists()
    assert GitHubApp.objects.exists()
    assert not AuditEntry.objects.filter(action__in=[AuditAction.USER_DELETED, AuditAction.GROUP_DELETED]).exists()
    assert client.post(f"/admin/auth/user/{otto.pk}/change/", user_form | {"is_staff": "on", "email": "o@x.example"})[
        "Location"
    ].startswith("/admin/auth/user/")


@pytest.mark.parametrize("page", ["/admin/auth/group/{}/delete/", "/admin/auth/group/"])
def test_groups_are_deleted_after_a_sign_in(anna, page: str) -> None:
    group = Group.objects.create(name="Reviewers")
    client, page = signed_in(anna), page.format(group.pk)
    make_old(client)
    form = {"post": "yes", "action": "delete_selected", "_selected_action": group.pk}
    answer = client.post(page, form)
    assert Group.objects.filter(pk=group.pk).exists()
    answer = client.post(answer["Location"], {"password": PASSWORD, "next": page})
    assert answer["Location"] == "/admin/auth/group/"
    assert not Group.objects.filter(pk=group.pk).exists()


def test_resync_never_asks(anna) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    client = signed_in(anna)
    make_old(client)
    page = f"/admin/deliveries_app/apprepository/force-resync/?ids={watch.pk}"
    digest = re.search(r'name="digest" value="([^"]+)"', client.get(page).content.decode())
    answer = client.post(page, {"post": "yes", "ids": watch.pk, **({"digest": digest[1]} if digest else {})})
    assert answer.status_code == 302
    assert not answer["Location"].startswith(CONFIRM)
    assert AppRepository.objects.get().request_count == watch.request_count + 1


def test_code_confirms_too(anna) -> None:
    app = make_app("Portal")
    client = signed_in(anna)
    secret = set_up_totp(client)
    make_old(client)
    page = f"/admin/deliveries_app/app/{app.pk}/rotate-token/"
    client.post(page, {"overlap": "1"})
    assert "Use a code" in client.get(f"{CONFIRM}?next={page}").content.decode()
    answer = client.post(f"{SECURITY}reauthenticate/", {"code": code_of(secret), "next": page})
    assert answer["Location"] == "/admin/deliveries_app/app/secrets/"
    assert app.tokens.count() == 2


def test_user_without_any_way_to_confirm(db) -> None:
    client = signed_in(User.objects.create_superuser("rosa"))
    make_old(client)
    app = make_app("Portal")
    answer = client.post(f"/admin/deliveries_app/app/{app.pk}/rotate-token/", {"overlap": "1"})
    assert answer.status_code == 403
    assert "Sign out and sign in again" in answer.content.decode()


def test_session_without_a_time_counts_as_old(anna) -> None:
    client = signed_in(anna)
    session = client.session
    del session[recency.AUTHENTICATED_AT]
    session.save()
    app = make_app("Portal")
    answer = client.post(f"/admin/deliveries_app/app/{app.pk}/rotate-token/", {"overlap": "1"})
    assert answer["Location"].startswith(CONFIRM)


def test_own_factors_change_only_after_a_recent_sign_in(anna) -> None:
    client = signed_in(anna)
    make_old(client, timedelta(hours=1).total_seconds())
    assert client.get(f"{SECURITY}app/add/")["Location"].startswith(CONFIRM)


def test_form_of_an_own_factor_is_kept_encrypted(anna) -> None:
    client = signed_in(anna)
    set_up_totp(client)
    make_old(client)
    answer = client.post(f"{SECURITY}app/remove/", {"note": "what-was-entered"})
    assert answer["Location"] == f"{CONFIRM}?next=%2Faccounts%2Fsecurity%2Fapp%2Fremove%2F"
    raw = [row.get_decoded() for row in Session.objects.all()]
    assert "what-was-entered" not in json.dumps(raw)
    assert (
        "This change needs a recent sign-in. Docora keeps your input" in client.get(answer["Location"]).content.decode()
    )
    answer = client.post(answer["Location"], {"password": PASSWORD, "next": f"{SECURITY}app/remove/"})
    assert answer["Location"] == SECURITY
    assert not Authenticator.objects.exists()


def test_form_of_a_stranger_is_not_kept(db) -> None:
    """Anyone could fill the database."""
    for page in ("app/add/", "passkeys/add/", "passkeys/1/remove/", "recovery-codes/new/"):
        answer = Client().post(f"{SECURITY}{page}", {"note": "what-was-entered"})
        assert answer["Location"] == f"{LOGIN}?next={SECURITY}{page}"
    assert not Session.objects.exists()


def test_page_of_an_own_factor_is_shown_after_a_sign_in(anna) -> None:
    client, page = signed_in(anna), f"{SECURITY}app/add/"
    make_old(client)
    confirm = client.get(page)["Location"]
    text = client.get(confirm).content.decode()
    assert "This page needs a recent sign-in." in text
    assert "Docora keeps your input" not in text
    assert client.post(confirm, {"password": PASSWORD, "next": page})["Location"] == page


def test_confirmation_lasts_as_long_as_the_setting_says(anna, settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.REAUTHENTICATE_AFTER_SECONDS = 60
    client, page = signed_in(anna), f"{SECURITY}app/add/"
    make_old(client)
    client.post(CONFIRM, {"password": PASSWORD, "next": page})
    assert client.get(page).status_code == 200
    for seconds in (61, -61):  # the clock may have been ahead
        make_old(client, seconds)
        assert client.get(page)["Location"].startswith(CONFIRM)
    now = time.time()
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time", lambda later=now + 3600: later)
        client.post(CONFIRM, {"password": PASSWORD, "next": page})
    assert client.get(page).headers.get("Location", "").startswith(CONFIRM)


def test_refused_passkey_keeps_the_form(anna, settings) -> None:
    settings.ALLOWED_HOSTS = ["localhost"]
    app = make_app("Portal")
    client = Client(headers={"host": "localhost"})
    client.force_login(anna)
    Authenticator.objects.create(user=anna, type="webauthn", data={"name": "Laptop", "credential": {}})
    make_old(client)
    page = f"/admin/deliveries_app/app/{app.pk}/settings/"
    client.post(page, app_form(app, base_url="https://new.example"))
    answer = client.post(f"{SECURITY}passkeys/reauthenticate/", {"credential": "{}", "next": page})
    assert answer["Location"] == f"{SECURITY}passkeys/reauthenticate/?next={page.replace('/', '%2F')}"
    assert client.post(CONFIRM, {"password": PASSWORD, "next": page}).status_code == 302
    app.refresh_from_db()
    assert app.base_url == "https://new.example"
