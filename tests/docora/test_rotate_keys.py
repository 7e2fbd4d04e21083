"""`manage.py rotate_encryption_keys` moves every stored secret to the newest key and changes nothing else."""

import io
from collections.abc import Callable

import pytest
from allauth.mfa.models import Authenticator
from django.contrib.auth.models import User
from django.core.checks import ERROR, INFO
from django.core.management import CommandError, call_command
from django.db import connection
from rq import Worker

from deliveries_app.models import App, AppRepository
from deliveries_app.monitoring.instance_checks import check_workers
from docora.security import crypto, stored_secrets
from docora.security.crypto import encrypt, reencrypt
from docora.security.stored_secrets import encrypted_fields
from docora.server.worker import DocoraWorker
from tests.support.staff import make_app, make_watch

OLD, NEW = "the-first-key-of-all", "a-newer-key-in-front"


@pytest.fixture
def old_key(db, settings) -> None:
    """Encrypt with the old key until the test changes the setting."""
    settings.ENCRYPTION_KEYS = [OLD]


def rotate(*options: str) -> str:
    out = io.StringIO()
    call_command("rotate_encryption_keys", *options, stdout=out)
    return out.getvalue()


def stored(model: type, column: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {column} FROM {model._meta.db_table} ORDER BY id")
        return [value for (value,) in cursor.fetchall()]


def test_reencrypt_moves_a_token_to_the_newest_key(settings) -> None:
    settings.ENCRYPTION_KEYS = [OLD]
    token = encrypt("ghp_token")
    assert reencrypt(token) == token
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    renewed = reencrypt(token)
    settings.ENCRYPTION_KEYS = [NEW]
    assert crypto.decrypt(renewed) == "ghp_token"
    with pytest.raises(crypto.DecryptionError):
        reencrypt(token)


def test_old_key_is_no_longer_needed(old_key, settings) -> None:
    app = make_app("Portal")
    make_watch(app, "docs", push_secret="whsec_hook")
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    output = rotate()
    assert "deliveries_app.App.client_auth_key: 1 re-encrypted, 0 already had the newest key" in output
    assert "deliveries_app.AppRepository.push_secret: 1 re-encrypted" in output
    settings.ENCRYPTION_KEYS = [NEW]
    assert App.objects.get().client_auth_key == "k" * 20
    watch = AppRepository.objects.get()
    assert (watch.github_token, watch.push_secret) == ("ghp_secret", "whsec_hook")


def test_all_encrypted_columns_are_found() -> None:
    assert {str(field) for field in encrypted_fields()} == {
        "deliveries_app.App.client_auth_key",
        "deliveries_app.App.new_auth_key",
        "deliveries_app.AppRepository.github_token",
        "deliveries_app.AppRepository.push_secret",
        "repositories_app.GitHubApp.private_key",
    }


def test_only_the_ciphertext_changes(old_key, settings) -> None:
    app = make_app("Portal")
    before = App.objects.values().get(pk=app.pk)
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    rotate()
    assert App.objects.values().get(pk=app.pk) == before  # including updated_at
    assert stored(App, "new_auth_key") == [""]


def test_second_run_changes_nothing(old_key, settings) -> None:
    make_app("Portal")
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    rotate()
    once = stored(App, "client_auth_key")
    assert "client_auth_key: 0 re-encrypted, 1 already had the newest key" in rotate()
    assert stored(App, "client_auth_key") == once


def test_worker_that_lacks_the_new_key(old_key, settings, redis_client) -> None:
    """It could no longer read any secret."""
    make_app("Portal")
    before = stored(App, "client_auth_key")
    worker = DocoraWorker(["high"], "stale", connection=redis_client)
    worker.register_birth()
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    with pytest.raises(CommandError, match="Started with other keys than this command: stale"):
        rotate()
    assert stored(App, "client_auth_key") == before
    assert "to re-encrypt" in rotate("--dry-run")
    assert [message.level for message in check_workers()] == [ERROR]
    assert "stale" in check_workers()[0].msg
    worker.register_death()
    DocoraWorker(["high"], "new", connection=redis_client).register_birth()
    Worker(["high"], name="of-1.0.0", connection=redis_client).register_birth()
    assert [message.level for message in check_workers()] == [INFO]
    assert "1 re-encrypted" in rotate()


def test_rows_are_read_in_pages(old_key, settings, monkeypatch) -> None:
    monkeypatch.setattr(stored_secrets, "PAGE_SIZE", 3)
    for number in range(8):
        make_app(f"App {number}")
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    assert "client_auth_key: 8 re-encrypted, 0 already had the newest key" in rotate()
    assert all(reencrypt(secret) == secret for secret in stored(App, "client_auth_key"))


def test_dry_run_counts_and_writes_nothing(old_key, settings) -> None:
    make_app("Portal")
    before = stored(App, "client_auth_key")
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    assert "client_auth_key: 1 to re-encrypt" in rotate("--dry-run")
    assert stored(App, "client_auth_key") == before


def before_encrypting(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Make a concurrent change while the command encrypts its first secret."""

    def encrypt_after_change(plain: str) -> str:
        monkeypatch.setattr(crypto, "encrypt", encrypt)
        change()
        return encrypt(plain)

    monkeypatch.setattr(crypto, "encrypt", encrypt_after_change)


def test_concurrent_change_of_a_secret_is_not_lost(old_key, settings, monkeypatch) -> None:
    app = make_app("Portal")
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    row = App.objects.filter(pk=app.pk)
    before_encrypting(monkeypatch, lambda: row.update(client_auth_key="the-key-of-a-second-ago"))
    rotate()
    assert App.objects.get().client_auth_key == "the-key-of-a-second-ago"
    assert all(reencrypt(secret) == secret for secret in stored(App, "client_auth_key"))


def test_secret_that_is_deleted_meanwhile(old_key, settings, monkeypatch) -> None:
    make_app("Portal")
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    before_encrypting(monkeypatch, App.objects.all().delete)
    rotate()
    assert not App.objects.exists()


@pytest.mark.parametrize("left", [[], ["new"]])
def test_second_factor_that_is_changed_meanwhile(old_key, settings, monkeypatch, left: list[str]) -> None:
    factors = Authenticator.objects.all()
    factors.create(user=User.objects.create(username="anna"), type="totp", data={"secret": encrypt("old")})
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    before_encrypting(
        monkeypatch, lambda: factors.update(data={"secret": encrypt(left[0])}) if left else factors.delete()
    )
    rotate()
    assert [crypto.decrypt(factor.data["secret"]) for factor in factors.all()] == left


def test_undecryptable_secret_is_listed_and_left_unchanged(old_key, settings) -> None:
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
