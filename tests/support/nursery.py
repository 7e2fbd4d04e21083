"""Start `manage.py` processes five times as fast, by forking them from a process that has imported the libraries.

What depends on the environment, such as Docora and its settings, is imported once for each environment, by a prepared
process: a fork of the nursery that forks the children of its environment. Without one, each child imports it itself. A child
has its own arguments, environment, working directory and standard streams, as if a shell had started it. The one difference
is in `/proc`, which shows the command line of the nursery.
"""

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
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


def _can_be_prepared(environment: Mapping[str, str]) -> bool:
    """Return whether the settings depend only on these variables and on the suite's own data directory."""
    return "FILE_TRANSFORMS" not in environment and all(
        environment.get(name) == os.environ.get(name) for name in ("DATA_DIR", "DOCORA_ENV_FILE", "DOCORA_SETTINGS")
    )


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
        folder: Path | None = None,
        namespaces: Sequence[int] = (),
    ) -> Child:
        """Start the script in its own session and in these Linux namespaces. It ends with this process."""
        assert self.can_start(environment), "Python itself reads some of these variables: start it with subprocess."
        request = {
            "arguments": [str(script), *arguments],
            "environment": dict(environment),
            "folder": str(folder or Path.cwd()),
            "can_be_prepared": script == PROJECT / "manage.py" and _can_be_prepared(environment),
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


MAX_PREPARED = 2
"""How many environments have a prepared process: the ones used last."""


class _Server:
    """Forks a child for each request that arrives at `control`.

    The nursery and each prepared process are such servers. Only the nursery starts prepared processes.
    """

    def __init__(self, control: socket.socket, *, is_prepared: bool = False) -> None:
        self._control, self._is_prepared = control, is_prepared
        self._selector = selectors.DefaultSelector()
        self._replies: dict[int, socket.socket | None] = {}  # by the pid of the child; None: it is a prepared process
        self._prepared: dict[str, socket.socket | None] = {}  # by environment; None: Docora can't be set up there

    def serve(self) -> dict[str, Any] | None:
        """Return the request in a child or in a prepared process, and None at the end.

        A prepared process ends after its last child, which would end with it.
        """
        with self._selector:
            self._selector.register(self._control, selectors.EVENT_READ)
            while self._selector.get_map():
                for key, _ in self._selector.select():
                    if key.data is not None:
                        self._reap(key.fd, key.data)
                    elif (request := self._receive()) is not None:
                        self._forget()
                        return request
        return None

    def _receive(self) -> dict[str, Any] | None:
        """Handle a request. Return it in the new process."""
        message, files, _, _ = socket.recv_fds(self._control, 1 << 20, 8)
        if not message:
            self._selector.unregister(self._control)
            if not self._is_prepared:
                for child in self._replies:
                    os.kill(child, signal.SIGKILL)
            return None
        request = json.loads(message)
        if not self._is_prepared and len(files) == 4 and request["can_be_prepared"]:
            prepared = self._prepared_for(request)
            if isinstance(prepared, dict):
                return prepared | {"files": files}
            if prepared is not None:
                socket.send_fds(prepared, [message], files)
                for file in files:
                    os.close(file)
                return None
        if not (child := os.fork()):
            return request | {"files": files}
        reply = socket.socket(fileno=files[3])
        self._watch(child, reply)
        reply.send(b"%d" % child)
        for file in files[:3] + files[4:]:
            os.close(file)
        return None

    def _prepared_for(self, request: dict[str, Any]) -> socket.socket | dict[str, Any] | None:
        """Return the socket of the prepared process for the request's environment, or None if there can be none.

        Starts it if necessary. In the new process, return the request.
        """
        key = json.dumps([request["folder"], *sorted(request["environment"].items())])
        if key in self._prepared:
            self._prepared[key] = self._prepared.pop(key)  # the last one used
            return self._prepared[key]
        while len(self._prepared) >= MAX_PREPARED:
            if oldest := self._prepared.pop(next(iter(self._prepared))):
                oldest.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not (child := os.fork()):
            ours.close()
            return request | {"control": theirs}
        theirs.close()
        self._watch(child, None)
        is_ready = ours.recv(1) == b"y"
        self._prepared[key] = ours if is_ready else None
        return self._prepared[key]

    def _watch(self, child: int, reply: socket.socket | None) -> None:
        self._replies[child] = reply
        self._selector.register(os.pidfd_open(child), selectors.EVENT_READ, child)

    def _reap(self, file: int, child: int) -> None:
        self._selector.unregister(file)
        os.close(file)
        _, status = os.waitpid(child, 0)
        if reply := self._replies.pop(child):
            with reply, contextlib.suppress(BrokenPipeError):
                reply.send(b"%d" % os.waitstatus_to_exitcode(status))

    def _forget(self) -> None:
        """Close, in a child, what it has inherited."""
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                os.close(key.fd)
        for each in filter(None, (self._control, *self._replies.values(), *self._prepared.values())):
            each.close()


def _enter(request: dict[str, Any]) -> None:
    """Take the environment, folder and arguments of the request."""
    coerced = {
        name: value for name, value in os.environ.items() if name == "LC_CTYPE"
    }  # Python sets it without a locale
    os.environ.clear()
    os.environ.update(coerced | request["environment"])
    time.tzset()
    os.chdir(request["folder"])
    sys.argv = request["arguments"]
    sys.path[0] = str(PROJECT)


def _become(request: dict[str, Any], parent: int) -> None:
    """Turn this fork into the requested process: session, streams, namespaces, environment, folder and arguments."""
    from docora.process import die_with_parent_pid

    os.setsid()
    die_with_parent_pid(parent)
    stdin, stdout, stderr, _, *namespaces = request["files"]
    for number, file in enumerate((stdin, stdout, stderr)):
        os.dup2(file, number)
    # The inherited objects remember what the streams were in the nursery, such as files that can seek.
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    for namespace in namespaces:
        os.setns(namespace)
    for file in request["files"]:
        os.close(file)
    _enter(request)


def _set_up_docora() -> None:
    """Do what the start of every command does. Raise an error if Docora prints something meanwhile."""
    import django
    from django.core.checks import run_checks
    from django.core.management import get_commands, load_command_class

    from docora.cli.main import skip_url_checks
    from docora.conf.installation import choose_settings

    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        choose_settings()
        django.setup()
        for name in ("rqworker", "sweep"):
            load_command_class(get_commands()[name], name)
        skip_url_checks()
        run_checks()
        sys.stdout.flush()
        sys.stderr.flush()
        if said.tell():
            raise RuntimeError("A child has to say this.")


def _serve_prepared(request: dict[str, Any], parent: int) -> dict[str, Any] | None:
    """Set Docora up, and fork the children of this environment. Return the request in a child."""
    from docora.process import die_with_parent_pid

    die_with_parent_pid(parent)
    for file in request["files"]:
        os.close(file)
    control: socket.socket = request["control"]
    try:
        _enter(request)
        _set_up_docora()
    except BaseException:
        return None
    gc.freeze()
    control.send(b"y")
    return _Server(control, is_prepared=True).serve()


if __name__ == "__main__":
    import importlib

    from docora.process import die_with_parent_pid

    gc.disable()  # nothing that is imported is thrown away
    die_with_parent_pid(int(sys.argv[2]))
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # children then copy less of what they share
    pid = os.getpid()
    request = _Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    if request and "control" in request:
        parent, pid = pid, os.getpid()
        request = _serve_prepared(request, parent)
    if request:
        _become(request, pid)
        import runpy

        gc.enable()
        runpy.run_path(sys.argv[0], run_name="__main__")
