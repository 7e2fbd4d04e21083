"""What PostgreSQL reads for a statement, as counts of rows instead of times."""

from collections.abc import Callable, Iterator
from typing import Any

from django.db import connection
from django.test.utils import CaptureQueriesContext


def read_rows(call: Callable[[], object], table: str = "") -> float:
    """Call `call`, and return how many rows its SELECT statements have read, those in vain included.

    A row that is read again for each row of another table counts each time. `table`: count only this one. Needs PostgreSQL.
    """
    with CaptureQueriesContext(connection) as queries:
        call()
    return sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        for query in queries.captured_queries
        if query["sql"].startswith("SELECT")
        for node in _nodes(query["sql"])
        if (node.get("Relation Name") == table if table else "Relation Name" in node)
    )


def _nodes(sql: str) -> Iterator[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
        (plan,) = cursor.fetchone()[0]
    waiting = [plan["Plan"]]
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        yield node
