"""The checklist of a new instance: ticked by what really happened, and gone once the instance is in use."""

import re
from datetime import timedelta

import pytest
from django.db import connection as database
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App
from deliveries_app.services import resync_single
from deliveries_app.services.pinging import send_ping
from tests.support.receiver import Answer
from tests.support.staff import VIEWS, make_app, make_watch, staff
from tests.support.world import World

PAGE, FRAGMENT = "/admin/", "/admin/live/overview/"
SEES_ALL = (*(f"view_{model}" for model in VIEWS), "view_queue")
STEPS = ("Register an app", "Watch a repository", "Send a test ping", "Re-sync")


def steps(client: Client) -> dict[str, str]:
    """Return title → state of the steps, as the poll returns them, or nothing without a checklist."""
    text = client.get(FRAGMENT).text
    found = re.findall(r'<p class="checklist-state[^>]*><svg.*?</svg>([^<]+)</p>\s*<h3>(.*?)</h3>', text, re.DOTALL)
    return {re.sub("<[^>]*>", "", title): state for state, title in found}


def link(client: Client, step: str) -> str:
    """Return the URL that the step links to, or an empty string."""
    found = re.search(rf'<a id="step-{step}"[^>]* href="([^"]*)"', client.get(FRAGMENT).text)
    return found[1].replace("&amp;", "&") if found else ""


def test_each_step_is_ticked_by_the_next_poll(world: World, admin: Client) -> None:
    App.objects.all().delete()
    assert steps(admin) == dict.fromkeys(STEPS, "To do")
    app = world.add_app("Portal")
    assert list(steps(admin).values()) == ["Done", "To do", "To do", "To do"]
    _, watch = world.watch(app=app)
    assert list(steps(admin).values()) == ["Done", "Done", "To do", "To do"]
    world.answer(lambda note: Answer(500))
    send_ping(Actor.command(), app)
    assert list(steps(admin).values()) == ["Done", "Done", "To do", "To do"]  # it was not accepted
    world.answer(None)
    send_ping(Actor.command(), app)
    assert list(steps(admin).values()) == ["Done", "Done", "Done", "To do"]
    world.sync(watch)
    assert list(steps(admin).values()) == ["Done", "Done", "Done", "To do"]  # a first sync is not a re-sync
    resync_single(Actor.command(), watch)
    assert steps(admin) == {}
    assert "Nothing to sync yet" not in admin.get(PAGE).text


def test_each_step_links_to_the_page_where_it_is_done(world: World, admin: Client) -> None:
    app = f"/admin/deliveries_app/app/{world.app.pk}"
    assert (link(admin, "ping"), link(admin, "resync")) == (f"{app}/ping/", "")  # nothing to re-sync yet
    world.watch()
    pages = {step: admin.get(link(admin, step)) for step in ("register", "watch", "ping", "resync")}
    assert {step: page.status_code for step, page in pages.items()} == dict.fromkeys(pages, 200)
    assert "Register app" in pages["register"].text
    assert 'name="github_url"' in pages["watch"].text
    assert "Send test ping" in pages["ping"].text
    assert "re-send ALL files to Portal" in pages["resync"].text


def test_next_step_is_the_only_solid_button(admin: Client) -> None:
    make_app("Portal")
    page = admin.get(FRAGMENT).text
    assert re.findall(r'id="step-(\w+)" class="button"', page) == ["watch"]
    assert re.findall(r'id="step-(\w+)" class="button button-quiet"', page) == ["ping"]
    assert "1 of 4 done" in page


@pytest.mark.parametrize("used", ["second app", "many repositories", "a week"])
def test_instance_in_use_neither_shows_nor_queries_the_checklist(
    admin: Client, used: str, django_assert_num_queries
) -> None:
    app = make_app("Portal")
    make_watch(app, "docs")
    assert steps(admin)
    with CaptureQueriesContext(database) as shown:
        admin.get(FRAGMENT)
    number_shown = len(shown)
    if used == "second app":
        make_app("Search")
    elif used == "many repositories":
        for number in range(10):
            make_watch(app, f"docs-{number}")
    else:
        App.objects.update(created_at=timezone.now() - timedelta(days=8))
    assert steps(admin) == {}
    with django_assert_num_queries(number_shown - 1):
        admin.get(FRAGMENT)


def test_user_without_any_of_the_permissions_sees_none_of_the_steps(db) -> None:
    viewer = staff("vera", *SEES_ALL)
    assert steps(viewer) == {}
    assert "An administrator registers apps" in viewer.get(PAGE).text
    make_watch(make_app("Portal"), "docs")
    assert steps(viewer) == {}
    assert "An administrator registers apps" not in viewer.get(PAGE).text


def test_user_with_some_permissions_sees_whom_to_ask_for_the_rest(db) -> None:
    operator = staff("olga", *SEES_ALL, "add_apprepository", "resync_apprepository")
    make_app("Portal")
    page = operator.get(FRAGMENT).text
    assert list(steps(operator)) == list(STEPS)
    assert page.count("Ask an administrator to do this.") == 1  # the ping
    assert (link(operator, "register"), link(operator, "ping")) == ("", "")
    assert link(operator, "watch") == "/admin/deliveries_app/apprepository/add/"
