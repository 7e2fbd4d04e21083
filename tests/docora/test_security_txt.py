"""`/.well-known/security.txt` (RFC 9116)."""

import datetime
import re

import pytest
from django.test import Client

from docora.checks import check_security_txt
from tests.docora.test_settings import start_with

PATH = "/.well-known/security.txt"


def test_not_found_unless_configured() -> None:
    assert Client().get(PATH).status_code == 404


def test_contacts_and_expiry(settings) -> None:
    settings.SECURITY_CONTACTS = ["mailto:security@docora.example", "https://docora.example/report"]
    settings.SECURITY_CONTACTS_EXPIRE_ON = datetime.date(2027, 6, 30)
    settings.PUBLIC_URL = "https://docora.example"
    answer = Client().get(PATH)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.text.splitlines() == [
        "Contact: mailto:security@docora.example",
        "Contact: https://docora.example/report",
        "Expires: 2027-06-30T00:00:00Z",
        "Preferred-Languages: en",
        "Canonical: https://docora.example/.well-known/security.txt",
    ]
    assert all(re.fullmatch(r"[A-Z][A-Za-z-]+: \S+", line) for line in answer.text.splitlines())
    assert answer.cookies == {}
    assert Client().head(PATH).status_code == 200
    assert Client().post(PATH).status_code == 405


@pytest.mark.parametrize(("days", "found"), [(-1, 1), (29, 1), (31, 0)])
def test_check_warns_before_it_expires(settings, days: int, found: int) -> None:
    assert check_security_txt() == []
    settings.SECURITY_CONTACTS = ["mailto:security@docora.example"]
    settings.SECURITY_CONTACTS_EXPIRE_ON = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days)
    assert [message.id for message in check_security_txt()] == ["docora.W005"] * found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"SECURITY_CONTACTS": "security@docora.example"}, "SECURITY_CONTACTS must be addresses such as mailto:"),
        ({"SECURITY_CONTACTS": "mailto:a@b.example"}, "SECURITY_CONTACTS needs SECURITY_CONTACTS_EXPIRE_ON"),
        ({"SECURITY_CONTACTS_EXPIRE_ON": "next year"}, "SECURITY_CONTACTS_EXPIRE_ON must be a date such as"),
    ],
)
def test_invalid_settings(tmp_path, values: dict[str, str], message: str) -> None:
    result = start_with(tmp_path, **values)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
