"""Security and cache headers of all responses, and the error pages."""

import os
import re
from pathlib import Path

import pytest
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.test import Client
from django.urls import NoReverseMatch, reverse

from docora.web.middleware import PERMISSIONS_POLICY
from tests.support.commands import manage
from tests.support.staff import staff

EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": PERMISSIONS_POLICY,
}
INLINE = re.compile(r"<style(?![^>]*nonce)|<script(?![^>]*src)|\sstyle=|\son\w+=", re.IGNORECASE)


@pytest.fixture
def admin(admin_user) -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(admin_user)
    return client


@pytest.mark.parametrize(
    "address",
    ["/admin/", "/accounts/login/", "/accounts/security/", "/health", "/api/repositories", "/nothing", "/docs/"],
)
def test_every_response_has_security_headers(admin: Client, address: str) -> None:
    response = admin.get(address)
    assert {name: response.headers.get(name) for name in EVERYWHERE} == EVERYWHERE
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    "address",
    ["/admin/", "/admin/deliveries_app/app/", "/admin/password_change/", "/admin/live/", "/admin/api/repositories"],
)
def test_admin_pages_are_not_cached(admin: Client, address: str) -> None:
    assert "no-store" in admin.get(address).headers["Cache-Control"]


def test_static_files_may_be_cached(client: Client) -> None:
    assert "max-age" in client.get("/static/docora/docora.css").headers["Cache-Control"]


def test_session_cookie_is_httponly_and_samesite(client: Client, admin_user) -> None:
    response = client.post("/accounts/login/", {"login": "admin", "password": "password"})
    assert response.status_code == 302
    cookie = response.cookies["sessionid"]
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Lax")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (SuspiciousOperation("forged"), 400, "Bad request"),
        (PermissionDenied("You need the permission x."), 403, "You need the permission x."),
        (PermissionDenied(), 403, "have the required permission."),
        (RuntimeError("ghp_PlantedPlanted"), 500, "Something went wrong"),
    ],
)
def test_error_pages_satisfy_the_content_security_policy(
    admin: Client, monkeypatch, error: Exception, status: int, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("deliveries_app.site.DocoraAdminSite.get_app_list", fail)
    response = admin.get("/admin/")
    page = response.content.decode()
    assert response.status_code == status
    assert message in page
    assert "<title>" in page
    assert "docora/error.css" in page
    assert not INLINE.search(page)
    assert "ghp_" not in page


def test_form_that_is_too_large(admin: Client, settings) -> None:
    response = admin.post("/admin/deliveries_app/app/add/", {"name": "x" * settings.DATA_UPLOAD_MAX_MEMORY_SIZE})
    page = response.content.decode()
    assert response.status_code == 400
    assert "This form is too large" in page
    assert "Nothing was saved" in page
    assert not INLINE.search(page)


def test_not_found_and_csrf_failure_pages(admin_user) -> None:
    client = Client(enforce_csrf_checks=True)
    missing = client.get("/nothing")
    stale = client.post("/accounts/login/", {"login": "admin", "password": "password"})
    assert (missing.status_code, stale.status_code) == (404, 403)
    assert "Page not found" in missing.content.decode()
    assert "This form has expired" in stale.content.decode()
    assert not INLINE.search(missing.content.decode() + stale.content.decode())


def test_django_rq_pages_are_not_mounted(admin: Client) -> None:
    for address in ("/admin/django_rq/", "/admin/django_rq/dashboard/", "/django-rq/", "/admin/django-rq/"):
        assert admin.get(address).status_code == 404, address
    assert "django_rq" not in admin.get("/admin/").content.decode()
    with pytest.raises(NoReverseMatch):
        reverse("rq_home")


@pytest.mark.parametrize("options", [["--deploy", "--fail-level", "WARNING"], ["--fail-level", "WARNING"]])
def test_django_checks_pass_with_an_https_url(tmp_path: Path, options: list[str]) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "DATA_DIR": str(tmp_path),
        "DOCORA_ENV_FILE": os.devnull,
        "PUBLIC_URL": "https://docora.example",
    }
    result = manage("check", *options, environment=environment)
    assert result.returncode == 0, result.stderr
    assert "no issues (1 silenced)" in result.stdout  # mail.W001: only alerts need a mail server


def test_missing_permission_page(db) -> None:
    response = staff("victor").get("/admin/auth/user/")
    assert response.status_code == 403
    assert "You don't have permission to do this" in response.content.decode()
    assert "Ask an administrator to grant it to you" in response.content.decode()


def test_refusal_that_no_permission_would_lift(client: Client, settings) -> None:
    settings.LOCAL_SIGN_IN = False
    response = client.post("/accounts/security/passkeys/sign-in/", {"credential": "{}"})
    assert response.status_code == 403
    assert "Sign-in with a passkey is turned off." in response.content.decode()
    assert "permission" not in response.content.decode()
