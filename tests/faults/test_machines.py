"""Several machines with one PostgreSQL and one Redis, each with its own mirrors. Any machine can take any job, and others
take over when one dies or is cut off.

The machines are network namespaces with cables that can be pulled. Where namespaces are not allowed, they share this
machine's network, and tests that need the cables are skipped.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest
from django.db import connection, connections
from django.db.models.functions import Now

from deliveries_app.models import App, AppRepository, Delivery, Status
from docora.redis import inspect
from repositories_app.mirror.mirror import Mirror
from tests.faults.conftest import MAX_IN_FLIGHT, RECORD_BATCH
from tests.faults.test_kill import FILES, duplicates, wait_until_synced, watch_slow_client
from tests.support.git import Repo, has_commit
from tests.support.histories import assert_promise_kept
from tests.support.network import NETWORK_INTERFACES, Machine, Network
from tests.support.postgres import PostgresServer
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.shared import SharedFolder
from tests.support.valkey import ValkeyServer
from tests.support.world import World

pytestmark = pytest.mark.early(0)

LEASE_SECONDS = 6


@dataclass
class Place:
    """A machine with its processes and the folder of its mirrors."""

    machine: Machine
    daemons: Daemons
    mirrors: Path

    def start(self, workers: int = 1) -> None:
        self.daemons.sweep()
        for _ in range(workers):
            self.daemons.worker()

    def mirror_of(self, watch: AppRepository) -> Mirror:
        return Mirror(self.mirrors / f"{watch.repository.repository_id}.git")


@pytest.fixture
def network(postgres_server: PostgresServer, shared_folder: SharedFolder) -> Iterator[Network]:
    with shared_folder.exclusive(NETWORK_INTERFACES), Network("harbour", "hill") as network:
        yield network


@pytest.fixture
def cables(network: Network) -> None:
    """Requested by tests that pull a cable."""
    if network.why_no_cables:
        pytest.skip(network.why_no_cables)


@pytest.fixture
def world(network: Network, transactional_db: None, tmp_path: Path, settings) -> Iterator[World]:
    """A world whose git server and receiver are only reachable over the network."""
    settings.ALLOWED_GIT_HOSTS = [f"{network.address}:*"]
    settings.ALLOWED_PRIVATE_NETWORKS = [ip_network(network.range)]
    world = World(tmp_path, network.address)
    App.objects.update(max_in_flight=MAX_IN_FLIGHT)
    world.app.refresh_from_db()
    yield world
    world.close()


@pytest.fixture
def places(
    network: Network,
    world: World,
    postgres_server: PostgresServer,
    valkey_server: ValkeyServer,
    tmp_path: Path,
    settings,
) -> Iterator[tuple[Place, Place]]:
    shared = {
        "SECRET_KEY": settings.SECRET_KEY,
        "ENCRYPTION_KEYS": ",".join(settings.ENCRYPTION_KEYS),
        "ALLOWED_GIT_HOSTS": f"{network.address}:*",
        "ALLOWED_PRIVATE_NETWORKS": network.range,
        "LEASE_SECONDS": str(LEASE_SECONDS),
        "RECORD_BATCH": str(RECORD_BATCH),
        "SWEEP_INTERVAL_SECONDS": "1",
    }
    name = str(connection.settings_dict["NAME"])
    connections.close_all()  # PostgreSQL is restarted
    with (
        postgres_server.listening_at(network.address, network.range) as url_of,
        valkey_server.listening_at(network.address) as redis_url,
    ):
        made = []
        for machine in network.machines:
            folder = tmp_path / machine.name
            folder.mkdir()
            own = {"DATABASE_URL": url_of(name), "REDIS_URL": redis_url, "DATA_DIR": str(folder)}
            daemons = Daemons(folder, os.environ | shared | own | machine.variables, namespaces=machine.namespaces)
            made.append(Place(machine, daemons, folder / "repos"))
        yield made[0], made[1]
        for place in made:
            place.daemons.close()
        connections.close_all()


def host_of(watch: AppRepository) -> str:
    """Return the machine that holds the watch's lease, or held it last."""
    return AppRepository.objects.get(pk=watch.pk).lease_owner.partition(":")[0]


def wait_until_at_head(repo: Repo, watch: AppRepository, timeout: float = 60) -> None:
    AppRepository.objects.filter(pk=watch.pk).update(next_check_at=Now())
    at_head = AppRepository.objects.filter(pk=watch.pk, last_commit=repo.head, status=Status.SYNCED)
    wait_for(at_head.exists, timeout, 0.05)


def no_traceback(places: tuple[Place, ...]) -> None:
    logs = "\n".join(place.daemons.logs() for place in places)
    assert "Traceback" not in logs, logs.partition("Traceback")[2][:3000]


def test_any_machine_syncs_a_push(world: World, places: tuple[Place, Place]) -> None:
    world.answer(lambda note: time.sleep(0.02))
    files = {f"{number}.txt": b"%d" % number for number in range(60)}
    apps = [world.app, *(world.add_app(f"App {number}", max_in_flight=2) for number in range(5))]
    watches = [world.watch(files, name=f"acme/widgets-{number}", app=app) for number, app in enumerate(apps)]
    for place in places:
        place.start()
    for _, watch in watches:
        wait_until_synced(watch)
    assert {host_of(watch) for _, watch in watches} == {"harbour", "hill"}
    for repo, _ in watches:
        repo.commit({"pushed.txt": b"new", "0.txt": None})
    for repo, watch in watches:
        wait_until_at_head(repo, watch)
        assert_promise_kept(world, repo, watch)
        assert any(has_commit(place.mirror_of(watch), repo.head) for place in places)
    sent = Counter((record.app_id, record.kind, record.path) for record in world.requests())
    assert max(sent.values()) == 1
    assert len(sent) == len(watches) * (60 + 2)
    assert not AppRepository.objects.leased().exists()
    no_traceback(places)


def test_repository_moves_between_machines(world: World, places: tuple[Place, Place]) -> None:
    repo, watch = world.watch({f"{number}.txt": b"%d" % number for number in range(30)})
    here, there = places
    sent = 0
    for number, (place, has_mirror, changes) in enumerate([(here, False, 30), (there, False, 3), (here, True, 3)]):
        assert place.mirror_of(watch).directory.exists() == has_mirror
        if number:
            repo.commit({f"{number}.txt": None, "new.txt": b"%d" % number, f"more-{number}.txt": b"more"})
        base = watch.base_commit
        place.start()
        wait_until_at_head(repo, watch)
        assert_promise_kept(world, repo, watch)
        assert host_of(watch) == place.machine.name
        assert not base or not has_commit(place.mirror_of(watch), base)  # so git could not compute the difference
        sent += changes
        assert len(world.requests()) == sent
        place.daemons.close()
    no_traceback(places)


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_another_machine_finishes_after_a_crash(
    world: World, places: tuple[Place, Place], how: str, request: pytest.FixtureRequest
) -> None:
    if how == "cut off":
        request.getfixturevalue("cables")
    repo, watch = watch_slow_client(world)
    for place in places:
        place.start()
    wait_for(lambda: len(world.requests()) > 0.3 * FILES, 30)
    failed, other = sorted(places, key=lambda place: place.machine.name != host_of(watch))
    assert failed.machine.name == host_of(watch)
    failed_at = time.monotonic()
    if how == "killed":
        failed.daemons.close()
    else:
        failed.machine.cut_off()
    wait_for(lambda: host_of(watch) == other.machine.name, 30, 0.05)
    assert time.monotonic() - failed_at < LEASE_SECONDS + 5
    wait_until_synced(watch)
    assert_promise_kept(world, repo, watch)
    assert duplicates(world) <= RECORD_BATCH + MAX_IN_FLIGHT
    (run,) = world.runs(watch)
    assert (run.outcome, run.files_done, run.files_total, run.attempts) == ("succeeded", FILES, FILES, 2)
    assert not AppRepository.objects.leased().exists()
    no_traceback((other,))


@pytest.mark.usefixtures("cables")
def test_machine_rejoins_after_a_network_cut(world: World, places: tuple[Place, Place]) -> None:
    repo, watch = watch_slow_client(world)
    lost, other = places
    supervisor = lost.daemons.start("up", "--no-migrate", "--workers", "1")  # it restarts what exits
    wait_for(lambda: len(world.requests()) > 0.3 * FILES, 60)
    lost.machine.cut_off()
    other.start()
    wait_until_synced(watch)
    assert host_of(watch) == other.machine.name
    rows = list(Delivery.objects.filter(watch=watch).order_by("path").values())
    state = AppRepository.objects.filter(pk=watch.pk).values().get()
    sent = len(world.requests())
    other.daemons.close()
    lost.machine.connect()

    gadgets, later = world.watch(name="acme/gadgets")
    wait_until_synced(later)
    assert host_of(later) == lost.machine.name
    assert_promise_kept(world, gadgets, later)
    # Requests still buffered by its kernel may arrive now. The client ignores notifications older than what it has.
    late = [record for record in world.requests()[sent:] if record.repository == str(watch.repository)]
    assert len(late) <= MAX_IN_FLIGHT
    assert list(Delivery.objects.filter(watch=watch).order_by("path").values()) == rows
    checks = {"next_check_at", "last_scanned_at"}
    now = AppRepository.objects.filter(pk=watch.pk).values().get()
    assert {name for name in state if state[name] != now[name]} <= checks
    assert_promise_kept(world, repo, watch)
    supervisor.terminate()
    assert supervisor.process.wait(30) == 0


def test_slots_are_shared_between_machines(world: World, places: tuple[Place, Place]) -> None:
    world.answer(lambda note: time.sleep(0.02))
    files = {f"{number}.txt": b"%d" % number for number in range(300)}
    for place in places:
        place.start(workers=2)
    wait_for(lambda: len(inspect.read_workers()) == 4, 60, 0.1)  # otherwise the first worker would do everything
    watches = [world.watch(files, name=f"acme/widgets-{number}") for number in range(6)]
    at_once: set[frozenset[str]] = set()

    def all_synced() -> bool:
        owners = AppRepository.objects.leased().values_list("lease_owner", flat=True)
        at_once.add(frozenset(owner.partition(":")[0] for owner in owners))
        return AppRepository.objects.filter(status=Status.SYNCED).count() == len(watches)

    wait_for(all_synced, 90, 0.02)
    assert frozenset({"harbour", "hill"}) in at_once
    assert 1 < max(record.in_flight for record in world.receiver.log) <= MAX_IN_FLIGHT
    for repo, watch in watches:
        assert_promise_kept(world, repo, watch)
    assert len(world.requests()) == 6 * 300
    no_traceback(places)
