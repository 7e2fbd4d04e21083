"""Validation of settings, and generation of keys in the data directory."""

import errno
import json
import os
import stat
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from redis import Redis

from docora.conf import env
from docora.conf.data_dir import embedded_redis_socket, embedded_redis_url, generated_key, make_private, unusable
from tests.support.commands import manage, run_each


def environment_of(directory: Path, **settings: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "DATA_DIR": str(directory), "DOCORA_ENV_FILE": os.devnull} | settings


def start_with(directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return manage("check", environment=environment_of(directory, **settings))


INVALID = [
    ("SWEEP_INTERVAL_SECONDS", "soon", "SWEEP_INTERVAL_SECONDS must be a number"),
    ("SWEEP_INTERVAL_SECONDS", "0", "SWEEP_INTERVAL_SECONDS must be at least 0.1"),
    ("LEASE_SECONDS", "1", "LEASE_SECONDS must be at least 6"),
    ("LEASE_SECONDS", "nan", "LEASE_SECONDS must be a number"),
    ("LEASE_SECONDS", "2592000", "LEASE_SECONDS must be at most 86400"),
    ("RESCAN_INTERVAL_SECONDS", "inf", "RESCAN_INTERVAL_SECONDS must be a number"),
    ("RESCAN_INTERVAL_SECONDS", "1e12", "RESCAN_INTERVAL_SECONDS must be at most 315360000"),
    ("MAX_IN_FLIGHT", "2.5", "MAX_IN_FLIGHT must be a whole number"),
    ("MAX_IN_FLIGHT", "257", "MAX_IN_FLIGHT must be at most 256"),
    ("MAX_RETRY_ATTEMPTS", "1e10", "MAX_RETRY_ATTEMPTS must be at most 1000000"),
    ("MAX_FILES", "inf", "MAX_FILES must be a number"),
    ("MAX_FILES", "nan", "MAX_FILES must be a number"),
    ("MAX_FETCH_BYTES", "1", "MAX_FETCH_BYTES must be at least 1048576"),
    ("PORT", "80000", "PORT must be at most 65535"),
    ("ALLOW_HTTP", "maybe", "ALLOW_HTTP must be yes or no"),
    ("ALLOWED_PRIVATE_NETWORKS", "10.0.0.1/8", "ALLOWED_PRIVATE_NETWORKS must be networks"),
    ("PUBLIC_URL", "http://docora.example", "must start with https://"),
    ("PUBLIC_URL", "docora.example", "PUBLIC_URL must look like"),
    ("PUBLIC_URL", "https://[docora", "PUBLIC_URL must look like"),
    ("PUBLIC_URL", "https://docora.example:abc", "PUBLIC_URL must look like"),
    ("PUBLIC_URL", "https://docora.example/sub", "PUBLIC_URL must look like"),
    ("PUBLIC_URL", "https://docora.example?x", "PUBLIC_URL must look like"),
    ("PUBLIC_URL", "https://docora.example#x", "PUBLIC_URL must look like"),
    ("PUBLIC_URL", "https://docora.example ", "PUBLIC_URL must look like"),
    ("PUBLIC_URL", "https://user@docora.example", "PUBLIC_URL must look like"),
    ("PUBLIC_URL", "https://*", "PUBLIC_URL must look like"),
    ("PUBLIC_URL", "https://m\xfcnchen.example", "PUBLIC_URL must look like"),
    ("ALLOWED_HOSTS", "https://docora.internal", "ALLOWED_HOSTS must be host names such as docora.internal"),
    ("ALLOWED_HOSTS", "docora.internal:8000", "ALLOWED_HOSTS must be host names such as docora.internal"),
    ("TIME_ZONE", "Europe/Berln", "TIME_ZONE must be a time zone such as Europe/Berlin, but is 'Europe/Berln'"),
    ("TIME_ZONE", "Europe", "TIME_ZONE must be a time zone"),
    ("TIME_ZONE", "/etc/localtime", "TIME_ZONE must be a time zone"),
    (
        "ALLOWED_GIT_HOSTS",
        "gitlab.com,https://github.com",
        "ALLOWED_GIT_HOSTS must be host names such as github.com, separated by commas, but contains 'https://github.com'",
    ),
    ("ALLOWED_GIT_HOSTS", "*.example.com", "ALLOWED_GIT_HOSTS must be host names"),
    ("ENCRYPTION_KEYS", "short", "at least 16 characters"),
    ("ENCRYPTION_KEYS", "one-key-of-enough-letters,one-key-of-enough-letters", "has the same key twice"),
    ("DATABASE_URL", "postgres://127.0.0.1:5432", "DATABASE_URL must look like postgres://"),
    ("DATABASE_URL", "postgres://db..internal/docora", "DATABASE_URL must look like postgres://"),
    (
        "DATABASE_URL",
        f"postgres://one.internal,{'a' * 64}.internal/docora",
        "DATABASE_URL must look like postgres://",
    ),
    ("DATABASE_URL", "sqlite://", "DATABASE_URL must look like postgres://"),
    ("DATABASE_URL", "sqlite://var/docora.sqlite3", "DATABASE_URL must look like postgres://"),
    ("REDIS_URL", "http://127.0.0.1:6379/0", "REDIS_URL must look like redis://host:6379/0"),
    ("REDIS_URL", "redis://redis..internal:6379/0", "REDIS_URL must look like redis://host:6379/0"),
    ("REDIS_URL", "redis://127.0.0.1:6379?db=first", "REDIS_URL must look like redis://host:6379/0"),
    ("REDIS_URL", "redis://127.0.0.1:6379/0?bad=x", "REDIS_URL must look like redis://host:6379/0"),
    ("REDIS_URL", "redis://127.0.0.1:6379/docora", "REDIS_URL must look like redis://host:6379/0"),
    ("METRICS_TOKEN", "short", "METRICS_TOKEN must be at least 16 printable ASCII characters"),
    ("METRICS_TOKEN", "text with spaces in it", "METRICS_TOKEN must be at least 16 printable ASCII characters"),
    ("MAX_WATCHES_PER_APP", "-1", "MAX_WATCHES_PER_APP must be at least 0"),
    ("EGRESS_PROXY", "proxy.example:3128", "EGRESS_PROXY must look like http://proxy.example:3128"),
    (
        "OIDC_ISSUER",
        "https://login.example",
        "OIDC_ISSUER also needs OIDC_CLIENT_ID, OIDC_CLIENT_SECRET and OIDC_ROLES",
    ),
    ("OIDC_ROLES", "docora-admins", "OIDC_ROLES must be pairs such as group=role"),
    ("OIDC_ROLES", "docora-admins=", "OIDC_ROLES must be pairs such as group=role"),
    ("OIDC_CLIENT_AUTH", "none", "OIDC_CLIENT_AUTH must be client_secret_basic or client_secret_post"),
    ("REMOTE_USER_HEADER", "X-Remote-User", "REMOTE_USER_HEADER needs TRUSTED_PROXIES"),
    ("LOCAL_SIGN_IN", "no", "LOCAL_SIGN_IN is off, so OIDC_ISSUER or REMOTE_USER_HEADER must be set"),
    ("REAUTHENTICATE_AFTER_SECONDS", "0", "REAUTHENTICATE_AFTER_SECONDS must be at least 60"),
    ("LOG_FORMAT", "xml", "LOG_FORMAT must be json or console"),
    ("EMAIL_URL", "https://mail.example", "EMAIL_URL must look like smtp+tls://"),
    ("ALERT_EMAILS", "ops@docora.example,night", "ALERT_EMAILS must be addresses"),
    ("ALERT_EMAILS", "ops@docora.example", "ALERT_EMAILS needs EMAIL_URL"),
    (
        "ALERT_WEBHOOK_URL",
        "http://chat.example/hook",
        "ALERT_WEBHOOK_URL cannot be called. The URL must start with https",
    ),
    ("ALERT_WEBHOOK_URL", "https://chat.example:x/hook", "ALERT_WEBHOOK_URL cannot be called. The URL must look like"),
    ("LOG_LEVEL", "loud", "LOG_LEVEL must be"),
    (
        "SECRET_KEY",
        "x" * 60,
        "SECRET_KEY is short or repetitive, so sessions signed with it can be forged. Generate one: pyt",
    ),
    ("SECRET_KEY", "changeme", "SECRET_KEY is short or repetitive"),
    ("SECRET_KEY", "django-insecure-" + "0123456789abcdef" * 4, "SECRET_KEY is short or repetitive"),
    # Each value that can be a secret or a URL with one: the error doesn't repeat it.
    ("PUBLIC_URL", "https://ops:hunter2@docora.example", "PUBLIC_URL must look like https://docora.example"),
    ("PUBLIC_URL", "https://ops:x/hunter2@docora.example", "PUBLIC_URL must look like https://docora.example"),
    ("PUBLIC_URL", "https://hunter2@docora.example:abc", "PUBLIC_URL must look like https://docora.example"),
    ("PUBLIC_URL", "ops:hunter2@docora.example", "PUBLIC_URL must look like https://docora.example"),
    ("ALLOWED_HOSTS", "https://ops:hunter2@docora.internal", "ALLOWED_HOSTS must be host names"),
    ("ALLOWED_HOSTS", "https://ops:hunter2,x@docora.internal", "ALLOWED_HOSTS must be host names"),
    ("ALLOWED_GIT_HOSTS", "https://ops:hunter2@git.example", "ALLOWED_GIT_HOSTS must be host names"),
    ("ALLOWED_PRIVATE_NETWORKS", "http://ops:hunter2@10.0.0.1", "ALLOWED_PRIVATE_NETWORKS must be networks"),
    ("TRUSTED_PROXIES", "http://ops:hunter2@10.0.0.1", "TRUSTED_PROXIES must be networks"),
    ("OIDC_ALLOWED_NETWORKS", "http://ops:hunter2@10.0.0.1", "OIDC_ALLOWED_NETWORKS must be networks"),
    ("OIDC_ROLES", "https://ops:hunter2@login.example", "OIDC_ROLES must be pairs"),
    ("SECURITY_CONTACTS", "http://ops:hunter2@docora.example", "SECURITY_CONTACTS must be addresses"),
    ("ALERT_EMAILS", "smtp://ops:hunter2@mail.example:587/@", "ALERT_EMAILS must be addresses"),
    ("ALERT_WEBHOOK_URL", "https://ops:hunter2@chat.example/hook", "ALERT_WEBHOOK_URL cannot be called"),
    ("OIDC_ISSUER", "https://ops:hunter2@login.example", "OIDC_ISSUER cannot be called"),
    ("EGRESS_PROXY", "https://ops:hunter2@proxy.example:3128", "EGRESS_PROXY must look like http://proxy.example:3128"),
    ("DATABASE_URL", "postgres://docora:p@ss:hunter2/rd@127.0.0.1:5432/docora", "@ as %40"),
    ("DATABASE_URL", "mysql://docora:hunter2@127.0.0.1/docora", "DATABASE_URL must look like postgres://"),
    ("REDIS_URL", "redis://:hunter2@redis..internal", "REDIS_URL must look like redis://host:6379/0"),
    ("REDIS_URL", "redis://:hunter2#x@127.0.0.1:6379/0", "REDIS_URL must look like redis://host:6379/0"),
    ("REDIS_URL", "redis://hunter2:12#x@127.0.0.1:6379/0", "REDIS_URL must look like redis://host:6379/0"),
    ("EMAIL_URL", "smtp://ops:hunter2#x@mail.example", "EMAIL_URL must look like"),
    ("EMAIL_URL", "smtp://ops:hunter2@mail.example:port", "EMAIL_URL must look like"),
    ("EMAIL_URL", "mail://ops:hunter2@x", "EMAIL_URL must look like"),
    ("METRICS_TOKEN", "hunter2", "METRICS_TOKEN must be at least 16 printable ASCII characters"),
    ("ENCRYPTION_KEYS", "hunter2", "at least 16 characters"),
    ("SECRET_KEY", "hunter2", "SECRET_KEY is short or repetitive"),
]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, str, str]]:
    """How `check` ends with each of the invalid values. One process reads the settings anew until a value is valid."""
    environment = environment_of(tmp_path_factory.mktemp("data"))
    ends: dict[tuple[str, str], tuple[int, str, str]] = {}
    while rest := INVALID[len(ends) :]:
        variables = [{name: value} for name, value, _ in rest]
        for (name, value, _), end in zip(rest, run_each([["check"]] * len(rest), environment, variables), strict=True):
            ends[name, value] = end
            if end[0] == 0:
                break
    return ends


@pytest.mark.parametrize(("name", "value", "message"), INVALID)
def test_invalid_value_is_named_in_the_error(
    refusals: dict[tuple[str, str], tuple[int, str, str]], name: str, value: str, message: str
) -> None:
    code, out, err = refusals[name, value]
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert "hunter2" not in out + err


@pytest.mark.parametrize("exists", [True, False])
def test_unreadable_env_file_prevents_the_start(tmp_path: Path, exists: bool) -> None:
    file = tmp_path / "settings"
    if exists:
        file.mkdir()  # not even root can read a directory as a file
    result = start_with(tmp_path / "data", DOCORA_ENV_FILE=str(file))
    assert result.returncode == 1
    assert f"Docora cannot start: The settings in {file} cannot be read" in result.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"# Comment\n\nSECRET_KEY = hunter2\n", "Line 3 of {} is not a setting such as PORT=8000."),
        (b"SECRET_KEY: hunter2\n", "Line 1 of {} is not a setting such as PORT=8000."),
        (b"OIDC_NAME=B\xfcro\n", "The settings in {} cannot be read: the file is not UTF-8."),
    ],
)
def test_env_file_with_an_invalid_line_prevents_the_start(tmp_path: Path, text: bytes, reason: str) -> None:
    file = tmp_path / "settings"
    file.write_bytes(text)
    result = start_with(tmp_path / "data", DOCORA_ENV_FILE=str(file))
    assert (result.returncode, result.stdout) == (1, "")
    assert f"Docora cannot start: {reason.format(file)}" in result.stderr
    assert "hunter2" not in result.stderr
    assert not (tmp_path / "data").exists()


def test_env_file_of_other_editors(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_bytes(b"\xef\xbb\xbfPORT=70000\r\n  # Comment\r\n  \r\nexport HOST=::1\r\n")
    result = start_with(tmp_path / "data", DOCORA_ENV_FILE=str(file))
    assert result.stderr == "Docora cannot start: PORT must be at most 65535, but is '70000'.\n"


def test_unusable_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = start_with(tmp_path / "file" / "data")
    assert result.returncode == 1
    assert f"Docora cannot start: DATA_DIR {tmp_path}/file/data cannot be used: " in result.stderr
    assert "Traceback" not in result.stderr


def test_data_directory_is_created_for_the_database_if_the_keys_are_elsewhere(tmp_path: Path) -> None:
    result = start_with(tmp_path / "data", SECRET_KEY="".join(map(chr, range(64, 96))), ENCRYPTION_KEYS="x" * 16)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EACCES, "Permission denied. Run commands as Docora's user, which must own it and its files."),
        (errno.EPERM, "Operation not permitted. Run commands as Docora's user, which must own it and its files."),
        (errno.ENOSPC, "No space left on device. Free up space."),
        (errno.EDQUOT, "Disk quota exceeded. Free up space."),
        (errno.EROFS, "Read-only file system. Mount it writable."),
        (errno.ENOTDIR, "Not a directory."),
    ],
)
def test_advice_for_an_unusable_data_directory(code: int, advice: str) -> None:
    error = OSError(code, os.strerror(code))
    assert unusable(Path("/srv/docora"), error) == f"DATA_DIR /srv/docora cannot be used: {advice}"


def test_first_command_generates_private_keys(tmp_path: Path) -> None:
    assert start_with(tmp_path / "new").returncode == 0
    file = tmp_path / "new" / "keys.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(json.loads(file.read_text())) == {"secret_key", "encryption_keys"}


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000")])
def test_public_url_is_loopback_by_default(tmp_path: Path, host: str, url: str) -> None:
    environment = environment_of(tmp_path, HOST=host)
    assert f"PUBLIC_URL is {url}, " in manage("check", "--deploy", environment=environment).stderr


@pytest.mark.parametrize(
    "url", ["https://docora.example", "HTTPS://Docora.Example:8443/", "https://[2001:db8::1]:8443"]
)
def test_host_of_the_public_url_is_accepted(tmp_path: Path, url: str) -> None:
    code = (
        "from django.test import Client; from urllib.parse import urlsplit; "
        f"print(Client().get('/docs/', secure=True, HTTP_HOST=urlsplit({url!r}).netloc).status_code)"
    )
    environment = environment_of(tmp_path, PUBLIC_URL=url, ALLOWED_HOSTS="docora.internal,[::1]")
    assert manage("shell", "--no-imports", "-c", code, environment=environment).stdout == "200\n"


@pytest.mark.parametrize("text", ["", "{}", "[]"])
def test_damaged_keys_prevent_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)
    result = start_with(tmp_path)
    assert (result.returncode, result.stderr) == (
        1,
        f"Docora cannot start: {tmp_path}/keys.json is damaged. Restore it from your backup: without its keys, stored "
        "secrets cannot be read.\n",
    )


def test_weak_secret_key_is_accepted_for_development(tmp_path: Path) -> None:
    assert start_with(tmp_path, SECRET_KEY="changeme", DEBUG="yes").returncode == 0


def test_sqlite_file_is_private(tmp_path: Path) -> None:
    old_mask = os.umask(0o022)
    try:
        for file, settings in (
            (tmp_path / "data" / "docora.sqlite3", {}),
            (tmp_path / "elsewhere.sqlite3", {"DATABASE_URL": f"sqlite:///{tmp_path}/elsewhere.sqlite3"}),
        ):
            assert start_with(tmp_path / "data", **settings).returncode == 0
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        os.umask(old_mask)


def test_database_is_in_the_data_directory_whatever_its_name(tmp_path: Path) -> None:
    directory = tmp_path / "c++ #1? 100%41"
    assert start_with(directory).returncode == 0
    assert (directory / "docora.sqlite3").is_file()


def test_concurrent_starts_read_the_same_keys(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(lambda _: generated_key(tmp_path, "secret_key"), range(64)))
    assert len(keys) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_make_private_includes_parent_folders(tmp_path: Path) -> None:
    make_private(tmp_path / "data" / "repos")
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("data", "data/repos")] == [0o700, 0o700]


def test_socket_of_a_data_directory_with_a_long_path() -> None:
    short, long = Path("/srv/docora"), Path("/srv") / ("d" * 120)
    assert embedded_redis_socket(short) == short / "valkey.sock"
    assert len(os.fsencode(embedded_redis_socket(long))) <= 100
    assert embedded_redis_socket(long) != embedded_redis_socket(Path("/srv") / ("e" * 120))
    with Redis.from_url(embedded_redis_url(odd := Path("/srv/c++ #1? 100%41"))) as client:
        assert client.connection_pool.connection_kwargs["path"] == str(odd / "valkey.sock")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, True) for value in ("1", "yes", "true", "on", " YES ")),
        *((value, False) for value in ("0", "no", "false", "off", "Off")),
        ("", True),
    ],
)
def test_flags(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("ALLOW_HTTP", value)
    assert env.flag("ALLOW_HTTP", default=True) is expected


def test_left_side_of_a_pair_may_contain_an_equals_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OIDC_ROLES", "cn=admins = superuser, readers=Viewers")
    assert env.pairs("OIDC_ROLES") == [("cn=admins", "superuser"), ("readers", "Viewers")]


@pytest.mark.parametrize(
    ("scheme", "tls", "ssl"), [("smtp", False, False), ("smtp+tls", True, False), ("smtp+ssl", False, True)]
)
def test_mail_server(monkeypatch: pytest.MonkeyPatch, scheme: str, tls: bool, ssl: bool) -> None:
    monkeypatch.setenv("EMAIL_URL", f"{scheme}://ops:p%40ss@mail.example:587")
    options = env.mailers("EMAIL_URL")["default"]["OPTIONS"]
    assert (options["use_tls"], options["use_ssl"], options["password"]) == (tls, ssl, "p@ss")
    monkeypatch.setenv("EMAIL_URL", f"{scheme}://")
    with pytest.raises(ImproperlyConfigured, match="must look like"):
        env.mailers("EMAIL_URL")


def test_ambiguous_scheme_of_a_mail_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """It meant STARTTLS. A server with implicit TLS, as the name says, waited for that until the connection timed out."""
    monkeypatch.setenv("EMAIL_URL", "smtps://ops:password@mail.example:465")
    with pytest.raises(ImproperlyConfigured, match=r"Use smtp\+ssl for implicit TLS"):
        env.mailers("EMAIL_URL")


@pytest.mark.parametrize("url", ["postgres:///?service=docora", "postgres:///docora?host=/run/postgresql&user=a@b/c"])
def test_database_url_without_a_location(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    assert env.database("DATABASE_URL", "")["OPTIONS"]


@pytest.mark.parametrize("url", ["", "sqlite://:memory:", *(f"postgres://docora:p{sign}w@db/docora" for sign in "?/#")])
def test_database_url_that_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """An instance whose URL got lost must not start as an empty one, nor may a part of the password become the host."""
    monkeypatch.setenv("DATABASE_URL", url)
    with warnings.catch_warnings(action="error"), pytest.raises(ImproperlyConfigured, match="must look like"):
        env.database("DATABASE_URL", "sqlite:////srv/docora.sqlite3")
