"""Secrets at rest."""

import pytest
from django.core.management import CommandError, call_command

from deliveries_app.models import App
from docora.security.crypto import DecryptionError, decrypt, encrypt, hash_token, new_token, new_webhook_key, reencrypt


def make_app(**changes) -> App:
    fields = {
        "name": "Portal",
        "base_url": "https://x.example",
        "email": "a@b.example",
        "client_auth_key": "s3cret-" * 3,
    }
    return App.objects.create(**fields | changes)


def test_older_key_still_decrypts(settings) -> None:
    settings.ENCRYPTION_KEYS = ["the-first-key-of-all"]
    token = encrypt("ghp_token")
    settings.ENCRYPTION_KEYS = ["a-newer-key-in-front", "the-first-key-of-all"]
    assert decrypt(token) == "ghp_token"
    assert decrypt(encrypt("ghp_token")) == "ghp_token"


def test_removed_key_raises_decryption_error(settings) -> None:
    settings.ENCRYPTION_KEYS = ["the-first-key-of-all"]
    token = encrypt("ghp_token")
    settings.ENCRYPTION_KEYS = ["another-key-altogether"]
    with pytest.raises(DecryptionError, match="Add the key that encrypted it"):
        decrypt(token)


@pytest.mark.parametrize("stored", ["plain", "größe"])
def test_stored_text_that_is_not_encrypted(stored: str) -> None:
    for read in (decrypt, reencrypt):
        with pytest.raises(DecryptionError):
            read(stored)


def test_secret_is_encrypted_in_the_database_only(db) -> None:
    app = make_app()
    assert App.objects.get(pk=app.pk).client_auth_key == "s3cret-" * 3
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT client_auth_key FROM deliveries_app_app")
        stored = cursor.fetchone()[0]
    assert stored.startswith("gAAAA")
    assert "s3cret" not in stored


def test_dumpdata_writes_no_secret(db, capsys) -> None:
    make_app()
    with pytest.raises(CommandError, match="client_auth_key is a secret"):
        call_command("dumpdata", "deliveries_app.app")
    assert "s3cret" not in capsys.readouterr().out


def test_encrypted_column_cannot_be_searched(db) -> None:
    with pytest.raises(TypeError, match="cannot be searched"):
        App.objects.filter(client_auth_key="s3cret").exists()


def test_format_of_tokens_and_keys() -> None:
    assert len(new_token()) == len("docora_") + 64
    assert new_webhook_key().startswith("whsec_")
    assert len(hash_token("docora_x")) == 64
