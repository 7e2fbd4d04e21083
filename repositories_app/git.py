"""Running git: isolated configuration, bounded time, no prompts, errors in words.

A token travels in the child's environment (`http.extraHeader` through `GIT_CONFIG_*`), never in arguments, URLs or
files. Arguments are lists and options end with `--`, so nothing that a stranger wrote is read as an option.
"""

import base64
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from django.conf import settings

from docora.process import die_with_parent
from docora.text import clean_text
from repositories_app.exceptions import Cause, GitError

Tick = Callable[[], None]
"""Called about every second while git works: extends a lease, or raises to stop the work."""

LOCAL_TIMEOUT = 120.0  # seconds for a command that reads the mirror only
_TICK_SECONDS = 1.0
_PATTERNS: list[tuple[Cause, str]] = [
    (Cause.AUTH, r"authentication failed|could not read (username|password)|error: (401|403)|terminal prompts disabled"),
    (Cause.NOT_FOUND, r"repository .*not found|error: 404|couldn't find remote ref|does not appear to be a git repo"),
    (Cause.TIMEOUT, r"timed out|operation too slow|timeout"),
    (Cause.CORRUPT, r"loose object|bad object|corrupt|unable to read (tree|sha1)|missing blob|did not match any|bad tree"
     r"|not a git repository|not a tree object|not a valid object|invalid object|could not parse|unable to parse|packfile"
     r"|index file \S+ is |differ in contents"),
    (Cause.TOO_LARGE, r"no space left|exceeds maximum|too large"),
    (Cause.NETWORK, r"could not resolve|couldn't connect|connection (refused|reset)|failed to connect|unable to access"
     r"|remote end hung up|early eof|ssl|rpc failed|empty reply|recv failure|send failure"),
]  # fmt: skip


def basic_authorization(token: str) -> str:
    """The header that GitHub and its kind take for a token: HTTP Basic with any user name."""
    return "Authorization: Basic " + base64.b64encode(f"x-access-token:{token}".encode()).decode("ascii")


def environment(token: str = "") -> dict[str, str]:
    """The whole environment of a git child; nothing of the user's or the machine's git configuration counts."""
    config = {
        "core.hooksPath": "/dev/null",
        "core.fsmonitor": "false",
        "credential.helper": "",
        "fetch.unpackLimit": "1",  # packs are counted and repacked, loose objects would pile up
        "gc.auto": "0",
        "http.followRedirects": "false",
        "maintenance.auto": "false",
        "protocol.version": "2",
        "safe.directory": "*",
        "transfer.credentialsInUrl": "die",
    }
    if token:
        config["http.extraHeader"] = basic_authorization(token)
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_ALLOW_PROTOCOL": "https:http" if settings.ALLOW_HTTP else "https",
        "GIT_HTTP_LOW_SPEED_LIMIT": "1000",  # bytes per second …
        "GIT_HTTP_LOW_SPEED_TIME": "30",  # … for so many seconds end a transfer
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_CONFIG_COUNT": str(len(config)),
    }
    for index, (key, value) in enumerate(config.items()):
        env[f"GIT_CONFIG_KEY_{index}"], env[f"GIT_CONFIG_VALUE_{index}"] = key, value
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO"):
        if name in os.environ:
            env[name] = os.environ[name]
    return env


def classify(stderr: bytes, *, with_token: bool) -> GitError:
    """What git's stderr means. Words of the remote are shown, shortened; a token never stands in them."""
    text = re.sub(r"(https?://)[^/@\s]*@", r"\1", clean_text(stderr, 2000))
    lines = [line for line in text.splitlines() if line.startswith(("fatal:", "error:", "remote:"))] or [text]
    message = clean_text(re.sub(r"^(fatal|error): ", "", lines[-1]) or "git gave no reason", 300)
    if "redirect" in text.lower():
        return GitError(
            Cause.NOT_FOUND,
            "The host redirects to another address: the repository was renamed or moved. Watch its new address.",
            permanent=True,
            for_every_watcher=True,
        )
    cause = next((cause for cause, pattern in _PATTERNS if re.search(pattern, text, re.IGNORECASE)), Cause.OTHER)
    return explain(cause, message, with_token=with_token)


def explain(cause: Cause, detail: str, *, with_token: bool) -> GitError:
    """One `GitError` per cause, in words that say what to do."""
    if cause in {Cause.AUTH, Cause.NOT_FOUND}:
        if with_token:
            words = "The token was refused" if cause is Cause.AUTH else "The repository was not found with this token"
            return GitError(cause, f"{words}: give a token that may read the repository.", permanent=True)
        return GitError(
            Cause.NOT_FOUND,
            "The repository does not exist, or it is private and needs a token.",
            permanent=True,
            for_every_watcher=False,
        )
    if cause is Cause.CORRUPT:
        return GitError(cause, f"The mirror is damaged and is made anew: {detail}")
    return GitError(
        cause, f"git could not read the repository: {detail}", for_every_watcher=cause is not Cause.TOO_LARGE
    )


def start(
    args: Sequence[str],
    *,
    directory: Path | None = None,
    token: str = "",
    fds: Sequence[int] = (),
    stdin: int | None = None,
) -> subprocess.Popen[bytes]:
    """A git child with pipes for output, in its own process group, that dies with this process and holds `fds`.

    stderr goes to a temporary file, so that a talkative child never blocks; `stderr_of` reads it.
    """
    errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process, see `stderr_of`
    where = ["--git-dir", str(directory)] if directory else []
    process = subprocess.Popen(
        ["git", *where, *args],
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment(token),
        cwd="/",
        pass_fds=tuple(fds),
        start_new_session=True,
        preexec_fn=die_with_parent,  # the workers that fork here have one thread
    )
    process.errors = errors  # type: ignore[attr-defined]
    return process


def stderr_of(process: subprocess.Popen[bytes]) -> bytes:
    """The last 8 KiB of what the child said on stderr; closes the file."""
    errors = process.errors  # type: ignore[attr-defined]
    with errors:
        size = errors.seek(0, os.SEEK_END)
        errors.seek(max(0, size - 8192))
        return bytes(errors.read())


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the child and everything it started."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            try:
                pipe.close()
            except BrokenPipeError:
                continue


def run(
    args: Sequence[str],
    *,
    directory: Path | None = None,
    token: str = "",
    fds: Sequence[int] = (),
    timeout: float = LOCAL_TIMEOUT,
    tick: Tick | None = None,
) -> bytes:
    """stdout of a git command that says little; `GitError` when it fails or outlasts `timeout` seconds."""
    process = start(args, directory=directory, token=token, fds=fds)
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=_TICK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    raise GitError(
                        Cause.TIMEOUT, f"git was not ready after {timeout:.0f} seconds.", for_every_watcher=True
                    ) from None
                if tick:
                    tick()
    finally:
        stop(process)
        errors = stderr_of(process)
    if process.returncode != 0:
        raise classify(errors, with_token=bool(token))
    return output
