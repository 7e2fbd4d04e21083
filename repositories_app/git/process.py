"""Run git with an isolated configuration, bounds on time, size and memory, no prompts, and readable errors.

A token is passed in the child's environment (`http.<host>.extraHeader` through `GIT_CONFIG_*`), never in arguments, URLs or
files. Arguments are lists and options end with `--`, so no foreign text is read as an option. A command that uses the
network takes a `Remote`: Docora resolves its host first, and git connects only to the resolved addresses, or to the egress
proxy (`docora.http.egress`).
"""

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from django.conf import settings

from docora.http.addresses import is_address
from docora.http.egress import blocked_behind_proxy, is_direct
from docora.http.resolver import curl_entry, resolve
from docora.process import kill_group, limit_child, with_limits, with_parent_death_signal
from repositories_app.git import errors as git_errors
from repositories_app.git.exceptions import Cause, GitError

Tick = Callable[[], None]
"""Called about every second while git works: extends a lease, or raises to stop the work."""

LOCAL_TIMEOUT = 120.0  # seconds for a command that reads the mirror only
MAX_OUTPUT = 16 << 20  # bytes that `run` accepts; longer output has to be streamed
MAX_MEMORY = 4 << 30  # bytes for each process
MAX_CPU_SECONDS = 600  # for each `cat-file`; a pack can be made in which each object takes longer than the last
_MAX_OBJECT = "1g"  # memory for one object; a small delta can expand to any size
_MAX_LISTING = "32m"  # memory for a list of refs, which the sweep asks for
_MAX_STDERR = 4 << 20  # bytes; a host can make git print anything
_LOOKUP_SECONDS = 10.0
_MAX_PINNED = 16  # addresses
_TICK_SECONDS = 1.0
# A network command consists of several processes. When git is killed, its helpers keep running: they wait for the host,
# however long that takes, and hold our locks. This shell leads their process group. It kills the group when this
# process dies (the kernel then sends SIGTERM to the shell), and ends the rest of the group when git ends.
_LEADER = (
    "sh", "-c",
    'trap "" XFSZ; trap "kill -KILL 0" TERM; "$@" & wait "$!" 2>/dev/null; ended=$?; trap "" TERM; kill -TERM 0; exit "$ended"', "sh",
)  # fmt: skip
_NOWHERE = "["
"""A proxy that libcurl refuses without a connection. A host may name packs at any URLs, and git would get them from there."""
_ALWAYS = {
    "core.bigFileThreshold": "32m",  # larger contents are streamed and not held in memory
    "core.fsmonitor": "false",
    "core.fsync": "none",  # a mirror that a power failure has damaged is rebuilt
    "core.hooksPath": "/dev/null",
    "credential.helper": "",
    "fetch.recurseSubmodules": "false",
    "fetch.unpackLimit": "1",  # keep even small packs: packs are repacked, loose objects would pile up
    "gc.auto": "0",
    "http.followRedirects": "false",  # also keeps a host without smart HTTP from naming alternates elsewhere
    "http.proxy": _NOWHERE,
    "maintenance.auto": "false",
    "pack.writeReverseIndex": "false",  # only needed to serve fetches
    "protocol.allow": "never",
    "protocol.version": "2",
    "safe.directory": "*",
    "submodule.recurse": "false",
    "transfer.bundleURI": "false",
    "transfer.credentialsInUrl": "die",
}


@dataclass(frozen=True, slots=True)
class Remote:
    """The repository that a network command reads: a URL that `parse_url` accepts, and a token or none."""

    url: str
    token: str = field(default="", repr=False)


def environment(remote: Remote | None = None) -> dict[str, str]:
    """Return the whole environment of a git process. It ignores the user's and the machine's git configuration.

    Raises `GitError` if the remote's host may not be called.
    """
    protocols = ("https", "http") if settings.ALLOW_HTTP else ("https",)
    config = _ALWAYS | {f"protocol.{name}.allow": "always" for name in protocols}
    if remote:
        config |= _config_for(remote)
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_ALLOW_PROTOCOL": ":".join(protocols),
        "GIT_ALLOC_LIMIT": _MAX_OBJECT,
        "GIT_CONFIG_COUNT": str(len(config)),
    }
    for index, (key, value) in enumerate(config.items()):
        env[f"GIT_CONFIG_KEY_{index}"], env[f"GIT_CONFIG_VALUE_{index}"] = key, value
    return env


def _config_for(remote: Remote) -> dict[str, str]:
    """Return the configuration that pins the resolved addresses and sends the token to this host only."""
    parts = urlsplit(remote.url)
    host = parts.hostname or ""
    resolved = resolve(host, settings.ALLOWED_PRIVATE_NETWORKS, _LOOKUP_SECONDS)
    uses_proxy = bool(settings.EGRESS_PROXY) and not is_direct(resolved, settings.ALLOWED_PRIVATE_NETWORKS)
    if uses_proxy:
        blocked = blocked_behind_proxy(host, resolved)
    else:
        blocked = (resolved.cause, resolved.message) if resolved.cause is not None else None
    if blocked is not None:
        raise git_errors.unreachable(*blocked, token=remote.token)
    # Set for the remote, not for its host: packs from other URLs of the host would evade `MAX_FETCH_BYTES`.
    config = {f"remote.{remote.url}.proxy": settings.EGRESS_PROXY if uses_proxy else ""}
    if not uses_proxy and not is_address(host):
        config["http.curloptResolve"] = curl_entry(remote.url, resolved.addresses[:_MAX_PINNED])
    if remote.token:
        name = f"http.{parts.scheme}://{parts.netloc}/.extraHeader"
        config[name] = git_errors.basic_authorization(remote.url, remote.token)
    return config


def start(
    args: Sequence[str],
    *,
    directory: Path | None = None,
    remote: Remote | None = None,
    fds: Sequence[int] = (),
    stdin: int | None = None,
    short: bool = False,
) -> subprocess.Popen[bytes]:
    """Start git with a pipe for its output, in its own process group. git ends with this process and holds `fds` open.

    stderr goes to a temporary file, so that much output never blocks the process; `stop` reads and closes it.

    - `stdin`: a descriptor.
    - `short`: a local command that ends soon even if this process dies, because it has little to do or its output pipe
      breaks.
    """
    env = environment(remote)
    if args[0] == "ls-remote":
        env["GIT_ALLOC_LIMIT"] = _MAX_LISTING
    limits = {"fsize": settings.MAX_FETCH_BYTES, "data": MAX_MEMORY} if remote else {}
    # A host may send any number of messages. git's own are few, and a file in memory costs less.
    errors: Any = tempfile.TemporaryFile() if remote else os.fdopen(os.memfd_create("stderr"), "w+b")  # noqa: SIM115
    git_dir = ["--git-dir", str(directory)] if directory else []
    command = [*(_LEADER if remote else ()), "git", *git_dir, *args]
    if not short:
        command = with_parent_death_signal(command, signal.SIGTERM if remote else signal.SIGKILL)
    process = subprocess.Popen(
        with_limits(command, limits),
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=env,
        cwd="/",
        pass_fds=tuple(fds),
        start_new_session=True,
    )
    process.errors = errors  # type: ignore[attr-defined]
    if not remote:  # no helper that could start before it is limited
        limit_child(process.pid, MAX_MEMORY, MAX_CPU_SECONDS if args[0] == "cat-file" else None)
    return process


def stop(process: subprocess.Popen[bytes]) -> bytes:
    """End the process and everything that it started. Return the last whole lines of its stderr, at most 8 KiB."""
    kill_group(process)
    process.wait()
    for pipe in filter(None, (process.stdin, process.stdout)):
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
    errors: IO[bytes] = process.errors  # type: ignore[attr-defined]
    with errors:
        size = errors.seek(0, os.SEEK_END)
        errors.seek(max(0, size - 8192))
        text = errors.read()
    return text if size <= 8192 else text.partition(b"\n")[2]  # half a line may hold half a token


def run(
    args: Sequence[str],
    *,
    directory: Path | None = None,
    remote: Remote | None = None,
    fds: Sequence[int] = (),
    timeout: float = LOCAL_TIMEOUT,
    tick: Tick | None = None,
    short: bool = False,
    stdin: int | None = None,
) -> bytes:
    """Return the stdout of a git command that prints little. The other parameters are those of `start`.

    Raises `GitError` if the command fails or takes more than `timeout` seconds.
    """
    process = start(args, directory=directory, remote=remote, fds=fds, short=short, stdin=stdin)
    try:
        output = _output_of(process, time.monotonic() + timeout, tick)
    except subprocess.TimeoutExpired:
        message = f"git took longer than {timeout:.0f} seconds"
        raise git_errors.explain(Cause.TIMEOUT, message) from None
    finally:
        errors = stop(process)
    if process.returncode != 0:
        token = remote.token if remote else ""
        raise git_errors.classify(errors, token=token, ended=process.returncode, local=remote is None)
    return output


def _output_of(process: subprocess.Popen[bytes], deadline: float, tick: Tick | None) -> bytes:
    """Return all of stdout after the process has ended. Raises `TimeoutExpired` at the deadline."""
    assert process.stdout
    output = bytearray()
    next_tick = time.monotonic() + _TICK_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(max(0.0, min(next_tick, deadline) - time.monotonic())):
                block = os.read(process.stdout.fileno(), 65536)
                if not block:
                    break
                output += block
            now = time.monotonic()
            if now >= deadline:
                raise subprocess.TimeoutExpired("git", 0)
            if now >= next_tick:
                next_tick = now + _TICK_SECONDS
                if os.fstat(process.errors.fileno()).st_size > _MAX_STDERR:  # type: ignore[attr-defined]
                    raise GitError(Cause.OTHER, "The git host sends too many messages.", for_every_watcher=True)
                if tick:
                    tick()
            if len(output) > MAX_OUTPUT:
                raise git_errors.explain(Cause.TOO_LARGE, "its listing exceeds the limit")
    process.wait(max(1.0, deadline - time.monotonic()))
    return bytes(output)
