"""Permissions in the admin, in particular of an operator who can only view and re-sync."""

import re
from html import unescape
from urllib.parse import urljoin

import pytest
from allauth.socialaccount.models import SocialAccount
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, AuditAction, BulkOperation, RootCause, SyncRun
from deliveries_app.reports import history
from deliveries_app.reports.help_texts import ROOT_HINTS
from docora.sign_in import oidc
from repositories_app.git.exceptions import Cause as GitCause
from repositories_app.models import Repository
from tests.support.admin_pages import pages, superuser
from tests.support.rows import add_rows
from tests.support.staff import make_app, make_watch, staff

LIST = "/admin/deliveries_app/apprepository/"
CONFIRM = f"{LIST}force-resync/"


OPERATOR = ("view_app", "view_apprepository", "view_repository", "resync_apprepository")


@pytest.fixture
def operator(db) -> Client:
    return staff("olga", *OPERATOR)


def every_page(watches: list[AppRepository]) -> list[str]:
    watch = watches[0]
    return [
        LIST,
        f"{LIST}{watch.pk}/change/",
        f"{LIST}add/",
        f"{LIST}{watch.pk}/delete/",
        "/admin/deliveries_app/app/",
        f"/admin/deliveries_app/app/{watch.app_id}/change/",
        "/admin/deliveries_app/app/add/",
        f"/admin/deliveries_app/app/{watch.app_id}/delete/",
        "/admin/repositories_app/repository/",
        f"/admin/repositories_app/repository/{watch.repository_id}/change/",
        "/admin/deliveries_app/bulkoperation/",
        "/admin/deliveries_app/syncrun/",
        "/admin/deliveries_app/delivery/",
    ]


def test_staff_without_permissions_is_refused_everywhere(watches) -> None:
    client = staff("norbert")
    assert {url: client.get(url).status_code for url in every_page(watches)} == dict.fromkeys(every_page(watches), 403)


@pytest.mark.parametrize(
    "codename",
    [
        "view_app", "change_app", "delete_app", "onboard_app", "view_apprepository", "change_apprepository",
        "resync_apprepository", "view_queue", "view_delivery", "view_syncrun", "view_auditentry", "view_repository",
        "add_githubapp", "change_githubapp", "delete_githubapp", "add_user", "view_user", "change_user", "delete_user",
        "add_group", "delete_group",
    ],
)  # fmt: skip
def test_single_permission_has_no_dead_links(watches, codename: str) -> None:
    """Every page below the overview that a user with only this permission is linked to can be opened."""
    client, waiting, opened = staff("sol", codename), ["/admin/"], set[str]()
    while waiting:
        path = waiting.pop()
        kind = re.sub(r"\d+", "N", path.partition("?")[0])  # not each combination of filters and orders
        if kind in opened:
            continue
        opened.add(kind)
        answer = client.get(path, follow=True)
        assert answer.status_code == 200, path
        links = [] if answer.streaming else re.findall(r'<a\b[^>]*? href="([^"#]+)', answer.text)
        waiting += [link for link in (unescape(urljoin(path, link)) for link in links) if link.startswith("/admin/")]


def test_user_who_can_only_delete_sees_that_there_is_nothing_to_view(db) -> None:
    assert "You don't have permission to view anything yet." in unescape(
        staff("dora", "delete_group").get("/admin/").text
    )


@pytest.mark.parametrize("model", ["account/emailaddress", "mfa/authenticator", "socialaccount/socialapp"])
def test_allauths_own_pages_are_left_out(db, model: str) -> None:
    """Administrators could change second factors and providers there, without a recent sign-in."""
    assert superuser().get(f"/admin/{model}/").status_code == 404


def test_anonymous_is_redirected_to_login_everywhere(client: Client, watches) -> None:
    for url in every_page(watches):
        answer = client.get(url)
        assert (answer.status_code, answer.headers.get("Location", "")[:13]) == (302, "/admin/login/"), url


def test_operator_can_follow_own_operation(operator: Client, watches) -> None:
    url = f"{CONFIRM}?ids={','.join(str(watch.pk) for watch in watches)}"
    answer = operator.post(url, {"post": "yes"}, follow=True)
    operation = BulkOperation.objects.get()
    assert answer.status_code == 200
    assert "Cancel" in answer.text
    assert operator.get(f"/admin/progress/{operation.operation_id}/").status_code == 200
    assert operator.get(f"/admin/api/retry/progress/{operation.operation_id}").status_code == 200
    operator.post(f"/admin/deliveries_app/bulkoperation/{operation.pk}/cancel/")
    operation.refresh_from_db()
    assert operation.cancelled_by == "olga"


def test_operator_can_change_nothing_else(operator: Client, watches) -> None:
    watch = watches[0]
    for url in (f"{LIST}add/", f"{LIST}{watch.pk}/delete/", "/admin/deliveries_app/app/add/"):
        assert operator.post(url, {"post": "yes"}).status_code == 403
    assert operator.post(f"/admin/deliveries_app/app/{watch.app_id}/change/", {"name": "Other"}).status_code == 403
    assert AppRepository.objects.alive().count() == 3


def test_viewer_cannot_cancel(operator: Client, watches) -> None:
    operator.post(f"{CONFIRM}?all=1", {"post": "yes"})
    operation = BulkOperation.objects.get()
    viewer = staff("victor", "view_apprepository", "view_bulkoperation")
    page = f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/"
    assert "Cancel" not in viewer.get(page).text
    assert viewer.post(f"/admin/deliveries_app/bulkoperation/{operation.pk}/cancel/").status_code == 403


@pytest.mark.parametrize("path", ["live/?ids=1", "live/1/", "progress/bulk_x/", "progress/bulk_x/rows/"])
def test_polls_are_never_redirected(client: Client, watches, path: str) -> None:
    answer = client.get(f"/admin/{path}", HTTP_HX_REQUEST="true")
    assert answer.status_code == 401
    assert "Sign in again" in answer.text
    assert staff("norbert").get(f"/admin/{path}").status_code == 403


def test_pages_show_no_secrets(admin: Client, watches) -> None:
    for url in every_page(watches):
        page = admin.get(url).text
        assert "ghp_secret" not in page, url
        assert "k" * 20 not in page, url
        assert watches[0].app.tokens.get().digest not in page, url


def test_each_fragment_needs_its_own_permission(watches) -> None:
    reader = staff("rita", "view_app")
    assert reader.get("/admin/live/overview/").status_code == 200
    for path in ("/admin/live/queue/", f"/admin/live/?ids={watches[0].pk}", f"/admin/live/{watches[0].pk}/"):
        assert reader.get(path).status_code == 403, path


def test_last_administrator_stays(db) -> None:
    root, page = User.objects.create_superuser("root"), "/admin/auth/user/"
    User.objects.create_superuser("gone", is_active=False)
    User.objects.create_user("robot", is_superuser=True)
    User.objects.create_user("otto", is_staff=True)
    client = Client()
    client.force_login(root)
    text = "root is the only administrator. Make another user a superuser first."
    form = {"username": "root", "is_active": "on", "is_staff": "on"}
    selected = {"action": "delete_selected", "_selected_action": [root.pk], "post": "yes"}
    posts = ((f"{page}{root.pk}/delete/", {"post": "yes"}), (page, selected), (f"{page}{root.pk}/change/", form))
    inactive = {"username": "root", "is_staff": "on", "is_superuser": "on"}
    no_staff = {"username": "root", "is_active": "on", "is_superuser": "on"}
    for path, data in (*posts, (posts[2][0], inactive), (posts[2][0], no_staff)):
        assert text in client.post(path, data).text, path
    root.refresh_from_db()
    assert root.is_superuser
    assert "can't be deleted because of:" in client.get(posts[0][0]).text
    other = User.objects.create_superuser("other")
    for path, data in reversed(posts[1:]):
        assert client.post(path, data).status_code == 302, path
        User.objects.filter(pk=root.pk).update(is_superuser=True)
    assert [user.pk for user in User.objects.filter(is_superuser=True, is_staff=True, is_active=True)] == [other.pk]


def test_provider_decides_who_of_its_users_is_an_administrator(db) -> None:
    """They are no reason to keep a local administrator, and can be deleted even if no other administrator is left."""
    root, page = User.objects.create_superuser("root"), "/admin/auth/user/"
    anna = User.objects.create_superuser("anna")
    SocialAccount.objects.create(user=anna, provider=oidc.PROVIDER_ID, uid="1")
    client = staff("vera", "view_user", "delete_user")
    for user in (root, anna):
        assert client.post(f"{page}{user.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not User.objects.filter(is_superuser=True).exists()


# --- Advice ------------------------------------------------------------------------------------------------------------

FOR_OTHERS = re.compile(
    r"retry now|then retry|resume it\b|reset the circuit|Replace (?:it|the token) on|[Ww]atch (?:the|its) new|a test ping"
    r"|stop watching it|[Rr]otate (?:it|them)\b|a ping signed|in the app's settings|requests in its settings|Cancel leaves|Fix the"
    r"|re-sync the repository|Watch a repository|watch that repository|[Ll]eave blank|retire the old"
)
"""Advice that needs a permission which viewers don't have."""


@pytest.fixture
def everything(db) -> list[str]:
    """Rows in every table, each kind of failure among them. Return the URL of every page."""
    add_rows(0, 3)
    watches, repositories = [], []
    for cause in RootCause:
        fields = {"failing_since": timezone.now(), "root_cause": cause, "last_error": "It failed."}
        watches.append(make_watch(make_app(f"App of {cause.value}"), cause.value, **fields))
    for cause in GitCause:
        fields = {"owner": "acme", "name": cause, "last_error": "git failed.", "last_error_cause": cause}
        repositories.append(Repository.objects.create(canonical_url=f"https://github.com/acme/of-{cause}", **fields))
    first = App.objects.order_by("pk")[0]
    App.objects.filter(pk=first.pk).update(new_auth_key="n" * 20, key_rotation_started_at=timezone.now())
    return [
        *pages(),
        *(f"{LIST}{watch.pk}/change/" for watch in watches),
        *(f"/admin/repositories_app/repository/{repository.pk}/change/" for repository in repositories),
    ]


def advice_on(client: Client, urls: list[str]) -> set[str]:
    """Return the advice on these pages."""
    texts = (answer.text for answer in map(client.get, urls) if answer.headers["Content-Type"].startswith("text/html"))
    return {match[0] for text in texts for match in FOR_OTHERS.finditer(unescape(text))}


def test_viewers_get_no_advice_that_they_cannot_follow(everything: list[str]) -> None:
    viewer = staff("victor")
    User.objects.get(username="victor").groups.set([Group.objects.get(name="Viewers")])
    assert advice_on(viewer, everything) == set()
    SyncRun.objects.all().delete()
    assert advice_on(viewer, ["/admin/deliveries_app/syncrun/"]) == set()


def test_those_who_can_follow_advice_get_it(everything: list[str]) -> None:
    """Most advice is on the pages of failures, the last ones."""
    assert len(advice_on(superuser(), everything[-len(RootCause) - len(GitCause) :])) > 10


@pytest.mark.parametrize(
    ("codenames", "shown"),
    [((), False), (("retry_apprepository",), False), (("retry_apprepository", "change_app"), True)],
)
def test_advice_is_for_those_with_all_permissions_that_it_needs(
    watches, codenames: tuple[str, ...], shown: bool
) -> None:
    AppRepository.objects.update(failing_since=timezone.now(), root_cause=RootCause.DNS, last_error="It failed.")
    client = staff("rita", "view_apprepository", *codenames)
    for url in (f"{LIST}{watches[0].pk}/change/", "/admin/deliveries_app/failedsync/"):
        page = unescape(client.get(url).text)
        assert "The base URL's hostname doesn't resolve." in page
        assert ("Fix the URL in the app's settings or fix DNS, then retry." in page) is shown


def test_export_is_only_mentioned_to_those_who_can_export(watches, monkeypatch) -> None:
    monkeypatch.setattr(history, "WINDOW", 1)
    for number in range(2):
        audit.record(Actor.command(), AuditAction.PING, [watches[0].app], f"Sent {number}")
    views = ("view_app", "view_auditentry")
    for client, shown in ((staff("audra", *views), False), (staff("edda", *views, "export_auditentry"), True)):
        found = client.get("/admin/deliveries_app/auditentry/?q=nothing").text
        assert "choose an earlier period" in found
        assert ("export the CSV" in found) is shown
        of_app = client.get(f"/admin/deliveries_app/app/{watches[0].app_id}/history/").text
        assert (">Search and export</a>" in of_app, ">Search</a>" in of_app) == (shown, not shown)


def test_every_hint_is_whole_sentences() -> None:
    for hint in ROOT_HINTS.values():
        for text in filter(None, (hint.explanation, hint.advice)):
            assert text.endswith(".")
            assert text == text.strip()
        assert bool(hint.advice) is bool(hint.needs)
