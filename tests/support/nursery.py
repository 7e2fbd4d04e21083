"""Start `manage.py` processes five times as fast, by forking them from a process that has imported the libraries.

Each child imports what depends on the environment, such as Docora and its settings. It has its own arguments,
environment, working directory and standard streams, as if a shell had started it. The one difference is in `/proc`, which
shows the command line of the nursery.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

PROJECT = Path(__file__).resolve().parents[2]

LIBRARIES = (
    "asyncio", "bcrypt", "concurrent.futures", "croniter", "cryptography.fernet",
    "cryptography.hazmat.primitives.serialization.ssh", "csv", "decimal", "email.mime.multipart", "environ", "fractions",
    "http.client", "jinja2", "multiprocessing.pool", "orjson", "prometheus_client.core", "psycopg", "psycopg_pool", "pycurl",
    "pydantic.json_schema", "pydantic.networks", "pydantic.type_adapter", "re2", "redis.asyncio", "rich.console",
    "requests", "rich.progress", "rich.table", "rq.cron", "smtplib", "sqlparse", "structlog", "unittest.mock", "urllib.request",
    "xml.dom.minidom", "zipfile",
    "django.contrib.admin", "django.contrib.admin.templatetags.admin_list", "django.contrib.admin.views.main",
    "django.core.mail", "django.core.management.commands.migrate", "django.core.servers.basehttp",
    "django.db.backends.postgresql.base", "django.db.backends.sqlite3.base", "django.db.models", "django.forms",
    "django.template.defaulttags", "django.template.loader_tags", "django.test", "django.utils.log", "django.views.debug",
    "django.views.csrf", "django.views.defaults", "django.views.generic", "django_htmx.middleware", "django_stubs_ext", "whitenoise.middleware",
)  # fmt: skip
"""Modules that take most of the start-up time and need no settings to be imported."""


def read_by_python(variable: str) -> bool:
    """Return whether Python may read this environment variable when it starts."""
    return variable.startswith(("PYTHON", "LANG", "LC_"))


class Child:
    """A process forked by the nursery. Use it like `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str], reply: socket.socket) -> None:
        self.args = list(arguments)
        self.returncode: int | None = None
        self._reply = reply
        self._lock = threading.Lock()
        self.pid = int(reply.recv(32))

    def poll(self) -> int | None:
        return self._receive(0)

    def wait(self, timeout: float | None = None) -> int:
        if (status := self._receive(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _receive(self, timeout: float | None) -> int | None:
        with self._lock:
            if self.returncode is None:
                self._reply.settimeout(timeout)
                with contextlib.suppress(TimeoutError, BlockingIOError):
                    self.returncode = int(self._reply.recv(32) or -signal.SIGKILL)  # empty: the nursery is dead
                    self._reply.close()
            return self.returncode


class Nursery:
    """Starts children. Its own process starts with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def can_start(self, environment: Mapping[str, str]) -> bool:
        """Return whether a child can have this environment. Its Python has already started with the current variables."""
        return all(
            environment.get(name) == os.environ.get(name)
            for name in filter(read_by_python, {*environment, *os.environ})
        )

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdin: BinaryIO,
        stdout: BinaryIO,
        stderr: BinaryIO,
        script: Path = PROJECT / "manage.py",
        namespaces: Sequence[int] = (),
    ) -> Child:
        """Start the script in its own session and in these Linux namespaces. It ends with this process."""
        assert self.can_start(environment), "Python itself reads some of these variables: start it with subprocess."
        request = {
            "arguments": [str(script), *arguments],
            "environment": dict(environment),
            "folder": str(Path.cwd()),
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            files = [stdin.fileno(), stdout.fileno(), stderr.fileno(), theirs.fileno(), *namespaces]
            socket.send_fds(self._open(), [json.dumps(request).encode()], files)
        return Child(request["arguments"], ours)

    def close(self) -> None:
        if self._process is not None and self._control is not None:
            self._control.close()
            self._process.wait(10)
            self._process = self._control = None

    def _open(self) -> socket.socket:
        with self._lock:
            if self._control is None:
                self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())],
                        cwd=PROJECT,
                        stdin=subprocess.DEVNULL,
                        pass_fds=[theirs.fileno()],
                        start_new_session=True,
                    )
            return self._control


nursery = Nursery()
"""The nursery of this process."""


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork a child for each request. Return the request in the child, and None in the nursery at the end.

    Sockets and selectors close on return. The child must close the bare descriptors listed in `inherited`.
    """
    replies: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data is not None:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(key.data, 0)
                    with replies.pop(key.data) as reply, contextlib.suppress(BrokenPipeError):
                        reply.send(b"%d" % os.waitstatus_to_exitcode(status))
                    continue
                message, files, _, _ = socket.recv_fds(control, 1 << 20, 8)
                if not message:
                    return None
                if not (child := os.fork()):
                    watched = [key.fd for key in selector.get_map().values() if key.data is not None]
                    return json.loads(message) | {"files": files, "inherited": watched}
                replies[child] = socket.socket(fileno=files[3])
                replies[child].send(b"%d" % child)
                for file in files[:3] + files[4:]:
                    os.close(file)
                selector.register(os.pidfd_open(child), selectors.EVENT_READ, child)


def _become(request: dict[str, Any], nursery_pid: int) -> None:
    """Turn this fork into the requested process: streams, namespaces, environment, folder and arguments."""
    from docora.process import die_with

    os.setsid()
    die_with(nursery_pid, signal.SIGKILL)
    stdin, stdout, stderr, _, *namespaces = request["files"]
    for number, file in enumerate((stdin, stdout, stderr)):
        os.dup2(file, number)
    for namespace in namespaces:
        os.setns(namespace)
    for file in request["files"] + request["inherited"]:
        os.close(file)
    coerced = {
        name: value for name, value in os.environ.items() if name == "LC_CTYPE"
    }  # Python sets it without a locale
    os.environ.clear()
    os.environ.update(coerced | request["environment"])
    time.tzset()
    os.chdir(request["folder"])
    sys.argv = request["arguments"]
    sys.path[0] = str(PROJECT)


if __name__ == "__main__":
    import gc
    import importlib

    from docora.process import die_with

    die_with(int(sys.argv[2]), signal.SIGKILL)
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()  # children then copy less of what they share
    pid = os.getpid()
    if request := _serve(socket.socket(fileno=int(sys.argv[1]))):
        _become(request, pid)
        import runpy

        runpy.run_path(sys.argv[0], run_name="__main__")
