"""Values that a later version has stored. During an upgrade, processes of this version still read the database."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import Alert, AlertKind, AppRepository, DriftCheck, Status, SyncRun
from deliveries_app.models.root_causes import RootCause
from deliveries_app.monitoring.alerts import messages
from deliveries_app.services import resync_by_app
from tests.support.staff import make_app, make_watch

ADMIN = "/admin/deliveries_app"
LATER = "from_later"


@contextmanager
def without_constraint(table: str, name: str) -> Iterator[None]:
    """Accept any value, as after a migration of the later version. On PostgreSQL, the test's transaction restores it."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
            yield
        else:
            cursor.execute("PRAGMA ignore_check_constraints = ON")
            try:
                yield
            finally:
                cursor.execute("PRAGMA ignore_check_constraints = OFF")


@pytest.fixture
def watch(db) -> AppRepository:
    return make_watch(
        make_app("Portal"),
        "docs",
        status=Status.FAILED,
        failing_since=timezone.now(),
        root_cause=LATER,
        last_error="It failed.",
        last_error_cause=LATER,
        left_out={LATER: 1},
    )


def test_pages_show_a_later_root_cause_as_it_is(admin: Client, watch: AppRepository) -> None:
    """The overview, the list of failed syncs and the page of the repository responded with 500."""
    known = make_watch(
        make_app("Search"), "site", status=Status.FAILED, failing_since=timezone.now(), root_cause=RootCause.DNS
    )
    lists = ["/admin/", "/admin/live/overview/", f"{ADMIN}/failedsync/", f"{ADMIN}/failedsync/?o=3"]
    for url in (*lists, f"/admin/live/failed/?ids={watch.pk}"):
        page = admin.get(url)
        assert (page.status_code, LATER in page.text) == (200, True), url
    for url in (f"{ADMIN}/apprepository/", f"{ADMIN}/apprepository/{watch.pk}/change/", f"{ADMIN}/queue/"):
        assert admin.get(url).status_code == 200, url
    shown = admin.get(f"{ADMIN}/failedsync/?cause={LATER}").text
    assert f">{watch.repository}</a>" in shown
    assert f">{known.repository}</a>" not in shown
    group = f"{ADMIN}/failedsync/retry-failed/?all=1&cause={LATER}"
    assert "acme/docs" in admin.get(group).text
    admin.post(group, {"post": "yes"})
    assert [run.watch_id for run in SyncRun.objects.all()] == [watch.pk]


def test_status_prints_a_later_root_cause(watch: AppRepository) -> None:
    out = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("status", "--json", stdout=out)
    assert json.loads(out.getvalue())["lines"][0]["root_cause"] == LATER


def test_pages_show_a_later_reason(admin: Client, watch: AppRepository) -> None:
    operation = resync_by_app(Actor.system(), watch.app)
    SyncRun.objects.update(reason=LATER)
    run = SyncRun.objects.get()
    pages = (
        f"{ADMIN}/syncrun/",
        f"{ADMIN}/syncrun/{run.pk}/change/",
        f"{ADMIN}/bulkoperation/{operation.pk}/change/",
        f"{ADMIN}/apprepository/{watch.pk}/change/",
    )
    for url in pages:
        assert admin.get(url).status_code == 200, url
    assert "From_later" in admin.get(f"{ADMIN}/syncrun/{run.pk}/change/").text


def test_check_for_differences_in_a_later_state(admin: Client, watch: AppRepository) -> None:
    with without_constraint("deliveries_app_driftcheck", "drift_state_known"):
        check = DriftCheck.objects.create(watch=watch, requested_by="anna", state=LATER, ended_at=timezone.now())
        pages = [
            f"{ADMIN}/driftcheck/",
            f"{ADMIN}/driftcheck/{check.pk}/change/",
            f"{ADMIN}/apprepository/{watch.pk}/change/",
        ]
        for url in pages:
            page = admin.get(url)
            assert (page.status_code, LATER in page.text) == (200, True), url
        DriftCheck.objects.all().delete()


def test_alert_of_a_later_kind(db) -> None:
    """Its sentence was empty: `Docora, alert: .`"""
    with without_constraint("deliveries_app_alert", "alert_kind_known"):
        now = timezone.now()
        Alert.objects.create(kind=LATER, since=now, opened=1)
        alone = messages.of("alert", Alert.objects.all())
        Alert.objects.create(kind=AlertKind.DISK, since=now, opened=1)
        both = messages.of("alert", Alert.objects.all())
        assert alone is not None
        assert both is not None
        assert alone.sentence == f"Docora, alert: {LATER}."
        assert both.sentence.endswith(f"so syncs may fail; {LATER}.")
        assert alone.url.endswith("/admin/")
        assert f"- {LATER}, since" in alone.body
        Alert.objects.all().delete()
