"""Measure the admin pages of a large installation: `make bench-pages`.

Starts its own PostgreSQL and Valkey, fills them with `tests.bench.crowd`, and requests every page, fragment and list
variant of `tests.support.admin_pages`. Measures the server time without a network (the median of seven requests), the CPU
time of Python and the database, and the queries. On a busy machine, compare the CPU time.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import django
from rich.console import Console
from rich.table import Table

from docora.stack import with_large_stack
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer

LIMIT_MS = 120
TIMES = 7


class Measured(NamedTuple):
    page: str
    median: float  # milliseconds
    best: float
    cpu: float
    queries: int
    kilobytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("apps", "repositories", "deliveries", "runs"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help="default: see tests/bench/crowd/layout.py")
    parser.add_argument("--here", action="store_true", help="measure the current DATABASE_URL (adds a user to it)")
    parser.add_argument("--only", default="", metavar="TEXT", help="pages whose URL contains this")
    options = vars(parser.parse_args())
    here, only = options.pop("here"), options.pop("only")
    with ExitStack() as stack:
        os.environ["DJANGO_SETTINGS_MODULE"] = "docora.settings"
        logging.disable(logging.ERROR)  # requests for missing pages are logged
        if not here:
            os.environ |= {
                "DATABASE_URL": stack.enter_context(PostgresServer()).url,
                "REDIS_URL": stack.enter_context(ValkeyServer()).url,
                "DATA_DIR": stack.enter_context(tempfile.TemporaryDirectory()),
                "DOCORA_ENV_FILE": os.devnull,
            }
        django.setup()
        if not here:
            from django.core.management import call_command

            from tests.bench.crowd.filling import fill
            from tests.bench.crowd.layout import Amounts

            call_command("migrate", verbosity=0)
            fill(Amounts(**{name: count for name, count in options.items() if count is not None}))
        show(
            [
                measured
                for page, get in requests_of_pages()
                if only in page and (measured := measure(page, get)) is not None
            ]
        )


def requests_of_pages() -> list[tuple[str, Callable[[], object]]]:
    """Return every page with a function that requests it."""
    from deliveries_app.api.files import MANIFEST_PAGE, _manifest
    from deliveries_app.models import AppRepository
    from tests.support.admin_pages import example, pages, superuser, variants

    client, watch = superuser(), example(AppRepository)
    lists = "/admin/deliveries_app/delivery/", "/admin/api/repositories"
    urls = [
        *pages(),
        *variants(client),
        *(
            f"{lists[0]}?q={word}"
            for word in (watch.app.app_id, watch.repository.repository_id, "not/there", "src/00000-")
        ),
        *(
            f"{lists[1]}?{query}"
            for query in ("status=failed", f"app_id={watch.app.app_id}", "search=globex", "page=100")
        ),
    ]
    first_of_manifest = (
        f"manifest, its first {MANIFEST_PAGE:,} lines",
        lambda: next(_manifest(watch.pk, "", MANIFEST_PAGE)),
    )
    return [*((url, lambda url=url: client.get(url)) for url in dict.fromkeys(urls)), first_of_manifest]


def measure(page: str, get: Callable[[], object]) -> Measured | None:
    """Measure one page. Return None for redirects, missing pages and downloads of a whole table."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    get = with_large_stack(get)  # as the web process does
    with CaptureQueriesContext(connection) as queries:
        answer = get()
    query_count = len(queries)  # the next request resets it
    if getattr(answer, "status_code", 200) != 200 or getattr(answer, "streaming", False):
        return None
    times, cpu = [], _cpu_seconds(connection)
    for _ in range(TIMES):
        began = time.perf_counter()
        get()
        times.append((time.perf_counter() - began) * 1000)
    cpu = (_cpu_seconds(connection) - cpu) / TIMES * 1000
    size = len(getattr(answer, "content", answer)) / 1000  # type: ignore[arg-type]
    return Measured(page, statistics.median(times), min(times), cpu, query_count, size)


def _cpu_seconds(connection: Any) -> float:
    """Return the CPU seconds of this process and, with PostgreSQL, of its backend on this machine, without parallel workers."""
    if connection.vendor == "sqlite":
        return time.process_time()
    stat = Path(f"/proc/{connection.connection.info.backend_pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + sum(map(int, stat[11:13])) / os.sysconf("SC_CLK_TCK")


def show(found: list[Measured]) -> None:
    table = Table("page", *(f"{name:>7}" for name in ("median", "best", "cpu", "queries", "kB")), title="Milliseconds")
    for one in sorted(found, key=lambda one: -one.median):
        colour = "[red]" if one.median > LIMIT_MS else ""
        page = one.page if len(one.page) < 90 else one.page[:87] + "…"
        table.add_row(page, f"{colour}{one.median:.0f}", *(f"{number:.0f}" for number in one[2:]))
    slow = sum(one.median > LIMIT_MS for one in found)
    console = Console(width=130)
    console.print(table)
    console.print(f"{len(found)} pages, {slow} of them over {LIMIT_MS} ms.")


if __name__ == "__main__":
    main()
