"""The admin's pages: what they show, to whom, and never a secret."""

import io
import re
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db.models import Value
from django.db.models.functions import Concat
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.admin.base import DocoraAdmin
from deliveries_app.models import (
    App,
    AppRepository,
    BulkOperation,
    Delivery,
    DeliveryFailure,
    FailureKind,
    Notice,
    Status,
    SyncRun,
)
from deliveries_app.receiver import Answer
from deliveries_app.services import resync_by_app, resync_many
from deliveries_app.services.tokens import rotate_app_token
from repositories_app.models import Repository, Snapshot
from tests.support.staff import make_app, make_watch, staff
from tests.support.world import World

ADMIN = "/admin/deliveries_app"


@pytest.fixture
def watch(db) -> AppRepository:
    watch = make_watch(make_app("Portal"), "docs", last_error="2 files were not accepted.", status=Status.FAILED)
    fields = {
        "mode": "100644",
        "kind": "create",
        "source_key": "x",
        "size": 3,
        "generation": 1,
        "updated_at": timezone.now(),
    }
    for number, (path, acknowledged) in enumerate([("a.txt", True), ("b.txt", False)]):
        Delivery.objects.create(
            watch=watch, path=path, sha="0" * 64, sequence=number, acknowledged=acknowledged, **fields
        )
    DeliveryFailure.objects.create(
        watch=watch, path_digest="0" * 64, path="b.txt", cause="http", status_code=500, message="The app returned HTTP 500.",
        body="<b>boom</b>", first_at=timezone.now(), last_at=timezone.now(),
    )  # fmt: skip
    return watch


def pages(watch: AppRepository) -> list[str]:
    operation = resync_by_app(Actor.system(), watch.app)
    rotating = watch.app.is_rotating_key  # a second rotation is refused meanwhile
    return [
        "/admin/",
        "/admin/deliveries_app/",
        f"{ADMIN}/app/",
        f"{ADMIN}/app/add/",
        f"{ADMIN}/app/{watch.app_id}/change/",
        f"{ADMIN}/app/{watch.app_id}/delete/",
        f"{ADMIN}/apprepository/",
        f"{ADMIN}/apprepository/?state=failed&app={watch.app_id}&circuit=open&o=3",
        f"{ADMIN}/apprepository/add/",
        f"{ADMIN}/apprepository/{watch.pk}/change/",
        f"{ADMIN}/apprepository/{watch.pk}/delete/",
        f"{ADMIN}/apprepository/force-resync/?ids={watch.pk}",
        *(f"{ADMIN}/app/{watch.app_id}/{page}/" for page in ("ping", "rotate-token", "retire-tokens", "history")),
        *(f"{ADMIN}/app/{watch.app_id}/{page}/" for page in ("rotate-key", "retire-key", "cancel-key")[rotating:]),
        *(f"{ADMIN}/apprepository/{watch.pk}/{page}/" for page in ("token", "push-secret", "patterns", "history")),
        f"{ADMIN}/app/remove/?ids={watch.app_id}",
        f"{ADMIN}/apprepository/remove/?all=1",
        f"/admin/repositories_app/repository/{watch.repository_id}/history/",
        "/admin/repositories_app/repository/",
        f"/admin/repositories_app/repository/{watch.repository_id}/change/",
        f"{ADMIN}/syncrun/",
        f"{ADMIN}/syncrun/{SyncRun.objects.first().pk}/change/",  # type: ignore[union-attr]
        f"{ADMIN}/bulkoperation/",
        f"{ADMIN}/bulkoperation/{operation.pk}/change/",
        f"{ADMIN}/delivery/",
        f"{ADMIN}/delivery/?q=a.t",
        f"{ADMIN}/delivery/{Delivery.objects.first().pk}/change/",  # type: ignore[union-attr]
        f"/admin/progress/{operation.operation_id}/",
        f"/admin/progress/{operation.operation_id}/rows/?ids={SyncRun.objects.first().pk}",  # type: ignore[union-attr]
        f"/admin/live/?ids={watch.pk},999999,x",
        f"/admin/live/{watch.pk}/",
        "/admin/api/repositories",
        f"/admin/api/retry/progress/{operation.operation_id}",
    ]


def test_every_page_renders_without_secrets(admin: Client, watch: AppRepository) -> None:
    App.objects.update(
        key_rotation_started_at=timezone.now(), new_auth_key="n" * 20, new_key_accepted_at=timezone.now()
    )
    AppRepository.objects.update(push_secret="p" * 20)
    watch.app.refresh_from_db()
    rotate_app_token(Actor.system(), watch.app)
    digests = list(watch.app.tokens.values_list("digest", flat=True))
    for url in pages(watch):
        answer = admin.get(url)
        assert answer.status_code == 200, url
        for secret in ("ghp_secret", "k" * 20, "n" * 20, "p" * 20, *digests):
            assert secret not in answer.text, url
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert " style=" not in answer.text, url
        assert "onclick" not in answer.text, url


def test_foreign_text_is_escaped(admin: Client, watch: AppRepository) -> None:
    page = admin.get(f"{ADMIN}/apprepository/{watch.pk}/change/").text
    assert "&lt;b&gt;boom&lt;/b&gt;" in page
    assert "<b>boom" not in page


INVISIBLE = "\x1b[2J\x9b\u202e\u2066gpj"


def test_control_characters_are_shown_escaped(admin: Client, watch: AppRepository) -> None:
    """A path, a branch, an error or an answer must not look like another one. `visible` escapes them."""
    urls = pages(watch)
    Delivery.objects.update(path=Concat("path", Value(INVISIBLE)))
    DeliveryFailure.objects.update(path=f"b{INVISIBLE}", message=INVISIBLE, body=INVISIBLE)
    DeliveryFailure.objects.create(
        watch=watch, path_digest="1" * 64, path=f"c{INVISIBLE}", cause="unsafe_path", kind=FailureKind.SKIPPED,
        message=INVISIBLE, first_at=timezone.now(), last_at=timezone.now(),
    )  # fmt: skip
    AppRepository.objects.update(
        last_error=INVISIBLE, last_response=INVISIBLE, last_status_code=500, branch=INVISIBLE, root_cause="http_5xx",
        failing_since=timezone.now(), left_out={"unsafe_path": 1}, last_commit="c" * 40,
    )  # fmt: skip
    Snapshot.objects.create(
        repository=watch.repository, commit_sha="c" * 40, branch=INVISIBLE, file_count=1, total_bytes=1
    )
    Repository.objects.update(last_error=INVISIBLE, consecutive_failures=1)
    SyncRun.objects.update(error=INVISIBLE, outcome="failed", ended_at=timezone.now())
    Notice.objects.create(watch=watch, kind="sync_failed", fields="{}", generation=1, last_error=INVISIBLE)
    why = f"{ADMIN}/apprepository/{watch.pk}/why/?{urlencode({'path': f'b{INVISIBLE}'})}"
    shown = set()
    for url in [*urls, why, f"{ADMIN}/failedsync/", f"{ADMIN}/queue/"]:
        answer = admin.get(url)
        if answer.headers["Content-Type"].startswith("text/html"):
            text = re.sub('<input [^>]*name="path"[^>]*>', "", answer.text)  # a form sends the raw path
            assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), url
            if r"\x1b[2J\x9b\u202e\u2066gpj" in text:
                shown.add(re.sub("[0-9]+|[?].*", "", url))
    assert len(shown) >= 10, shown


def test_viewer_sees_no_buttons(viewer: Client, watch: AppRepository) -> None:
    for url in (
        f"{ADMIN}/apprepository/",
        f"{ADMIN}/apprepository/{watch.pk}/change/",
        f"{ADMIN}/app/{watch.app_id}/change/",
    ):
        page = viewer.get(url)
        assert page.status_code == 200
        assert "force-resync" not in page.text
        assert "/cancel/" not in page.text
    for url in (f"{ADMIN}/app/add/", f"{ADMIN}/apprepository/add/", f"{ADMIN}/apprepository/{watch.pk}/delete/"):
        assert viewer.get(url).status_code == 403


def test_staff_without_permissions_see_nothing(db, watch: AppRepository) -> None:
    client = staff("mallory")
    for url in pages(watch)[2:]:
        assert client.get(url).status_code in {302, 403}, url


def test_cleared_and_doubtful_deliveries_are_not_shown_as_delivered(admin: Client, watch: AppRepository) -> None:
    page = admin.get(f"{ADMIN}/delivery/").text
    assert (page.count("badge-good"), page.count("Unconfirmed</span>")) == (1, 1)
    AppRepository.objects.update(generation=2, resend_floor=2)
    page = admin.get(f"{ADMIN}/delivery/").text
    assert (page.count("badge-good"), page.count("Cleared")) == (0, 1)


def test_deliveries_are_found_by_path_prefix_and_id(admin: Client, watch: AppRepository) -> None:
    other = make_watch(make_app("Search"), "site")
    row = Delivery.objects.get(path="a.txt")
    row.pk, row.watch, row.path = None, other, "B_2.txt"
    row.save()

    def found(term: str) -> list[str]:
        rows = admin.get(f"{ADMIN}/delivery/", {"q": term}).context["cl"].result_list
        return [row.path for row in rows]

    assert found("a.") == ["a.txt"]
    assert found("b") == ["b.txt"]  # case-sensitive, like git
    assert found("B_") == ["B_2.txt"]
    assert found("txt") == []
    assert found(watch.app.app_id) == ["a.txt", "b.txt"]
    assert found(other.repository.repository_id) == ["B_2.txt"]
    assert found("app_" + "0" * 24) == []


def test_watch_form_preselects_the_app(admin: Client, watch: AppRepository) -> None:
    other = make_app("<Search>")
    page = admin.get(f"{ADMIN}/apprepository/add/?app={other.pk}").text
    assert f'<option value="{other.pk}" selected>&lt;Search&gt;</option>' in page
    assert page.count(" selected>") == 1


def test_lists_need_no_query_per_row(admin: Client, django_assert_max_num_queries) -> None:
    app = make_app("Portal")
    for number in range(45):
        make_watch(app, f"repository-{number}")
    ContentType.objects.get_for_model(App)  # cached, as in a running process
    for url, queries in [
        (f"{ADMIN}/apprepository/", 12),
        (f"{ADMIN}/app/{app.pk}/change/", 15),
        ("/admin/repositories_app/repository/", 10),
    ]:
        with django_assert_max_num_queries(queries):
            assert admin.get(url).text.count("repository-") >= 45


def test_watch_form_checks_the_repository_first(world: World, admin: Client) -> None:
    world.git.repo("acme/private", {"a": b"a"}, token="sesame")
    repo = world.git.repo("acme/docs", {"a": b"a"})

    def add(url: str, token: str = ""):
        return admin.post(
            f"{ADMIN}/apprepository/add/", {"app": world.app.pk, "github_url": url, "github_token": token}, follow=True
        )

    assert "If the repository is private, add a token." in add(f"{world.git.url}/acme/private").text
    wrong = add(f"{world.git.url}/acme/private", "ghp_wrong")
    assert "The git host rejected the token" in wrong.text
    assert "ghp_wrong" not in wrong.text
    assert "be watched. Allowed hosts" in add("https://elsewhere.example/a/b").text
    assert "reach 127.0.0.1:1: connection refused" in add("http://127.0.0.1:1/a/b").text
    assert not AppRepository.objects.exists()
    assert "Portal now watches acme/docs." in add(repo.url).text
    assert AppRepository.objects.get().runs.get().requested_by == "root"


def test_new_app_shows_its_secrets_once(admin: Client) -> None:
    fields = {"name": "Search", "base_url": "https://search.example/hooks", "email": "a@b.example"}
    answer = admin.post(f"{ADMIN}/app/add/", fields)
    page = admin.get(answer.url)
    app = App.objects.get()
    assert app.client_auth_key in page.text
    assert "docora_" in page.text
    assert page.headers["Cache-Control"].count("no-store") == 1
    again = admin.get(answer.url, follow=True)
    assert app.client_auth_key not in again.text
    assert "credentials are shown only once" in again.text


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("name", "ab", "at least 3"),
        ("base_url", "ftp://x", "must start with"),
        ("client_auth_key", "short", "at least 16"),
    ],
)
def test_invalid_app_shows_errors(admin: Client, field: str, value: str, sentence: str) -> None:
    fields = {"name": "Search", "base_url": "https://search.example/hooks", "email": "a@b.example"} | {field: value}
    assert sentence in admin.post(f"{ADMIN}/app/add/", fields).text
    assert not App.objects.exists()


def test_resuming_an_app_clears_the_pause_reason(admin: Client, watch: AppRepository) -> None:
    App.objects.update(paused=True, paused_reason="410", cooldown_until=timezone.now(), down_count=3)
    fields = {"name": "Portal", "base_url": "https://x.example", "email": "a@b.example", "max_in_flight": "8"}
    assert admin.post(f"{ADMIN}/app/{watch.app_id}/change/", fields).status_code == 302
    app = App.objects.get()
    assert (app.paused, app.paused_reason, app.cooldown_until, app.down_count) == (False, "", None, 0)


def test_pausing_an_app_that_docora_has_paused_clears_the_reason(admin: Client, watch: AppRepository) -> None:
    App.objects.update(paused=True, paused_reason="410")
    admin.post(f"{ADMIN}/app/{watch.app_id}/pause/")
    app = App.objects.get()
    assert (app.paused, app.paused_reason) == (True, "")


def test_unwatched_and_removed_rows_are_hidden_at_once(admin: Client, watch: AppRepository) -> None:
    other = make_watch(watch.app, "site")
    admin.post(f"{ADMIN}/apprepository/{other.pk}/delete/", {"post": "yes"})
    assert AppRepository.objects.get(pk=other.pk).ended_at
    assert admin.get(f"{ADMIN}/apprepository/{other.pk}/change/").status_code == 302
    admin.post(f"{ADMIN}/app/{watch.app_id}/delete/", {"post": "yes"})
    assert App.objects.get().ended_at
    assert AppRepository.objects.alive().count() == 0


def test_login_page_names_the_createsuperuser_command(client: Client, db) -> None:
    assert "manage.py createsuperuser" in client.get("/accounts/login/").text
    User.objects.create_superuser("root", password="x")
    assert "createsuperuser" not in client.get("/accounts/login/").text


def test_sidebar_groups_models_by_task(admin: Client) -> None:
    page = admin.get("/admin/").text
    order = [
        "Apps",
        "Watched repositories",
        "Failed syncs",
        "Sync runs",
        "Bulk operations",
        "Deliveries",
        "Git repositories",
        "Users",
        "Groups",
    ]
    places = [page.index(f">{name}</a>") for name in order]
    assert places == sorted(places)
    assert "Snapshots" not in page


def test_operations_are_shown_on_every_app_they_concern(admin: Client, watch: AppRepository) -> None:
    other = make_watch(make_app("Search"), "docs")
    operation = resync_many(Actor.system(), AppRepository.objects.all())
    for app in (watch.app, other.app):
        assert operation.operation_id in admin.get(f"{ADMIN}/app/{app.pk}/change/").text
    assert operation.operation_id in admin.get(f"{ADMIN}/apprepository/").text
    assert BulkOperation.objects.get().total == 2


class Terminal(io.StringIO):
    """Commands write a table with headings to a terminal."""

    def isatty(self) -> bool:
        return True


def test_last_complete_sync_of_a_watch_that_only_synced_partly(world: World, monkeypatch) -> None:
    """Its app has files, so it would be wrong to say that it was never synced."""
    world.answer(lambda note: Answer(500) if note.path == "b.md" else None)
    _, watch = world.watch({"a.md": b"1", "b.md": b"2"})
    world.settle()
    watch.refresh_from_db()
    assert (watch.last_synced_at, watch.tree_files, watch.files_failing) == (None, 2, 1)
    viewer = staff("victor", "view_app", "view_apprepository", "view_repository")
    pages = {
        "list": f"{ADMIN}/apprepository/",
        "watch": f"{ADMIN}/apprepository/{watch.pk}/change/",
        "app": f"{ADMIN}/app/{watch.app_id}/change/",
        "repository": f"/admin/repositories_app/repository/{watch.repository_id}/change/",
    }
    shown = {name: viewer.get(url).text for name, url in pages.items()}
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    call_command("list_watches", stdout=terminal)
    shown["command"] = terminal.getvalue()
    for name, text in shown.items():
        assert "last complete sync" in text.lower(), name
        assert "last sync" not in text.lower(), name
        assert "never" in text, name


@pytest.mark.parametrize(
    ("page", "form"),
    [
        ("app/{app}/rotate-token", {"overlap": "24"}),
        ("app/{app}/rotate-key", {}),
        ("app/{app}/ping", {}),
        ("apprepository/{watch}/push-secret", {}),
        ("apprepository/{watch}/patterns", {"ignore_patterns": "*.md", "initial-ignore_patterns": ""}),
    ],
)
def test_row_that_is_removed_during_the_request(
    admin: Client, watch: AppRepository, monkeypatch, page: str, form: dict[str, str]
) -> None:
    get_object = DocoraAdmin.get_object

    def read_then_remove(*arguments):
        row = get_object(*arguments)
        type(row)._default_manager.filter(pk=row.pk).update(ended_at=timezone.now())
        return row

    monkeypatch.setattr(DocoraAdmin, "get_object", read_then_remove)
    url = page.format(app=watch.app_id, watch=watch.pk)
    assert "exist. Perhaps it was deleted?" in admin.post(f"{ADMIN}/{url}/", form, follow=True).text


@pytest.mark.parametrize("path", ["app/{app}/pause/", "app/{app}/settings/", "apprepository/{watch}/retry/"])
def test_form_sent_after_the_session_has_ended(watch: AppRepository, path: str) -> None:
    """It says that nothing was done, and leads back to its page: many addresses accept only POST."""
    User.objects.create_superuser("root", password="x")
    client, page = Client(), f"{ADMIN}/app/{watch.app_id}/change/?q=docs"
    headers = {"Referer": f"http://testserver{page}"}
    answer = client.post(f"{ADMIN}/{path.format(app=watch.app_id, watch=watch.pk)}", headers=headers, follow=True)
    assert "Your session had ended, so nothing was done. Sign in and try again." in answer.text
    sign_in = {"login": "root", "password": "x", "next": parse_qs(urlsplit(answer.redirect_chain[-1][0]).query)["next"]}
    assert client.post("/accounts/login/", sign_in).url == page
    assert not App.objects.get().paused


def test_ping_of_a_confirmation_page_after_the_session_has_ended(watch: AppRepository) -> None:
    """htmx sends it, so the response has to make the browser open the sign-in page."""
    answer = Client().post(f"{ADMIN}/app/{watch.app_id}/ping/", headers={"HX-Request": "true"})
    assert (answer.status_code, answer["HX-Redirect"]) == (200, "/admin/login/?next=/admin/")


@pytest.mark.parametrize(
    "referer", ["https://evil.example/admin/", "//evil.example", "javascript:alert(1)", "http://testserver/docs/", ""]
)
def test_sign_in_never_leads_to_a_foreign_page(watch: AppRepository, referer: str) -> None:
    answer = Client().post(f"{ADMIN}/app/{watch.app_id}/pause/", headers={"Referer": referer}, secure=True)
    assert answer.url == "/admin/login/?next=/admin/"
