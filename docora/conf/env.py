"""Read settings from the environment. An invalid value raises `ImproperlyConfigured` with a message that names the setting."""

import datetime
import ipaddress
import math
import os
import re
import warnings
import zoneinfo
from typing import Any
from urllib.parse import unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from environ import Env
from redis.connection import ConnectionPool

from docora.security.redaction import unless_password

_TEN_YEARS = 10 * 365 * 86_400
_MAX_COUNT = 2**53  # larger integers are not exact as floats


def text(name: str, default: str = "") -> str:
    """Return the value as written, or the default if it is empty. (`environ.Env` would expand a leading `$`.)"""
    return os.environ.get(name) or default


def seconds(name: str, default: float, minimum: float = 0, maximum: float = _TEN_YEARS) -> float:
    """Return a duration from `minimum` to `maximum` seconds. More than ten years could exceed the range of dates."""
    return _number(name, default, minimum, maximum)


def count(name: str, default: int, minimum: int = 1, maximum: int = _MAX_COUNT) -> int:
    """Return a whole number from `minimum` to `maximum`."""
    value = _number(name, default, minimum, maximum)
    if value != int(value):
        raise ImproperlyConfigured(f"{name} must be a whole number, but is {value!r}.")
    return int(value)


def _number(name: str, default: float, minimum: float, maximum: float) -> float:
    raw = text(name, default=str(default))
    try:
        value = float(raw)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ImproperlyConfigured(f"{name} must be a number, but is {raw!r}.")
    if value < minimum:
        raise ImproperlyConfigured(f"{name} must be at least {minimum:.16g}, but is {raw!r}.")
    if value > maximum:
        raise ImproperlyConfigured(f"{name} must be at most {maximum:.16g}, but is {raw!r}.")
    return value


def flag(name: str, default: bool = False) -> bool:
    raw = text(name).strip().lower()
    if not raw:
        return default
    if raw in {"1", "yes", "true", "on"}:
        return True
    if raw in {"0", "no", "false", "off"}:
        return False
    raise ImproperlyConfigured(f"{name} must be yes or no, but is {raw!r}.")


def date(name: str) -> datetime.date | None:
    """Return a date such as 2027-06-30, or None if it is empty."""
    raw = text(name).strip()
    try:
        return datetime.date.fromisoformat(raw) if raw else None
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be a date such as 2027-06-30, but is {raw!r}.") from None


def time_zone(name: str, default: str) -> str:
    value = text(name, default)
    try:
        zoneinfo.ZoneInfo(value)
    except (KeyError, ValueError, OSError):  # unknown, an absolute path, or a folder of time zones
        raise ImproperlyConfigured(f"{name} must be a time zone such as Europe/Berlin, but is {value!r}.") from None
    return value


def names(name: str, default: str = "", *, pattern: str = "", what: str = "") -> list[str]:
    """Return the parts of a list, each of which must match `pattern` if there is one. `what` describes them in the error message."""
    found = [part.strip() for part in text(name, default=default).split(",") if part.strip()]
    for part in found:
        if pattern and not re.fullmatch(pattern, part):
            raise ImproperlyConfigured(
                f"{name} must be {what}, separated by commas, but contains {unless_password(text(name), repr(part))}."
            )
    return found


def pairs(name: str) -> list[tuple[str, str]]:
    """Return the pairs of a list such as `a=b,c=d`. The left side may contain `=`."""
    found = []
    for part in names(name):
        left, equals, right = (piece.strip() for piece in part.rpartition("="))
        if not (left and equals and right):
            raise ImproperlyConfigured(
                f"{name} must be pairs such as group=role, separated by commas, not {unless_password(text(name), repr(part))}."
            )
        found.append((left, right))
    return found


def mailers(name: str) -> dict[str, Any]:
    """Return Django's MAILERS for the URL of a mail server. Empty if there is none."""
    if not text(name):
        return {}
    try:
        url = Env.email_url_config(text(name))
    except (ImproperlyConfigured, ValueError):
        url = {}
    scheme = text(name).partition(":")[0].lower()  # smtps is implicit TLS elsewhere, and STARTTLS in environ
    if scheme not in {"smtp", "smtp+tls", "smtp+ssl"} or not url.get("EMAIL_HOST"):
        raise ImproperlyConfigured(  # without the URL, because it holds a password
            f"{name} must look like smtp+tls://user:password@mail.example:587. Use smtp+ssl for implicit TLS and "
            "smtp for none. Percent-encode special characters in user name and password, such as @ as %40."
        )
    options = {
        "host": url["EMAIL_HOST"],
        "port": url["EMAIL_PORT"],
        "username": url["EMAIL_HOST_USER"],
        "password": url["EMAIL_HOST_PASSWORD"],
        "use_tls": url.get("EMAIL_USE_TLS", False),
        "use_ssl": url.get("EMAIL_USE_SSL", False),
        "timeout": 10,  # seconds for each network operation
    }
    return {"default": {"OPTIONS": options}}


def database(name: str, default: str) -> dict[str, Any]:
    """Return Django's settings for the URL of a database.

    An empty value is an error, not the default: a deployment that lost its URL must not start as an empty instance. Error
    messages do not repeat the URL, because it may hold a password.
    """
    url = os.environ.get(name, default)
    try:
        with warnings.catch_warnings(action="ignore"):  # the warnings contain the URL
            found = Env.db_url_config(url)
    except (ValueError, ImproperlyConfigured):
        found = {}
    match found.get("ENGINE"):
        case "django.db.backends.postgresql":
            found["HOST"] = unquote(found["HOST"])  # in libpq's URLs, slashes of the folder of a socket are %2F
            has_name = bool(found["NAME"]) or "service" in found.get("OPTIONS", {})
            is_valid = has_name and not _is_unescaped(url) and all(map(_can_be_host, found["HOST"].split(",")))
        case "django.db.backends.sqlite3":
            # One in memory would not outlive the process. Of `sqlite://var/x`, `var` would be ignored.
            is_valid = found["NAME"] != ":memory:" and not found.get("HOST")
        case _:
            is_valid = False
    if not is_valid:
        raise ImproperlyConfigured(
            f"{name} must look like postgres://user:password@host:5432/name, or sqlite:////path/of/file. "
            "Percent-encode special characters in user name and password, such as @ as %40."
        )
    return dict(found)


def redis_url(name: str, default: str) -> str:
    """Return the URL of a Redis server. The error message does not repeat it, because it may hold a password."""
    url = text(name, default)
    try:
        pool = ConnectionPool.from_url(url)
        parts = pool.connection_kwargs
        if urlsplit(url).path.strip("/") and not {"db", "path"} & parts.keys():
            raise ValueError  # redis-py would use database 0, which another instance may use
        if not _can_be_host(parts.get("host", "")) or ("path" not in parts and _is_unescaped(url)):
            raise ValueError
        pool.make_connection()  # raises TypeError if a parameter is unknown, and doesn't connect
    except (TypeError, ValueError):
        raise ImproperlyConfigured(f"{name} must look like redis://host:6379/0, rediss://… or unix:///path.") from None
    return url


def _can_be_host(name: str) -> bool:
    """Return whether Python can look up a host name. With another one, such as `db..internal`, it raises UnicodeError."""
    if name.startswith("/"):  # the folder of a socket
        return True
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True


def _is_unescaped(url: str) -> bool:
    """Return whether user name or password contain /, ? or #, so that a part of the password is taken for the host."""
    location = url.partition("://")[2]
    before_query, _, query = location.partition("?")
    if "=" in query.partition("@")[0]:  # the @ is in a parameter
        location = before_query
    return bool({"/", "?", "#"} & set(location.rpartition("@")[0]))


def networks(name: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    try:
        return [ipaddress.ip_network(part) for part in names(name)]
    except ValueError as error:
        raise ImproperlyConfigured(
            f"{name} must be networks such as 10.0.0.0/8, separated by commas: {unless_password(text(name), str(error))}."
        ) from None
