"""Start `manage.py` processes, forks and threads on the test's database, and kill them."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from django.db import connections

from docora.process import die_with_parent, die_with_parent_pid
from tests.support.nursery import Child, nursery
from tests.support.receiver import wait_for
from tests.support.syncing import sync
from tests.support.time_limit import kill_after_test

PROJECT = Path(__file__).resolve().parents[2]


class Daemon:
    """A `manage.py` process in its own session. It never outlives the tests.

    `enter` runs in the new process before `manage.py` starts. `through` is a command that starts it.
    """

    def __init__(
        self,
        log: Path,
        environment: Mapping[str, str],
        *arguments: str,
        enter: Callable[[], None] | None = None,
        namespaces: Sequence[int] = (),
        through: Sequence[str] = (),
        project: Path = PROJECT,
    ) -> None:
        self.log = log
        self.process: subprocess.Popen[bytes] | Child
        with log.open("ab") as output, open(os.devnull, "rb") as nothing:
            if enter is None and not through and project == PROJECT and nursery.can_start(environment):
                self.process = nursery.start(
                    arguments, environment, stdin=nothing, stdout=output, stderr=output, namespaces=namespaces
                )
                return

            def prepare() -> None:
                die_with_parent(signal.SIGKILL)
                for namespace in namespaces:
                    os.setns(namespace)
                if enter is not None:
                    enter()

            self.process = subprocess.Popen(
                [*through, sys.executable, str(project / "manage.py"), *arguments],
                env=dict(environment),
                stdin=nothing,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=prepare,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill it (-9), as the out-of-memory killer does."""
        self.process.kill()
        self.process.wait(10)

    def terminate(self) -> None:
        """Send SIGTERM, as a service manager does, without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        if self.running:
            self.kill()

    def horse(self) -> int:
        """Wait for a work-horse and return its pid."""
        return wait_for(lambda: next(children(self.pid), 0), timeout=20)


class Daemons:
    """Starts daemons. `close` kills all of them."""

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        *,
        enter: Callable[[], None] | None = None,
        namespaces: Sequence[int] = (),
        project: Path = PROJECT,
    ) -> None:
        self._directory = directory
        self._enter = enter
        self._namespaces = namespaces
        self._project = project
        self.environment = dict(environment)
        self._started: list[Daemon] = []

    def start(self, *arguments: str, through: Sequence[str] = ()) -> Daemon:
        log = self._directory / f"daemon-{len(self._started)}.log"
        daemon = Daemon(
            log,
            self.environment,
            *arguments,
            enter=self._enter,
            namespaces=self._namespaces,
            through=through,
            project=self._project,
        )
        self._started.append(daemon)
        return daemon

    def worker(self, *queues: str) -> Daemon:
        return self.start("rqworker", *(queues or ("high", "default", "low")))

    def sweep(self) -> Daemon:
        return self.start("sweep")

    def logs(self) -> str:
        return "\n".join(daemon.log.read_text() for daemon in self._started)

    def close(self) -> None:
        for daemon in self._started:
            daemon.end()


def children(pid: int) -> Iterator[int]:
    """Yield the running child processes of `pid`. The kernel lists them for each thread that has started some."""
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = listed.read_text().split()
        except OSError:  # the thread has ended
            continue
        yield from filter(is_alive, map(int, pids))


def offspring(pid: int) -> list[int]:
    """Return the running child processes of `pid`, their children, and so on."""
    found = list(children(pid))
    return [*found, *(deeper for each in found for deeper in offspring(each))]


def git_processes() -> list[int]:
    """Return this process's running children that are git."""
    found: list[int] = []
    for pid in children(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended since
            if b"git" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def forked(work: Callable[[], object]) -> int:
    """Fork a child that does the work and exits, and return its pid. Each side opens its own database connections.

    The child ends no later than the test and the thread that forks it.
    """
    parent = os.getpid()
    connections.close_all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the receiver's threads are not needed in the child
        child = os.fork()
    if child == 0:
        status = 1
        try:
            die_with_parent_pid(parent)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    kill_after_test(child)
    return child


def reap(child: int, timeout: float = 20) -> int:
    """Wait for a child and return its wait status."""
    return wait_for(lambda: _ended(child), timeout)[0]


def _ended(child: int) -> tuple[int] | None:
    pid, status = os.waitpid(child, os.WNOHANG)
    return (status,) if pid else None


def in_threads(*functions: Callable[[], object]) -> list[object]:
    """Run the functions at the same time, each in a thread with its own database connection. Return their results."""
    results: list[object] = [None] * len(functions)
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(functions))

    def run(index: int) -> None:
        try:
            barrier.wait(10)
            results[index] = functions[index]()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return results


def syncing(watch_pk: int) -> threading.Thread:
    """Start an attempt in a thread and return the thread. The caller joins it."""

    def run() -> None:
        try:
            sync(watch_pk)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread
