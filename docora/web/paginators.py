"""Paginators of the admin's lists, and for large tables."""

from typing import Any

from django.core.paginator import EmptyPage, Paginator
from django.utils.functional import cached_property


class ListPaginator(Paginator):  # type: ignore[type-arg]  # not generic at run time
    """A paginator that shows the last page in place of later ones, whose rows are gone. Django would drop the filters, too."""

    def validate_number(self, number: Any) -> int:
        try:
            return super().validate_number(number)
        except EmptyPage:
            return self.num_pages


class BoundedPaginator(ListPaginator):
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


class KeysFirstPaginator(ListPaginator):
    """A paginator that sorts keys alone and then reads the rows of one page. Sorting whole rows takes twice as long."""

    def page(self, number: int | str) -> Any:
        page: Any = super().page(number)
        rows: Any = self.object_list
        page.object_list = rows.filter(pk__in=page.object_list.values("pk"))
        return page
