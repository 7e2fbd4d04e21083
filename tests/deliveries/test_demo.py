"""The demo's three apps: a healthy one, a slow one, and one that fails until its base URL is corrected."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.db.models import Sum
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.demo.instance import BROKEN, CLIENTS, Demo, NotEmpty, require_own_instance
from deliveries_app.models import App, AppRepository, HourlyTraffic, Status
from deliveries_app.services import change_app, retry_single
from docora.cli.main import DEMO_SETTINGS
from tests.support.commands import manage
from tests.support.staff import make_app
from tests.support.syncing import sync


@pytest.fixture
def demo(transactional_db: None, tmp_path: Path, settings) -> Iterator[Demo]:
    settings.REPOS_DIR = tmp_path / "repos"
    settings.MAX_RETRY_ATTEMPTS = 1
    demo = Demo(tmp_path / "demo")
    demo.start()
    demo.fill()
    yield demo
    demo.stop()


def watch_of(app: str, repository: str) -> AppRepository:
    owner, name = repository.split("/")
    return AppRepository.objects.get(app__name=app, repository__owner=owner, repository__name=name)


def synced(app: str, repository: str) -> AppRepository:
    """Run the watch's attempts until it is synced or has failed. A slow one makes way for the others meanwhile."""
    watch = watch_of(app, repository)
    for _ in range(20):
        sync(watch.pk)
        watch.refresh_from_db()
        if watch.status in (Status.SYNCED, Status.FAILED):
            return watch
        AppRepository.objects.filter(pk=watch.pk).update(next_sync_at=Now())
    raise AssertionError(watch.status)


def test_failing_app_recovers_once_its_base_url_is_corrected(demo: Demo) -> None:
    watch = synced("Newsletter", "acme/website")
    assert (watch.status, watch.last_status_code, watch.files_failing) == (Status.FAILED, 500, 40)
    assert f"Remove {BROKEN} from the base URL" in watch.last_response
    assert synced("Newsletter", "acme/handbook").status == Status.SYNCED

    retry_single(Actor.command(), watch)
    assert synced("Newsletter", "acme/website").status == Status.FAILED  # the cause is still there

    app = App.objects.get(name="Newsletter")
    assert f"Remove {BROKEN} from the base URL" in app.description
    app.base_url = app.base_url.removesuffix(BROKEN)
    change_app(Actor.command(), app, ["base_url"])
    retry_single(Actor.command(), watch)
    watch = synced("Newsletter", "acme/website")
    assert (watch.status, watch.files_failing, watch.failing_since) == (Status.SYNCED, 0, None)


@pytest.mark.early(3)
def test_slow_app_takes_longer_than_the_healthy_one(demo: Demo) -> None:
    this_hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    for name in ("Portal", "Search"):
        assert synced(name, "acme/handbook").status == Status.SYNCED
    traffic = HourlyTraffic.objects.filter(hour__gte=this_hour)
    mean = {
        row["app__name"]: row["time"] / row["count"]
        for row in traffic.values("app__name").annotate(time=Sum("milliseconds"), count=Sum("requests"))
    }
    assert mean["Search"] > 300
    assert mean["Search"] > 2 * mean["Portal"]


def test_made_up_traffic_ends_before_the_demo_starts(demo: Demo) -> None:
    this_hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    assert not HourlyTraffic.objects.filter(hour__gt=this_hour).exists()
    for client in CLIENTS:
        rows = HourlyTraffic.objects.filter(app__name=client.name, hour__lt=this_hour)
        assert rows.count() >= 23
        assert not rows.filter(failed__gt=0).exists()
        assert "made up" in App.objects.get(name=client.name).description


def test_second_start_adds_nothing_even_after_the_correction(demo: Demo, tmp_path: Path) -> None:
    app = App.objects.get(name="Newsletter")
    app.base_url = app.base_url.removesuffix(BROKEN)
    change_app(Actor.command(), app, ["base_url"])
    before = [model.objects.count() for model in (App, AppRepository, HourlyTraffic)]
    demo.stop()
    again = Demo(tmp_path / "demo")
    again.start()
    again.fill()
    again.stop()
    assert [model.objects.count() for model in (App, AppRepository, HourlyTraffic)] == before
    assert again.choices == demo.choices


def test_accounts_of_others_are_left_alone(transactional_db: None, tmp_path: Path) -> None:
    """For example, the administrator whom `up` creates from ADMIN_USERNAME and ADMIN_PASSWORD."""
    owner = get_user_model().objects.create_superuser("admin", password="the owner's")
    guest = get_user_model().objects.create_user("viewer", password="the guest's")
    for _ in range(2):  # a second start does not take them for its own
        demo = Demo(tmp_path / "demo")
        demo.start()
        try:
            demo.fill()
        finally:
            demo.stop()
    owner.refresh_from_db(), guest.refresh_from_db()
    assert owner.check_password("the owner's")
    assert not guest.is_staff
    assert get_user_model().objects.get(username="operator").check_password(demo.choices.password)
    assert App.objects.count() == len(CLIENTS)


def test_instance_of_others_is_left_alone(transactional_db: None, tmp_path: Path) -> None:
    require_own_instance(tmp_path / "demo")
    app = make_app("Search")
    with pytest.raises(NotEmpty, match="already has apps"):
        require_own_instance(tmp_path / "demo")
    app.delete()
    get_user_model().objects.create_superuser("root", password="the owner's")
    require_own_instance(tmp_path / "demo")


def test_instance_of_the_demo_is_its_own(demo: Demo, tmp_path: Path) -> None:
    require_own_instance(tmp_path / "demo")


def run_demo(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return manage("demo", environment=environment | {"DOCORA_ENV_FILE": os.devnull})


def test_demo_command_needs_its_settings_in_every_process(instance_environment: dict[str, str], tmp_path: Path) -> None:
    given = {name: value for name, value in instance_environment.items() if name not in DEMO_SETTINGS}
    given["DATA_DIR"] = str(tmp_path)
    for environment in (given, given | DEMO_SETTINGS | {"ALLOWED_PRIVATE_NETWORKS": "10.0.0.0/8"}):
        done = run_demo(environment)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("CommandError: The demo needs these settings in every process of the instance: ")


def test_folder_that_the_demo_cannot_use(instance_environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    done = run_demo(instance_environment | DEMO_SETTINGS | {"DATA_DIR": str(tmp_path)})
    folder = tmp_path / "demo"
    assert (done.returncode, done.stderr) == (1, f"CommandError: The demo cannot use {folder}: File exists.\n")


def test_git_that_fails(instance_environment: dict[str, str], tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    version = f'[ "$1" = --version ] && exec {shutil.which("git")} --version'
    (programs / "git").write_text(f"#!/bin/sh\n{version}\necho 'fatal: no space left' >&2; exit 128\n")
    (programs / "git").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    done = run_demo(instance_environment | DEMO_SETTINGS | {"DATA_DIR": str(tmp_path / "data"), "PATH": path})
    assert (done.returncode, done.stderr) == (
        1,
        "CommandError: The demo's repositories cannot be created: fatal: no space left\n",
    )


def test_wait_for_first_syncs_ends_with_the_last_one_or_after_its_time(demo: Demo) -> None:
    begun = time.monotonic()
    demo.wait_for_first_syncs(0.5, threading.Event())
    assert time.monotonic() - begun >= 0.5
    stopped = threading.Event()
    stopped.set()
    demo.wait_for_first_syncs(60, stopped)
    AppRepository.objects.exclude(app__name="Newsletter").update(status=Status.SYNCED)
    AppRepository.objects.filter(app__name="Newsletter").update(status=Status.FAILED)
    demo.wait_for_first_syncs(60, threading.Event())
    assert time.monotonic() - begun < 50
