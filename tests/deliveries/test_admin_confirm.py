"""A confirmation is bound to what it showed: of other repositories, or of notably more files, it asks once more."""

from html.parser import HTMLParser

import pytest
from django.test import Client

from deliveries_app.admin import confirmation
from deliveries_app.models import App, AppRepository, Status, SyncRun
from tests.support.staff import make_watch

WATCHES = "/admin/deliveries_app/apprepository/"
APPS = "/admin/deliveries_app/app/"
ALL = f"{WATCHES}force-resync/?all=1"
EVERYTHING_OF_AN_APP = f"{APPS}force-resync/?ids="


class Fields(HTMLParser):
    """The hidden fields of a page's form, as a browser would send them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "input" and given.get("type") == "hidden":
            self.found[given["name"] or ""] = given["value"] or ""


def form_of(client: Client, url: str) -> dict[str, str]:
    """GET the page, and return what its button would post."""
    fields = Fields()
    fields.feed(client.get(url).text)
    return fields.found


def generations() -> list[int]:
    return list(AppRepository.objects.order_by("pk").values_list("generation", flat=True))


def test_what_was_shown_and_has_not_changed_is_done(operator: Client, watches) -> None:
    operator.post(ALL, form_of(operator, ALL))
    assert generations() == [2, 2, 2]


def test_a_refreshed_page_is_as_good_as_the_first(operator: Client, watches) -> None:
    first = form_of(operator, ALL)
    assert form_of(operator, ALL) | {"csrfmiddlewaretoken": ""} == first | {"csrfmiddlewaretoken": ""}


def test_a_repository_more_than_was_shown_is_asked_about_once_more(operator: Client, watches) -> None:
    form = form_of(operator, ALL)
    make_watch(watches[0].app, "wiki")
    answer = operator.post(ALL, form, follow=True)
    assert answer.redirect_chain == [(ALL, 302)]
    assert confirmation.CHANGED in answer.text
    assert "Yes, re-sync 4" in answer.text
    assert not SyncRun.objects.exists()
    operator.post(ALL, form_of(operator, ALL))
    assert generations() == [2, 2, 2, 2]


def test_a_repository_less_than_was_shown_is_asked_about_once_more(operator: Client, watches) -> None:
    url = f"{EVERYTHING_OF_AN_APP}{watches[0].app_id}"
    form = form_of(operator, url)
    watches[1].delete()
    assert confirmation.CHANGED in operator.post(url, form, follow=True).text
    assert generations() == [1, 1]


def test_one_repository_in_the_place_of_another_is_another_set(operator: Client, watches) -> None:
    form = form_of(operator, ALL)
    watches[1].delete()
    make_watch(watches[0].app, "wiki")
    assert confirmation.CHANGED in operator.post(ALL, form, follow=True).text
    assert generations() == [1, 1, 1]


@pytest.mark.parametrize(("files", "asks"), [(90, False), (130, False), (131, True), (400, True)])
def test_files_that_grew_by_more_than_a_tenth_in_all_are_asked_about_once_more(
    operator: Client, watches, files: int, asks: bool
) -> None:
    form = form_of(operator, ALL)  # 300 files
    AppRepository.objects.filter(pk=watches[0].pk).update(tree_files=files)
    assert (confirmation.CHANGED in operator.post(ALL, form, follow=True).text) is asks
    assert generations() == ([1, 1, 1] if asks else [2, 2, 2])


def test_what_had_no_files_when_it_was_shown_is_asked_about_once_it_has(operator: Client, watches) -> None:
    AppRepository.objects.update(tree_files=0)
    form = form_of(operator, ALL)
    AppRepository.objects.filter(pk=watches[0].pk).update(tree_files=1)
    assert confirmation.CHANGED in operator.post(ALL, form, follow=True).text


@pytest.mark.parametrize("status", Status.values)
def test_statuses_that_changed_are_no_reason_to_ask(operator: Client, watches, status: str) -> None:
    form = form_of(operator, ALL)
    AppRepository.objects.update(status=status, files_failing=3, last_error="It did not answer.")
    App.objects.update(down_count=2)
    operator.post(ALL, form)
    assert generations() == [2, 2, 2]


@pytest.mark.parametrize("files", ["", "many", "-1", "9" * 40])
def test_a_number_of_files_that_is_none_is_a_reason_to_ask(operator: Client, watches, files: str) -> None:
    answer = operator.post(ALL, form_of(operator, ALL) | {"shown_files": files}, follow=True)
    assert (confirmation.CHANGED in answer.text) is not files.isdecimal()
