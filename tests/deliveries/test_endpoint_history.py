"""The page that shows how an endpoint has answered, and what people did meanwhile."""

from datetime import timedelta
from html import unescape

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.models import App, AuditAction, HourlyTraffic
from deliveries_app.reports import endpoint_history
from deliveries_app.reports.chart import WIDTH, stacked, steps
from deliveries_app.reports.traffic import Hour
from deliveries_app.services import pause_syncing, resync_by_app, resync_single
from deliveries_app.services.app_settings import change_own_settings
from deliveries_app.sync.outcomes import pause_app
from tests.support.audit import by_users
from tests.support.staff import make_app

ADMIN = "/admin/deliveries_app/app/"


def hour_ago(app: App, hours: int, **fields: int) -> None:
    hour = timezone.now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours)
    HourlyTraffic.objects.create(app=app, hour=hour, **fields)


def page_of(client: Client, app: App, period: str = "") -> str:
    answer = client.get(f"{ADMIN}{app.pk}/endpoint/", {"period": period})
    assert answer.status_code == 200
    return unescape(answer.text)


def test_hours_of_an_app(viewer: Client, watches) -> None:
    app = watches[0].app
    hour_ago(app, 2, files=90, failed=10, requests=200, milliseconds=5_000)
    hour_ago(app, 1, files=100, failed=0, requests=100, milliseconds=100_000)
    hour_ago(app, 30, files=5, failed=5, requests=10, milliseconds=10)
    hour_ago(watches[2].app, 1, files=7, failed=7, requests=14, milliseconds=140)
    history = endpoint_history.of_app(app, 24)
    assert (history.total.files, history.total.failed, history.total.requests) == (190, 10, 300)
    assert (history.total.share, history.total.seconds) == (95.0, 0.35)
    assert (history.worst.share, history.slowest.seconds) == (90.0, 1.0)
    page = page_of(viewer, app)
    assert "95.0% accepted" in page
    assert "10 rejected" in page
    assert "average 350 ms" in page
    assert page.count('<tr><th scope="row">') == 24
    week = page_of(viewer, app, "week")
    assert week.count('<tr><th scope="row">') == 168
    assert "92.8% accepted" in week
    HourlyTraffic.objects.filter(app=app, failed=10).update(files=30_000, failed=3)
    assert "99.9% accepted" in page_of(viewer, app)  # 100.0% would say that nothing was rejected
    assert page_of(viewer, app, "century").count('<tr><th scope="row">') == 24


def test_marks_come_from_operations_and_the_audit_log(viewer: Client, admin: Client, watches) -> None:
    app, anna = watches[0].app, Actor.of_user(User.objects.get(username="root"))
    operation = resync_by_app(anna, app)
    resync_single(Actor.of_app(app), watches[0])
    rotated = audit.entry(anna, AuditAction.KEY_STARTED, app, "Started rotating the signing key")
    rotated.created_at = timezone.now() - timedelta(hours=30)
    rotated.save()
    change_own_settings(Actor.of_app(app), app, paused=True)
    settings = f"{ADMIN}{app.pk}/settings/"
    form = admin.get(settings).context["adminform"].form
    fields = {name: value for name, value in form.initial.items() if value and name != "paused"}
    fields |= {f"initial-{name}": form.initial[name] for name in ("paused", "max_in_flight")}  # as the page has them
    assert admin.post(settings, fields).status_code == 302  # resumes it
    pause_syncing(anna)
    marks = endpoint_history.of_app(app, 24).marks
    assert [(mark.icon, mark.text) for mark in marks] == [
        ("pause", "Paused all syncing, by root"),
        ("pause", "Resumed, by root"),
        ("pause", "Paused, by the app"),
        ("resync", f"Re-sync of {watches[0]}, by the app"),
        ("resync", f"{operation.title}, by root"),
    ]
    assert all(0 <= mark.x <= WIDTH for mark in marks)
    assert "key" in {mark.icon for mark in endpoint_history.of_app(app, 168).marks}
    page = page_of(admin, app)
    assert f"/bulkoperation/{operation.pk}/change/" in page
    assert f"{operation.title}, by root" in page_of(viewer, app)
    unnamed = endpoint_history.of_app(app, 24, names_operations=False).marks
    assert [mark.text for mark in unnamed if mark.icon == "resync"] == ["Re-sync", "Re-sync"]
    assert unnamed[0].text == marks[0].text
    other = endpoint_history.of_app(watches[2].app, 24).marks
    assert [mark.text for mark in other] == ["Paused all syncing, by root"]
    said = by_users(subject_type="deliveries_app.app", app_id=app.app_id).values_list("message", flat=True)
    assert sorted(said) == ["Resumed", "Started rotating the signing key"]  # the form adds no entry of its own


def test_page_needs_the_permission_and_constant_queries(viewer: Client, client: Client, watches) -> None:
    app = watches[0].app
    assert client.get(f"{ADMIN}{app.pk}/endpoint/").status_code == 302
    counts = []
    for number in range(1, 4):
        hour_ago(app, number, files=1, requests=1)
        audit.record(Actor.of_app(app, address="192.0.2.1"), AuditAction.APP_PAUSED, [app], "Paused")
        page_of(viewer, app)
        with CaptureQueriesContext(connection) as queries:
            page_of(viewer, app)
        counts.append(len(queries))
    assert len(set(counts)) == 1


def test_hour_in_which_nothing_was_accepted_is_the_worst() -> None:
    begin = timezone.now()
    hours = [Hour(begin), Hour(begin, failed=3, requests=3), Hour(begin, files=9, failed=1, requests=10)]
    history = endpoint_history.History(hours, [], [])
    assert history.worst is hours[1]


def test_pause_by_docora_and_an_entry_of_a_clock_that_was_ahead_are_marked(watches) -> None:
    app = watches[0].app
    pause_app(app, "The app returned HTTP 410.")
    ahead = audit.entry(Actor.command(), AuditAction.APP_RESUMED, app, "Resumed")
    ahead.created_at = timezone.now() + timedelta(hours=5)
    ahead.save()
    history = endpoint_history.of_app(app, 24)
    assert [mark.text for mark in history.marks] == [
        "Resumed, by command line",
        "Paused. The app returned HTTP 410, by Docora",
    ]
    assert [mark.text for mark in history.cells[-1]] == ["Resumed, by command line"]


@pytest.mark.django_db
def test_page_without_traffic() -> None:
    history = endpoint_history.of_app(make_app("Portal"), 24)
    assert (history.total.share, history.total.seconds, history.marks) == (None, None, [])
    assert len(history.cells) == endpoint_history.CELLS


def test_shares_fill_the_chart_and_steps_have_gaps() -> None:
    full, half, none = stacked([(3, 0), (2, 2), (0, 0)], shares=True)
    assert (full.good, full.bad) == ("M24 0h112v100h-112z", "")
    assert (half.good, half.bad) == ("M184 50h112v50h-112z", "M184 0h112v50h-112zM184 103h112v3h-112z")
    assert (none.area, none.good, none.bad) == ("M320 0h160v106h-160z", "", "")
    assert steps([1.0, 2.0, None, 0.5]) == "M0 50H120V0H240M360 75H480"
    assert steps([None, None]) == ""
