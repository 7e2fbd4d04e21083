"""How every process is connected to PostgreSQL, so that neither side waits for one that will never answer.

A worker that is frozen in the middle of a transaction (a laptop that sleeps, a machine that is moved, a debugger) holds
row locks, and so does one whose machine has lost its power: PostgreSQL would keep them for as long as the connection seems
to live, for ever or for hours, and every other worker and the admin would wait. A transaction that has been idle for a
lease belongs to nobody any more. Busy ones are never ended, however long they take.

On our side a server that is gone without a word (power, network, firewall) would be waited for, for a quarter of an hour
with something sent and for two hours without.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, InternalError, OperationalError

LOST = (OperationalError, InterfaceError, InternalError)
"""What a database that is gone, or has ended our session, makes of any statement; not what a wrong statement does."""


def known(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `read` makes of DATABASE_URL, if it is understood; it is not repeated, for a password may stand in it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # they repeat it
            found = read()
    except (ValueError, ImproperlyConfigured):
        found = {}
    if found.get("ENGINE") not in {"django.db.backends.postgresql", "django.db.backends.sqlite3"}:
        raise ImproperlyConfigured(
            "DATABASE_URL must look like postgres://user:password@host:5432/name, or sqlite:////path/of/file; what is "
            "special in user name and password is written as in any URL, @ as %40."
        )
    return found


def bounded(given: Mapping[str, Any], lease_seconds: float) -> dict[str, Any]:
    """The options of a PostgreSQL connection; what DATABASE_URL says itself (`given`) wins. PostgreSQL and libpq leave out
    by themselves what means nothing on a Unix socket."""
    patience = round(lease_seconds * 1000)  # milliseconds
    session = f"-c idle_in_transaction_session_timeout={patience} -c tcp_user_timeout={patience}"
    return {
        "connect_timeout": 10,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": patience,
        **given,
        "options": f"{session} {given.get('options', '')}".strip(),  # of a parameter that stands there twice the last counts
    }


def reason(error: Exception) -> str:
    """The first line of what a database or its driver says, which is where the cause stands."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
