"""A secret that no key decrypts: whatever needs it reports it, and everything else works."""

import pytest
from django.db import connection
from django.http import HttpResponse

from deliveries_app.models import App, AppRepository
from docora.security.crypto import DecryptionError, Undecryptable, encrypt, require_readable
from docora.security.redaction import remove_secrets
from docora.web.middleware import DecryptionErrorMiddleware
from tests.support.staff import make_app
from tests.support.world import World

SENTENCE = "be decrypted with any key in ENCRYPTION_KEYS."


def lose_the_key_of(row: App | AppRepository, column: str, settings) -> str:
    """Encrypt this value with a key that is then lost, and return the ciphertext."""
    keys, settings.ENCRYPTION_KEYS = settings.ENCRYPTION_KEYS, ["a-key-that-nobody-has"]
    ciphertext = encrypt("whatever it was")
    settings.ENCRYPTION_KEYS = keys
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {row._meta.db_table} SET {column} = %s WHERE id = %s", [ciphertext, row.pk])
    return ciphertext


def test_undecryptable_value_cannot_become_bytes_or_text() -> None:
    secret = Undecryptable(encrypt("ghp_token"))
    for use in (
        lambda: secret.encode(),
        lambda: str(secret),
        lambda: f"x-access-token:{secret}",
        lambda: f"{secret:>200}",
        lambda: "Bearer " + secret,
        lambda: secret + ".",
        lambda: require_readable("fine", secret),
    ):
        with pytest.raises(DecryptionError, match="can't be decrypted"):
            use()
    assert secret
    assert "gAAAA" not in repr(secret)
    assert remove_secrets("They said: my-key", secret, "my-key") == "They said: [redacted]"


def test_saving_the_row_keeps_the_ciphertext(db, settings) -> None:
    app = make_app("Portal")
    ciphertext = lose_the_key_of(app, "client_auth_key", settings)
    app = App.objects.get(pk=app.pk)
    app.name = "Gate"
    app.full_clean(exclude=["base_url"])
    app.save()
    with connection.cursor() as cursor:
        cursor.execute("SELECT name, client_auth_key FROM deliveries_app_app WHERE id = %s", [app.pk])
        assert cursor.fetchone() == ("Gate", ciphertext)


def test_admin_pages_show_the_row(admin, watches, settings) -> None:
    watch = watches[0]
    lose_the_key_of(watch, "github_token", settings)
    lose_the_key_of(watch.app, "client_auth_key", settings)
    for address in (
        "/admin/",
        "/admin/deliveries_app/app/",
        f"/admin/deliveries_app/app/{watch.app_id}/change/",
        "/admin/deliveries_app/apprepository/",
        f"/admin/deliveries_app/apprepository/{watch.pk}/change/",
        f"/admin/repositories_app/repository/{watch.repository_id}/change/",
        "/admin/api/repositories",
    ):
        assert admin.get(address).status_code == 200, address


@pytest.mark.parametrize("column", ["github_token", "client_auth_key"])
def test_sync_that_needs_the_secret_fails_alone(world: World, settings, column) -> None:
    _, watch = world.watch(name="acme/broken")
    other_app = world.add_app("Search") if column == "client_auth_key" else world.app
    _, other = world.watch(name="acme/fine", app=other_app)
    lose_the_key_of(watch if column == "github_token" else watch.app, column, settings)
    world.settle()
    watch.refresh_from_db()
    other.refresh_from_db()
    assert (watch.status, other.status) == ("failed", "synced")
    assert SENTENCE in watch.last_error
    assert world.copy(watch) == {}
    assert world.rows(watch) == {}, "something was announced that cannot be sent"


@pytest.mark.parametrize("column", ["github_token", "client_auth_key"])
def test_check_does_not_repeat_a_sync_that_needs_the_secret(world: World, settings, column) -> None:
    repo, watch = world.watch()
    world.settle()
    repo.commit({"new.txt": b"new"})
    lose_the_key_of(watch if column == "github_token" else watch.app, column, settings)
    watch = world.sync(watch)
    assert (watch.status, watch.seen_commit) == ("failed", "")
    world.check()
    assert not AppRepository.objects.due().exists()


def test_view_that_needs_the_secret_explains(rf) -> None:
    middleware = DecryptionErrorMiddleware(lambda request: HttpResponse())
    page = middleware.process_exception(rf.get("/admin/x"), DecryptionError())
    assert page.status_code == 500
    assert SENTENCE in page.content.decode()
    answer = middleware.process_exception(rf.get("/api/x"), DecryptionError())
    assert SENTENCE in answer.content.decode()
    assert answer["Content-Type"] == "application/json"
    assert middleware.process_exception(rf.get("/api/x"), ValueError()) is None
