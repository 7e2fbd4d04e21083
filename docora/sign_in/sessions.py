"""Django's database sessions, but read faster, stored without their keys, and kept for only an hour without a sign-in.

Every poll of every open page reads a session. A key is a bearer token: with one from a stolen dump, anyone could take over the
session. So the database holds only digests.
"""

from typing import Any

from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends import db
from django.contrib.sessions.models import Session
from django.db.models import QuerySet
from django.utils import timezone

from docora.db.compiled import compiled_and_prepared
from docora.security.crypto import hash_token

_DIGITS = 40
"""Characters in the column for the key: 160 bits of the digest."""
STRANGER_SECONDS = 3600
"""How long a session without a sign-in is kept. Anyone can start sessions, and could fill the database with them."""


class SessionStore(db.SessionStore):
    """Django's store, except that rows are found by the digest of the key, and that the SQL that reads one is built once."""

    def _get_session_from_db(self) -> Any:
        """Return the session, or None if there is none or it has expired. The store then begins a new one."""
        session = next(iter(_session(_digest(self.session_key or ""))), None)
        if session is None or session.expire_date <= timezone.now():
            self._session_key = None
            return None
        return session

    def get_session_cookie_age(self) -> int:
        return super().get_session_cookie_age() if SESSION_KEY in self else STRANGER_SECONDS

    def exists(self, session_key: str) -> bool:
        return super().exists(_digest(session_key))

    def create_model_instance(self, data: dict[str, Any]) -> Any:
        row: Any = super().create_model_instance(data)
        row.session_key = _digest(row.session_key)
        return row

    def delete(self, session_key: str | None = None) -> None:
        if key := session_key or self.session_key:
            super().delete(_digest(key))

    def end(self) -> bool:
        """Delete the session, and return False if another request has just done so."""
        rows = Session.objects.filter(session_key=_digest(self.session_key or ""))
        return rows.delete()[0] > 0


def _digest(session_key: str) -> str:
    return hash_token(session_key)[:_DIGITS]


@compiled_and_prepared
def _session(digest: str) -> QuerySet[Session]:
    return Session.objects.filter(session_key=digest)
