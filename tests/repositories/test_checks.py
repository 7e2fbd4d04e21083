"""The checks of git, the git hosts and the outbound client."""

from ipaddress import ip_network

import pytest
from django.core.checks.registry import registry

from docora.http.client import HttpClient
from repositories_app import checks
from repositories_app.checks import (
    check_git,
    check_git_confinement,
    check_git_fixes,
    check_git_host_answers,
    check_git_hosts,
)
from tests.support.doctor import infos, problems, warnings


def fake_git(tmp_path, monkeypatch, version: str) -> None:
    """Put a git with this version first on PATH."""
    program = tmp_path / "git"
    program.write_text(f"#!/bin/sh\necho 'git version {version}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ("2.38.0", "2.43.7"),
        ("2.39.5", "2.43.7"),
        ("2.42.1", "2.43.7"),
        ("2.43.0", "2.43.7"),
        ("2.43.6", "2.43.7"),
        ("2.43.7", ""),
        ("2.45.1", "2.45.4"),
        ("2.47.2", "2.47.3"),
        ("2.47.3-0+deb13u1", ""),
        ("2.50.0", "2.50.1"),
        ("2.50.1", ""),
        ("2.51.0.windows.1", ""),
        ("3.0.0", ""),
    ],
)
def test_git_without_security_fixes_is_a_warning(tmp_path, monkeypatch, version: str, fixed: str) -> None:
    fake_git(tmp_path, monkeypatch, version)
    messages = check_git_fixes()
    assert check_git() == []
    if not fixed:
        assert "has the security fixes of July 2025" in infos(messages)
    else:
        assert "lacks the security fixes of July 2025 (CVE-2025-48384, CVE-2025-48385)" in warnings(messages)
        assert f"Upgrade to {fixed}." in warnings(messages)
        assert "unless your distribution's changelog says that it has backported the fixes" in warnings(messages)
    assert len(messages) == 1


def test_invalid_configuration_of_the_user_does_not_matter(tmp_path, monkeypatch) -> None:
    (tmp_path / ".gitconfig").write_text("[user\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_git() == []


def test_old_or_missing_git_is_an_error(tmp_path, monkeypatch) -> None:
    assert check_git in registry.registered_checks
    fake_git(tmp_path, monkeypatch, "2.30.2")
    assert "git is 2.30.2, but Docora needs 2.38 or newer. Upgrade git." in problems(check_git())
    assert check_git_fixes() == check_git()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "git is not installed" in problems(check_git())
    assert check_git_fixes() == check_git()


def test_missing_util_linux_is_an_error(tmp_path, monkeypatch) -> None:
    assert check_git_confinement in registry.registered_checks
    assert check_git_confinement() == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Docora needs setpriv and prlimit to run git. Install util-linux" in problems(check_git_confinement())


def test_every_spelling_of_a_private_address_is_tried(settings) -> None:
    settings.ALLOWED_PRIVATE_NETWORKS = []
    text = infos(checks.check_outbound_client())
    assert (
        "refuses to connect to 127.0.0.1, 2130706433, localhost, [::1], [::ffff:127.0.0.1], 10.0.0.1, 169.254.1.1"
        in text
    )


def test_allowed_networks_are_not_tried(settings) -> None:
    settings.ALLOWED_PRIVATE_NETWORKS = [ip_network("10.0.0.0/8")]
    assert "10.0.0.1" not in infos(checks.check_outbound_client())
    settings.ALLOWED_PRIVATE_NETWORKS = [ip_network("::1/128")]
    assert "localhost" not in infos(checks.check_outbound_client()), "one of its addresses is allowed"
    settings.ALLOWED_PRIVATE_NETWORKS = [ip_network("0.0.0.0/0"), ip_network("::/0")]
    assert "lets Docora connect to every private address. Allow only the networks" in warnings(
        checks.check_outbound_client()
    )


def test_client_that_dials_blocked_addresses_is_an_error(settings, monkeypatch) -> None:
    """The check would notice if the client lost the rules in the settings."""
    settings.ALLOWED_PRIVATE_NETWORKS = []
    lenient = [ip_network("127.0.0.0/8")]
    monkeypatch.setattr(checks, "new_client", lambda max_connections: HttpClient(lenient))
    text = problems(checks.check_outbound_client())
    assert (
        "Docora connects to 127.0.0.1, 2130706433, localhost, [::ffff:127.0.0.1]: anyone who registers an app" in text
    )


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("no-such-host.invalid", "Couldn't reach no-such-host.invalid: DNS lookup failed"),
        ("10.0.0.1", "Docora may not connect to the git host 10.0.0.1. 10.0.0.1 is a private address"),
        ("127.0.0.1:1", "Couldn't reach 127.0.0.1:1: connection refused. Check the firewall"),
        ("::1", "Docora may not connect to the git host [::1]. ::1 is a loopback address"),
    ],
)
def test_unreachable_git_host_is_an_error(settings, host: str, text: str) -> None:
    settings.ALLOWED_GIT_HOSTS = [host, "github.com"]
    assert text in problems(check_git_host_answers())
    assert check_git_hosts() == []


def test_host_with_any_port_may_not_listen_on_the_default_port(settings) -> None:
    settings.ALLOWED_GIT_HOSTS = ["127.0.0.1:*"]
    assert problems(check_git_host_answers()) == ""
    assert "ALLOWED_GIT_HOSTS allows every port of the host, and only the default one was tried." in warnings(
        check_git_host_answers()
    )


def test_no_allowed_git_hosts_is_an_error(settings) -> None:
    settings.ALLOWED_GIT_HOSTS = []
    assert "ALLOWED_GIT_HOSTS is empty, so no repository can be watched." in problems(check_git_hosts())
    assert check_git_hosts in registry.deployment_checks
    assert check_git_host_answers() == []
