"""The confirmation of a re-sync as a pre-flight check, and the page of a gradual operation."""

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.http import QueryDict
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.admin import confirmation
from deliveries_app.admin.confirmation import ResyncForm
from deliveries_app.models import App, AppRepository, BulkOperation, Outcome, SyncRun
from deliveries_app.progress import runs
from deliveries_app.receiver import Notification
from deliveries_app.reports.endpoints import after_ping
from deliveries_app.services import change_app, delete_app
from deliveries_app.services.keys import start_key_rotation
from deliveries_app.services.pinging import send_ping
from deliveries_app.services.rollout import release_due
from deliveries_app.sweep.cleanup import remove_ended
from deliveries_app.webhooks import endpoint_stats
from deliveries_app.webhooks.endpoint_stats import Latest
from tests.support.admin_pages import superuser
from tests.support.processes import in_threads
from tests.support.receiver import Answer
from tests.support.staff import VIEWS, make_app, make_watch, staff
from tests.support.world import World

ALL = "/admin/deliveries_app/apprepository/force-resync/?all=1"
OPERATIONS = "/admin/deliveries_app/bulkoperation/"
HTMX = {"HTTP_HX_REQUEST": "true"}


def answer(app: App, *, accepted: int, refused: int) -> None:
    latest = Latest()
    for ok in [True] * accepted + [False] * refused:
        latest.add(ok, 0.2)
    endpoint_stats.record_latest(app, latest, {})


def endpoints(page: str) -> list[str]:
    """Return the text of each line of the page's list of endpoints."""
    lines = re.findall(
        r"<li[^>]*>(.*?)</li>", page.partition('class="preflight"')[2].partition("</section>")[0], re.DOTALL
    )
    return [" ".join(re.sub(r"<[^>]+>", " ", line).split()) for line in lines]


def analyze() -> None:
    """Update the planner's statistics for the rows that this test has created. Outside of tests, autovacuum does this."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def test_endpoint_with_fewer_than_five_requests_gets_no_warning(operator: Client, db) -> None:
    app = make_app("New")
    make_watch(app, "docs")
    for accepted, refused, warning in ((3, 1, ""), (0, 1, "It accepted only 60% of the last 5 notifications.")):
        answer(app, accepted=accepted, refused=refused)
        [line] = endpoints(operator.get(ALL).text)
        assert ("It accepted" in line, warning in line) == (bool(warning), True)


def test_worst_endpoint_is_first_and_says_why(operator: Client, db) -> None:
    soon = timezone.now() + timedelta(minutes=5)
    states = {
        "Healthy": {},
        "Slow": {"pace_gap": 0.5},
        "Refusing": {},
        "Unpinged": {"ping_failed_at": timezone.now()},
        "Waiting": {"cooldown_until": soon},
        "Down": {"cooldown_until": soon, "down_count": 2},
        "Paused": {"paused": True, "paused_reason": "The app returned HTTP 410."},
    }
    for name, fields in states.items():
        app = make_app(name)
        make_watch(app, "docs")
        App.objects.filter(pk=app.pk).update(**fields)
        answer(app, accepted=60, refused=40 if name == "Refusing" else 0)
    shown = endpoints(operator.get(ALL).text)
    until = timezone.localtime(soon).strftime("%H:%M %Z")
    health = "accepted · median 200 ms · p95 200 ms (last {})"
    assert shown == [
        f"Paused Paused 100% {health.format(60)} The app returned HTTP 410.",
        f"Down Endpoint down 100% {health.format(60)} The endpoint doesn&#x27;t respond."
        " Docora tries one repository now; the rest wait for the result.",
        f"Waiting On hold 100% {health.format(60)} The endpoint is too busy (HTTP 429 or 503). Nothing is sent before {until}.",
        f"Unpinged Active 100% {health.format(60)} The last test ping failed.",
        f"Refusing Active 60% {health.format(100)} It accepted only 60% of the last 100 notifications.",
        "and 2 more apps without warnings",
    ]


def test_endpoint_that_refuses_more_is_first(operator: Client, db) -> None:
    for name, accepted in (("Portal", 60), ("Search", 20)):
        make_watch(make_app(name), "docs")
        answer(App.objects.get(name=name), accepted=accepted, refused=100 - accepted)
    assert [line.split()[0] for line in endpoints(operator.get(ALL).text)] == ["Search", "Portal"]


@pytest.mark.parametrize("down_count", [0, 2])
def test_paused_endpoint_is_not_said_to_be_tried_now_or_later(operator: Client, db, down_count: int) -> None:
    app = make_app("Portal")
    make_watch(app, "docs")
    soon = timezone.now() + timedelta(minutes=5)
    App.objects.update(paused=True, cooldown_until=soon, down_count=down_count)
    assert endpoints(operator.get(ALL).text) == [
        "Portal Paused No recent notifications Nothing is sent until the app is resumed."
    ]


@pytest.mark.parametrize(("accepted", "refused", "warns"), [(92, 8, True), (95, 5, False), (0, 4, False)])
def test_list_of_apps_and_confirmation_warn_alike(
    operator: Client, db, accepted: int, refused: int, warns: bool
) -> None:
    app = make_app("Portal")
    make_watch(app, "docs")
    answer(app, accepted=accepted, refused=refused)
    cell = operator.get("/admin/deliveries_app/app/").text.partition("field-accepted")[2].partition("</td>")[0]
    assert ('class="bad"' in cell) is warns
    assert ("preflight-warning" in operator.get(ALL).text) is warns


def test_new_base_url_starts_without_a_record(operator: Client, django_capture_on_commit_callbacks) -> None:
    app = make_app("Portal")
    make_watch(app, "docs")
    answer(app, accepted=0, refused=100)
    App.objects.filter(pk=app.pk).update(ping_failed_at=timezone.now())
    app.refresh_from_db()
    (line,) = endpoints(operator.get(ALL).text)
    assert line.endswith("It accepted none of the last 100 notifications. The last test ping failed.")
    app.base_url = "https://new.example"
    with django_capture_on_commit_callbacks(execute=True):
        change_app(Actor.command(), app, ["base_url"])
    assert endpoints(operator.get(ALL).text) == ["Portal Active No recent notifications"]


def test_failed_ping_is_history_once_the_app_accepts_a_file(world: World, operator: Client) -> None:
    """As of an app that was pinged before it was started, or that has no /ping."""
    _, watch = world.watch()
    world.answer(lambda note: Answer(404) if note.kind == "ping" else None)
    send_ping(Actor.command(), world.app)
    assert "The last test ping failed." in operator.get(ALL).text
    assert after_ping(world.app).warnings == [], "the page shows the result of the ping anyway"
    world.sync(watch)
    assert "The last test ping failed." not in operator.get(ALL).text
    send_ping(Actor.command(), world.app)
    assert "The last test ping failed." in operator.get(ALL).text


def test_page_and_queries_stay_the_same_for_any_number_of_apps(operator: Client, db) -> None:
    counts, sizes = [], []
    for number in (101, 140):
        for index in range(App.objects.count(), number):
            make_watch(make_app(f"App {index:03}"), f"of-{index:03}")
        analyze()
        with CaptureQueriesContext(connection) as asked:
            page = operator.get(ALL).text
        counts.append(len(asked))
        sizes.append(len(page))
    assert endpoints(page)[-1] == "and 135 more apps without warnings"
    assert counts[0] == counts[1]
    assert abs(sizes[0] - sizes[1]) < 100


@pytest.mark.parametrize("typed", ["", "10", "eleven", "111"])
def test_large_selection_needs_its_number(operator: Client, db, typed: str) -> None:
    for index in range(11):
        make_watch(make_app(f"App {index}"), "docs")
    page = operator.post(ALL, {"post": "yes", "number": typed, "reason": "New disk", "pace": "7"})
    assert "Type the number of repositories, 11." in page.text
    assert 'value="New disk"' in page.text
    assert 'value="7"' in page.text
    assert not SyncRun.objects.exists()
    operator.post(ALL, {"post": "yes", "number": " 11 "})
    assert SyncRun.objects.count() == 11


def test_many_repositories_of_one_app_need_their_number(operator: Client, watches, monkeypatch) -> None:
    monkeypatch.setattr(confirmation, "MANY_REPOSITORIES", 2)
    assert "Type 3 to confirm" in operator.get(ALL).text
    assert "Type the number" in operator.post(ALL, {"post": "yes"}).text
    operator.post(ALL, {"post": "yes", "number": "3"})
    assert SyncRun.objects.count() == 3


@pytest.mark.parametrize("typed", ["1234", "1,234", "1 234", "1.234"])
def test_number_may_be_typed_with_separators(typed: str) -> None:
    form = ResyncForm(QueryDict(f"number={typed}"), repositories=1234, apps=1)
    assert form.is_valid()


def test_canary_is_proposed_for_several_apps(operator: Client, watches: list[AppRepository]) -> None:
    checkbox = re.compile(r'<input type="checkbox" name="canary"[^>]*>')
    portal = f"/admin/deliveries_app/app/force-resync/?ids={watches[0].app_id}"
    single = f"/admin/deliveries_app/apprepository/force-resync/?ids={watches[0].pk}"
    found = [checkbox.findall(operator.get(url).text) for url in (ALL, portal, single)]
    assert ["checked" in "".join(boxes) for boxes in found] == [True, False, False]
    assert [len(boxes) for boxes in found] == [1, 1, 0]


def test_canary_and_pace_of_the_form_make_a_gradual_operation(
    operator: Client, watches: list[AppRepository], django_capture_on_commit_callbacks
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        operator.post(ALL, {"post": "yes", "canary": "on", "pace": "90", "reason": "New disk"})
    operation = BulkOperation.objects.get()
    assert (operation.canary, operation.pace, operation.reason, operation.total) == (True, 90, "New disk", 3)
    assert SyncRun.objects.count() == 1
    assert AppRepository.objects.filter(generation=1).count() == 2


@pytest.mark.parametrize("pace", ["0", "-1", "many", "100001"])
def test_invalid_pace_is_an_error(operator: Client, watches: list[AppRepository], pace: str) -> None:
    page = operator.post(ALL, {"post": "yes", "pace": pace})
    assert "errorlist" in page.text
    assert not BulkOperation.objects.exists()


def test_ping_from_the_confirmation_page(world: World) -> None:
    client = staff("paula", *(f"view_{model}" for model in VIEWS), "resync_apprepository", "change_app")
    world.watch()
    url = f"/admin/deliveries_app/app/{world.app.pk}/ping/"
    assert f'hx-post="{url}"' in client.get(ALL).text
    world.answer(lambda note: Answer(500))
    assert "The app returned HTTP 500." in client.post(url, **HTMX).text
    assert "The last test ping failed." in client.get(ALL).text
    world.answer(None)
    line = client.post(url, **HTMX).text
    assert "The app accepted the ping (HTTP 200)." in line
    assert line.lstrip().startswith(f'<li id="endpoint-{world.app.pk}">')
    assert "The last test ping failed." not in client.get(ALL).text
    assert [record.kind for record in world.requests()] == ["ping", "ping"]


def test_app_is_removed_while_it_is_pinged(world: World) -> None:
    def remove(note: Notification) -> None:
        in_threads(lambda: (delete_app(Actor.command(), world.app), remove_ended()))

    world.answer(remove)
    answer = superuser().post(f"/admin/deliveries_app/app/{world.app.pk}/ping/", **HTMX)
    assert not App.objects.exists()
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")


def test_ping_needs_its_permission(operator: Client, watches: list[AppRepository]) -> None:
    assert "hx-post" not in operator.get(ALL).text
    assert operator.post(f"/admin/deliveries_app/app/{watches[0].app_id}/ping/", **HTMX).status_code == 403


@pytest.fixture
def held(operator: Client, watches: list[AppRepository], django_capture_on_commit_callbacks) -> BulkOperation:
    """An operation whose canary of Portal has failed."""
    with django_capture_on_commit_callbacks(execute=True):
        operator.post(ALL, {"post": "yes", "canary": "on"})
        release_due()
        runs.end_runs(watches[0].pk, 2, Outcome.FAILED, "The app returned HTTP 500.")
        runs.end_runs(watches[2].pk, 2, Outcome.SUCCEEDED)
        release_due()
    return BulkOperation.objects.get()


def rows(page: str) -> list[str]:
    body = page.partition("operation-rows")[2].partition("</table>")[0].partition("<tbody>")[2]
    return [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in body.split("</tr>")[:-1]]


def test_held_operation_names_its_unreleased_repositories(operator: Client, held: BulkOperation) -> None:
    url = f"{OPERATIONS}{held.pk}/change/"
    page = operator.get(url)
    assert "Portal: acme/docs failed: The app returned HTTP 500." in page.text
    assert f'id="continue-{held.operation_id}"' in page.text
    assert "1 not released yet" in page.text
    assert rows(page.text)[-1] == "acme/site Portal Queued held, because acme/docs did not succeed"
    assert rows(operator.get(f"{url}?part=unreleased").text) == rows(page.text)[-1:]
    assert "Held</span>" in operator.get(f"{OPERATIONS}?state=held").text
    assert "No bulk operations" not in operator.get(f"{OPERATIONS}?state=held").text
    assert held.title not in operator.get(f"{OPERATIONS}?state=running").text.partition("result_list")[2]


def test_poll_shows_the_hold_and_a_released_repository(
    operator: Client, held: BulkOperation, watches: list[AppRepository], django_capture_on_commit_callbacks
) -> None:
    url = f"/admin/progress/{held.operation_id}/"
    assert f'id="continue-{held.operation_id}"' in operator.get(url).text  # it was not held at the last poll
    assert f'id="continue-{held.operation_id}"' not in operator.get(f"{url}?held=1").text
    key = f"w{watches[1].pk}"
    assert "held, because acme/docs" in operator.get(f"{url}rows/?ids=&watches={watches[1].pk}").text
    with django_capture_on_commit_callbacks(execute=True):
        answer = operator.post(f"{OPERATIONS}{held.pk}/continue/", follow=True)
    assert "Continuing with 1 repository." in answer.text
    released = operator.get(f"{url}rows/?ids=&watches={watches[1].pk}").text
    assert f'<span id="run-status-{key}"' in released
    assert "waiting for a worker" in released
    assert f"watches={watches[1].pk}" in released
    assert "The operation is not held." in operator.post(f"{OPERATIONS}{held.pk}/continue/", follow=True).text


def test_cancelled_operation_says_what_was_not_released(
    operator: Client, held: BulkOperation, watches: list[AppRepository], django_capture_on_commit_callbacks
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        page = operator.post(f"/admin/deliveries_app/bulkoperation/{held.pk}/cancel/", follow=True)
    assert "Cancelled the sync of 1 repository." in page.text
    assert "1 had not been released and stayed as it was" in page.text
    assert "<li>1 not released</li>" in page.text
    assert "All 2</a>" in page.text
    assert "Was held" in page.text
    assert "Not released" in operator.get(f"/admin/progress/{held.operation_id}/rows/?watches={watches[1].pk}").text


def test_continue_is_refused_without_permission_or_post(viewer: Client, operator: Client, held: BulkOperation) -> None:
    url = f"/admin/deliveries_app/bulkoperation/{held.pk}/continue/"
    assert (viewer.post(url).status_code, operator.get(url).status_code) == (403, 405)
    assert f'id="continue-{held.operation_id}"' not in viewer.get(f"{OPERATIONS}{held.pk}/change/").text
    held.refresh_from_db()
    assert held.is_held


def test_app_that_does_not_have_the_new_key_yet_has_no_failed_ping(world: World, operator: Client) -> None:
    """It accepts everything that is sent to it. A ping with the new key alone only asks whether it has that key."""
    world.watch()
    start_key_rotation(Actor.command(), world.app)
    assert send_ping(Actor.command(), world.app, new_key=True).status == 401
    assert "The last test ping failed." not in operator.get(ALL).text
    world.receiver.keys = "neither-of-the-two-keys"
    assert send_ping(Actor.command(), world.app).status == 401
    assert "The last test ping failed." in operator.get(ALL).text
