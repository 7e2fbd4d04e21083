"""Simulate several machines with network namespaces, each with its own host name and its own cable.

Over its cable a machine reaches what this process listens on at `Network.address`, and nothing else. The kernel removes a
namespace with its last process, so nothing is left behind, however the tests end.

If namespaces cannot be created here, the machines only have different names, and there is no cable to cut.
"""

import contextlib
import functools
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Self

from docora.process import die_with_parent

NETWORK_INTERFACES = "network-interfaces"
"""The `SharedFolder` lock on the interfaces of this machine. When one changes, Chromium fails all requests under way."""


class NoNamespaces(Exception):
    """This process may not create networks. The message says why."""


class Machine:
    """A machine called `name`. Processes with these `variables` and in these `namespaces` run on it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.namespaces: list[int] = []
        self.variables = {"PYTHONPATH": str(Path(__file__).parent / "fake_host_name"), "FAKE_HOST_NAME": name}

    def cut_off(self) -> None:
        raise NoNamespaces(f"There is no cable to {self.name}.")

    connect = cut_off

    def close(self) -> None:
        """There is nothing to release."""


class Namespace(Machine):
    """A machine in its own network namespace at `address`. A cable connects it to the address `to`."""

    def __init__(self, name: str, address: str, to: str, cable: str) -> None:
        super().__init__(name)
        self.variables = {}  # the kernel knows its name
        self.address, self._to, self._cable = address, to, cable
        try:
            self._keeper = subprocess.Popen(["sleep", "infinity"], preexec_fn=functools.partial(_become, name))
        except (OSError, subprocess.SubprocessError) as error:
            raise NoNamespaces(f"A network namespace cannot be created here: {error}") from None
        try:
            for kind in ("net", "uts"):
                self.namespaces.append(os.open(f"/proc/{self._keeper.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC))
            self._lay_cable()
        except BaseException:
            self.close()
            raise

    def cut_off(self) -> None:
        """Pull the cable. Neither side notices."""
        _ip("link", "set", self._cable, "down")

    def connect(self) -> None:
        """Plug the cable in, for the first time or again."""
        _ip("link", "set", self._cable, "up")

    def close(self) -> None:
        for namespace in self.namespaces:
            os.close(namespace)
        self._keeper.kill()
        self._keeper.wait(10)
        with contextlib.suppress(NoNamespaces):  # the kernel may have removed it already
            _ip("link", "delete", self._cable)

    def _lay_cable(self) -> None:
        """Use the same address at our end of every cable, so that all machines reach a server at the same address."""
        there = str(self._keeper.pid)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", there)
        _ip("address", "add", self._to, "peer", self.address, "dev", self._cable)
        self.connect()
        _ip("address", "add", self.address, "peer", self._to, "dev", "eth0", inside=there)
        for device in ("lo", "eth0"):
            _ip("link", "set", device, "up", inside=there)


class Network:
    """Machines with these names. `close` ends them. If they have no namespaces, `why_no_cables` says why."""

    def __init__(self, *names: str) -> None:
        self.why_no_cables = ""
        self.machines: list[Machine] = []
        try:
            self._use("10")
            for number, name in enumerate(names, 2):
                cable = f"docora{os.getpid() % 100_000}-{number}"  # 15 characters at most
                self.machines.append(Namespace(name, f"{self._prefix}.{number}", self.address, cable))
        except NoNamespaces as error:
            self.close()
            self._use("127")
            self.why_no_cables, self.machines = str(error), [Machine(name) for name in names]

    def _use(self, network: str) -> None:
        number = os.getpid()
        self._prefix = f"{network}.{64 + number // 250 % 64}.{number % 250}"  # unique to this test process
        self.address, self.range = f"{self._prefix}.1", f"{self._prefix}.0/24"

    def close(self) -> None:
        for machine in self.machines:
            machine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _become(name: str) -> None:
    die_with_parent(signal.SIGKILL)
    os.unshare(os.CLONE_NEWNET | os.CLONE_NEWUTS)
    socket.sethostname(name)


def _ip(*arguments: str, inside: str = "") -> None:
    """Run an iproute2 command here, or in the network of the process `inside`."""
    there = ["nsenter", "--target", inside, "--net"] if inside else []
    try:
        subprocess.run([*there, "ip", *arguments], check=True, capture_output=True, text=True, timeout=10)
    except subprocess.CalledProcessError as error:
        raise NoNamespaces(f"A network cannot be created here: {error.stderr.strip()}") from None
