"""Secrets at rest."""

import pytest

from deliveries_app.models import App
from docora.security.crypto import DecryptionError, decrypt, encrypt, hash_token, new_token, new_webhook_key


def make_app(**changes) -> App:
    facts = {
        "name": "Portal",
        "base_url": "https://x.example",
        "email": "a@b.example",
        "client_auth_key": "s3cret-" * 3,
    }
    return App.objects.create(**facts | changes)


def test_what_one_key_encrypted_is_read_after_a_new_key_was_put_in_front(settings) -> None:
    settings.ENCRYPTION_KEYS = ["the-first-key-of-all"]
    token = encrypt("ghp_token")
    settings.ENCRYPTION_KEYS = ["a-newer-key-in-front", "the-first-key-of-all"]
    assert decrypt(token) == "ghp_token"
    assert decrypt(encrypt("ghp_token")) == "ghp_token"


def test_a_key_that_is_gone_is_told_in_words(settings) -> None:
    settings.ENCRYPTION_KEYS = ["the-first-key-of-all"]
    token = encrypt("ghp_token")
    settings.ENCRYPTION_KEYS = ["another-key-altogether"]
    with pytest.raises(DecryptionError, match="Add the key that was used"):
        decrypt(token)


def test_a_secret_is_plain_on_the_instance_and_never_in_the_database(db) -> None:
    app = make_app()
    assert App.objects.get(pk=app.pk).client_auth_key == "s3cret-" * 3
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT client_auth_key FROM deliveries_app_app")
        stored = cursor.fetchone()[0]
    assert stored.startswith("gAAAA")
    assert "s3cret" not in stored


def test_an_encrypted_column_cannot_be_searched(db) -> None:
    with pytest.raises(TypeError, match="cannot be searched"):
        App.objects.filter(client_auth_key="s3cret").exists()


def test_tokens_and_keys_have_the_forms_of_the_contract() -> None:
    assert len(new_token()) == len("docora_") + 64
    assert new_webhook_key().startswith("whsec_")
    assert len(hash_token("docora_x")) == 64
