"""Hosts that answer a few bytes a second, or not at all: every wait ends, says why, and leaves no process behind."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from deliveries_app.models import App, AppRepository, Delivery, Status
from deliveries_app.sync import sender
from deliveries_app.sync.claim import claim
from deliveries_app.webhooks import client as webhooks
from docora.http.client import Request
from repositories_app import services as repositories
from repositories_app.git import packs, remote
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept
from tests.support.processes import forked, git_processes, is_alive, reap
from tests.support.receiver import wait_for
from tests.support.syncing import sync
from tests.support.trickle import head_answered, pack_sent, refs_advertised, trickling
from tests.support.world import World

FILES = {"large.bin": os.urandom(300_000), "small.txt": b"small"}
MAX_SECONDS = 30.0  # seconds; no wait of these tests may come near it
PLACES: dict[str, tuple[str, int, Callable[[Repo], bytes]]] = {
    "HEAD": ("POST", 0, head_answered),
    "the refs": ("GET", 0, refs_advertised),
    "the pack": ("POST", 1, pack_sent),
    "the pack for git": ("POST", 2, pack_sent),
}


@pytest.fixture
def done() -> Iterator[threading.Event]:
    """An event that ends the trickling servers after the test."""
    event = threading.Event()
    yield event
    event.set()


def trickle(repo: Repo, place: str, done: threading.Event) -> None:
    """Let the server send half of this answer at once, and then a few bytes a second."""
    method, number, answer_of = PLACES[place]
    answer = answer_of(repo)
    send = trickling(answer, at_once=len(answer) // 2, until=done)
    seen = iter(range(1000))
    repo.server.on_request = lambda asked, _: send if asked == method and next(seen) == number else None


def assert_times_out(world: World, watch: AppRepository, text: str) -> None:
    started = time.monotonic()
    world.sync(watch)
    assert time.monotonic() - started < MAX_SECONDS
    assert watch.last_error_cause == "timeout"
    assert text in watch.last_error
    wait_for(lambda: git_processes() == [])
    mirror = repositories.mirror_of(watch.repository).directory
    assert [path for path in mirror.rglob("*") if path.name.startswith("tmp_")] == []


def assert_syncs_once_it_answers(world: World, repo: Repo, watch: AppRepository) -> None:
    repo.server.on_request = None
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_trickled_head_request_times_out(world: World, monkeypatch: pytest.MonkeyPatch, done: threading.Event) -> None:
    monkeypatch.setattr(remote, "Request", lambda *arguments, **more: Request(*arguments, **more | {"timeout": 1.5}))
    repo, watch = world.watch(FILES)
    trickle(repo, "HEAD", done)
    assert_times_out(world, watch, "didn't finish its response within 1.5 s")
    assert_syncs_once_it_answers(world, repo, watch)


@pytest.mark.parametrize("place", ["the pack", "the refs", "the pack for git"])
def test_trickled_fetch_times_out(world: World, settings, monkeypatch, done: threading.Event, place: str) -> None:
    settings.FETCH_TIMEOUT_SECONDS = 2
    if place != "the pack":
        monkeypatch.setattr(packs, "MAX_PACK", 0)  # git fetches
    repo, watch = world.watch(FILES)
    trickle(repo, place, done)
    said = (
        "didn't finish its response within 2 s"
        if place == "the pack"
        else "The git host timed out: git took longer than 2 seconds"
    )
    assert_times_out(world, watch, said)
    assert_syncs_once_it_answers(world, repo, watch)


@pytest.mark.early(5)
def test_host_that_thinks_before_it_sends_the_pack(world: World) -> None:
    """As for a large repository on a slow server, of which nothing arrives for more than half a minute."""
    repo, watch = world.watch(FILES)
    posts = iter(range(1000))

    def think(method: str, target: str) -> None:
        if method == "POST" and next(posts) == 1:
            time.sleep(32)

    repo.server.on_request = think
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


@pytest.mark.early(5)
def test_client_that_never_answers(world: World, settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.LEASE_SECONDS = 6
    seconds = 7.5  # longer than the lease
    for module in (sender, webhooks):  # of files, and of the ping that follows
        monkeypatch.setattr(module, "Request", partial(Request, timeout=seconds))
    repo, watch = world.watch({f"{number:02}.txt": b"%d" % number for number in range(14)})
    with socket.create_server(("127.0.0.1", 0)) as mute:
        App.objects.update(max_in_flight=10, base_url=f"http://127.0.0.1:{mute.getsockname()[1]}")
        started = time.monotonic()
        child = forked(lambda: sync(watch.pk))
        wait_for(lambda: Delivery.objects.filter(watch=watch).exists())
        while is_alive(child):
            assert claim(watch.pk) is None
            time.sleep(0.1)
        assert reap(child) == 0
    assert seconds < time.monotonic() - started < MAX_SECONDS
    watch.refresh_from_db()
    assert (watch.status, watch.lease_until, watch.last_error_cause) == (Status.PENDING, None, "timeout")
    assert "endpoint is down" in watch.last_error
    App.objects.update(base_url=world.receiver.url, cooldown_until=None)
    Delivery.objects.update(hold_until=None)  # the hold of 30 s is over
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
