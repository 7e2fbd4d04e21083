"""A crowd of made-up rows: as many as asked for, the same for the same seed, and nothing in it that could not be real."""

from collections import Counter

import pytest
from django.core.management import CommandError, call_command
from django.db.models import Count, F, Q, Sum
from django.test import Client

from deliveries_app.actors import Actor
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
from deliveries_app.services import retry_all
from deliveries_app.sweep.head_checks import check_due
from repositories_app.git import remote
from repositories_app.models import Repository
from tests.support.admin_pages import NOT_THERE, pages, superuser, variants

APPS, REPOSITORIES, DELIVERIES, RUNS = 30, 150, 6_000, 2_500


def generate(*options: str, **amounts: int) -> None:
    wanted = {"apps": APPS, "repositories": REPOSITORIES, "deliveries": DELIVERIES, "runs": RUNS} | amounts
    call_command("generate_data", *options, **wanted)


@pytest.fixture
def crowd(db) -> None:
    generate()


def per_watch(rows) -> dict[int, int]:
    return dict(rows.order_by().values_list("watch").annotate(Count("pk")))


def test_there_is_as_much_of_everything_as_was_asked_for(crowd: None) -> None:
    counts = [model.objects.count() for model in (App, AppRepository, Delivery, SyncRun)]
    assert counts == [APPS, REPOSITORIES, DELIVERIES, RUNS]
    assert HourlyTraffic.objects.exists()
    assert BulkOperation.objects.count() > 1


@pytest.mark.parametrize(
    ("apps", "repositories", "deliveries", "runs"),
    [(1, 1, 0, 0), (1, 3, 7, 1), (5, 2, 1, 40), (2, 9, 100, 3), (40, 8, 5, 5)],
)
def test_small_amounts_are_exact_too(db, apps: int, repositories: int, deliveries: int, runs: int) -> None:
    generate(apps=apps, repositories=repositories, deliveries=deliveries, runs=runs)
    counts = [model.objects.count() for model in (App, AppRepository, Delivery, SyncRun)]
    assert counts == [apps, repositories, deliveries, runs]


def test_few_repositories_are_large_and_most_are_small(crowd: None) -> None:
    files = sorted(AppRepository.objects.values_list("tree_files", flat=True))
    assert files[-1] >= DELIVERIES // 10
    assert 0 < files[len(files) // 2] < DELIVERIES // 100
    apps = App.objects.annotate(count=Count("watches")).order_by("-count")
    assert apps[0].count >= REPOSITORIES // 10
    assert Repository.objects.annotate(count=Count("watches")).filter(count__gt=1).exists()


def test_every_state_that_an_operator_meets_is_there(crowd: None) -> None:
    assert set(AppRepository.objects.values_list("status", flat=True)) == set(Status)
    assert set(AppRepository.objects.failing().values_list("root_cause", flat=True)) == set(RootCause)
    assert Repository.objects.filter(circuit_open_until__isnull=False).exists()
    cleared = Q(acknowledged=True, generation__lt=F("watch__resend_floor"))
    assert Delivery.objects.filter(cleared).exists()
    assert Delivery.objects.filter(acknowledged=False).exists()
    assert DeliveryFailure.objects.filter(kind=FailureKind.SKIPPED).exists()
    assert BulkOperation.objects.filter(ended_at=None).exists()
    assert BulkOperation.objects.filter(cancelled_at__isnull=False).exists()
    assert App.objects.filter(paused=True).exists()


def test_numbers_of_a_watch_are_those_of_its_rows(crowd: None) -> None:
    rows, sizes = (
        per_watch(Delivery.objects),
        dict(Delivery.objects.order_by().values_list("watch").annotate(Sum("size"))),
    )
    failed = per_watch(DeliveryFailure.objects.filter(kind=FailureKind.FAILED))
    skipped = per_watch(DeliveryFailure.objects.filter(kind=FailureKind.SKIPPED))
    doubtful = per_watch(Delivery.objects.filter(acknowledged=False))
    for watch in AppRepository.objects.all():
        assert (watch.tree_files, watch.tree_bytes) == (rows.get(watch.pk, 0), sizes.get(watch.pk, 0))
        assert watch.files_failing == failed.get(watch.pk, 0)
        assert watch.left_out.get("symlink", 0) == skipped.get(watch.pk, 0)
        if watch.is_failing:
            assert doubtful.get(watch.pk, 0) == watch.files_failing
    listed = DeliveryFailure.objects.filter(kind=FailureKind.FAILED).values_list("watch", "path")
    assert set(listed) <= set(Delivery.objects.filter(acknowledged=False).values_list("watch", "path"))


def test_generations_and_sequence_numbers_are_as_the_engine_makes_them(crowd: None) -> None:
    late = Q(generation__gt=F("watch__generation")) | Q(sequence__gte=F("watch__sequence_high")) | Q(generation__lt=1)
    assert not Delivery.objects.filter(late).exists()
    assert not SyncRun.objects.filter(generation__gt=F("watch__generation")).exists()
    assert not Delivery.objects.order_by().values("watch", "sequence").annotate(n=Count("pk")).filter(n__gt=1).exists()
    assert not Delivery.objects.filter(acknowledged=True, acknowledged_sha=None).exists()
    assert not SyncRun.objects.filter(files_done__gt=F("files_total")).exists()
    assert not SyncRun.objects.filter(started_at__lt=F("created_at")).exists()


def test_an_operation_has_the_runs_that_it_says_and_ends_with_them(crowd: None) -> None:
    for operation in BulkOperation.objects.all():
        outcomes = Counter(operation.runs.values_list("outcome", flat=True))
        assert outcomes.total() == operation.total
        assert (operation.ended_at is None) == (outcomes[""] > 0)
    waiting = AppRepository.objects.filter(status__in=[Status.PENDING, Status.SCANNING])
    assert set(SyncRun.objects.filter(outcome="").values_list("watch", flat=True)) == set(
        waiting.values_list("pk", flat=True)
    )


def test_an_instance_that_runs_on_it_does_nothing_by_itself(crowd: None) -> None:
    assert not AppRepository.objects.due().exists()
    with remote.new_client() as client:
        assert check_due(client) == 0
    hosts = {url.split("/")[2] for url in AppRepository.objects.values_list("github_url", flat=True)}
    hosts |= {url.split("/")[2] for url in App.objects.values_list("base_url", flat=True)}
    assert all(host.endswith(".example") for host in hosts)  # names that nobody can own


def test_what_fails_can_be_retried(crowd: None) -> None:
    failing = AppRepository.objects.failing().count()
    assert retry_all(Actor.command()).total == failing


def test_a_database_that_holds_apps_is_left_alone_without_a_yes(crowd: None) -> None:
    with pytest.raises(CommandError, match="holds apps already"):
        generate(seed=2)
    assert App.objects.count() == APPS
    generate("--yes", seed=2)
    assert App.objects.count() == 2 * APPS


def test_the_same_seed_makes_the_same_rows(crowd: None) -> None:
    with pytest.raises(CommandError, match="rows of this --seed are here already"):
        generate("--yes")
    assert App.objects.count() == APPS


def test_every_page_of_the_admin_shows_it(crowd: None) -> None:
    admin: Client = superuser()
    for url in [*pages(), *variants(admin)]:
        assert admin.get(url).status_code in {200, 302, *NOT_THERE}, url
