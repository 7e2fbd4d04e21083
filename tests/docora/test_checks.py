"""The system checks of the settings."""

import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest
from django.core.checks import run_checks

from docora.checks import check_keys, check_private_networks, check_proxies, check_settings

PROJECT = Path(__file__).resolve().parents[2]
NETWORKS = [ip_network("127.0.0.1/32")]


def ids(messages) -> list[str]:
    return [message.id for message in messages]


@pytest.fixture
def production(settings):
    """Settings without a finding."""
    settings.HTTPS, settings.PUBLIC_URL = True, "https://docora.example"
    settings.ALLOW_HTTP, settings.ALLOWED_PRIVATE_NETWORKS = False, []
    settings.TRUSTED_PROXIES = NETWORKS
    return settings


def test_production_settings_have_no_finding(production) -> None:
    assert [*check_settings(), *check_proxies(), *check_private_networks(), *check_keys()] == []


@pytest.mark.parametrize(
    ("changes", "check", "found", "text"),
    [
        ({"DEBUG": True}, check_settings, "docora.E003", "DEBUG is on"),
        ({"HTTPS": False, "PUBLIC_URL": "http://127.0.0.1:8000"}, check_settings, "docora.W001", "plain http"),
        ({"ALLOW_HTTP": True}, check_settings, "docora.W002", "ALLOW_HTTP is on"),
        ({"TRUSTED_PROXIES": []}, check_proxies, "docora.E004", "redirects every request to https in a loop"),
        ({"TRUSTED_PROXIES": [ip_network("0.0.0.0/0")]}, check_proxies, "docora.E005", "can fake its address"),
        ({"SECRET_KEY": "x" * 60}, check_keys, "docora.E007", "sessions signed with it can be forged"),
        ({"SECRET_KEY": f"django-insecure-{'0123456789abcdef' * 4}"}, check_keys, "docora.E007", "SECRET_KEY"),
        ({"ENCRYPTION_KEYS": ["a-newer-key-0123456789", "changemechangeme"]}, check_keys, "docora.E008", "Key 2 in"),
    ],
)
def test_each_dangerous_setting_has_a_message(production, changes, check, found: str, text: str) -> None:
    for name, value in changes.items():
        setattr(production, name, value)
    (message,) = check()
    assert message.id == found
    assert text in message.msg
    assert message.hint
    assert "changeme" not in f"{message.msg} {message.hint}"


@pytest.mark.parametrize(
    ("network", "found"),
    [
        ("169.254.0.0/16", ["docora.E006"]),
        ("0.0.0.0/0", ["docora.E006"]),
        ("127.0.0.1/32", ["docora.W003"]),
        ("10.0.0.0/8", ["docora.W004"]),
        ("fd12::/32", ["docora.W004"]),
        ("10.2.0.0/16", []),
        ("fd12:3456:789a::/48", []),
    ],
)
def test_allowed_networks_are_checked_by_their_contents(production, network: str, found: list[str]) -> None:
    production.ALLOWED_PRIVATE_NETWORKS = [ip_network(network)]
    messages = check_private_networks()
    assert ids(messages) == found
    assert all(network in message.msg for message in messages)


def test_deployment_checks_run_with_deploy_only(production) -> None:
    production.DEBUG = True
    assert "docora.E003" in ids(run_checks(include_deployment_checks=True))
    assert "docora.E003" not in ids(run_checks())


def test_check_deploy_exits_with_1(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "DATA_DIR": str(tmp_path), "DOCORA_ENV_FILE": "/dev/null", "DEBUG": "yes"}
    command = [sys.executable, str(PROJECT / "manage.py"), "check", "--deploy"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "(docora.E003) DEBUG is on" in done.stderr
