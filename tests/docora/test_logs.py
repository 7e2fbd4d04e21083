"""Logs and error reports: one line per record, without anything that looks like a secret."""

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import structlog
from django.test import Client, RequestFactory
from django.views.debug import get_exception_reporter_class

from docora.conf.logs import MAX_FIELD, configure
from docora.security.redaction import MASK, redact, redact_value, remove_secrets
from docora.sign_in import links

APP_TOKEN = "docora_" + "5e" * 32
SIGNING_KEY = "whsec_c2VjcmV0IHNpZ25pbmcga2V5IGZvciB0ZXN0cw=="
GITHUB = "ghp_PlantedPlantedPlantedPlantedPlanted00"
LOCAL, POSTED, COOKIE = "value-of-a-local", "value-that-was-posted", "value-of-a-cookie"
BASIC = "Basic eC1hY2Nlc3MtdG9rZW46Z2hwX1BsYW50ZWRQbGFudGVk"


@pytest.fixture(params=["json", "console"])
def log(request) -> Iterator[io.StringIO]:
    """Capture everything that the process logs."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure({"format": request.param, "level": "DEBUG"})
    stream = io.StringIO()
    root.handlers[0].setStream(stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def test_level_holds_for_every_logger(log: io.StringIO) -> None:
    configure({"format": "json", "level": "ERROR"})
    logging.getLogger().handlers[0].setStream(log)  # type: ignore[attr-defined]
    for name in ("docora.web", "django.request", "rq.worker", "waitress"):
        logging.getLogger(name).warning("a warning")
        logging.getLogger(name).error("an error of %s", name)
    assert "a warning" not in log.getvalue()
    assert log.getvalue().count("an error of") == 4


def test_django_has_no_handlers_of_its_own() -> None:
    code = "import django; django.setup(); import logging; print(logging.getLogger('django').handlers)"
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "docora.settings", "DEBUG": "yes"}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "[]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"the token {APP_TOKEN}, it said", f"the token {MASK}, it said"),
        (f"key {SIGNING_KEY}", f"key {MASK}"),
        (f"{GITHUB}!", f"{MASK}!"),
        ("github_pat_11ABCDEFG0_abcdefghij", MASK),
        *((f"gh{kind}_abcdefgh1234 x", f"{MASK} x") for kind in "pousr"),
        *((f"gl{kind}-abcdefgh.1234 x", f"{MASK} x") for kind in ("pat", "cbt", "ptt", "dt", "rt", "soat")),
        ("ghs_12_eyJhbGciOi.eyJpc3Mi.sig-nature. And", f"{MASK}. And"),
        ("ATATT3xFfGF0abc=12 ATCTT3xFfGN0abc=12 ATBBabcdefgh1234", f"{MASK} {MASK} {MASK}"),
        ("jwt eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiIxMjM0NSJ9.c2lnbmF0dXJl_x-y!", f"jwt {MASK}!"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n+/=\n-----END RSA PRIVATE KEY-----\nx", f"{MASK}\nx"),
        (f"Authorization: {BASIC}", f"Authorization: Basic {MASK}"),
        ("authorization: whatever-it-is", f"authorization: {MASK}"),
        ("{'Authorization': 'Bearer abc.def'}", f"{{'Authorization': 'Bearer {MASK}'}}"),
        ("Cookie: sessionid=abc; csrftoken=def", f"Cookie: {MASK}"),
        ("https://user:pass@git.example/a/b", f"https://{MASK}@git.example/a/b"),
        ("redis://:pass@redis:6379/0", f"redis://{MASK}@redis:6379/0"),
        ("redis://:p\"a's<s>@redis:6379/0", f"redis://{MASK}@redis:6379/0"),
        ("https://user:p@ss@git.example/a/b", f"https://{MASK}@git.example/a/b"),
        ('{"url":"https://a.example","mail":"b@c.example"}', '{"url":"https://a.example","mail":"b@c.example"}'),
        ("App(name='x', client_auth_key='my own key')", f"App(name='x', client_auth_key='{MASK}')"),
        ("OIDC_CLIENT_SECRET=abc", f"OIDC_CLIENT_SECRET={MASK}"),
        ("client_secret=abc&code=1", f"client_secret={MASK}&code=1"),
        ("/x?github_token=abc&page=2", f"/x?github_token={MASK}&page=2"),
        ('{"github_token": "any thing", "page": 2}', f'{{"github_token": "{MASK}", "page": 2}}'),
        ("https://docora.example/accounts/link/WzEs:1w:x-_/", f"https://docora.example/accounts/link/{MASK}/"),
        (f"sent {BASIC.removeprefix('Basic ')}", f"sent {MASK}"),
        ("b2F1dGgyOmdscGF0LWFiYw== eC10b2tlbi1hdXRoOmFiYw==", f"{MASK} {MASK}"),  # oauth2:…, x-token-auth:…
        (f"gAAAAA{'b' * 80}==", MASK),
        ("it refused Bearer abcdefgh12345678=", f"it refused Bearer {MASK}"),
        (
            "Authorization: Token abc, Authorization: Digest abc",
            f"Authorization: Token {MASK}, Authorization: Digest {MASK}",
        ),
        *(
            (f"{name}=abc {name}: 'a b'", f"{name}={MASK} {name}: '{MASK}'")
            for name in ("new_auth_key", "push_secret", "password", "passwd", "token", "api_key", "apikey", "sessionid")
        ),
    ],
)
def test_secrets_are_masked_by_pattern(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "repeated",
    [
        r"whsec_aB\/c+d<=", r"whsec_aB/c\u002Bd\u003C=", "whsec_aB&#x2F;c&#43;d&lt;&#x3D;", "whsec_aB%2fc%2bd%3c%3d",
        "whsec_aB/c%2Bd%3C%3D", "77687365635F61422F632B643C3D", "d2hzZWNfYUIvYytkPD0=", "d2hzZWNfYUIvYytkPD0%3D",
    ],
)  # fmt: skip
def test_known_secrets_are_masked_however_they_are_escaped(repeated: str) -> None:
    """PHP escapes slashes in JSON, .NET plus signs, and Mustache both in HTML."""
    assert remove_secrets(f"<{repeated}>", "whsec_aB/c+d<=") == "<[redacted]>"


@pytest.mark.parametrize(
    ("secret", "repeated"),
    [
        ("whsec_???>>>", "d2hzZWNfPz8/Pj4+"), ("whsec_???>>>", "d2hzZWNfPz8_Pj4-"),
        ("my key", "my+key"), ("my key", "my%20key"), ("line\nline", r"line\nline"),
        ("a&b", "a&amp;b"), ("a%b", "a%25b"), (r"a\b", r"a\\b"),
    ],
)  # fmt: skip
def test_forms_of_known_secrets(secret: str, repeated: str) -> None:
    assert remove_secrets(f"<{repeated}>", secret) == f"<{MASK}>"


@pytest.mark.parametrize("secrets", [("my-key", "my-key-2", ""), ("my-key-2", "my-key", "")])
def test_secret_that_begins_with_another_one(secrets: tuple[str, ...]) -> None:
    """An app has no new signing key unless it rotates."""
    assert remove_secrets(f"my-key, my-key-2, {GITHUB}, my", *secrets) == f"{MASK}, {MASK}, {MASK}, my"


def test_masking_takes_time_in_proportion_to_the_text() -> None:
    """It took 8 s, and the process handled no other request meanwhile."""
    text = "eyJ" * 30_000
    began = time.thread_time()
    assert redact(text) == text
    assert time.thread_time() - began < 1


@pytest.mark.parametrize("secret", ["\\" * 40 + "a", r"\/" * 40 + "a", "%25" * 40 + "a", "&amp;" * 40 + "a", "/" * 500])
def test_looking_for_a_known_secret_is_fast(secret: str) -> None:
    began = time.thread_time()
    for text in (r"\\/" * 100, "\\" * 400, "%25" * 100, "&amp;" * 100, "/" * 400):
        assert remove_secrets(text, secret) == text
    assert time.thread_time() - began < 1
    assert remove_secrets(secret, secret) == MASK


@pytest.mark.parametrize(
    "text",
    [
        "The git host rejected the token: it is invalid, expired or revoked. Use a token that can read the repository.",
        "The host asks for basic authorization",
        "git@github.com and ops@portal.example",
        "https://github.com/acme/docs/blob/main/a@b.md",
        "acme/docs: 1,690 files, commit 5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e",
        "app_0123456789abcdef01234567-repo_0123456789abcdef01234567",
    ],
)
def test_ordinary_text_is_kept(text: str) -> None:
    assert redact(text) == text


def test_fields_are_masked_by_name_and_pattern() -> None:
    fields = {
        "files": 3,
        "github_token": "plain-words",
        "error": GITHUB,
        "parts": [SIGNING_KEY, {"push_secret": "x", GITHUB: 1}],
        "deep": {"a": {"b": {"c": {"d": {"e": {"f": {"token": "plain-words"}}}}}}},
        "none": None,
        "raw": GITHUB.encode(),
    }
    assert redact_value(fields) == {
        "files": 3,
        "github_token": MASK,
        "error": MASK,
        "parts": [MASK, {"push_secret": MASK, MASK: 1}],
        "deep": {"a": {"b": {"c": {"d": {"e": {"f": {"token": MASK}}}}}}},
        "none": None,
        "raw": f"b'{MASK}'",
    }


@pytest.mark.parametrize(
    "name", ["authorization", "Cookie", "password", "signing_key", "context_token", "client_secret", "smtp_password"]
)
def test_fields_that_are_masked_by_name(name: str) -> None:
    assert redact_value({name: "plain-words"}) == {name: MASK}


@pytest.mark.parametrize("value", [None, "", True, False])
def test_field_without_a_secret_is_kept(value: object) -> None:
    assert redact_value(value, "token") == value


def test_name_that_begins_like_that_of_a_secret() -> None:
    assert redact_value("plain-words", "tokens_left") == "plain-words"


def test_records_of_all_loggers_are_masked(log: io.StringIO) -> None:
    structlog.get_logger("docora.test").warning("ours", error=f"refused {APP_TOKEN}", client_auth_key="plain-words")
    logging.getLogger("foreign").warning("theirs %s", GITHUB, extra={"headers": {"Authorization": BASIC}})
    with structlog.contextvars.bound_contextvars(context_token=GITHUB):
        logging.getLogger("foreign").error("with context")
    written = log.getvalue()
    assert "ours" in written
    assert "theirs" in written
    assert "with context" in written
    for secret in (APP_TOKEN, GITHUB, "plain-words", BASIC.removeprefix("Basic ")):
        assert secret not in written


def test_sign_in_link_is_masked_in_records_of_django(log: io.StringIO, admin_user) -> None:
    token = links.make_token(admin_user)
    client = Client(enforce_csrf_checks=True)
    assert client.post(f"/accounts/link/{token}/").status_code == 403
    assert Client().put(f"/accounts/link/{token}/").status_code == 405
    written = log.getvalue()
    assert f"Forbidden (CSRF cookie not set.): /accounts/link/{MASK}/" in written
    assert f"Method Not Allowed (PUT): /accounts/link/{MASK}/" in written
    assert token not in written
    assert token.partition(":")[0] not in written


def fail_with(secret: str) -> None:
    local_variable = LOCAL
    raise RuntimeError(f"refused {secret}: {len(local_variable)}")


def test_tracebacks_are_masked_and_show_no_local_variables(log: io.StringIO) -> None:
    for logger in (structlog.get_logger("docora.test"), logging.getLogger("foreign")):
        try:
            fail_with(GITHUB)
        except RuntimeError:
            logger.exception("it failed")
    written = log.getvalue()
    assert written.count(f"RuntimeError: refused {MASK}") == 2
    assert "Traceback" in written
    assert GITHUB not in written
    assert LOCAL not in written


REFUSED = {
    "another host": (
        "Invalid HTTP_HOST header: 'other.example'",
        {"path": "/docs/", "headers": {"Host": "other.example"}},
    ),
    "invalid query": ("Invalid query: /admin/", {"path": "/admin/?q=%00"}),
    "malformed form": (
        "Bad request (Unable to parse request body): /accounts/login/",
        {"path": "/accounts/login/", "method": "POST", "content_type": "multipart/form-data; boundary=", "data": b"x"},
    ),
}


@pytest.mark.parametrize(("message", "request_"), REFUSED.values(), ids=REFUSED)
def test_refused_request_is_logged_without_a_traceback(log: io.StringIO, message: str, request_: dict) -> None:
    """Anyone can send such requests. With its traceback, one of 60 bytes wrote 2 kB to the log."""
    response = Client().generic(**{"method": "GET", **request_})
    assert response.status_code == 400
    assert message in log.getvalue()
    assert "Traceback" not in log.getvalue()


def test_unformattable_record_is_logged_without_its_arguments(log: io.StringIO, capsys) -> None:
    record = logging.LogRecord("foreign", logging.WARNING, __file__, 1, "%d files", (GITHUB,), None)
    logging.getLogger().handlers[0].handle(record)
    assert "a log record of foreign" in log.getvalue()
    assert GITHUB not in log.getvalue() + capsys.readouterr().err


def test_json_records_are_one_line_each() -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure({"format": "json", "level": "INFO"})
    stream = io.StringIO()
    root.handlers[0].setStream(stream)
    try:
        logging.getLogger("foreign").warning("two\nlines", extra={"files": 3})
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    record = json.loads(stream.getvalue())
    assert (record["event"], record["files"], record["level"], record["logger"]) == (
        "two\nlines",
        3,
        "warning",
        "foreign",
    )


def test_records_are_bounded_and_keep_both_ends_of_a_text(log: io.StringIO) -> None:
    huge = "begin " + "x" * 10_000_000 + " end"
    started = time.process_time()
    try:
        raise RuntimeError(huge)
    except RuntimeError:
        logging.getLogger("foreign").exception(
            "%s", huge, extra={"said": huge, "parts": [huge, {"more": huge}], "n": 3}
        )
    logging.getLogger("foreign").warning("many", extra={"items": list(range(200_000))})
    assert time.process_time() - started < 2
    written = log.getvalue()
    assert len(written) < 6 * MAX_FIELD
    for part in ("begin xxx", "xxx end", "characters omitted", "Traceback", "200,000 items"):
        assert part in written


def test_secret_at_the_cut_is_masked(log: io.StringIO) -> None:
    around = "y" * (MAX_FIELD // 2 - 20)
    logging.getLogger("foreign").warning("%s", f"{around} {GITHUB} {'z' * 3 * MAX_FIELD} {GITHUB} {around}")
    assert GITHUB[:14] not in log.getvalue()
    assert GITHUB[-8:] not in log.getvalue()


@pytest.mark.parametrize("form", ["html", "text"])
@pytest.mark.parametrize("password", [LOCAL, f'"{LOCAL}', f"'{LOCAL}", f"<{LOCAL}>", f"@{LOCAL}"])
def test_error_report_shows_no_secret_even_with_debug(settings, password: str, form: str) -> None:
    settings.DEBUG = True
    settings.RQ_QUEUES = {"high": {"URL": f"redis://:{password}@redis:6379/0"}}
    settings.ALERT_WEBHOOK_URL = f"https://chat.example/{LOCAL}"
    posted = {"github_token": POSTED, "name": POSTED, "new_auth_key": POSTED}
    request = RequestFactory().post("/admin/x", posted, headers={"authorization": f"Bearer {APP_TOKEN}"})
    request.COOKIES = {"sessionid": COOKIE, "theme": COOKIE}
    try:
        fail_with(GITHUB)
    except RuntimeError as error:
        reporter = get_exception_reporter_class(request)(request, type(error), error, error.__traceback__)
    page = reporter.get_traceback_html() if form == "html" else reporter.get_traceback_text()
    assert "fail_with" in page
    for secret in (LOCAL, GITHUB, POSTED, APP_TOKEN, COOKIE, *settings.ENCRYPTION_KEYS, settings.SECRET_KEY):
        assert secret not in page


def test_error_page_does_not_show_the_cause(admin_user, monkeypatch) -> None:
    client = Client(raise_request_exception=False)
    client.force_login(admin_user)
    monkeypatch.setattr("deliveries_app.site.DocoraAdminSite.get_app_list", lambda *_, **__: fail_with(GITHUB))
    page = client.get("/admin/")
    assert page.status_code == 500
    assert "Something went wrong" in page.content.decode()
    assert GITHUB not in page.content.decode()
