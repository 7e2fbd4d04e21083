"""Pages under conditions that few users have: long names."""

import pytest
from playwright.sync_api import Page

from deliveries_app.models import AppRepository
from deliveries_app.models.root_causes import RootCause
from tests.browser.accessibility import Look, look_as, overflow
from tests.browser.conftest import Browser, Site
from tests.browser.test_journey import LIST, sign_in
from tests.support.staff import fail, make_app, make_watch

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

APPS = "/admin/deliveries_app/app/"


@pytest.fixture
def watch(quiet_site: Site) -> AppRepository:
    """A failing watch whose names have 100 characters and no spaces."""
    watch = make_watch(make_app("Portal_" * 14 + "ab"), "documents_" * 10)
    fail(watch, RootCause.SERVER_ERROR, status=500)
    return watch


def test_long_names_are_broken(quiet_site: Site, browser: Browser, watch: AppRepository) -> None:
    def journey(page: Page) -> list[str]:
        sign_in(page, quiet_site)
        wide = []
        for path in (
            f"{APPS}{watch.app_id}/change/",
            f"{APPS}{watch.app_id}/settings/",
            f"{APPS}{watch.app_id}/delete/",
            f"{LIST}{watch.pk}/change/",
            f"{LIST}force-resync/?ids={watch.pk}",
            "/admin/deliveries_app/queue/",
        ):
            page.goto(quiet_site.url + path)
            for width in (1280, 640, 320):
                look_as(page, Look("light", width))
                wide += [f"{path} ({width}): {problem}" for problem in overflow(page)]
        return wide

    assert browser.drive(journey) == []
