"""`manage.py rotate_encryption_keys`: every stored secret moves to the newest key, and nothing else changes."""

import io

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from deliveries_app.models import App, AppRepository
from docora.security import reencryption
from docora.security.crypto import encrypt, is_current
from tests.support.staff import make_app, make_watch

OLD, NEW = "the-first-key-of-all", "a-newer-key-in-front"


@pytest.fixture
def old_key(db, settings) -> None:
    """What the test stores from now on is stored under the old key."""
    settings.ENCRYPTION_KEYS = [OLD]


def rotate(*options: str) -> str:
    out = io.StringIO()
    call_command("rotate_encryption_keys", *options, stdout=out)
    return out.getvalue()


def stored(model: type, column: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {column} FROM {model._meta.db_table} ORDER BY id")
        return [value for (value,) in cursor.fetchall()]


def test_after_it_the_old_key_can_be_forgotten(old_key, settings) -> None:
    app = make_app("Portal")
    make_watch(app, "docs", push_secret="whsec_hook")
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    words = rotate()
    assert "deliveries_app.App.client_auth_key: 1 encrypted anew, 0 had the newest key" in words
    assert "deliveries_app.AppRepository.push_secret: 1 encrypted anew" in words
    settings.ENCRYPTION_KEYS = [NEW]
    assert App.objects.get().client_auth_key == "k" * 20
    watch = AppRepository.objects.get()
    assert (watch.github_token, watch.push_secret) == ("ghp_secret", "whsec_hook")


def test_every_encrypted_column_is_found() -> None:
    assert {str(column) for column in reencryption.columns()} == {
        "deliveries_app.App.client_auth_key",
        "deliveries_app.App.new_auth_key",
        "deliveries_app.AppRepository.github_token",
        "deliveries_app.AppRepository.push_secret",
    }


def test_nothing_but_the_ciphertext_changes(old_key, settings) -> None:
    app = make_app("Portal")
    before = App.objects.values().get(pk=app.pk)
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    rotate()
    assert App.objects.values().get(pk=app.pk) == before  # updated_at among them
    assert stored(App, "new_auth_key") == [""], "empty stays empty"


def test_a_second_time_finds_nothing_to_do(old_key, settings) -> None:
    make_app("Portal")
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    rotate()
    once = stored(App, "client_auth_key")
    assert "client_auth_key: 0 encrypted anew, 1 had the newest key" in rotate()
    assert stored(App, "client_auth_key") == once


def test_many_rows_are_read_in_slices(old_key, settings, monkeypatch) -> None:
    monkeypatch.setattr(reencryption, "SLICE", 3)
    for number in range(8):
        make_app(f"App {number}")
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    assert "client_auth_key: 8 encrypted anew" in rotate()
    assert all(map(is_current, stored(App, "client_auth_key")))


def test_a_dry_run_counts_and_writes_nothing(old_key, settings) -> None:
    make_app("Portal")
    before = stored(App, "client_auth_key")
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    assert "client_auth_key: 1 to encrypt anew" in rotate("--dry-run")
    assert stored(App, "client_auth_key") == before


def test_a_secret_that_is_written_meanwhile_is_not_lost(old_key, settings, monkeypatch) -> None:
    app = make_app("Portal")
    settings.ENCRYPTION_KEYS = [NEW, OLD]

    def somebody_is_quicker(plain: str) -> str:
        monkeypatch.setattr(reencryption, "encrypt", encrypt)
        App.objects.filter(pk=app.pk).update(client_auth_key="the-key-of-a-second-ago")
        return encrypt(plain)

    monkeypatch.setattr(reencryption, "encrypt", somebody_is_quicker)
    rotate()
    assert App.objects.get().client_auth_key == "the-key-of-a-second-ago"


def test_what_cannot_be_decrypted_is_named_and_stays_as_it_is(old_key, settings, capsys) -> None:
    lost = make_app("Lost")
    settings.ENCRYPTION_KEYS = [NEW]
    make_app("Fine")
    before = stored(App, "client_auth_key")
    err = io.StringIO()
    with pytest.raises(CommandError, match="1 stored secret cannot be decrypted") as failure:
        call_command("rotate_encryption_keys", stderr=err, stdout=io.StringIO())
    assert failure.value.returncode == 1
    assert f"deliveries_app.App.client_auth_key: pk {lost.pk} cannot be decrypted" in err.getvalue()
    assert stored(App, "client_auth_key") == before
