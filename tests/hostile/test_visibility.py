"""What staff see with permission to view only some models: nothing about the rows of the others."""

import pytest
from django.contrib.auth.models import User

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation
from deliveries_app.services import resync_by_app, resync_single
from deliveries_app.services.app_settings import change_own_settings
from tests.hostile.conftest import visitor
from tests.support.staff import make_app, make_watch

ADMIN = "/admin/deliveries_app/"


@pytest.fixture
def operation(watches: list[AppRepository]) -> BulkOperation:
    """A re-sync of Portal's repositories."""
    return resync_by_app(Actor.command(), watches[0].app)


def test_repository_page_does_not_name_its_watchers(watches: list[AppRepository]) -> None:
    repository, url = watches[0].repository, f"/admin/repositories_app/repository/{watches[0].repository_id}/change/"
    page = visitor("victor", "view_repository").get(url).text
    assert str(repository) in page
    assert "You don't have permission to view watched repositories." in page.replace("&#x27;", "'")
    assert watches[0].app.name not in page
    assert watches[0].app.name in visitor("walter", "view_repository", "view_apprepository").get(url).text


def test_audit_log_of_an_app_leaves_out_its_repositories(watches: list[AppRepository]) -> None:
    app, repository = watches[0].app, str(watches[0].repository)
    resync_single(Actor.command(), watches[0])
    change_own_settings(Actor.of_app(app), app, paused=True)
    url = f"{ADMIN}app/{app.pk}/history/"
    page = visitor("victor", "view_app").get(url).text
    assert ("Paused" in page, repository in page) == (True, False)
    page = visitor("walter", "view_app", "view_apprepository").get(url).text
    assert ("Paused" in page, repository in page) == (True, True)


def test_addresses_of_staff_need_the_permission_to_view_the_whole_audit_log(watches: list[AppRepository]) -> None:
    """Those of an app's requests don't."""
    app = watches[0].app
    change_own_settings(Actor.of_app(app, address="203.0.113.8"), app, paused=True)
    anna = User.objects.create_superuser("anna")
    resync_single(Actor.of_user(anna, address="198.51.100.7"), watches[0])
    url = f"{ADMIN}app/{app.pk}/history/"
    page = visitor("victor", "view_app", "view_apprepository").get(url).text
    assert ("203.0.113.8" in page, "anna" in page, "198.51.100.7" in page) == (True, True, False)
    page = visitor("walter", "view_app", "view_apprepository", "view_auditentry").get(url).text
    assert ("203.0.113.8" in page, "198.51.100.7" in page) == (True, True)


@pytest.mark.parametrize("parameter", ["watch", "watch__repository", "operation"])
def test_filter_does_not_name_rows(watches: list[AppRepository], operation: BulkOperation, parameter: str) -> None:
    watch = watches[0]
    row, permission = {
        "watch": (watch, "view_apprepository"),
        "watch__repository": (watch.repository, "view_repository"),
        "operation": (operation, "view_bulkoperation"),
    }[parameter]
    operation.runs.all().delete()  # the list names what its runs are about
    query = {parameter: row.pk}
    assert str(row) not in visitor("victor", "view_syncrun").get(f"{ADMIN}syncrun/", query).text
    assert str(row) in visitor("walter", "view_syncrun", permission).get(f"{ADMIN}syncrun/", query).text


@pytest.mark.parametrize(
    ("model", "parameter"), [("syncrun", "watch__app"), ("auditentry", "app"), ("apprepository", "app")]
)
def test_filter_by_app_does_not_name_it(watches: list[AppRepository], model: str, parameter: str) -> None:
    """Anyone could try one key after the other. An app that the rows name is named."""
    app = make_app("Confidential")
    url, query = f"{ADMIN}{model}/", {parameter: app.pk}
    assert "Confidential" not in visitor("victor", f"view_{model}").get(url, query).text
    assert "Confidential" in visitor("walter", f"view_{model}", "view_app").get(url, query).text
    resync_by_app(Actor.command(), make_watch(app, "docs").app)
    assert "Confidential" in visitor("wanda", f"view_{model}").get(url, query).text


def test_form_to_watch_does_not_name_an_app(watches: list[AppRepository]) -> None:
    app = make_app("Confidential")
    url, form = f"{ADMIN}apprepository/add/", {"app": app.pk, "github_url": "x"}
    victor = visitor("victor", "view_apprepository", "add_apprepository")
    walter = visitor("walter", "view_apprepository", "add_apprepository", "view_app")
    for page in (victor.get(url, form), victor.post(url, form)):
        assert (page.status_code, "Confidential" in page.text) == (403, False)
    for page in (walter.get(url, form), walter.post(url, form)):
        assert (page.status_code, "Confidential" in page.text) == (200, True)


@pytest.mark.parametrize("model", ["app", "apprepository"])
def test_removal_does_not_name_rows(watches: list[AppRepository], model: str) -> None:
    pk = watches[0].pk if model == "apprepository" else watches[0].app_id
    victor = visitor("victor", f"delete_{model}")
    for url in (f"{ADMIN}{model}/remove/?ids={pk}", f"{ADMIN}{model}/{pk}/delete/"):
        assert [victor.get(url).status_code, victor.post(url, {"post": "yes"}).status_code] == [403, 403]
    assert AppRepository.objects.alive().count() == len(watches)
    assert visitor("walter", f"view_{model}", f"delete_{model}").get(url).status_code == 200


@pytest.mark.parametrize("query", [{"app_name": "C"}, {"app": "key"}])
def test_failed_syncs_do_not_name_an_app_without_repositories(watches: list[AppRepository], query: dict) -> None:
    app = make_app("Confidential")
    query = {name: value.replace("key", str(app.pk)) for name, value in query.items()}
    assert "Confidential" not in visitor("victor", "view_apprepository").get(f"{ADMIN}failedsync/", query).text
    assert "Confidential" in visitor("walter", "view_apprepository", "view_app").get(f"{ADMIN}failedsync/", query).text
    make_watch(app, "docs")
    assert "Confidential" in visitor("wanda", "view_apprepository").get(f"{ADMIN}failedsync/", query).text


def test_endpoint_history_does_not_name_operations(operation: BulkOperation) -> None:
    url = f"{ADMIN}app/{operation.app_id}/endpoint/"
    assert operation.title not in visitor("victor", "view_app").get(url).text
    assert operation.title in visitor("walter", "view_app", "view_bulkoperation").get(url).text
