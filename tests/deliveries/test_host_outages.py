"""While a git host is down, all its repositories wait and lose no attempts. Then they continue together."""

import re
import socket
from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Notice, StateDetail, Status, WatchState
from deliveries_app.reports.next_attempt import NextAttempt, next_attempt_of, next_check_of
from deliveries_app.reports.queue import read_queue
from deliveries_app.services import resync_single
from deliveries_app.services.control import reset_circuits
from deliveries_app.sweep.head_checks import check_due, probe_hosts
from docora.db.clock import from_now
from repositories_app.git import remote
from repositories_app.git.process import Remote
from repositories_app.models import HostOutage, Repository
from tests.support.git import GitFixture, GitServer, Repo
from tests.support.histories import assert_promise_kept
from tests.support.staff import staff
from tests.support.syncing import sync
from tests.support.world import World


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URL of every request to a git host, also to one that is down."""
    urls: list[str] = []
    request = remote.upload_pack_request

    def noted(asked: Remote, *arguments, **options):
        urls.append(asked.url)
        return request(asked, *arguments, **options)

    monkeypatch.setattr(remote, "upload_pack_request", noted)
    return urls


Watched = list[tuple[Repo, AppRepository]]


def synced(world: World, count: int) -> Watched:
    repos = [world.watch({"a.txt": b"a"}, name=f"acme/repo-{number}") for number in range(count)]
    world.settle()
    return repos


@pytest.fixture
def ten(world: World) -> Watched:
    return synced(world, 10)


@pytest.fixture
def three(world: World) -> Watched:
    return synced(world, 3)


def go_down(world: World) -> None:
    world.git.server.stop()


def come_back(world: World) -> None:
    port = int(world.git.url.rpartition(":")[2])
    world.git.server = GitServer(world.git.directory, port=port, tokens=world.git.tokens)
    world.git.server.start()


def due_watches() -> list[AppRepository]:
    return list(AppRepository.objects.due().free())


def sync_due() -> int:
    """Sync what workers would claim now. Return the number of attempts."""
    watches = due_watches()
    for watch in watches:
        sync(watch.pk)
    return len(watches)


def let_the_backoff_end() -> None:
    HostOutage.objects.update(retry_at=timezone.now() - timedelta(seconds=1))


def wait(outage: HostOutage) -> float:
    return (outage.retry_at - timezone.now()).total_seconds()


def test_outage_during_syncs_costs_one_request_and_no_attempt(world: World, ten: Watched, asked: list[str]) -> None:
    for repo, watch in ten:
        repo.commit({"a.txt": b"changed"})
        world.make_due(watch)
    go_down(world)
    asked.clear()
    assert sync_due() == 10  # all of them were due; the first one found out
    assert len(asked) == 1
    assert not due_watches()
    watches = AppRepository.objects.all()
    assert {(watch.status, watch.retry_count) for watch in watches if watch.is_failing} == {(Status.PENDING, 0)}
    assert sum(watch.is_failing for watch in watches) == 1
    assert {repository.consecutive_failures for repository in Repository.objects.all()} == {0}

    for _ in range(20):  # a minute of sweeps, before and after each backoff
        world.check()
        sync_due()
        let_the_backoff_end()
    assert len(asked) <= 1 + 20

    come_back(world)
    world.check()
    assert not HostOutage.objects.exists()
    assert sync_due() == 10
    for repo, watch in ten:
        watch.refresh_from_db()
        assert_promise_kept(world, repo, watch)
        assert (watch.status, watch.last_error) == (Status.SYNCED, "")


def test_outage_found_by_checks_fails_nothing(world: World, ten: Watched, asked: list[str]) -> None:
    ten[3][0].commit({"new.txt": b"new"})
    go_down(world)
    world.check()
    assert HostOutage.objects.count() == 1
    assert not AppRepository.objects.filter(next_check_at__gt=timezone.now()).exists()
    asked.clear()
    assert world.check() == 0
    assert asked == []
    assert not AppRepository.objects.filter(failing_since__isnull=False).exists()
    assert not due_watches()
    come_back(world)
    let_the_backoff_end()
    with remote.new_client() as client:
        assert check_due(client) == 10  # the checks that had no answer are repeated at once
    assert [watch.pk for watch in due_watches()] == [ten[3][1].pk]


def test_overview_names_a_host_that_is_down(world: World, three: Watched) -> None:
    """All its repositories stay up to date, and nothing else would say so until their circuits open after 25 minutes."""
    viewer = staff("vera", "view_apprepository", "view_repository")
    go_down(world)
    world.check()
    page = viewer.get("/admin/").text
    assert "A git host is down." in page
    assert "connection refused" in page
    assert "Reset circuit" not in page
    linked = re.search(r'id="host-\d+" href="([^"]+)"', page)
    assert linked is not None
    assert viewer.get(linked[1]).context["cl"].result_count == 3
    assert "A git host is down." not in staff("otto", "view_apprepository").get("/admin/").text
    come_back(world)
    let_the_backoff_end()
    world.check()
    assert "A git host is down." not in viewer.get("/admin/live/overview/").text


def test_overview_names_three_of_many_hosts(db) -> None:
    now = timezone.now()
    HostOutage.objects.bulk_create(
        HostOutage(host=f"https://git{number}.example/", since=now, retry_at=now, error="No connection.")
        for number in range(4)
    )
    page = staff("vera", "view_repository").get("/admin/").text
    assert page.count("A git host is down.") == 3
    assert "More git hosts are down." in page
    HostOutage.objects.first().delete()
    assert "More git hosts are down." not in staff("otto", "view_repository").get("/admin/").text


def test_backoff_doubles_to_five_minutes(world: World, three: Watched) -> None:
    go_down(world)
    world.check()
    outage = HostOutage.objects.get()
    assert 4 < wait(outage) <= 7.5
    waits = []
    for _ in range(8):
        let_the_backoff_end()
        world.check()
        waits.append(wait(HostOutage.objects.get()))
    for waited, base in zip(waits, [10, 20, 40, 80, 160, 300, 300, 300], strict=True):
        assert base * 0.9 < waited <= min(base * 1.5, 300)


def test_host_that_is_down_for_weeks_is_still_probed(world: World, three: Watched) -> None:
    go_down(world)
    world.check()
    HostOutage.objects.update(failures=5000)
    let_the_backoff_end()
    world.check()
    outage = HostOutage.objects.get()
    assert outage.failures == 5001
    assert 200 < wait(outage) <= 300


def test_probes_of_a_host_with_many_repositories(world: World, settings, django_assert_max_num_queries) -> None:
    """A probe that fails costs the same however many repositories there are, unless it opens their circuits."""
    repositories = Repository.objects.bulk_create(
        Repository(canonical_url=f"{world.git.url}/acme/{number}", owner="acme", name=f"{number}")
        for number in range(30)
    )
    AppRepository.objects.bulk_create(
        AppRepository(app=world.app, repository=repository, github_url=repository.canonical_url, next_sync_at=None)
        for repository in repositories
    )
    go_down(world)
    HostOutage.objects.create(host=f"{world.git.url}/", since=timezone.now(), retry_at=from_now(-1), error="refused")
    ticks = []
    with remote.new_client() as client:
        with django_assert_max_num_queries(12):  # counts the failures of all of them at once
            probe_hosts(client, lambda: None)
        assert {repository.consecutive_failures for repository in Repository.objects.all()} == {1}
        let_the_backoff_end()
        with django_assert_max_num_queries(5):
            probe_hosts(client, lambda: None)
        Repository.objects.update(consecutive_failures=settings.CIRCUIT_BREAKER_THRESHOLD - 1, last_failure_at=None)
        let_the_backoff_end()
        probe_hosts(client, lambda: ticks.append(1))  # opens the circuit of each
        assert len(ticks) >= 30
        assert Notice.objects.count() == 30
        Repository.objects.update(circuit_open_until=timezone.now(), last_failure_at=None)
        let_the_backoff_end()
        with django_assert_max_num_queries(12):
            probe_hosts(client, lambda: None)
        assert all(repository.circuit_is_open for repository in Repository.objects.all())
        assert Notice.objects.count() == 30
        Repository.objects.update(consecutive_failures=1, circuit_open_until=timezone.now(), last_error_cause="network")
        come_back(world)
        let_the_backoff_end()
        ticks.clear()
        probe_hosts(client, lambda: ticks.append(1))
    assert len(ticks) >= 30
    assert {repository.circuit_open_until for repository in Repository.objects.all()} == {None}


def test_other_hosts_are_still_checked(world: World, three: Watched, tmp_path) -> None:
    with GitFixture(tmp_path / "other") as other:
        repo = other.repo("acme/elsewhere", {"b.txt": b"b"})
        watch = world.watch_url(repo)
        world.sync(watch)
        go_down(world)
        world.check()
        repo.commit({"b.txt": b"changed"})
        world.settle()
        watch.refresh_from_db()
        assert_promise_kept(world, repo, watch)
        assert HostOutage.objects.get().host == f"{world.git.url}/"


def test_host_that_answers_anything_is_up(world: World, three: Watched) -> None:
    """The probe has no token."""
    go_down(world)
    world.check()
    let_the_backoff_end()
    come_back(world)
    for repo, _ in three:
        world.git.tokens[repo.name] = {"secret"}
    world.check()
    assert not HostOutage.objects.exists()


@pytest.mark.parametrize(
    ("status", "header", "is_down"),
    [
        ("400 Bad Request", "X: y", False),  # it does not support protocol v2
        ("429 Too Many Requests", "Retry-After: 120", False),
        ("500 Internal Server Error", "X: y", False),
        ("501 Not Implemented", "X: y", False),
        ("502 Bad Gateway", "X: y", True),
        ("503 Service Unavailable", "X: y", True),
        ("503 Service Unavailable", "Retry-After: 120", True),
        ("504 Gateway Timeout", "X: y", True),
    ],
)
def test_every_answer_but_502_to_504_ends_the_outage(world: World, status: str, header: str, is_down: bool) -> None:
    """Those may come from a proxy in front of a host that is down, also with a `Retry-After`."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(f"HTTP/1.1 {status}\r\n{header}\r\nContent-Length: 0\r\n\r\n".encode())

    world.watch()
    HostOutage.objects.create(host=f"{world.git.url}/", since=timezone.now(), retry_at=from_now(-1), error="refused")
    world.git.server.on_request = lambda method, target: answer
    with remote.new_client() as client:
        probe_hosts(client, lambda: None)
    assert [outage.failures for outage in HostOutage.objects.all()] == ([2] if is_down else [])


def test_failures_of_an_outage_do_not_count_after_its_end(world: World, three: Watched) -> None:
    """Nothing is pushed, so no sync resets the count. Several short outages would open the circuits."""
    go_down(world)
    world.check()
    let_the_backoff_end()
    world.check()
    assert {repository.consecutive_failures for repository in Repository.objects.all()} == {1}
    come_back(world)
    let_the_backoff_end()
    world.check()
    assert not HostOutage.objects.exists()
    assert {(row.consecutive_failures, row.last_error) for row in Repository.objects.all()} == {(0, "")}


def test_end_of_an_outage_closes_no_circuit_of_another_failure(world: World) -> None:
    world.watch()
    Repository.objects.update(circuit_open_until=from_now(1800), consecutive_failures=3, last_error_cause="corrupt")
    HostOutage.objects.create(host=f"{world.git.url}/", since=timezone.now(), retry_at=from_now(-1), error="refused")
    with remote.new_client() as client:
        probe_hosts(client, lambda: None)
    assert not HostOutage.objects.exists()
    assert Repository.objects.get().circuit_is_open


def test_repository_that_is_read_during_an_outage_ends_the_backoff(world: World, three: Watched) -> None:
    """An open circuit lets a retry through. It proved that the host was up, and the others still waited for minutes."""
    go_down(world)
    world.check()
    HostOutage.objects.update(retry_at=from_now(300))
    come_back(world)
    watch = three[0][1]
    Repository.objects.filter(pk=watch.repository_id).update(circuit_open_until=from_now(1800), consecutive_failures=5)
    resync_single(Actor.command(), watch)
    assert sync_due() == 1
    assert HostOutage.objects.get().retry_at <= timezone.now()
    world.check()
    assert not HostOutage.objects.exists()


def test_reset_circuit_tries_the_host_now(world: World, three: Watched) -> None:
    """The page said that a retry was queued, and nothing happened for up to five minutes."""
    go_down(world)
    world.check()
    let_the_backoff_end()
    world.check()
    HostOutage.objects.update(retry_at=from_now(300))
    come_back(world)
    assert reset_circuits(Actor.command(), [three[0][1].repository]) == 1
    world.check()
    assert not HostOutage.objects.exists()
    assert sync_due() == 1


def test_outage_of_an_unwatched_host_ends(world: World, three: Watched) -> None:
    go_down(world)
    world.check()
    AppRepository.objects.update(ended_at=timezone.now())
    let_the_backoff_end()
    world.check()
    assert not HostOutage.objects.exists()


def test_single_repository_that_fails_is_not_an_outage(world: World, three: Watched) -> None:
    world.git.server.on_request = lambda method, target: 503 if "repo-1" in target else None
    three[2][0].commit({"new.txt": b"new"})
    world.settle()
    assert not HostOutage.objects.exists()
    assert set(AppRepository.objects.filter(failing_since__isnull=False)) == {three[1][1]}


def test_pages_say_what_the_watch_waits_for(world: World, three: Watched) -> None:
    go_down(world)
    world.sync(three[0][1])
    watch = AppRepository.objects.with_state().select_related("app", "repository").get(pk=three[0][1].pk)
    assert (watch.state, watch.detail) == (WatchState.ON_HOLD, StateDetail.HOST_DOWN)
    assert next_attempt_of(watch) == NextAttempt("Next try", HostOutage.objects.get().retry_at)
    until = f"{HostOutage.objects.get().retry_at:%H:%M %Z}"
    watch.host_retry_at = timezone.now()
    assert next_attempt_of(watch) == NextAttempt("Next try is due")
    assert {line.message for line in read_queue().waiting} == {f"On hold until {until}: git host unreachable"}
    assert read_queue().counts.held == 1
    assert "Check the URL and this server's network. Docora retries automatically." in watch.last_error


def test_next_check_waits_for_the_host_and_the_circuit(world: World, three: Watched) -> None:
    """The watch's own time for its next check comes earlier."""

    def next_check() -> tuple[NextAttempt, datetime | None]:
        watch = AppRepository.objects.with_state().select_related("app", "repository").get(pk=three[0][1].pk)
        assert watch.state == WatchState.UP_TO_DATE
        return next_attempt_of(watch), next_check_of(watch)

    go_down(world)
    world.check()
    retry_at = HostOutage.objects.get().retry_at
    assert next_check() == (NextAttempt("Next check", retry_at), retry_at)
    until = timezone.now() + timedelta(minutes=9)
    Repository.objects.update(circuit_open_until=until)
    assert next_check() == (NextAttempt("Next check", until), until)


def test_git_itself_finds_the_host_down(world: World, three: Watched, monkeypatch) -> None:
    monkeypatch.setattr("repositories_app.git.packs.MAX_PACK", 0)  # git fetches
    repo, watch = three[0]
    repo.commit({"a.txt": b"changed"})
    monkeypatch.setattr(remote.git, "run", _going_down(world, remote.git.run))
    assert world.sync(watch).retry_count == 0
    assert HostOutage.objects.exists()


def _going_down(world: World, run):
    def run_without_host(arguments, **options):
        if arguments[0] == "fetch":
            go_down(world)
        return run(arguments, **options)

    return run_without_host


def test_long_outage_is_reported_to_every_watcher(world: World, ten: Watched, settings) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 2
    go_down(world)
    for _ in range(3):
        world.check()
        let_the_backoff_end()
        Repository.objects.update(last_failure_at=None)  # the next rescan round
    assert all(repository.circuit_is_open for repository in Repository.objects.all())
    assert sync_due() == 10
    assert [record.kind for record in world.requests()[-10:]] == ["sync_failed"] * 10
    assert not due_watches()
    resync_single(Actor.command(), ten[0][1])
    assert sync_due() == 1  # finds no connection, and waits for the circuit
    assert not due_watches()
    come_back(world)
    world.check()
    assert not any(repository.circuit_is_open for repository in Repository.objects.all())
    assert sync_due() == 10
    for repo, watch in ten:
        assert_promise_kept(world, repo, watch)
