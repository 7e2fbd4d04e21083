"""However many rows there are, a page asks the database the same number of questions, and none counts what is large.

The pages are found in the admin's URLs (`tests.support.admin_pages`), so that one that is added is asked for too.
"""

import re

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests.support.admin_pages import NOT_THERE, pages, superuser, variants
from tests.support.rows import add_rows

FEW, MANY = 24, 60
"""A page shows up to five operations that run and five that ended, each with a question of its own; 24 rows fill that."""

_LARGE = re.compile(r'"deliveries_app_(delivery|syncrun)"')
_BOUND = re.compile(r'LIMIT \d+|"deliveries_app_syncrun"\."operation_id" (?:= |IN \()')
"""A page's worth, or the runs of the operations of a page, each no more than there are watches."""


def queries(client: Client, url: str) -> list[str] | None:
    """What a GET asks the database; None where there is no page: the first rows' keys may name one later."""
    with CaptureQueriesContext(connection) as asked:
        answer = client.get(url)
    assert answer.status_code in {200, 302, *NOT_THERE}, url
    return None if answer.status_code in NOT_THERE else [query["sql"] for query in asked]


def queries_again(client: Client, url: str) -> list[str] | None:
    """The second time: what is asked once in the life of a process, or of a counter in Redis, is no question of a page."""
    client.get(url)
    return queries(client, url)


def addresses(client: Client) -> dict[str, str]:
    """Of every page, by what it is without the names of its rows: these are others when there are more."""
    return {re.sub(r"ids=[\d%C,]+", "ids=…", url): url for url in [*pages(), *variants(client)]}


def counts_without_bound(sql: str) -> bool:
    return "COUNT(" in sql and bool(_LARGE.search(sql)) and not _BOUND.search(sql)


@pytest.mark.timeout(900)  # some six hundred requests
def test_no_page_takes_more_queries_for_more_rows_or_counts_what_is_large(db) -> None:
    client = superuser()
    add_rows(0, FEW)
    few = {
        page: len(asked) for page, url in addresses(client).items() if (asked := queries_again(client, url)) is not None
    }
    add_rows(FEW, MANY)
    urls = addresses(client)
    many = {page: asked for page, url in urls.items() if (asked := queries(client, url)) is not None}
    assert len(few) > 100
    different = [page for page, number in few.items() if page in many and len(many[page]) != number]
    again = {page: len(queries_again(client, urls[page]) or ()) for page in different}
    assert {page: (few[page], number) for page, number in again.items() if few[page] != number} == {}
    counting = {page: sql for page, asked in many.items() for sql in asked if counts_without_bound(sql)}
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
def test_the_search_for_counts_knows_them(sql: str, counts: bool) -> None:
    assert counts_without_bound(sql) == counts
