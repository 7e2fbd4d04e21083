"""What the list of failed syncs refreshes every five seconds: its groups, and the cells of the rows that it shows."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from deliveries_app.admin.failed import panel
from deliveries_app.admin.failed_cells import refreshed
from deliveries_app.views.fragment import fragment, here, ids, may_see_watches


@require_GET
@fragment(may_see_watches)
def failed_syncs(request: HttpRequest) -> HttpResponse:
    context = {**panel(request, here(request)), "cells": refreshed(ids(request))}
    return render(request, "docora/failed.html#refresh", context)
