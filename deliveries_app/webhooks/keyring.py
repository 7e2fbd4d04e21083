"""Choose the signing key during a key rotation (wire contract §1).

Existing clients check only `X-Docora-Signature` and must not notice a rotation. Sign it with the key accepted last,
initially the old one. Retry a 401 or 403 once with the other key alone, and remember which key was accepted.
All other requests carry one `webhook-signature` per live key.
"""

from collections.abc import Iterable

from django.utils import timezone

from deliveries_app.models import App
from docora.security.redaction import remove_secrets
from docora.text import clean_text

Keys = tuple[str, ...]
"""The live keys. The first one signs `X-Docora-Signature`."""

REFUSALS = {401, 403}
SHOWN_CHARS = 500
"""Characters of a response that are shown where a failure is listed."""


def response_texts(app: App, bodies: Iterable[bytes], most: int = SHOWN_CHARS) -> list[str]:
    """Return the first characters of each body as text, with the app's keys redacted.

    Redact the keys of the current row too: a key may have been added since `app` was loaded.
    """
    keys = {key for row in (app, *App.objects.filter(pk=app.pk)) for key in (row.client_auth_key, row.new_auth_key)}
    return [clean_text(remove_secrets(body.decode("utf-8", "replace"), *keys), most) for body in bodies]


class Keyring:
    """The live keys during one run. A rotation may begin or end during a long run."""

    def __init__(self, app: App) -> None:
        self._only_new_key = False
        self._read(app)

    @classmethod
    def of_new_key(cls, app: App) -> "Keyring":
        """Use only the new key, to test whether the app accepts it."""
        ring = cls(app)
        ring.keys, ring._only_new_key = (app.new_auth_key,), True
        return ring

    def _read(self, app: App) -> None:
        self._app = app
        keys = (app.client_auth_key, app.new_auth_key) if app.is_rotating_key else (app.client_auth_key,)
        self.keys: Keys = keys[::-1] if app.new_key_signs else keys

    def other(self, refused: Keys) -> Keys | None:
        """Return the keys to retry with after a 401 or 403, or None without another key.

        Read the row: the refused key may have been retired since the run began. A refused key doesn't sign again beside the
        other one: if the app had refused it for another reason and accepts it now, that would count for the other key.
        """
        app = None if self._only_new_key else App.objects.filter(pk=self._app.pk).first()
        if app is None:
            return None
        self._read(app)
        first = next((key for key in self.keys if key != refused[0]), None)
        return None if first is None else tuple(key for key in self.keys if key == first or key not in refused)

    def accepted(self, keys: Keys) -> None:
        """Record that the app accepted a request signed with `keys`. Write only if this is new and during a rotation."""
        app = self._app
        by_new_key = keys[0] == app.new_auth_key
        if not app.is_rotating_key or by_new_key == app.new_key_signs:
            return
        app.new_key_signs = by_new_key
        if by_new_key and app.new_key_accepted_at is None:
            app.new_key_accepted_at = timezone.now()
        App.objects.filter(pk=app.pk, key_rotation_started_at=app.key_rotation_started_at).update(
            new_key_signs=app.new_key_signs, new_key_accepted_at=app.new_key_accepted_at
        )
        self._read(app)
