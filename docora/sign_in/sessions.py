"""Django's database sessions with a faster read: every poll of every open page reads one."""

from typing import Any

from django.contrib.sessions.backends import db
from django.contrib.sessions.models import Session
from django.db.models import QuerySet
from django.utils import timezone

from docora.db.compiled import compiled_and_prepared


class SessionStore(db.SessionStore):
    """Django's store, except that the SQL that reads a session is built once."""

    def _get_session_from_db(self) -> Any:
        """Return the session, or None if there is none or it has expired. The store then begins a new one."""
        session = next(iter(_session(self.session_key or "")), None)
        if session is None or session.expire_date <= timezone.now():
            self._session_key = None
            return None
        return session


@compiled_and_prepared
def _session(session_key: str) -> QuerySet[Session]:
    return Session.objects.filter(session_key=session_key)
