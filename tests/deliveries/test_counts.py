"""The numbers of watches: one statement counts them, and every page, command and metric shows the same."""

import io
import json
import re
from datetime import datetime, timedelta
from html import unescape

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from deliveries_app.models import App, AppRepository, Reason, StateDetail, Status, SyncPause, WatchState
from deliveries_app.monitoring.counts import WatchCounts, count_open_circuits, count_watches
from deliveries_app.monitoring.instance_checks import check_backlog
from deliveries_app.progress.runs import open_run
from repositories_app.models import HostOutage, Repository
from tests.support.doctor import warnings
from tests.support.plans import read_rows
from tests.support.staff import make_app, make_watch


def ago(**duration: float) -> datetime:
    return timezone.now() - timedelta(**duration)


def failing(**fields: object) -> dict[str, object]:
    return {"failing_since": ago(hours=1), "root_cause": "http_5xx", "last_error": "502"} | fields


@pytest.fixture
def portal(db) -> App:
    """An app with a watch in each state, and three other apps: paused, in a cooldown, being removed."""
    portal, paused, cooling, gone = (make_app(name) for name in ("Portal", "Paused", "Cooling", "Gone"))
    App.objects.filter(pk=paused.pk).update(paused=True)
    App.objects.filter(pk=cooling.pk).update(cooldown_until=timezone.now() + timedelta(minutes=5))
    App.objects.filter(pk=gone.pk).update(ended_at=timezone.now())
    later, leased = timezone.now() + timedelta(minutes=5), {"lease_until": timezone.now() + timedelta(seconds=20)}
    make_watch(portal, "quiet")
    make_watch(portal, "new", status=Status.PENDING, next_sync_at=ago(seconds=1))
    make_watch(portal, "late", next_sync_at=ago(minutes=10))
    make_watch(portal, "given-up", **failing(status=Status.FAILED, next_sync_at=later))
    make_watch(portal, "retried", **failing(status=Status.PENDING, next_sync_at=ago(seconds=1), retry_count=1))
    make_watch(portal, "running", status=Status.SCANNING, next_sync_at=ago(minutes=20), **leased)
    make_watch(portal, "leaving", status=Status.PENDING, next_sync_at=ago(minutes=20), **leased)
    make_watch(portal, "lost", status=Status.SCANNING, next_sync_at=ago(minutes=2), lease_until=ago(seconds=1))
    make_watch(portal, "imported", arriving=True, next_sync_at=ago(minutes=30))
    make_watch(portal, "unwatched", ended_at=timezone.now(), **failing(status=Status.FAILED, next_sync_at=ago(hours=2)))
    open_circuit = make_watch(paused, "held", **failing(status=Status.FAILED, next_sync_at=ago(minutes=30)))
    make_watch(cooling, "held-too", next_sync_at=ago(minutes=30))
    make_watch(gone, "gone", next_sync_at=ago(minutes=30), status=Status.SCANNING)
    open_circuit.repository.circuit_open_until = later
    open_circuit.repository.save()
    return portal


def test_counting_does_not_look_up_the_git_host_of_every_watch(portal: App, postgres_server) -> None:
    HostOutage.objects.create(host="https://git.example/", since=ago(minutes=1), retry_at=timezone.now())
    for number in range(50):
        make_watch(portal, f"library-{number}")
    due = AppRepository.objects.filter(next_sync_at__lte=timezone.now()).count()
    assert read_rows(count_watches, HostOutage._meta.db_table) <= 2 * due


def test_each_watch_is_counted_by_its_state(portal: App) -> None:
    due_since = AppRepository.objects.get(repository__name="late").next_sync_at
    assert count_watches() == WatchCounts(
        watches=11,
        by_status={Status.PENDING: 3, Status.SCANNING: 2, Status.SYNCED: 4, Status.FAILED: 2},
        by_state={
            WatchState.UP_TO_DATE: 1,  # quiet
            WatchState.SYNCING: 1,  # running
            WatchState.QUEUED: 5,  # new, late, leaving, lost, imported
            WatchState.RETRYING: 1,
            WatchState.FAILED: 1,  # given-up
            WatchState.PAUSED: 1,  # held
            WatchState.ON_HOLD: 1,  # held-too
        },
        failing=3,
        given_up=2,
        leased=2,
        due=4,
        held=3,
        waiting=6,
        overdue=2,
        scheduled=1,
        importing=1,
        due_since=due_since,
    )
    assert count_watches().syncing == 1  # "lost" has no live lease
    assert count_open_circuits() == 1


EARLIER, LATER = timedelta(minutes=-1), timedelta(hours=1)  # from now
LEASED = {"lease_until": timedelta(seconds=20)}
FAILING = {"failing_since": EARLIER, "root_cause": "timeout"}
CIRCUIT = {"circuit_open_until": LATER}
STATES: list[tuple[StateDetail, dict, dict, dict]] = [
    # With the columns of the watch, and the reason of its open `run`, and those of its app and its repository.
    (StateDetail.UP_TO_DATE, {"next_sync_at": LATER}, {}, {}),
    (StateDetail.UP_TO_DATE, {}, {"cooldown_until": LATER}, CIRCUIT),
    (StateDetail.WAITS_FOR_WORKER, {"next_sync_at": EARLIER}, {}, {}),
    (StateDetail.SYNCING, {"status": "scanning", "paused_at": EARLIER} | LEASED, {"paused": True}, {}),
    (StateDetail.SCHEDULED, {"status": "pending_snapshot", "next_sync_at": LATER} | LEASED, {}, {}),
    (StateDetail.APP_PAUSED, {"status": "failed", "paused_at": EARLIER} | FAILING, {"paused": True}, {}),
    (StateDetail.WATCH_PAUSED, {"paused_at": EARLIER, "arriving": True}, {}, {}),
    (StateDetail.IMPORTING, {"arriving": True}, {}, {}),
    (StateDetail.CIRCUIT_OPEN, {"status": "failed", "retry_count": 1} | FAILING, {}, CIRCUIT),
    (StateDetail.WAITS_FOR_WORKER, {"next_sync_at": EARLIER, "run": "resync"}, {}, CIRCUIT),  # the probe
    (StateDetail.CIRCUIT_OPEN, {"next_sync_at": EARLIER, "run": "change"}, {}, CIRCUIT),
    (StateDetail.CIRCUIT_OPEN, {"next_sync_at": EARLIER}, {}, CIRCUIT),
    (StateDetail.HOST_DOWN, {"next_sync_at": EARLIER}, {"cooldown_until": LATER}, {"canonical_url": "https://down/a"}),
    (StateDetail.COOLDOWN, {"status": "failed"} | FAILING, {"cooldown_until": LATER}, {}),
    (StateDetail.FAILED, {"status": "failed", "next_sync_at": LATER} | FAILING, {}, {}),
    (StateDetail.RETRYING, {"status": "pending_snapshot", "next_sync_at": LATER} | FAILING, {}, {}),
    (StateDetail.WAITS_FOR_COMMIT, {"status": "pending_snapshot"}, {}, {}),
    (StateDetail.WAITS_FOR_COMMIT, {"status": "pending_snapshot"}, {"cooldown_until": LATER}, {}),
]


def test_state_of_a_watch(db) -> None:
    """The first condition that applies decides."""
    now = timezone.now()

    def columns(fields: dict) -> dict:
        shifted = {name: now + value if isinstance(value, timedelta) else value for name, value in fields.items()}
        return {name: value for name, value in shifted.items() if name != "run"}

    HostOutage.objects.create(host="https://down/", since=now, retry_at=now, error="It is down.")
    for number, (_, fields, of_app, of_repository) in enumerate(STATES):
        watch = make_watch(make_app(f"App {number}"), f"repository-{number}", **columns(fields))
        if "run" in fields:
            open_run(watch, Reason(fields["run"]), requested_by="anna").save()
        App.objects.filter(pk=watch.app_id).update(**columns({"paused": False} | of_app))
        Repository.objects.filter(pk=watch.repository_id).update(**columns({"twin": 0} | of_repository))
    watches = AppRepository.objects.with_state().order_by("pk")
    expected = [detail for detail, *_ in STATES]
    assert [watch.detail for watch in watches] == expected
    SyncPause.objects.create(paused_by="anna")
    assert {watch.detail for watch in watches.all()} == {StateDetail.SYNCING, StateDetail.ALL_PAUSED}


def test_one_app_is_counted_alone(portal: App) -> None:
    counts = count_watches(portal)
    assert (counts.watches, counts.failing, counts.given_up, counts.due, counts.held) == (9, 2, 1, 4, 1)
    counts = count_watches(App.objects.get(name="Cooling"))
    assert (counts.watches, counts.due, counts.held, counts.due_since) == (1, 0, 1, None)


def test_nothing_is_due_while_syncing_is_paused(portal: App) -> None:
    before = count_watches()
    SyncPause.objects.create(paused_by="anna")
    counts = count_watches()
    assert (counts.due, counts.overdue, counts.due_since) == (0, 0, None)
    assert (counts.held, counts.waiting) == (before.due + before.held, before.waiting)


def test_counts_agree_with_the_rows(portal: App) -> None:
    """The sweep and the workers use querysets with the same conditions."""
    counts, rows = count_watches(), AppRepository.objects
    assert counts.due == rows.due().free().count()
    assert counts.due_since == rows.due().free().earliest("next_sync_at").next_sync_at
    assert counts.scheduled == rows.scheduled().count()
    assert counts.leased == rows.alive().leased().count()
    assert counts.failing == rows.failing().count()


def test_counting_takes_one_statement(portal: App) -> None:
    with CaptureQueriesContext(connection) as queries:
        count_watches()
    assert len(queries) == 1


# --- Everything that shows the numbers ----------------------------------------------------------------------------------


def number(page: str, before: str) -> int:
    """Return the first number after this text in the page."""
    found = re.search(re.escape(before) + r"[^>]*>(?:<[^>]*>)*(\d+)", page)
    assert found, before
    return int(found[1])


def counts_on_overview(admin: Client) -> dict[str, int]:
    page = admin.get("/admin/").text
    cards = {
        "watches": "watched",
        "failing": "failed",
        "syncing": "syncing",
        "scheduled": "delayed",
        "circuits": "circuits",
    }
    return {name: number(page, f'id="card-{card}"') for name, card in cards.items()}


def counts_on_queue_page(admin: Client) -> dict[str, int]:
    page = admin.get(reverse("admin:deliveries_app_queue_changelist")).text
    titles = {"leased": "Running", "due": "Not queued yet", "held": "Paused or on hold", "scheduled": "Scheduled"}
    return {name: number(page, f">{title}</a></dt><dd") for name, title in titles.items()}


def counts_on_app_page(admin: Client, app: App) -> dict[str, int]:
    page = admin.get(reverse("admin:deliveries_app_app_change", args=[app.pk])).text
    failed = re.search(r"Retry all failed \((\d+)\)", page)
    assert failed
    return {"watches": number(page, 'id="app-watched"'), "failing": int(failed[1])}


def counts_in_status(*app_id: str) -> dict[str, int]:
    """Return the counts that `status` prints. It exits with 1, because something is failing."""
    out = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("status", *app_id, "--json", stdout=out)
    found = json.loads(out.getvalue())
    return {"importing": found["arriving"]} | {
        name: found[name] for name in ("watches", "failing", "given_up", "syncing", "waiting")
    }


def counts_in_metrics() -> dict[str, int]:
    text = Client().get("/metrics").text
    found = {name: int(float(value)) for name, value in re.findall(r"(?m)^docora_(\S+) ([\d.e+]+)$", text)}
    return {
        "watches": sum(found[f'watches{{status="{status}"}}'] for status in Status.values),
        "due": found["watches_due"],
        "leased": found["leases"],
        "circuits": found["circuits_open"],
    }


@pytest.mark.parametrize("paused", [False, True])
def test_number_on_the_overview_counts_the_rows_of_its_link(portal: App, admin: Client, paused: bool) -> None:
    if paused:
        SyncPause.objects.create(paused_by="anna")
    links = re.findall(r'<a id="card-[^"]+"[^>]* href="([^"#]+)"[^>]*>(\d+)', admin.get("/admin/").text)
    assert len(links) >= 6
    for link, count in links:
        changelist = admin.get(unescape(link)).context["cl"]
        assert changelist.result_count == int(count), link


@pytest.mark.parametrize("paused", [False, True])
def test_pages_commands_and_metrics_show_the_same_numbers(portal: App, admin: Client, paused: bool) -> None:
    if paused:
        SyncPause.objects.create(paused_by="anna")

    def expected(counts: WatchCounts, *names: str) -> dict[str, int]:
        return {name: count_open_circuits() if name == "circuits" else getattr(counts, name) for name in names}

    counts = count_watches()
    for shown in (counts_on_overview(admin), counts_on_queue_page(admin), counts_in_status(), counts_in_metrics()):
        assert shown == expected(counts, *shown)
    counts = count_watches(portal)
    for shown in (counts_on_app_page(admin, portal), counts_in_status(portal.app_id)):
        assert shown == expected(counts, *shown)
    overdue = "2 repositories have been due for more than 1 min, the longest for 10 min" in warnings(check_backlog())
    assert overdue is not paused
