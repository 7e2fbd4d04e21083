"""GitHub Apps in the admin: the key is never shown, it can be tested, and assigning the app needs a permission."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from django.core.exceptions import PermissionDenied
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.admin import github_apps as admin
from deliveries_app.models import App, AppRepository
from deliveries_app.services import change_app, github_apps
from repositories_app.models import GitHubApp, Repository
from tests.support.admin_pages import posted_form, superuser
from tests.support.audit import by_users
from tests.support.github_api import GitHubFixture, pem
from tests.support.staff import make_app, make_watch, staff

LIST = "/admin/repositories_app/githubapp/"
KEY = pem()
FIELDS = {"name": "Reader", "host": "https://github.com", "app_id": "123456"}


@pytest.fixture(autouse=True)
def _allowed_hosts(settings) -> None:
    settings.ALLOWED_GIT_HOSTS = ["github.com", "127.0.0.1:*"]


@pytest.fixture
def root(db) -> Client:
    return superuser()


@pytest.fixture
def git(db, tmp_path: Path) -> Iterator[GitHubFixture]:
    git = GitHubFixture(tmp_path)
    yield git
    git.server.stop()


@pytest.fixture
def github_app(git: GitHubFixture) -> GitHubApp:
    return git.app("Reader")


def change_page(github_app: GitHubApp) -> str:
    return f"{LIST}{github_app.pk}/change/"


def test_key_is_required_until_one_is_stored(root: Client, github_app: GitHubApp) -> None:
    assert '<label class="required" for="id_key">Private key:</label>' in root.get(f"{LIST}add/").text
    assert '<label for="id_key">Private key:</label>' in root.get(change_page(github_app)).text


def test_key_is_entered_once_and_never_shown(root: Client) -> None:
    assert root.post(f"{LIST}add/", FIELDS | {"key": KEY.replace("\n", "\r\n")}).status_code == 302
    github_app = GitHubApp.objects.get()
    assert (github_app.private_key, github_app.host) == (KEY, "https://github.com")
    for page in (LIST, change_page(github_app), f"{LIST}{github_app.pk}/history/"):
        assert "PRIVATE KEY" not in root.get(page).text
    assert "Leave blank to keep the stored key." in root.get(change_page(github_app)).text


def test_blank_key_keeps_the_stored_one(root: Client, github_app: GitHubApp) -> None:
    answer = root.post(change_page(github_app), FIELDS | {"name": "Renamed", "key": ""})
    assert answer.status_code == 302, answer.text
    changed = GitHubApp.objects.get()
    assert (changed.name, changed.private_key) == ("Renamed", KEY)


def test_saving_a_stale_page_keeps_what_another_administrator_has_changed(root: Client, github_app: GitHubApp) -> None:
    key = pem(rsa.generate_private_key(65537, 2048))
    page = change_page(github_app)
    stale = posted_form(root, page, name="Renamed")
    assert "initial-key" not in stale
    github_app.app_id = "another"
    github_apps.save_github_app(Actor.command(), github_app, key)
    assert root.post(page, stale).status_code == 302
    changed = GitHubApp.objects.get()
    assert (changed.name, changed.app_id, changed.private_key) == ("Renamed", "another", key)
    assert by_users(message="Name: Reader → Renamed").count() == 1
    stale = posted_form(root, page, app_id="third")
    GitHubApp.objects.update(name="Renamed again")
    assert "Renamed again</a>” was changed successfully." in root.post(page, stale, follow=True).text


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"key": ""}, "This field is required"),
        ({"key": "nonsense"}, "not a private key in PEM format"),
        ({"key": pem(ec.generate_private_key(ec.SECP256R1()))}, "must be an RSA key of at least 2,048 bits"),
        ({"key": "x" * 20_000}, "at most 16,384 characters"),
        ({"host": "https://github.com/acme"}, "Enter the address of GitHub"),
        ({"host": "http://"}, "Enter the address of GitHub"),
        ({"host": "https://elsewhere.example"}, "ALLOWED_GIT_HOSTS must contain its host"),
        ({"host": "https://user:pass@github.com"}, "Enter the address of GitHub"),
        ({"app_id": "12 34"}, "Copy the app ID or the client ID"),
        ({"app_id": '1"}'}, "Copy the app ID or the client ID"),
        ({"name": ""}, "This field is required"),
    ],
)
def test_invalid_input(root: Client, changed: dict[str, str], error: str) -> None:
    answer = root.post(f"{LIST}add/", FIELDS | {"key": KEY} | changed)
    assert answer.status_code == 200
    assert error in answer.text
    assert '<p class="errornote">Fix the errors below.</p>' in answer.text
    assert "Please correct" not in answer.text
    assert "PRIVATE KEY" not in answer.text, "what was entered is not rendered"
    assert not GitHubApp.objects.exists()
    if "key" not in changed:
        assert "Enter the key again." in answer.text


def test_taken_name_is_an_error_of_the_form(root: Client, github_app: GitHubApp) -> None:
    other = GitHubApp.objects.create(name="Other", app_id="2", private_key=KEY)
    taken = FIELDS | {"name": github_app.name, "key": KEY}
    for page in (f"{LIST}add/", change_page(other)):
        answer = root.post(page, taken)
        assert "GitHub App with this Name already exists." in answer.text
        assert "Enter the key again." in answer.text
    assert GitHubApp.objects.count() == 2


def test_app_that_is_deleted_while_its_form_is_saved_is_not_stored_again(
    root: Client, github_app: GitHubApp, monkeypatch
) -> None:
    monkeypatch.setattr(admin, "require_recent", lambda request: GitHubApp.objects.all().delete())
    answer = root.post(change_page(github_app), FIELDS | {"name": "Writer"}, follow=True)
    assert "Perhaps it was deleted?" in answer.text  # this transaction is rolled back, with the deletion in it
    assert not GitHubApp.objects.filter(name="Writer")
    assert not by_users()


def test_address_is_stored_in_one_form(root: Client, settings) -> None:
    settings.ALLOWED_GIT_HOSTS = ["github.example"]
    root.post(f"{LIST}add/", FIELDS | {"key": KEY, "host": "https://GitHub.example:443/"})
    assert GitHubApp.objects.get().host == "https://github.example"


def test_key_is_tested(root: Client, git: GitHubFixture, github_app: GitHubApp) -> None:
    page = root.post(f"{LIST}{github_app.pk}/test/", follow=True).text
    assert "GitHub accepted the key. The app isn&#x27;t installed on any account yet." in page
    git.github.install("umbrella")
    git.github.install("acme")
    page = root.post(f"{LIST}{github_app.pk}/test/", follow=True).text
    assert "GitHub accepted the key. Installed on: acme, umbrella." in page
    assert by_users(message="Tested the key").count() == 2
    git.github.replies = [(401, {}, {})]
    page = root.post(f"{LIST}{github_app.pk}/test/", follow=True).text
    assert "GitHub refused the key of the GitHub App Reader." in page
    git.github.replies = [(500, {}, {})]
    page = root.post(f"{LIST}{github_app.pk}/test/", follow=True).text
    assert "GitHub returned HTTP 500. Try again later." in page  # nothing repeats the test
    assert root.get(f"{LIST}{github_app.pk}/test/").status_code == 405


def test_lost_encryption_key_is_a_message(root: Client, github_app: GitHubApp, settings) -> None:
    settings.ENCRYPTION_KEYS = ["another-key-that-decrypts-nothing"]
    page = root.post(f"{LIST}{github_app.pk}/test/", follow=True).text
    assert "can&#x27;t be decrypted with any key" in page


def test_permissions(github_app: GitHubApp) -> None:
    viewer, outsider = staff("victor", "view_githubapp"), staff("norbert", "view_app")
    page = viewer.get(change_page(github_app)).text
    assert "Reader" in page
    assert "Private key" not in page
    assert "Test key" not in page
    for client, status in ((viewer, 200), (outsider, 403)):
        assert client.get(LIST).status_code == status
        assert client.post(f"{LIST}add/", FIELDS | {"key": KEY}).status_code == 403
        assert client.post(change_page(github_app), FIELDS | {"name": "x"}).status_code == 403
        assert client.post(f"{LIST}{github_app.pk}/test/").status_code == 403
        assert client.post(f"{LIST}{github_app.pk}/delete/", {"post": "yes"}).status_code == 403
    with pytest.raises(PermissionDenied):
        github_apps.save_github_app(Actor.of_user(viewer.get(LIST).wsgi_request.user), github_app)
    assert GitHubApp.objects.get().name == "Reader"


def settings_of(app: App, **changed: object) -> dict[str, object]:
    names = ("name", "base_url", "email", "website", "description", "max_in_flight")
    return {name: getattr(app, name) for name in names} | changed


def test_assigning_needs_the_permission_to_change_github_apps(root: Client, github_app: GitHubApp) -> None:
    app = make_app("Portal")
    page = f"/admin/deliveries_app/app/{app.pk}/settings/"
    operator = staff("olga", "view_app", "change_app", "view_githubapp")
    assert "id_github_app" not in operator.get(page).text
    operator.post(page, settings_of(app, name="Portal 2", github_app=github_app.pk))
    app.refresh_from_db()
    assert (app.name, app.github_app) == ("Portal 2", None)
    assert "id_github_app" in root.get(page).text
    assert root.post(page, settings_of(app, github_app=github_app.pk)).status_code == 302
    app.refresh_from_db()
    assert app.github_app == github_app
    operator.post(page, settings_of(app, name="Portal 3"))
    app.refresh_from_db()
    assert (app.name, app.github_app) == ("Portal 3", github_app), "not unassigned by a form without the field"
    with pytest.raises(PermissionDenied):
        change_app(Actor.of_user(operator.get(page).wsgi_request.user), app, ["github_app"])
    assert root.post(page, settings_of(app, github_app="")).status_code == 302
    app.refresh_from_db()
    assert app.github_app is None


def test_watch_pages_say_how_the_repository_is_read(root: Client, github_app: GitHubApp) -> None:
    App.objects.filter(pk=make_app("Portal").pk).update(github_app=github_app)
    watch = make_watch(App.objects.get(), "docs")
    page = f"/admin/deliveries_app/apprepository/{watch.pk}"
    AppRepository.objects.update(github_token="")
    Repository.objects.update(canonical_url=f"{github_app.host}/acme/docs")
    assert "Read through the GitHub App Reader" in root.get(f"{page}/change/").text
    assert "through the GitHub App Reader. No token is stored." in root.get(f"{page}/token/").text
    Repository.objects.update(canonical_url="https://github.com/acme/docs")
    assert "GitHub App Reader" not in root.get(f"{page}/change/").text
    assert "as a public repository. No token is stored." in root.get(f"{page}/token/").text


def test_assigned_github_app_cannot_be_deleted(root: Client, github_app: GitHubApp) -> None:
    App.objects.filter(pk=make_app("Portal").pk).update(github_app=github_app)
    answer = root.post(f"{LIST}{github_app.pk}/delete/", {"post": "yes"})
    assert "can't be deleted because of:" in answer.text
    assert GitHubApp.objects.exists()
    App.objects.update(github_app=None)
    assert root.post(f"{LIST}{github_app.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not GitHubApp.objects.exists()


def test_list_counts_the_apps(root: Client, github_app: GitHubApp) -> None:
    App.objects.filter(pk=make_app("Portal").pk).update(github_app=github_app)
    assert "1 app" in root.get(LIST).text
