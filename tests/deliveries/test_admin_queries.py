"""Every page takes the same number of queries for any number of rows, and none counts a large table.

The pages come from the admin's URLs (`tests.support.admin_pages`), so new pages are covered.
"""

import math
import re

import pytest
from django.contrib.admin.views.main import ORDER_VAR
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from docora.sign_in import middleware
from tests.support.admin_pages import NO_PAGE, pages, superuser, variants
from tests.support.rows import add_rows

FEW, MANY = 24, 60
"""A page shows up to five running and five ended operations, each with its own query. 24 rows are enough for that."""

_LARGE = re.compile(r'"deliveries_app_(delivery|syncrun)"')
_BOUND = re.compile(r'LIMIT \d+|"deliveries_app_syncrun"\."operation_id" (?:= |IN \()')
"""A limit, or the runs of the operations on a page. An operation has at most one run for each watch."""


def queries(client: Client, url: str) -> list[str] | None:
    """Return the queries of a GET, or None if the page does not exist yet: rows that are added later may create it."""
    with CaptureQueriesContext(connection) as asked:
        answer = client.get(url)
    assert answer.status_code in {200, 302, *NO_PAGE}, url
    return None if answer.status_code in NO_PAGE else [query["sql"] for query in asked]


def addresses(client: Client) -> dict[str, str]:
    """Return the URL of every page by its kind, without the names of rows, which differ with their number.

    A list is sorted by all its columns at once. One choice per filter is enough: its choices differ only in the rows
    that they find."""
    kinds: dict[str, str] = {}
    columns: dict[str, list[str]] = {}
    for url in [*pages(), *variants(client)]:
        path, _, column = url.partition(f"?{ORDER_VAR}=")
        if column:
            columns.setdefault(path, []).append(column)
            continue
        kind = re.sub(r"ids=[\d%C,]+", "ids=…", url)
        if re.search(r"/\?[a-z_]+=", kind) and not re.search(r"\?(?:p|q|all|ids)=", kind):
            kind = kind.partition("=")[0]
        kinds.setdefault(kind, url)
    for path, numbers in columns.items():
        url = f"{path}?{ORDER_VAR}={'.'.join(number for number in numbers if number.startswith('-'))}"
        kinds[url] = url
    return kinds


def counts_without_bound(sql: str) -> bool:
    return "COUNT(" in sql and bool(_LARGE.search(sql)) and not _BOUND.search(sql)


@pytest.mark.early(5)
@pytest.mark.timeout(900)  # about 400 requests
def test_query_count_is_constant_on_every_page(db, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_WRITE_SECONDS", math.inf)  # it may fall on any request of a slow run
    client = superuser()
    add_rows(0, FEW)
    few = {page: (url, asked) for page, url in addresses(client).items() if (asked := queries(client, url)) is not None}
    assert len(few) > 100
    with transaction.atomic():
        add_rows(FEW, MANY)
        many = {
            page: (url, asked) for page, url in addresses(client).items() if (asked := queries(client, url)) is not None
        }
        different = [page for page in few if page in many and len(few[page][1]) != len(many[page][1])]
        # The first request also runs queries that are cached in the process or in Redis. Measure the second one.
        of_many = {page: len(queries(client, many[page][0]) or ()) for page in different}
        transaction.set_rollback(True)
    of_few = {page: len(queries(client, few[page][0]) or ()) for page in different}
    assert of_many == of_few
    counting = {page: sql for page, (_, asked) in many.items() for sql in asked if counts_without_bound(sql)}
    assert counting == {}


@pytest.mark.parametrize(
    ("sql", "counts"),
    [
        ('SELECT COUNT(*) AS "__count" FROM "deliveries_app_delivery"', True),
        ('SELECT COUNT(*) FROM "deliveries_app_delivery" WHERE "deliveries_app_delivery"."watch_id" = 1', True),
        ('SELECT COUNT(*) FROM (SELECT 1 FROM "deliveries_app_syncrun" LIMIT 5000) subquery', False),
        ('SELECT COUNT(*) FROM "deliveries_app_syncrun" WHERE "deliveries_app_syncrun"."operation_id" = 1', False),
        ('SELECT COUNT(*) FROM "deliveries_app_app"', False),
    ],
)
def test_count_detection(sql: str, counts: bool) -> None:
    assert counts_without_bound(sql) == counts
