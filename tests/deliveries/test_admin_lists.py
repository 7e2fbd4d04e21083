"""Lists with many rows: the filter by app, grouped failures, the columns on a phone, and what lists leave out."""

import hashlib
import re
from datetime import timedelta
from html import unescape

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.models import (
    App,
    AppRepository,
    BulkOperation,
    Delivery,
    DeliveryFailure,
    FailureKind,
    RootCause,
    SyncRun,
)
from deliveries_app.reports import failing_files
from docora.web.paginators import BoundedPaginator
from repositories_app.models import Repository
from tests.support.staff import fail, make_app, make_watch, staff

ADMIN = "/admin/deliveries_app/"
NAMES = "/admin/live/app-names/"
LISTS = ("apprepository", "failedsync", "delivery", "syncrun", "bulkoperation")


@pytest.fixture
def rows(watches: list[AppRepository]) -> list[AppRepository]:
    """One row of each watch in every list. They belong to Portal, Portal and Search."""
    for number, watch in enumerate(watches):
        fail(watch, RootCause.SERVER_ERROR, status=500)
        names = {"app_name": watch.app.name, "repository_name": str(watch.repository)}
        SyncRun.objects.create(watch=watch, reason="change", requested_by="sweep", generation=1, **names)
        BulkOperation.objects.create(title=f"Re-sync {number}", app=watch.app, total=1, requested_by="anna")
        Delivery.objects.create(
            watch=watch, path="a.md", mode="100644", kind="create", source_key="x", sha="0" * 64, size=1, sequence=1,
            generation=1, acknowledged=True, updated_at=timezone.now(),
        )  # fmt: skip
    return watches


def app_of(row: object) -> str:
    app = getattr(row, "app", None) or row.watch.app  # type: ignore[attr-defined]
    return str(app.name)


def apps_in(client: Client, model: str, **query: str) -> list[str]:
    page = client.get(f"{ADMIN}{model}/", query)
    assert page.status_code == 200
    return sorted(app_of(row) for row in page.context["cl"].result_list)


def fail_file(watch: AppRepository, path: str, *, minutes_ago: int = 0, **fields: object) -> None:
    moment = timezone.now() - timedelta(minutes=minutes_ago)
    DeliveryFailure.objects.create(
        watch=watch, path=path, path_digest=hashlib.sha256(path.encode()).hexdigest(), first_at=moment, last_at=moment,
        **{"cause": "http", "status_code": 500, "message": "The app answered 500."} | fields,
    )  # fmt: skip


# --- The filter by app -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", LISTS)
def test_every_list_is_filtered_by_a_typed_app_name(viewer: Client, rows, model: str) -> None:
    assert apps_in(viewer, model) == ["Portal", "Portal", "Search"]
    assert apps_in(viewer, model, app_name="por") == ["Portal", "Portal"]
    assert apps_in(viewer, model, app_name=rows[2].app.app_id) == ["Search"]
    assert apps_in(viewer, model, app_name="ortal") == []
    assert apps_in(viewer, model, app_name=" ") == ["Portal", "Portal", "Search"]


@pytest.mark.parametrize("model", LISTS)
def test_filter_by_app_is_a_text_field_instead_of_links(viewer: Client, rows, model: str) -> None:
    for number in range(30):
        make_app(f"Many {number}")
    page = viewer.get(f"{ADMIN}{model}/").text
    assert "Many " not in page
    assert 'name="app_name"' in page


def test_links_filter_by_one_app_and_the_field_names_it(viewer: Client, rows) -> None:
    query = {"app": str(rows[2].app_id), "state": "retrying", "q": "docs"}
    assert apps_in(viewer, "apprepository", **query) == ["Search"]
    page = viewer.get(f"{ADMIN}apprepository/", query).text
    assert re.search(r'name="app_name" value="Search"', page)
    form = page[page.index('class="filter-form"') :]
    form = form[: form.index("</form>")]
    for kept in ('name="state" value="retrying"', 'name="q" value="docs"'):
        assert kept in form
    assert 'name="app"' not in form
    assert apps_in(viewer, "apprepository", app="x") == []


def test_failed_syncs_of_several_apps_are_grouped_and_retried_together(rows) -> None:
    client = staff("rita", "view_apprepository", "view_app", "retry_apprepository")
    make_watch(other := make_app("Porthole"), "docs")
    fail(other.watches.get(), RootCause.SERVER_ERROR, status=500)
    page = client.get(f"{ADMIN}failedsync/?app_name=port")
    assert [group.count for group, _, _ in page.context["groups"]] == [3]
    assert "3 failing repositories for apps named “port…”" in page.text
    link = re.search(r'id="retry-all"[^>]*href="([^"]+)"', page.text)
    assert link
    confirmation = client.get(unescape(link[1]))
    assert {watch.app.name for watch in confirmation.context["impact"].sample} == {"Portal", "Porthole"}
    one = client.get(f"{ADMIN}failedsync/?app_name=sea").text
    assert "1 failing repository for Search" in one


def test_suggestions_are_the_first_names_that_match(viewer: Client) -> None:
    for number in range(30):
        make_app(f"Portal {number:02}")
    make_app('Search & "co"')
    gone = make_app("Search, removed")
    type(gone).objects.filter(pk=gone.pk).update(ended_at=timezone.now())
    assert viewer.get(NAMES, {"app_name": "PORTAL"}).text.count("<option") == 20
    assert viewer.get(NAMES, {"app_name": "sea"}).text == ('<option value="Search &amp; &quot;co&quot;"></option>')


def test_suggestions_need_the_permission_to_view_apps(client: Client, rows) -> None:
    assert client.get(NAMES).status_code == 401
    watcher = staff("walter", "view_apprepository")
    assert watcher.get(NAMES).status_code == 403
    page = watcher.get(f"{ADMIN}apprepository/").text
    assert NAMES not in page
    assert "<datalist" not in page
    assert apps_in(watcher, "apprepository", app_name="sea") == ["Search"]


def test_repositories_of_an_app_are_suggested_for_the_file_search(viewer: Client, rows) -> None:
    names = f"/admin/live/app/{rows[0].app.pk}/repository-names/"
    assert viewer.get(names).text.count("<option") == 2
    searched = viewer.get(names, {"repository": str(rows[1].repository).upper()}).text
    assert searched == f'<option value="{rows[1].repository}"></option>'
    of_other = f"/admin/live/app/{rows[2].app.pk}/repository-names/"
    assert viewer.get(of_other).text == f'<option value="{rows[2].repository}"></option>'
    assert staff("walter", "view_app").get(names).status_code == 403
    assert viewer.get("/admin/live/app/999999/repository-names/").status_code == 404


@pytest.mark.parametrize("page", ["apprepository", "app"])
def test_page_whose_rows_are_gone_is_the_last_one(admin: Client, page: str) -> None:
    """For example after all rows on it were removed. The search stays."""
    for number in range(51):
        make_watch(make_app(f"Portal {number:02}"), "docs")
    make_app("Search")
    answer = admin.get(f"{ADMIN}{page}/?q=portal&p=9")
    assert (answer.status_code, len(answer.context["cl"].result_list)) == (200, 1)
    assert 'aria-current="page">2</a>' in answer.content.decode()


# --- Choosing an app ---------------------------------------------------------------------------------------------------

SUGGEST = "/admin/autocomplete/?app_label=deliveries_app&model_name=apprepository&field_name=app&term="


def test_watch_form_suggests_apps_and_names_none_before(admin: Client) -> None:
    for number in range(30):
        make_app(f"Portal {number:02}")
    gone = make_app("Portal, removed")
    type(gone).objects.filter(pk=gone.pk).update(ended_at=timezone.now())
    assert "Portal" not in admin.get(f"{ADMIN}apprepository/add/").text
    found = admin.get(f"{SUGGEST}portal").json()
    assert (len(found["results"]), found["pagination"]["more"]) == (20, True)
    assert admin.get(f"{SUGGEST}removed").json()["results"] == []
    stranger = staff("norbert", "add_apprepository")
    assert stranger.get(f"{SUGGEST}portal").status_code == 403
    script = {"X-Requested-With": "XMLHttpRequest"}
    assert Client().get(f"{SUGGEST}portal", headers=script, follow=True).status_code == 403  # the session has ended


def test_suggested_apps_with_one_name_are_told_apart(admin: Client) -> None:
    first, second = make_app("Portal"), make_app("Portal")
    App.objects.filter(pk=second.pk).update(base_url="https://staging.example")
    texts = {row["id"]: row["text"] for row in admin.get(f"{SUGGEST}portal").json()["results"]}
    assert texts == {str(first.pk): "Portal · https://x.example", str(second.pk): "Portal · https://staging.example"}


def test_removed_app_cannot_be_chosen(admin: Client) -> None:
    gone = make_app("Gone")
    type(gone).objects.filter(pk=gone.pk).update(ended_at=timezone.now())
    page = admin.post(f"{ADMIN}apprepository/add/", {"app": gone.pk, "github_url": "https://github.com/acme/docs"})
    assert page.context["form"].errors["app"]


# --- Failed files ------------------------------------------------------------------------------------------------------


def test_equal_failures_of_a_watch_are_one_line(viewer: Client, watches) -> None:
    for number in range(50):
        fail_file(watches[0], f"a & b/{number:02}.md", minutes_ago=number)
    fail_file(watches[0], "large.bin", cause="timeout", status_code=None, message="No response within 30 s.")
    fail_file(watches[0], "odd.md", cause="rejected", message="The app rejects odd files.")
    fail_file(watches[0], "left-out.md", kind=FailureKind.SKIPPED)
    fail_file(watches[1], "of another watch.md")
    found = failing_files.of_watch(watches[0])
    assert [(group.title, group.explanation, group.count) for group in found.groups] == [
        ("HTTP 500", "", 50),
        ("No response within 30 s", "", 1),
        ("HTTP 500", "The app rejects odd files.", 1),
    ]
    page = viewer.get(f"{ADMIN}apprepository/{watches[0].pk}/change/").text
    assert "Failing files (52)" in page
    assert page.count('class="failure-group">') == 3
    assert '<strong class="bad">HTTP 500</strong> · 50 files' in page
    assert "?path=a%20%26%20b%2F00.md" in page


def test_files_and_groups_are_bounded(watches, monkeypatch) -> None:
    monkeypatch.setattr(failing_files, "SHOWN_GROUPS", 2)
    monkeypatch.setattr(failing_files, "LISTED_FILES", 3)
    for number in range(5):
        fail_file(watches[0], f"{number}.md", minutes_ago=10 - number)
    for status in (401, 403, 404):
        fail_file(watches[0], f"{status}.md", status_code=status, message=f"The app answered {status}.")
    found = failing_files.of_watch(watches[0])
    assert (found.count, found.more_groups, found.more_files) == (8, 2, 2)
    assert [failure.path for failure in found.groups[0].listed] == ["4.md", "3.md", "2.md"]
    monkeypatch.setattr(failing_files, "READ_FILES", 4)
    found = failing_files.of_watch(watches[0])
    assert (found.count, found.is_more) == (4, True)


def test_grouping_takes_two_queries(watches, django_assert_num_queries) -> None:
    AppRepository.objects.update(files_failing=20)
    for number in range(40):
        fail_file(watches[number % 2], f"{number}.md", status_code=400 + number, message=f"The app answered {number}.")
    with django_assert_num_queries(2):
        found = failing_files.of_app(watches[0].app)
        assert [str(failure.watch.repository) for group in found.groups for failure in group.listed]
    assert failing_files.of_watch(None).count == 0


def test_run_page_groups_the_failures_of_its_watch(viewer: Client, watches) -> None:
    fail_file(watches[0], "a.md")
    run = SyncRun.objects.create(
        watch=watches[0],
        app_name="Portal",
        repository_name="acme/docs",
        reason="change",
        requested_by="sweep",
        generation=41,
    )
    page = viewer.get(f"{ADMIN}syncrun/{run.pk}/change/").text
    assert "Currently failing files (1)" in page
    assert "</strong> · 1 file" in page
    assert "<dd>Change, detected by Docora</dd>" in page
    diagnostics = page[page.index("<summary>Diagnostics</summary>") :]
    assert "41" in diagnostics[: diagnostics.index("</details>")]


# --- What lists and pages show ------------------------------------------------------------------------------------------


def test_link_to_all_results_is_shown_while_some_are_left_out(admin: Client, watches) -> None:
    for page in ("apprepository/", "app/", "failedsync/", "apprepository/?o=1", "../auth/user/"):
        assert "Show all</a>" not in admin.get(f"{ADMIN}{page}".replace("deliveries_app/../", "")).text, page
    for query in ("?q=docs", f"?app={watches[0].app_id}", "?state=up_to_date"):
        page = " ".join(admin.get(f"{ADMIN}apprepository/{query}").text.split())
        assert re.search(r'<span class="small quiet">\d results? \(<a id="show-all" href="\?">Show all</a>\)', page), (
            query
        )


def test_lists_show_all_files_beside_the_acknowledged_ones(admin: Client, watches) -> None:
    docs = watches[0]
    AppRepository.objects.filter(pk=docs.pk).update(tree_files=1402, files_failing=40, base_commit="a" * 40)
    pages = [f"apprepository/?app={docs.app_id}", f"app/{docs.app_id}/change/", f"apprepository/{docs.pk}/delete/"]
    pages.append(f"../repositories_app/repository/{docs.repository_id}/change/")
    for page in pages:
        text = admin.get(f"{ADMIN}{page}".replace("deliveries_app/../", "")).text
        assert text.count("1,362 / 1,402") == 1, page
        assert "100 / 100" not in text


def test_files_are_unknown_until_a_commit_was_counted(admin: Client, watches) -> None:
    AppRepository.objects.update(tree_files=0, tree_bytes=0)
    docs, empty = watches[0], watches[1]
    AppRepository.objects.filter(pk=empty.pk).update(last_commit="a" * 40)
    listed = admin.get(f"{ADMIN}apprepository/").text
    assert f'<span id="files-{docs.pk}" data-empty>—</span>' in listed
    assert f'<span id="files-{empty.pk}">0</span>' in listed
    assert "Unknown until the first sync</dd>" in admin.get(f"{ADMIN}apprepository/{docs.pk}/change/").text
    assert "<dd>0, 0 bytes</dd>" in admin.get(f"{ADMIN}apprepository/{empty.pk}/change/").text
    assert '<td role="cell" class="numeric none">—' in admin.get(f"{ADMIN}app/{docs.app_id}/change/").text


def test_watch_row_shows_error_failing_since_and_circuit(viewer: Client, watches) -> None:
    fail(watches[0], RootCause.SERVER_ERROR, status=500)
    AppRepository.objects.filter(pk=watches[0].pk).update(failing_since=timezone.now() - timedelta(hours=3))
    watches[0].repository.circuit_open_until = timezone.now() + timedelta(minutes=20, seconds=30)
    watches[0].repository.save()
    page = viewer.get(f"{ADMIN}apprepository/?app={watches[0].app_id}").text
    error = re.search(r'class="field-problem">(.*?)</td>', page)
    assert error
    text = re.sub("<[^>]+>", "|", error[1])
    assert "It failed: http_5xx." in text
    assert "Failing for |3 h" in text
    assert "Circuit open, next try |in 20 min" in text


def test_cells_name_their_column_for_phones(admin: Client, watches) -> None:
    page = admin.get(f"{ADMIN}apprepository/").text
    assert '<td role="cell" data-label="App" class="field-app_name">Portal</td>' in page
    empty = f'<span id="problem-{watches[0].pk}" data-empty>—</span>'
    assert f'<td role="cell" data-label="Error" class="field-problem">{empty}</td>' in page
    assert 'data-empty class="field-last_success">—</td>' in admin.get(f"{ADMIN}app/").text
    assert re.search('<th role="rowheader" data-label="Repository" class="field-repository_name"><a ', page)
    assert '<td role="cell" data-label="" class="action-checkbox">' in page
    for path in ("/admin/auth/user/", "/admin/repositories_app/repository/", f"{ADMIN}app/"):
        assert 'data-label="' in admin.get(path).text


@pytest.mark.parametrize(
    "path",
    [*(f"{ADMIN}{model}/" for model in (*LISTS, "app")), "/admin/auth/user/", "/admin/repositories_app/repository/"],
)
def test_no_list_offers_counts_beside_its_filters(admin: Client, rows, path: str) -> None:
    assert "Show counts" not in admin.get(path).text
    assert admin.get(f"{path}?_facets=True", follow=True).status_code in {200, 400}


def test_overview_has_the_sidebar_instead_of_the_index(admin: Client, watches) -> None:
    page = admin.get("/admin/").text
    assert 'id="nav-sidebar"' in page
    assert 'class="phone-menu"' in page
    for left_out in ("Recent actions", "My actions", 'class="app-list"'):
        assert left_out not in page
    stranger = staff("norbert", "view_group").get("/admin/").text  # cannot see the overview
    assert "Groups" in stranger
    assert "Recent actions" not in stranger


def test_git_repositories_are_a_diagnostic_page(viewer: Client, watches) -> None:
    sections = viewer.get("/admin/").context["app_list"]
    models = {section["name"]: [model["object_name"] for model in section["models"]] for section in sections}
    assert models["Sync"] == ["App", "AppRepository", "FailedSync"]
    assert models["Diagnostics"] == ["Repository"]
    watch = watches[0]
    link = f"/admin/repositories_app/repository/{watch.repository_id}/change/"
    assert link in viewer.get(f"{ADMIN}apprepository/{watch.pk}/change/").text


@pytest.mark.parametrize("page", ["auth/user/add/", "auth/group/add/"])
def test_forms_with_errors_say_what_to_do(admin: Client, page: str) -> None:
    answer = admin.post(f"/admin/{page}", {})
    assert answer.text.count('<p class="errornote">Fix the errors below.</p>') == 1
    assert "Please correct" not in answer.text
    assert "This field is required." in answer.text
    assert "Fix the errors" not in admin.get(f"/admin/{page}").text


def test_app_page_saves_without_adding_another(admin: Client, watches) -> None:
    page = admin.get(f"{ADMIN}app/{watches[0].app_id}/settings/").text
    assert 'name="_continue"' in page
    assert "_addanother" not in page


def test_deliveries_are_filtered_by_status(viewer: Client, rows) -> None:
    refused, in_doubt, delivered = Delivery.objects.order_by("pk")
    Delivery.objects.filter(pk__in=[refused.pk, in_doubt.pk]).update(acknowledged=False)
    Delivery.objects.filter(pk=refused.pk).update(attempts=3)
    Delivery.objects.filter(pk=delivered.pk).update(attempts=2)
    assert "Not delivered</a>" in viewer.get(f"{ADMIN}delivery/").text
    for state, expected, label in [
        ("not_delivered", refused, "Not delivered"),
        ("unconfirmed", in_doubt, "Unconfirmed"),
    ]:
        for more in ("", "&q=a", f"&watch__app={rows[0].app_id}"):
            page = viewer.get(f"{ADMIN}delivery/?state={state}{more}")
            assert [row.pk for row in page.context["cl"].result_list] == [expected.pk], (state, more)
            assert f"{label}</span>" in page.text
    with CaptureQueriesContext(connection) as asked:
        viewer.get(f"{ADMIN}delivery/?state=not_delivered")
    (sql,) = [query["sql"] for query in asked if 'ORDER BY "deliveries_app_delivery"' in query["sql"]]
    assert (
        '"deliveries_app_delivery"."watch_id" ASC, "deliveries_app_delivery"."path" ASC' in sql
    )  # of the partial index


def test_long_lists_say_where_counting_stopped(viewer: Client, rows, monkeypatch) -> None:
    monkeypatch.setattr(BoundedPaginator, "PAGES", 30)
    watch = rows[0]
    fields = {"watch": watch, "mode": "100644", "kind": "create", "source_key": "x", "sha": "0" * 64, "size": 1}
    fields |= {"sequence": 1, "generation": 1, "acknowledged": True, "updated_at": timezone.now()}
    Delivery.objects.bulk_create(Delivery(path=f"b/{number}.md", **fields) for number in range(1_600))
    page = staff("robert", "view_delivery", "resync_apprepository").get(f"{ADMIN}delivery/").text
    assert "1,500 or more deliveries" in page
    assert "Select all matching deliveries" in page
    assert "All matching deliveries selected" in page
    assert "1500 deliveries" not in page
    monkeypatch.setattr(BoundedPaginator, "PAGES", 100)
    page = " ".join(viewer.get(f"{ADMIN}delivery/?q=b").text.split())
    assert "1,600 deliveries" in page
    assert "1,600 results (" in page


def test_delivery_page_keeps_numbers_of_the_engine_in_diagnostics(viewer: Client, rows) -> None:
    delivery = Delivery.objects.earliest("pk")
    page = viewer.get(f"{ADMIN}delivery/{delivery.pk}/change/").text
    diagnostics = page.index("<details")
    for label in ("Sequence", "Generation", "Source"):
        assert page.index(f"<dt>{label}</dt>") > diagnostics
    for label in ("App", "Repository", "Last acknowledged", "Last notification", "SHA-256"):
        assert page.index(f"<dt>{label}</dt>") < diagnostics


@pytest.mark.parametrize("model", LISTS)
def test_list_without_matches_says_so_and_offers_all(viewer: Client, rows, model: str) -> None:
    page = viewer.get(f"{ADMIN}{model}/?app_name=nobody")
    plural = page.context["cl"].opts.verbose_name_plural
    assert f'<p class="empty">No matching {plural}. <a href="?">Show all</a></p>' in page.text
    assert 'name="action"' not in page.text


def test_empty_list_says_so(admin: Client) -> None:
    assert '<p class="empty">No apps.</p>' in admin.get(f"{ADMIN}app/").text
    assert "have a button that starts one." in admin.get(f"{ADMIN}driftcheck/").text
    assert (
        "No GitHub Apps. With one, client apps can watch private repositories"
        in admin.get("/admin/repositories_app/githubapp/").text
    )


def test_app_list_shows_the_status_of_the_app_page(viewer: Client) -> None:
    for name, fields in {
        "Active": {},
        "Endpoint down": {"down_count": 2},
        "On hold": {"cooldown_until": timezone.now() + timedelta(minutes=5), "pace_slots": 1},
        "Paused": {"paused": True, "down_count": 2},
        "Slowed down": {"pace_slots": 1},
    }.items():
        App.objects.filter(pk=make_app(name).pk).update(**fields)
    page = viewer.get(f"{ADMIN}app/").text
    cells = re.findall(r'class="field-state">(.*?)</td>', page)
    assert [re.sub("<[^>]+>", "", cell) for cell in cells] == [
        "Active",
        "Endpoint down",
        "On hold",
        "Paused",
        "Slowed down",
    ]


def test_repositories_are_filtered_by_visibility(viewer: Client, watches) -> None:
    Repository.objects.filter(pk=watches[0].repository_id).update(is_private=True)
    address = "/admin/repositories_app/repository/"

    def shown(query: str) -> set[str]:
        page = viewer.get(f"{address}{query}").text
        return set(re.findall('data-label="Visibility" class="field-visibility">(.*?)</td>', page))

    assert shown("") == {"Public", "Private"}
    assert shown("?visibility=private") == {"Private"}
    assert shown("?visibility=public") == {"Public"}


def test_delivery_page_has_no_audit_log(viewer: Client, rows) -> None:
    """Deliveries are never edited, so their log would always be empty."""
    page = viewer.get(f"{ADMIN}delivery/{Delivery.objects.earliest('pk').pk}/change/").text
    assert "/history/" not in page
    assert re.search(r"<dt>Last acknowledged</dt><dd>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC</dd>", page)
    assert "<dd>Create, 1 byte</dd>" in page


def test_audit_log_has_one_name(admin: Client, watches) -> None:
    app = watches[0].app
    page = admin.get(f"{ADMIN}app/{app.pk}/history/").text
    assert "<title>Audit log: Portal | Docora</title>" in page
    assert "<h1>Audit log: Portal</h1>" in page
    assert '<li aria-current="page">Audit log</li>' in page
    assert "No entries in the audit log." in page
    user = User.objects.get(username="root")
    assert re.search(
        r'href="/admin/auth/user/\d+/history/" class="historylink">Audit log</a>',
        admin.get(f"/admin/auth/user/{user.pk}/change/").text,
    )


def test_breadcrumbs_lead_from_the_overview_to_the_list(admin: Client) -> None:
    user = f"/admin/auth/user/{User.objects.get().pk}/change/"
    for address, expected in {
        "/admin/auth/user/": [],
        "/admin/auth/group/add/": ["/admin/auth/group/"],
        user: ["/admin/auth/user/"],
        user.replace("change", "password"): ["/admin/auth/user/", user],
        user.replace("change", "history"): ["/admin/auth/user/", user],
        user.replace("change", "delete"): ["/admin/auth/user/", user],
    }.items():
        page = admin.get(address).text
        crumbs = page[page.index('<ol class="breadcrumbs">') : page.index("</ol>")]
        assert re.findall('href="(.*?)"', crumbs) == ["/admin/", *expected], address


def test_users_are_deleted_with_docoras_buttons(admin: Client) -> None:
    first, second, third = (User.objects.create_user(name) for name in ("ann", "bea", "cleo"))
    page = admin.get(f"/admin/auth/user/{first.pk}/delete/").text
    assert "<h1>Delete user</h1>" in page
    assert ">Cancel</a>" in page
    assert ">Delete user</button>" in page
    admin.post(f"/admin/auth/user/{first.pk}/delete/", {"post": "yes"})
    chosen = {"action": "delete_selected", "_selected_action": [second.pk, third.pk]}
    page = admin.post("/admin/auth/user/", chosen).text
    assert "<h1>Delete 2 users</h1>" in page
    admin.post(
        "/admin/auth/user/", dict(re.findall('<input type="hidden" name="(post|action)" value="(.*?)">', page)) | chosen
    )
    assert list(User.objects.values_list("username", flat=True)) == ["root"]


def test_sign_in_pages_say_sign_in(admin: Client, client: Client) -> None:
    page = client.get("/accounts/login/").text
    assert "<title>Sign in | Docora</title>" in page
    assert '<input type="submit" value="Sign in">' in page
    for address in ("/admin/", "/admin/password_change/"):
        assert ">Sign out</button>" in admin.get(address).text
    signed_out = admin.post("/admin/logout/").text
    assert "<h1>Signed out</h1>" in signed_out
    for text in (page, signed_out):
        assert "log in" not in text.lower()
        assert "log out" not in text.lower()
