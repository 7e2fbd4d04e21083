"""Workers that are frozen (a sleeping laptop, a migrated machine, a debugger) and wake up after their lease has expired."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Delivery
from deliveries_app.receiver import Notification
from deliveries_app.services import resync_single
from tests.faults.test_kill import FILES, wait_until_synced, watch_slow_client
from tests.support.histories import assert_promise_kept
from tests.support.postgres import PostgresServer
from tests.support.processes import Daemons, is_alive
from tests.support.receiver import wait_for
from tests.support.world import World

pytestmark = pytest.mark.early(1)

LEASE_SECONDS = 6  # of the daemons

# A work-horse that freezes when it has written a batch but not committed it.
FREEZES_IN_A_TRANSACTION = """
import os, signal
from deliveries_app import jobs
from deliveries_app.sync.recorder import Recorder

write = Recorder._write_acknowledged

def write_and_freeze(self, now):
    some = bool(self._acknowledged)
    write(self, now)
    if some:
        os.kill(os.getpid(), signal.SIGSTOP)

Recorder._write_acknowledged = write_and_freeze
jobs.sync_watch({watch})
"""

# A work-horse that freezes when the HTTP client has requests that are not yet sent.
FREEZES_BEFORE_THE_WIRE = """
import os, signal
from deliveries_app import jobs
from docora.http.client import HttpClient

submit, submitted = HttpClient.submit, []

def submit_and_freeze(self, request):
    submit(self, request)
    submitted.append(request.method == "POST")
    if sum(submitted) == {at}:
        os.kill(os.getpid(), signal.SIGSTOP)

HttpClient.submit = submit_and_freeze
jobs.sync_watch({watch})
"""

# A work-horse that freezes after it has made sure that the watch is still its own, just before it sends its notice.
FREEZES_BEFORE_THE_NOTICE = """
import os, signal
from deliveries_app import jobs
from deliveries_app.sync import channel

post_signed = channel.post_signed

def freeze_and_post(*arguments):
    os.kill(os.getpid(), signal.SIGSTOP)
    return post_signed(*arguments)

channel.post_signed = freeze_and_post
jobs.sync_watch({watch})
"""


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_worker_frozen_past_its_lease_records_nothing(world: World, daemons: Daemons) -> None:
    """It freezes while all slots are in use. Otherwise a request may just have passed its check, and its first byte follow."""
    repo, watch = watch_slow_client(world)
    may_answer, unanswered = threading.Event(), []

    def answer(note: Notification) -> None:
        time.sleep(0.01)
        if not may_answer.is_set() and len(world.requests()) > 0.3 * FILES:
            unanswered.append(note)
            may_answer.wait(60)

    world.answer(answer)
    daemons.sweep()
    frozen = daemons.worker()
    wait_for(lambda: len(unanswered) == world.app.max_in_flight, 30)
    horse = frozen.horse()
    os.kill(horse, signal.SIGSTOP)
    wait_for(lambda: is_stopped(horse), 10)
    may_answer.set()
    daemons.worker()
    wait_until_synced(watch)
    assert_promise_kept(world, repo, watch)
    sent = len(world.requests())
    rows = list(Delivery.objects.filter(watch=watch).order_by("path").values())
    runs = [(run.outcome, run.files_done, run.files_total, run.attempts) for run in world.runs(watch)]
    os.kill(horse, signal.SIGCONT)
    wait_for(lambda: not is_alive(horse), 40)
    watch.refresh_from_db()
    assert list(Delivery.objects.filter(watch=watch).order_by("path").values()) == rows
    assert [(run.outcome, run.files_done, run.files_total, run.attempts) for run in world.runs(watch)] == runs
    assert len(world.requests()) == sent  # not even the prepared requests
    assert_promise_kept(world, repo, watch)
    assert frozen.running
    assert "Traceback" not in daemons.logs(), daemons.logs().partition("Traceback")[2][:3000]


@pytest.mark.parametrize("at", [pytest.param(1, id="no connection yet"), pytest.param(50, id="kept connection")])
def test_worker_frozen_past_its_lease_sends_nothing(at: int, world: World, daemons: Daemons) -> None:
    repo, watch = watch_slow_client(world, 100, pause=0)
    frozen = daemons.start("shell", "--no-imports", "-c", FREEZES_BEFORE_THE_WIRE.format(at=at, watch=watch.pk))
    wait_for(lambda: is_stopped(frozen.pid), 30)
    daemons.sweep()
    daemons.worker()
    wait_until_synced(watch)
    sent = len(world.requests())
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.process.wait(40) == 0, frozen.log.read_text()[-3000:]
    assert len(world.requests()) == sent
    assert_promise_kept(world, repo, watch)
    assert "Traceback" not in daemons.logs(), daemons.logs().partition("Traceback")[2][:3000]


def test_worker_frozen_past_its_lease_sends_no_old_notice(world: World, daemons: Daemons) -> None:
    """The app would take the old `sync_completed` for a statement about the newer commit."""
    world.app.send_sync_completed = True
    world.app.save()
    repo, watch = watch_slow_client(world, 5, pause=0)
    frozen = daemons.start("shell", "--no-imports", "-c", FREEZES_BEFORE_THE_NOTICE.format(watch=watch.pk))
    wait_for(lambda: is_stopped(frozen.pid), 30)
    repo.commit({"new.txt": b"new"})
    daemons.sweep()
    daemons.worker()
    wait_until_synced(watch)
    sent = [record.kind for record in world.requests()]
    assert sent[-1] == "sync_completed"
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.process.wait(40) == 0, frozen.log.read_text()[-3000:]
    assert [record.kind for record in world.requests()] == sent
    assert_promise_kept(world, repo, watch)
    assert "Traceback" not in daemons.logs(), daemons.logs().partition("Traceback")[2][:3000]


def test_frozen_transaction_blocks_no_longer_than_a_lease(
    world: World, daemons: Daemons, postgres_server: PostgresServer
) -> None:
    repo, watch = watch_slow_client(world, 100)
    frozen = daemons.start("shell", "--no-imports", "-c", FREEZES_IN_A_TRANSACTION.format(watch=watch.pk))
    wait_for(lambda: is_stopped(frozen.pid), 30)
    started = time.monotonic()
    resync_single(Actor.command(), watch)  # needs the row that the frozen worker has locked
    assert time.monotonic() - started < LEASE_SECONDS + 5
    daemons.sweep()
    daemons.worker()
    wait_until_synced(watch)
    assert_promise_kept(world, repo, watch)
    sent, state = len(world.requests()), AppRepository.objects.filter(pk=watch.pk).values().get()
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.process.wait(40) == 0, frozen.log.read_text()[-3000:]
    assert "job_without_database" in frozen.log.read_text()
    assert "Traceback" not in daemons.logs(), daemons.logs().partition("Traceback")[2][:3000]
    assert len(world.requests()) == sent
    assert AppRepository.objects.filter(pk=watch.pk).values().get() == state
    assert_promise_kept(world, repo, watch)
