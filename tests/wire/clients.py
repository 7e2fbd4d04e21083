"""Clients that run the samples of the documentation."""

import base64
import functools
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import playwright

from docora.process import die_with_parent
from tests.support.receiver import wait_for

SAMPLES = Path(__file__).resolve().parents[2] / "static" / "docs" / "samples"


def load(name: str) -> ModuleType:
    """Import a Python sample as a module."""
    spec = importlib.util.spec_from_file_location(f"sample_{name}", SAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def node_command() -> str:
    """Return the path of a Node.js: the one on PATH, or else the one that Playwright ships for its own driver."""
    return shutil.which("node") or str(Path(playwright.__file__).with_name("driver") / "node")


@dataclass(frozen=True)
class Verdict:
    """What Node.js made of a request. `file` has the sha and size of the decoded content, if any."""

    stringified: bytes
    by_parsed_body: bool
    by_raw_body: bool
    file: dict[str, Any] | None


class Node:
    """One Node.js process that checks requests one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [node_command(), str(Path(__file__).with_name("verify_lines.mjs"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=functools.partial(die_with_parent, signal.SIGKILL),
        )

    def check(self, headers: Mapping[str, str], body: bytes, key: str) -> Verdict:
        lower_case_headers = {name.lower(): value for name, value in headers.items()}
        answer = self._ask({"headers": lower_case_headers, "body": base64.b64encode(body).decode(), "key": key})
        return Verdict(**answer | {"stringified": base64.b64decode(answer["stringified"])})

    def are_safe(self, names: list[str], windows: bool) -> list[bool]:
        """Return for each path whether the sample receiver takes it, on Windows or elsewhere."""
        answer: list[bool] = self._ask({"names": names, "windows": windows})
        return answer

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        with self._process:
            assert self._process.stdin
            self._process.stdin.close()


class SampleServer:
    """A running sample: `url` is where it listens, `output` what it has printed so far."""

    def __init__(self, name: str, key: str, log: Path, *, port: int = 0, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", port)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        program = node_command() if name.endswith(".mjs") else sys.executable
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [program, str(SAMPLES / name)],
                env=os.environ | {"DOCORA_KEY": key, "PORT": str(self.port)} | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=functools.partial(die_with_parent, signal.SIGKILL),
            )
        wait_for(self._listens)

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.output
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
