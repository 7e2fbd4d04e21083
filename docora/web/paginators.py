"""Paginators for large tables."""

from typing import Any

from django.core.paginator import Paginator
from django.utils.functional import cached_property


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # not generic at run time
    """A paginator for tables of millions of rows. It stops counting at page 100. Search and filters reach the rest."""

    PAGES = 100

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by()[: self.PAGES * self.per_page].count())

    @property
    def stopped_counting(self) -> bool:
        """Whether there may be more rows than `count`."""
        return self.count == self.PAGES * self.per_page


class KeysFirstPaginator(Paginator):  # type: ignore[type-arg]  # not generic at run time
    """A paginator that sorts keys alone and then reads the rows of one page. Sorting whole rows takes twice as long."""

    def page(self, number: int | str) -> Any:
        page: Any = super().page(number)
        rows: Any = self.object_list
        page.object_list = rows.filter(pk__in=page.object_list.values("pk"))
        return page
