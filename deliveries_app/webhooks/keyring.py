"""Which of an app's signing keys signs, while one is being replaced by another (wire contract §1).

Existing clients check `X-Docora-Signature` alone and must not notice a rotation. So it is made with the key that was
accepted last, the old one first; what is answered with 401 or 403 is sent once more with the other key, and the winner
is remembered. `webhook-signature` always carries a signature of every live key.
"""

from collections.abc import Iterable

from django.utils import timezone

from deliveries_app.models import App
from docora.security.redaction import without
from docora.text import clean_text

Keys = tuple[str, ...]
"""The live keys; the first one makes `X-Docora-Signature`."""

REFUSALS = {401, 403}
_SHOWN = 500  # characters of an answer


def keys_of(app: App) -> Keys:
    """The app's live keys as its row says."""
    if not app.is_rotating_key:
        return (app.client_auth_key,)
    both = (app.client_auth_key, app.new_auth_key)
    return both[::-1] if app.new_key_signs else both


def answers_of(app: App, bodies: Iterable[bytes]) -> list[str]:
    """The beginnings of what the app answered, for people: without its keys, should it repeat what it expects. Asks the
    row too: a key may have come since `app` was read."""
    keys = {key for row in (app, *App.objects.filter(pk=app.pk)) for key in (row.client_auth_key, row.new_auth_key)}
    return [clean_text(without(body.decode("utf-8", "replace"), *keys), _SHOWN) for body in bodies]


class Keyring:
    """The keys during one run, which may be long: a rotation may begin or end meanwhile."""

    def __init__(self, app: App) -> None:
        self._alone = False
        self._read(app)

    @classmethod
    def of_new_key(cls, app: App) -> "Keyring":
        """Nothing but the key that is being introduced, to find out whether the app has it."""
        ring = cls(app)
        ring.keys, ring._alone = (app.new_auth_key,), True
        return ring

    def _read(self, app: App) -> None:
        self._app = app
        self.keys = keys_of(app)

    def other(self, refused: Keys) -> Keys | None:
        """What to sign with after a refusal, None when there is no other key. Asks the row: the key that was refused
        may have been retired since the run began."""
        app = None if self._alone else App.objects.filter(pk=self._app.pk).first()
        if app is None:
            return None
        self._read(app)
        return next((keys for keys in (self.keys, self.keys[::-1]) if keys[0] != refused[0]), None)

    def accepted(self, keys: Keys) -> None:
        """The app answered 2xx to something that was signed with these; written down when it tells something new."""
        app = self._app
        by_new_key = app.is_rotating_key and keys[0] == app.new_auth_key
        known = by_new_key == app.new_key_signs and (not by_new_key or app.new_key_accepted_at)
        if not app.is_rotating_key or known:
            return
        remember(app, by_new_key=by_new_key)
        self._read(app)


def remember(app: App, *, by_new_key: bool) -> None:
    """Note which key the app accepted last; nothing if the rotation has ended or another one has begun meanwhile."""
    app.new_key_signs = by_new_key
    if by_new_key and app.new_key_accepted_at is None:
        app.new_key_accepted_at = timezone.now()
    App.objects.filter(pk=app.pk, key_rotation_started_at=app.key_rotation_started_at).update(
        new_key_signs=app.new_key_signs, new_key_accepted_at=app.new_key_accepted_at
    )
