"""Delivered files become `Delivery` rows: acknowledged, of the first generation, and without a source key, so that the
first sync compares each by its SHA-256 and adopts what is equal (`engine.md` §2)."""

from collections.abc import Iterable
from itertools import batched

from django.db import transaction
from django.utils import timezone

from deliveries_app.importing.source import SourceFile
from deliveries_app.kinds import Kind
from deliveries_app.models import AppRepository, Delivery

_BATCH = 2000  # rows in one transaction
_FIRST_GENERATION = 1


def write_records(pair: AppRepository, files: Iterable[SourceFile]) -> int:
    """How many were new. Those that are here already stay as they are, which makes an interrupted import go on.

    Every batch makes sure that the watch is still arriving: it ends with the first one that finds it unwatched.
    """
    rows = Delivery.objects.filter(pair=pair)
    before = rows.count()
    for batch in batched(files, _BATCH):
        with transaction.atomic():
            arriving = AppRepository.objects.filter(pk=pair.pk, arriving=True, ended_at=None).order_by()
            if not arriving.select_for_update(no_key=True).values_list("pk"):
                break
            Delivery.objects.bulk_create((_delivery(pair, file) for file in batch), ignore_conflicts=True)
    return rows.count() - before


def _delivery(pair: AppRepository, file: SourceFile) -> Delivery:
    """Size and mode are not known; the adoption fills them in."""
    return Delivery(
        pair=pair,
        path=file.path,
        source_path="",
        mode="100644",
        kind=Kind.CREATE,
        source_key=None,
        sha=file.sha,
        size=0,
        intent=0,
        generation=_FIRST_GENERATION,
        acknowledged=True,
        held_sha=file.sha,
        remark="",
        updated_at=file.delivered_at or timezone.now(),
    )
