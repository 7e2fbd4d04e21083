"""The generated database has exactly the requested number of rows, and its rows are consistent."""

from collections import Counter
from typing import Any

import pytest
from django.db.models import Count, F, Q, QuerySet, Sum

from deliveries_app.models import (
    App,
    AppRepository,
    BulkOperation,
    Delivery,
    DeliveryFailure,
    FailureKind,
    HourlyTraffic,
    RootCause,
    Status,
    SyncRun,
)
from deliveries_app.sweep.head_checks import check_due
from repositories_app.git import remote
from repositories_app.models import Repository
from tests.bench.crowd.filling import fill
from tests.bench.crowd.layout import Amounts
from tests.bench.pages import measure, requests_of_pages

AMOUNTS = Amounts(apps=20, repositories=120, deliveries=2_000, runs=600)


@pytest.fixture
def crowd(db: None) -> None:
    fill(AMOUNTS)


def counts() -> list[int]:
    return [model.objects.count() for model in (App, AppRepository, Delivery, SyncRun)]


def per_watch(rows: QuerySet[Any]) -> dict[int, int]:
    return dict(rows.order_by().values_list("watch").annotate(Count("pk")))


@pytest.mark.parametrize("amounts", [(1, 1, 0, 0), (1, 3, 7, 1), (5, 2, 1, 40), (2, 9, 100, 3), (40, 8, 5, 5)])
def test_small_amounts_are_exact(db: None, amounts: tuple[int, int, int, int]) -> None:
    fill(Amounts(*amounts))
    assert counts() == [*amounts]


def test_sizes_and_states_vary(crowd: None) -> None:
    assert counts() == [AMOUNTS.apps, AMOUNTS.repositories, AMOUNTS.deliveries, AMOUNTS.runs]
    files = sorted(AppRepository.objects.values_list("tree_files", flat=True))
    assert files[-1] >= AMOUNTS.deliveries // 10
    assert 0 < files[len(files) // 2] < AMOUNTS.deliveries // 100
    apps = App.objects.annotate(count=Count("watches")).order_by("-count")
    assert apps[0].count >= AMOUNTS.repositories // 10
    assert Repository.objects.annotate(count=Count("watches")).filter(count__gt=1).exists()

    assert set(AppRepository.objects.values_list("status", flat=True)) == set(Status)
    assert set(AppRepository.objects.failing().values_list("root_cause", flat=True)) == set(RootCause)
    assert Repository.objects.filter(circuit_open_until__isnull=False).exists()
    assert Delivery.objects.filter(acknowledged=True, generation__lt=F("watch__resend_floor")).exists()
    assert Delivery.objects.filter(acknowledged=False).exists()
    assert DeliveryFailure.objects.filter(kind=FailureKind.SKIPPED).exists()
    assert BulkOperation.objects.filter(ended_at=None).exists()
    assert BulkOperation.objects.filter(cancelled_at__isnull=False).exists()
    assert App.objects.filter(paused=True).exists()
    assert HourlyTraffic.objects.exists()


def test_rows_agree_with_each_other(crowd: None) -> None:
    rows = per_watch(Delivery.objects.all())
    sizes = dict(Delivery.objects.order_by().values_list("watch").annotate(Sum("size")))
    failed = per_watch(DeliveryFailure.objects.filter(kind=FailureKind.FAILED))
    skipped = per_watch(DeliveryFailure.objects.filter(kind=FailureKind.SKIPPED))
    in_doubt = per_watch(Delivery.objects.filter(acknowledged=False))
    for watch in AppRepository.objects.all():
        assert (watch.tree_files, watch.tree_bytes) == (rows.get(watch.pk, 0), sizes.get(watch.pk, 0))
        assert watch.files_failing == failed.get(watch.pk, 0)
        assert watch.left_out.get("symlink", 0) == skipped.get(watch.pk, 0)
        if watch.is_failing:
            assert in_doubt.get(watch.pk, 0) == watch.files_failing
    listed = DeliveryFailure.objects.filter(kind=FailureKind.FAILED).values_list("watch", "path")
    assert set(listed) <= set(Delivery.objects.filter(acknowledged=False).values_list("watch", "path"))

    invalid = (
        Q(generation__gt=F("watch__generation")) | Q(sequence__gte=F("watch__sequence_high")) | Q(generation__lt=1)
    )
    assert not Delivery.objects.filter(invalid).exists()
    assert not SyncRun.objects.filter(generation__gt=F("watch__generation")).exists()
    assert not Delivery.objects.order_by().values("watch", "sequence").annotate(n=Count("pk")).filter(n__gt=1).exists()
    assert not Delivery.objects.filter(acknowledged=True, acknowledged_sha=None).exists()
    assert not SyncRun.objects.filter(files_done__gt=F("files_total")).exists()
    assert not SyncRun.objects.filter(started_at__lt=F("created_at")).exists()


def test_operations_have_their_runs(crowd: None) -> None:
    for operation in BulkOperation.objects.all():
        outcomes = Counter(operation.runs.values_list("outcome", flat=True))
        assert outcomes.total() == operation.total
        assert (operation.ended_at is None) == (outcomes[""] > 0)
    waiting = AppRepository.objects.filter(status__in=[Status.PENDING, Status.SCANNING])
    open_runs = SyncRun.objects.filter(outcome="").values_list("watch_id", flat=True)
    assert set(open_runs) == set(waiting.values_list("pk", flat=True))


def test_nothing_is_due(crowd: None) -> None:
    assert not AppRepository.objects.due().exists()
    with remote.new_client() as client:
        assert check_due(client) == 0
    hosts = {url.split("/")[2] for url in AppRepository.objects.values_list("github_url", flat=True)}
    hosts |= {url.split("/")[2] for url in App.objects.values_list("base_url", flat=True)}
    assert all(host.endswith(".example") for host in hosts)  # reserved names


def test_pages_are_measured(crowd: None) -> None:
    requests = requests_of_pages()
    for page, get in (requests[0], requests[-1]):
        measured = measure(page, get)
        assert measured is not None
        assert measured.queries > 0
        assert measured.kilobytes > 0
