"""Traffic by the hour, and the last 24 hours: their totals, and the busiest and slowest apps."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from heapq import nlargest
from typing import ClassVar, NamedTuple

from django.db.models import QuerySet, Sum
from django.utils import timezone

from deliveries_app.models import App, HourlyTraffic
from deliveries_app.reports.chart import Bar, stacked

HOURS = 24
NAMED = 3
_SUMMED = ("files", "failed", "bytes", "requests", "milliseconds")  # in the order of `Hour`


@dataclass(frozen=True)
class Hour:
    """One hour from `begin`: acknowledged `files`, every `failed` attempt, and the total time of all requests."""

    begin: datetime
    files: int = 0
    failed: int = 0
    bytes: int = 0
    requests: int = 0
    milliseconds: int = 0

    @property
    def attempts(self) -> int:
        return self.files + self.failed

    @property
    def end(self) -> datetime:
        return self.begin + timedelta(hours=1)

    @property
    def share(self) -> float | None:
        """The share of attempts that were accepted, in percent.

        It is rounded down to one decimal, so that it is below 100 while anything was rejected.
        """
        return 1000 * self.files // self.attempts / 10 if self.attempts else None

    @property
    def seconds(self) -> float | None:
        """The average time of a request."""
        return self.milliseconds / 1000 / self.requests if self.requests else None


@dataclass(frozen=True)
class Hours:
    """Hours, oldest first. The bars show numbers of attempts, or if `shows_shares`, the share that was accepted."""

    hours: Sequence[Hour]
    shows_shares: ClassVar[bool] = False

    @cached_property
    def total(self) -> Hour:
        """The sums of all hours, as if they were one."""
        return Hour(self.hours[0].begin, *(sum(getattr(hour, name) for hour in self.hours) for name in _SUMMED))

    @property
    def bars(self) -> list[tuple[Hour, Bar]]:
        bars = stacked([(hour.files, hour.failed) for hour in self.hours], shares=self.shows_shares)
        return list(zip(self.hours, bars, strict=True))


class AppDay(NamedTuple):
    """One app's day. `seconds` is its average response time."""

    pk: int
    name: str
    files: int
    bytes: int
    requests: int
    seconds: float


@dataclass(frozen=True)
class Day(Hours):
    """The last 24 hours, with the busiest and slowest apps."""

    busiest: tuple[AppDay, ...]
    slowest: tuple[AppDay, ...]

    @property
    def peak(self) -> Hour:
        """The busiest hour."""
        return max(self.hours, key=lambda hour: hour.attempts)

    @property
    def hours_with_failures(self) -> int:
        return sum(hour.failed > 0 for hour in self.hours)


def last_hours(count: int) -> list[datetime]:
    """Return the starts of the last hours, oldest first. The last one is the current hour."""
    this_hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    return [this_hour - timedelta(hours=back) for back in reversed(range(count))]


def read_hours(rows: QuerySet[HourlyTraffic], count: int) -> list[Hour]:
    """Return the sums of these rows in each of the last hours, oldest first. One query."""
    begins = last_hours(count)
    recent = rows.filter(hour__gte=begins[0], hour__lte=begins[-1]).order_by()
    sums = recent.values_list("hour").annotate(*(Sum(name) for name in _SUMMED))
    sent = {begin: Hour(begin, *counts) for begin, *counts in sums}
    return [sent.get(begin, Hour(begin)) for begin in begins]


def of_last_day() -> Day:
    """Read the last 24 hours in three queries."""
    rows = HourlyTraffic.objects.all()
    hours = read_hours(rows, HOURS)
    return Day(hours, *_busiest_and_slowest(rows.filter(hour__gte=hours[0].begin, hour__lte=hours[-1].begin)))


def _busiest_and_slowest(rows: QuerySet[HourlyTraffic]) -> tuple[tuple[AppDay, ...], tuple[AppDay, ...]]:
    """Return the busiest and the slowest apps. Group by the app's key, because grouping by name would sort text."""
    alive = rows.exclude(app__in=App.objects.filter(ended_at__isnull=False))
    sums = alive.values_list("app").annotate(Sum("files"), Sum("bytes"), Sum("requests"), Sum("milliseconds"))
    found = [
        AppDay(pk, "", files, size, requests, milliseconds / 1000 / requests if requests else 0.0)
        for pk, files, size, requests, milliseconds in sums
    ]
    busiest = nlargest(NAMED, (app for app in found if app.files), key=lambda app: app.files)
    slowest = nlargest(NAMED, (app for app in found if app.requests), key=lambda app: app.seconds)
    names = dict(App.objects.filter(pk__in=[app.pk for app in (*busiest, *slowest)]).values_list("pk", "name"))
    named = [[app._replace(name=names[app.pk]) for app in apps] for apps in (busiest, slowest)]
    return tuple(named[0]), tuple(named[1])
