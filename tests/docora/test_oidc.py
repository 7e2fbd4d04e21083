"""Sign-in at a real OpenID Connect provider: roles, refusals, and confirming with fresh credentials."""

import ipaddress
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from allauth.socialaccount.models import SocialAccount, SocialLogin
from allauth.socialaccount.providers.oauth2.client import OAuth2Client
from allauth.socialaccount.providers.openid_connect.views import OpenIDConnectOAuth2Adapter
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse

from deliveries_app import audit
from deliveries_app.models import AuditAction, AuditEntry
from docora.sign_in import adapters, links, oidc, provider_http, recency, views
from tests.docora.http_server import saying, servers
from tests.docora.test_sign_in import app_form, code_of, make_old, set_up_totp
from tests.support.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider, Person
from tests.support.staff import make_app

CALLBACK = "http://testserver/accounts/oidc/login/callback/"
START = "/accounts/oidc/login/"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentityProvider]:
    provider = IdentityProvider([CALLBACK], tmp_path_factory.mktemp("provider") / "log")
    yield provider
    provider.stop()


@pytest.fixture(autouse=True)
def configured(provider: IdentityProvider, settings, db) -> None:
    Group.objects.get_or_create(name="Viewers")
    settings.OIDC_ISSUER = provider.issuer
    settings.OIDC_NAME = "Canaille"
    settings.OIDC_CLIENT_SECRET = CLIENT_SECRET
    settings.OIDC_USERNAME_CLAIM = "sub"
    settings.OIDC_ROLES = [("docora-admins", "superuser"), ("docora-readers", "Viewers"), ("docora-admins", "Nobody")]
    settings.OIDC_ALLOWED_NETWORKS = [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")]
    app = {"provider_id": "oidc", "name": "Canaille", "client_id": CLIENT_ID, "secret": CLIENT_SECRET}
    app["settings"] = {"server_url": provider.issuer, "scope": ["openid", "profile", "email", "groups"]}
    app["settings"]["token_auth_method"] = settings.OIDC_CLIENT_AUTH
    settings.SOCIALACCOUNT_PROVIDERS = {"openid_connect": {"OAUTH_PKCE_ENABLED": True, "APPS": [app]}}
    provider_http._KEPT.clear()


def use_provider(url: str) -> None:
    settings.SOCIALACCOUNT_PROVIDERS["openid_connect"]["APPS"][0]["settings"]["server_url"] = url


@contextmanager
def discovering(document: bytes) -> Iterator[None]:
    """Serve a discovery document and use it instead of the provider's."""
    with servers() as start:
        server = start(saying("200 OK", document, "Content-Type: application/json"))
        use_provider(f"http://127.0.0.1:{server.port}")
        yield


def sign_in(client: Client, person: Person, path: str = START, **changes: str | None) -> HttpResponse:
    """Go through the provider and back. `changes` replace parameters of the request to the provider, None removes one."""
    started = client.get(path)
    assert started.status_code == 302, started.content.decode()
    return back(client, person, started["Location"], **changes)


def back(client: Client, person: Person, url: str, **changes: str | None) -> HttpResponse:
    address, _, query = url.partition("?")
    parameters = {name: values[0] for name, values in parse_qs(query).items()} | changes
    query = urlencode({name: value for name, value in parameters.items() if value is not None})
    returned = person.authorize(f"{address}?{query}")
    assert returned.startswith(CALLBACK), returned
    return client.get(f"{urlsplit(returned).path}?{urlsplit(returned).query}")


def back_with_a_made_up_code(client: Client, url: str) -> HttpResponse:
    """An unused code of the provider would confuse it."""
    [state] = parse_qs(urlsplit(url).query)["state"]
    return client.get(f"/accounts/oidc/login/callback/?state={state}&code=x")


def test_groups_give_roles(client: Client, settings, caplog: pytest.LogCaptureFixture) -> None:
    settings.SECOND_FACTOR_ROLES = ["superuser", "Viewers"]  # the provider can ask for one
    assert "Sign in with Canaille" in client.get("/accounts/login/").content.decode()
    answer = sign_in(client, Person("olga"), f"{START}?next=/admin/deliveries_app/app/")
    assert (answer.status_code, answer["Location"]) == (302, "/admin/deliveries_app/app/")
    assert client.get("/admin/auth/user/").status_code == 200
    olga = User.objects.get()
    assert (olga.username, olga.email, olga.is_staff, olga.is_superuser) == ("olga", "olga@example.org", True, True)
    assert not olga.has_usable_password()
    assert [record.groups for record in caplog.records if record.message == "oidc_group_missing"] == [["Nobody"]]
    reader = Client()
    sign_in(reader, Person("rita"))
    rita = User.objects.get(username="rita")
    assert (rita.is_staff, rita.is_superuser, [group.name for group in rita.groups.all()]) == (True, False, ["Viewers"])
    assert reader.get("/admin/").status_code == 200
    assert reader.get("/admin/auth/user/").status_code == 403


def test_user_without_a_mapped_group_is_refused_and_not_created(client: Client) -> None:
    answer = sign_in(client, Person("norbert"))
    assert answer.status_code == 403
    assert "None of your groups has access to Docora" in answer.content.decode()
    assert client.get("/admin/").status_code == 302
    assert (User.objects.count(), SocialAccount.objects.count()) == (0, 0)


def test_name_that_is_taken_during_the_first_sign_in(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_name_taken(name: str) -> bool:
        monkeypatch.undo()
        User.objects.create_user(name, password="x")
        return False

    monkeypatch.setattr(oidc, "is_name_taken", is_name_taken)
    again = sign_in(client, Person("olga"))["Location"]
    assert (again, User.objects.count()) == (f"{START}?next=/admin/", 1)


@pytest.mark.parametrize("is_taken", [False, True])
def test_first_sign_in_in_two_browsers_at_once(
    client: Client, monkeypatch: pytest.MonkeyPatch, *, is_taken: bool
) -> None:
    olga, other = Person("olga"), Client()

    def is_name_taken(name: str) -> bool:
        monkeypatch.undo()
        assert sign_in(other, olga)["Location"] == "/admin/"
        return is_taken

    monkeypatch.setattr(oidc, "is_name_taken", is_name_taken)
    location = sign_in(client, olga, f"{START}?next=/admin/auth/user/")["Location"]
    if not is_taken:
        assert location == f"{START}?next=/admin/auth/user/"
        location = sign_in(client, olga, location)["Location"]
    assert location == "/admin/auth/user/"
    assert [user.username for user in User.objects.all()] == ["olga"]
    assert client.get(location).status_code == 200


def test_roles_follow_the_provider(client: Client, settings) -> None:
    rita = Person("rita")
    sign_in(client, rita)
    User.objects.update(is_superuser=True)
    sign_in(Client(), rita)
    assert not User.objects.get().is_superuser, "a role that the provider does not give is taken away"
    settings.OIDC_ROLES = [("docora-admins", "superuser")]
    assert sign_in(Client(), rita).status_code == 403
    user = User.objects.get()
    assert (user.is_staff, user.groups.count()) == (False, 0)
    assert client.get("/admin/", follow=True).status_code == 403, "in open sessions, too"


def test_roles_of_the_provider_are_in_the_audit_log(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    rita = Person("rita")
    sign_in(client, rita)
    User.objects.update(is_superuser=True)
    sign_in(Client(), rita)
    sign_in(Client(), rita)
    first, second = AuditEntry.objects.filter(action=AuditAction.USER_CHANGED).order_by("pk")
    assert (first.actor, first.address, first.subject) == ("Docora", "127.0.0.1", "rita")
    assert first.message == "From the identity provider: Staff status: no → yes; groups: nothing → Viewers"
    assert (second.old, second.new) == ({"superuser status": True}, {"superuser status": False})
    User.objects.update(is_superuser=True)
    monkeypatch.setattr(audit, "record", None)
    with pytest.raises(TypeError):
        sign_in(Client(), rita)
    assert User.objects.get().is_superuser, "no role changes without an entry"


def test_password_of_a_user_of_the_provider_does_not_sign_in(client: Client, settings) -> None:
    """Otherwise a password or a passkey would outlive the account at the provider."""
    sign_in(client, Person("rita"))
    assert "You sign in with Canaille." in client.get("/accounts/security/").content.decode()
    rita = User.objects.get()
    rita.set_password("correct horse")
    rita.save()
    local = Client()
    answer = local.post("/accounts/login/", {"login": "rita", "password": "correct horse"})
    assert (answer.status_code, "Sign in with Canaille instead." in answer.content.decode()) == (403, True)
    assert local.get("/admin/").status_code == 302
    assert sign_in(Client(), Person("rita")).status_code == 302
    assert client.post(reverse("sign_in_link", args=[links.make_token(User.objects.get())])).status_code == 302
    settings.OIDC_ISSUER = ""
    assert Client().post("/accounts/login/", {"login": "rita", "password": "correct horse"}).status_code == 302


def test_page_of_a_user_says_that_the_provider_sets_the_roles(client: Client) -> None:
    sign_in(client, Person("olga"))
    hint = "Canaille sets the staff status, the superuser status and the groups at each sign-in"
    assert hint in client.get(f"/admin/auth/user/{User.objects.get().pk}/change/").content.decode()
    local = User.objects.create_user("otto")
    assert hint not in client.get(f"/admin/auth/user/{local.pk}/change/").content.decode()


def test_name_of_a_local_account_is_refused(client: Client) -> None:
    User.objects.create_superuser("Olga", password="x")
    answer = sign_in(client, Person("olga"))
    assert answer.status_code == 403
    assert "There is already another account named “olga”" in answer.content.decode()
    assert User.objects.count() == 1


def test_id_that_belongs_to_an_account_of_another_provider(
    client: Client, provider: IdentityProvider, settings, tmp_path: Path
) -> None:
    """Both providers call a user `olga`, who may be another person at each."""
    olga = Person("olga")
    sign_in(client, olga)
    User.objects.update(username="olga-of-the-first", is_superuser=False)
    first = SocialAccount.objects.values().get()
    second = IdentityProvider([CALLBACK], tmp_path / "log")
    try:
        settings.OIDC_ISSUER = second.issuer
        use_provider(second.issuer)
        other = Client()
        answer = sign_in(other, Person("olga"))
        assert answer.status_code == 403
        assert "Your ID at Canaille is that of an account from another provider." in answer.content.decode()
        assert other.get("/admin/").status_code == 302
        assert SocialAccount.objects.values().get() == first
        assert not User.objects.get().is_superuser
        settings.OIDC_FORMER_ISSUERS = [f"{provider.issuer}/"]  # the same provider has moved
        sign_in(other, Person("olga"))
        assert other.get("/admin/").wsgi_request.user.get_username() == "olga-of-the-first"
        assert SocialAccount.objects.get().extra_data["id_token"]["iss"] == second.issuer
    finally:
        second.stop()


def test_accounts_of_earlier_versions_still_sign_in(client: Client, provider: IdentityProvider) -> None:
    """Without a stored ID token, an account has no issuer until its next sign-in."""
    sign_in(client, Person("olga"))
    for stored in ({}, {"sub": "olga"}, *({"id_token": {"iss": f"{provider.issuer}{end}"}} for end in ("", "/"))):
        SocialAccount.objects.update(extra_data=stored)
        assert sign_in(Client(), Person("olga"))["Location"] == "/admin/"
        assert SocialAccount.objects.get().extra_data["id_token"]["iss"] == provider.issuer


@pytest.mark.parametrize(
    ("claim", "reason"),
    [("name", "sent the username “Olga Example”"), ("groups", "send a username"), ("nick", "send a username")],
)
def test_username_that_docora_cannot_have_is_refused(client: Client, settings, claim: str, reason: str) -> None:
    settings.OIDC_USERNAME_CLAIM = claim
    answer = sign_in(client, Person("olga"))
    assert answer.status_code == 403
    assert reason in answer.content.decode()
    assert User.objects.count() == 0


def test_second_factor_is_asked_for_after_the_provider(client: Client) -> None:
    rita = Person("rita")
    sign_in(client, rita)
    page = client.get("/accounts/security/").content.decode()
    assert "Docora asks for it after the sign-in with Canaille" in page
    secret = set_up_totp(client)
    other = Client()
    assert sign_in(other, rita)["Location"] == "/accounts/security/authenticate/"
    assert "token" not in other.session["account_login"]["signal_kwargs"]["sociallogin"], "the provider's access token"
    assert other.get("/admin/").status_code == 302
    assert other.post("/accounts/security/authenticate/", {"code": code_of(secret)}).status_code == 302
    assert other.get("/admin/").status_code == 200


def test_provider_is_called_only_in_allowed_networks(
    client: Client, settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.OIDC_ALLOWED_NETWORKS = []
    answer = client.get(START)
    assert answer.status_code == 401
    assert "The sign-in with Canaille failed" in answer.content.decode()
    [record] = [record for record in caplog.records if record.message == "provider_sign_in_failed"]
    assert "Only public addresses and OIDC_ALLOWED_NETWORKS are allowed." in record.cause  # type: ignore[attr-defined]


@pytest.mark.parametrize("query", ["", "state=forged&code=x", "error=access_denied", "state=x&error=server_error"])
def test_forged_return_from_the_provider(client: Client, query: str) -> None:
    assert client.get(f"/accounts/oidc/login/callback/?{query}").status_code == 401


@pytest.mark.parametrize(
    ("query", "cause"),
    [
        ("error=invalid_scope&error_description=No%20groups%0Ahere", "invalid_scope: No groups here"),
        ("error=access_denied", "access_denied"),
        ("error_description=x&state=forged", "This browser has begun no such sign-in within 10 minutes."),
        ("", "unknown"),
    ],
)
def test_error_that_the_provider_sends_is_logged(
    client: Client, caplog: pytest.LogCaptureFixture, query: str, cause: str
) -> None:
    [state] = parse_qs(urlsplit(client.get(START)["Location"]).query)["state"]
    client.get(f"/accounts/oidc/login/callback/?state={state}&{query}")
    assert [record.cause for record in caplog.records if record.message == "provider_sign_in_failed"] == [cause]


@pytest.mark.parametrize("missing", ["userinfo_endpoint", "jwks_uri"])
def test_incomplete_discovery_document_at_the_return(
    client: Client, provider: IdentityProvider, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    with urllib.request.urlopen(f"{provider.issuer}/.well-known/openid-configuration", timeout=10) as answer:
        document = json.load(answer)
    del document[missing]
    started = client.get(START)
    with discovering(json.dumps(document).encode()):
        answer = back(client, Person("norbert"), started["Location"])
    assert answer.status_code == 401
    assert "The sign-in with Canaille failed" in answer.content.decode()
    causes = [record.cause for record in caplog.records if record.message == "provider_sign_in_failed"]
    assert causes == [f"The provider's response lacks '{missing}'."]


@pytest.mark.parametrize("document", [b"[]", b"{}", b"<html>"])
def test_discovery_document_of_something_else(client: Client, document: bytes) -> None:
    with discovering(document):
        assert client.get(START).status_code == 401


@pytest.mark.parametrize("response", [["access_token"], {"access_token": "x", "expires_in": "300.5"}, {}])
def test_malformed_response_with_tokens(client: Client, monkeypatch: pytest.MonkeyPatch, response: object) -> None:
    monkeypatch.setattr(OAuth2Client, "get_access_token", lambda *_, **__: response)
    assert back_with_a_made_up_code(client, client.get(START)["Location"]).status_code == 401


def test_response_without_a_content_type(client: Client) -> None:
    with servers() as start:
        port = start(saying("200 OK", b"{}")).port
        document = {"authorization_endpoint": "https://x.example", "token_endpoint": f"http://127.0.0.1:{port}"}
        with discovering(json.dumps(document).encode()):
            assert back_with_a_made_up_code(client, client.get(START)["Location"]).status_code == 401


def test_response_that_repeats_the_client_secret(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """The log must not hold the secret, nor a whole page."""
    with servers() as start:
        page = f"<p>No client has the secret {CLIENT_SECRET}.</p>{'<br>' * 100_000}".encode()
        port = start(saying("401 No", page, "Content-Type: text/html")).port
        document = {"authorization_endpoint": "https://x.example", "token_endpoint": f"http://127.0.0.1:{port}"}
        with discovering(json.dumps(document).encode()):
            assert back_with_a_made_up_code(client, client.get(START)["Location"]).status_code == 401
    [cause] = [record.cause for record in caplog.records if record.message == "provider_sign_in_failed"]
    assert "No client has the secret [redacted]." in cause
    assert len(cause) <= 1000


@pytest.mark.parametrize("name", ["a\0b", "\ud83d", float("nan"), float("inf")])
def test_claim_that_cannot_be_stored(client: Client, monkeypatch: pytest.MonkeyPatch, name: object) -> None:
    information = {"sub": "olga", "groups": ["docora-admins"], "nickname": name}
    monkeypatch.setattr(OpenIDConnectOAuth2Adapter, "_fetch_user_info", lambda *_: information)
    assert sign_in(client, Person("olga")).status_code == 401


def test_user_whose_id_is_too_long(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenIDConnectOAuth2Adapter, "_fetch_user_info", lambda *_: {"sub": "x" * 192})
    assert sign_in(client, Person("olga")).status_code == 401


@pytest.mark.parametrize(
    ("subject", "of_token", "status"),
    [("rita", "olga", 401), (None, "olga", 401), (None, None, 401), (5, "5", 302)],
)
def test_user_information_about_another_user(
    client: Client, monkeypatch: pytest.MonkeyPatch, settings, subject: object, of_token: object, status: int
) -> None:
    settings.OIDC_USERNAME_CLAIM = "preferred_username"
    information = {"sub": subject, "preferred_username": "rita", "groups": ["docora-admins"]}
    monkeypatch.setattr(OAuth2Client, "get_access_token", lambda *_, **__: {"access_token": "x", "id_token": "x"})
    monkeypatch.setattr(OpenIDConnectOAuth2Adapter, "_fetch_user_info", lambda *_: information)
    monkeypatch.setattr(OpenIDConnectOAuth2Adapter, "_decode_id_token", lambda *_: {"sub": of_token, "groups": ["x"]})
    assert back_with_a_made_up_code(client, client.get(START)["Location"]).status_code == status
    assert User.objects.count() == (status == 302)


@pytest.mark.parametrize("information", [None, {"sub": "olga", "preferred_username": 5}])
def test_claims_of_the_id_token(client: Client, monkeypatch: pytest.MonkeyPatch, information: object) -> None:
    """Some providers send the groups only there."""
    monkeypatch.setattr(OpenIDConnectOAuth2Adapter, "_fetch_user_info", lambda *_: information)
    assert sign_in(client, Person("olga"))["Location"] == "/admin/"
    assert User.objects.get(username="olga").is_superuser


@pytest.mark.parametrize("at", [None, "1700000000", "x", ["x"], pytest.param(10**400, id="huge"), float("nan")])
def test_invalid_time_of_authentication(at: object) -> None:
    account = SocialAccount(extra_data={"id_token": {"auth_time": at}})
    assert oidc.authenticated_at(SocialLogin(account=account)) == 0


@pytest.mark.parametrize("groups", [None, 5, True, "docora", ["x", 5, None, ["docora-admins"]], {"x": "docora-admins"}])
def test_groups_that_give_no_role(groups: object) -> None:
    account = SocialAccount(extra_data={"userinfo": {"groups": groups}})
    assert oidc.roles_of(SocialLogin(account=account)) == set()


@pytest.mark.parametrize("groups", ["docora-readers", ["x", "docora-readers"], {"docora-readers": {}}])
def test_groups_that_give_a_role(groups: object) -> None:
    account = SocialAccount(extra_data={"userinfo": {"groups": groups}})
    assert oidc.roles_of(SocialLogin(account=account)) == {"Viewers"}


def test_provider_that_is_unreachable_at_the_return(client: Client) -> None:
    started = client.get(START)
    use_provider("http://127.0.0.1:1")
    answer = back_with_a_made_up_code(client, started["Location"])
    assert answer.status_code == 401
    assert "The sign-in with Canaille failed" in answer.content.decode()


def test_session_that_ends_while_the_provider_answers(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.get(START)

    def sign_out(*_: object) -> object:
        Session.objects.all().delete()
        return provider_http.provider_session()

    monkeypatch.setattr(adapters.SocialAccountAdapter, "get_requests_session", sign_out)
    assert client.get(START).status_code == 400


def test_calls_to_the_provider_occupy_only_some_of_the_threads(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_http, "_CALLS", threading.BoundedSemaphore(1))
    with provider_http._CALLS:
        assert client.get(START).status_code == 401
    assert client.get(START).status_code == 302


def test_many_sign_ins_read_the_discovery_document_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a provider that takes 0.2 s, half of 30 people who signed in at the same time got an error."""
    with servers() as start:
        document = {f"{name}_endpoint": "http://127.0.0.1/" for name in ("authorization", "token")}
        server = start(saying("200 OK", json.dumps(document).encode(), "Content-Type: application/json"))
        use_provider(server.url)
        assert client.get(START).status_code == 302
        monkeypatch.setattr(provider_http, "_CALLS", threading.BoundedSemaphore(1))
        with provider_http._CALLS:
            assert [Client().get(START).status_code for _ in range(3)] == [302] * 3
        assert len(server.requests) == 1
        monkeypatch.setattr(provider_http, "_KEPT_SECONDS", 0.0)
        provider_http._KEPT.clear()
        assert [client.get(START).status_code for _ in range(2)] == [302] * 2
        assert len(server.requests) == 3


def test_redirects_to_the_provider_are_rate_limited(client: Client, settings) -> None:
    settings.ACCOUNT_RATE_LIMITS = settings.ACCOUNT_RATE_LIMITS | {"login": "3/m/ip"}
    assert [client.get(START).status_code for _ in range(4)] == [302] * 3 + [429]
    assert Client(REMOTE_ADDR="203.0.113.10").get(START).status_code == 302


def test_unknown_provider(client: Client) -> None:
    assert client.get("/accounts/another/login/callback/").status_code == 404


def test_responses_of_the_provider_are_limited(monkeypatch: pytest.MonkeyPatch, provider: IdentityProvider) -> None:
    monkeypatch.setattr(provider_http, "MAX_BYTES", 10)
    with (
        provider_http.provider_session() as session,
        pytest.raises(provider_http.requests.ConnectionError, match="too large"),
    ):
        session.get(f"{provider.issuer}/.well-known/openid-configuration")


def test_calls_to_the_provider_follow_no_redirect_and_use_no_netrc(tmp_path: Path, monkeypatch) -> None:
    """The file may hold the password for git on the same host."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login olga password x")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with servers() as start, provider_http.provider_session() as session:
        server = start(saying("302 Found", b"", "Location: /another"))
        with pytest.raises(provider_http.RequestException):
            session.get(server.url)
    [(head, _)] = server.requests
    assert b"Authorization" not in head
    assert b"Accept-Encoding: identity\r\n" in head, "the body is used as it comes"


def test_provider_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_http, "TIMEOUT_SECONDS", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        provider_http.provider_session() as session,
        pytest.raises(provider_http.RequestException, match=r"didn't respond within 0\.5 s"),
    ):
        session.get(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_plain_http_endpoint_of_a_provider_with_https(settings) -> None:
    settings.OIDC_ISSUER = "https://id.example"
    with (
        provider_http.provider_session() as session,
        pytest.raises(
            provider_http.requests.ConnectionError, match=r"https://\. The provider names one with http://\.$"
        ),
    ):
        session.get("http://id.example/token")


def test_provider_sign_in_is_off_unless_configured(client: Client, settings) -> None:
    settings.OIDC_ISSUER = ""
    assert "Sign in with Canaille" not in client.get("/accounts/login/").content.decode()
    for path in (START, "/accounts/oidc/login/callback/"):
        assert client.get(path).status_code == 404


# --- Confirming at the provider -----------------------------------------------------------------------------------------


@pytest.fixture
def olga() -> Person:
    return Person("olga")


def refused_change(client: Client, url: str = "https://new.example") -> tuple[str, str]:
    """Change a base URL in an old session. Return the page, and where it redirects to."""
    app = make_app("Portal")
    session = client.session
    session[recency.AUTHENTICATED_AT] = time.time() - 3600
    session.save()
    page = f"/admin/deliveries_app/app/{app.pk}/settings/"
    answer = client.post(page, app_form(app, base_url=url))
    assert answer["Location"].startswith("/accounts/oidc/reauthenticate/?next=")
    return page, answer["Location"]


def base_url() -> str:
    from deliveries_app.models import App

    return App.objects.get().base_url


def test_change_is_saved_after_fresh_credentials_at_the_provider(client: Client, olga: Person, monkeypatch) -> None:
    sign_in(client, olga)
    assert olga.passwords_entered == 1
    sign_in(Client(), olga)
    assert olga.passwords_entered == 1, "the provider's session is enough to sign in"
    session_before = client.session.session_key
    _, confirm = refused_change(client)
    assert base_url() == "https://x.example"
    with monkeypatch.context() as behind:  # as the provider's clock is
        behind.setattr(views, "time", SimpleNamespace(time=lambda: time.time() + adapters.CLOCK_SECONDS - 5))
        started = client.get(confirm)["Location"]
    assert "&prompt=login&max_age=600" in started
    answer = back(client, olga, started)
    assert answer.status_code == 302, answer.content.decode()
    assert base_url() == "https://new.example"
    assert olga.passwords_entered == 2
    assert client.session.session_key == session_before


def test_kept_form_is_dropped_when_the_user_confirms_something_else(client: Client, olga: Person) -> None:
    sign_in(client, olga)
    refused_change(client)
    other = client.get("/accounts/security/app/add/")["Location"]
    assert sign_in(client, olga, other)["Location"] == "/accounts/security/app/add/"
    assert sign_in(client, olga, "/accounts/oidc/reauthenticate/")["Location"] == "/admin/"
    assert base_url() == "https://x.example"
    page = client.get("/accounts/security/app/add/")
    assert (page.status_code, recency.NOT_SAVED in page.content.decode()) == (200, True)


def test_second_factor_confirms_instead_of_the_provider(client: Client, olga: Person) -> None:
    sign_in(client, olga)
    secret = set_up_totp(client)
    app = make_app("Portal")
    make_old(client)
    page = f"/admin/deliveries_app/app/{app.pk}/settings/"
    confirm = client.post(page, app_form(app, base_url="https://new.example"))["Location"]
    assert confirm.startswith("/accounts/security/reauthenticate/?next=")
    assert "Sign in with Canaille" in client.get(confirm).content.decode()
    client.post(confirm, {"code": code_of(secret), "next": page})
    assert base_url() == "https://new.example"


def test_password_of_a_user_of_the_provider_does_not_confirm(client: Client, olga: Person) -> None:
    sign_in(client, olga)
    user = User.objects.get()
    user.set_password("correct horse")
    user.save()
    client.force_login(user)
    refused_change(client)


@pytest.mark.parametrize("role", ["Viewers", ""])
def test_roles_follow_the_provider_when_it_confirms(client: Client, olga: Person, settings, role: str) -> None:
    sign_in(client, olga)
    _, confirm = refused_change(client)
    settings.OIDC_ROLES = [("docora-admins", role)] if role else []
    assert sign_in(client, olga, confirm).status_code == 403
    assert base_url() == "https://x.example"
    user = User.objects.get()
    assert (user.is_staff, user.is_superuser, user.groups.count()) == (bool(role), False, bool(role))


def test_silent_answer_of_the_provider_does_not_confirm(
    client: Client, olga: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that ignores `prompt=login` returns the time of the first sign-in."""
    monkeypatch.setattr(adapters, "CLOCK_SECONDS", 0)
    sign_in(client, olga)
    time.sleep(1.1)  # auth_time counts whole seconds
    _, confirm = refused_change(client)
    answer = sign_in(client, olga, confirm, prompt=None, max_age=None)
    assert answer.status_code == 403
    assert "didn't ask for your credentials again" in answer.content.decode().replace("&#x27;", "'")
    assert base_url() == "https://x.example"


def test_another_user_cannot_confirm(client: Client, olga: Person) -> None:
    sign_in(client, olga)
    _, confirm = refused_change(client)
    answer = sign_in(client, Person("rita"), confirm)
    assert answer.status_code == 403
    assert "You signed in as a different user" in answer.content.decode()
    assert base_url() == "https://x.example"
    assert client.get("/admin/").status_code == 200


def test_sign_in_counts_from_when_credentials_were_entered(client: Client, olga: Person) -> None:
    sign_in(Client(), olga)
    before = time.time()
    time.sleep(1.1)
    sign_in(client, olga)
    assert before - 5 < client.session[recency.AUTHENTICATED_AT] <= before
    assert "id_token" in SocialAccount.objects.get().extra_data
    assert "access_token" not in json.dumps(SocialAccount.objects.get().extra_data)
