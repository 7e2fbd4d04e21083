"""*Watch several repositories*: many lines at once, each with its own result."""

import time
from typing import Any

import pytest
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository
from deliveries_app.services import watching_many
from deliveries_app.services.watching import validate_options
from deliveries_app.services.watching_many import MAX_LINES, LineStatus, watch_many
from repositories_app.git.url import as_https
from tests.support.staff import staff
from tests.support.world import World

ADD = "/admin/deliveries_app/apprepository/add/"
ME = Actor.command()


@pytest.fixture
def operator(world: World) -> Client:
    return staff("olga", "view_app", "view_apprepository", "add_apprepository")


def page_of(app: App) -> str:
    return f"/admin/deliveries_app/app/{app.pk}/watch-many/"


def submit(client: Client, app: App, *lines: str, **more: str) -> Any:
    return client.post(page_of(app), {"urls": "\r\n".join(lines), **more})


def test_each_line_has_its_result_and_failed_ones_are_kept(world: World, operator: Client) -> None:
    new, known = (world.git.repo(f"acme/{name}", {"a.txt": b"1"}) for name in ("new", "known"))
    private = world.git.repo("acme/private", {"a.txt": b"1"}, token="secret")
    watch = world.watch_url(known)
    missing, malformed = new.url.replace("new", "missing"), "acme/handbook"
    answer = submit(
        operator, world.app, new.url, "", f"{known.url}.git", f"{new.url}/", private.url, missing, malformed
    )
    shown = [(result.line, result.status.value) for result, _, _ in answer.context["results"]]
    assert shown == [
        (new.url, "watched"),
        (f"{known.url}.git", "already_watched"),
        (f"{new.url}/", "repeated"),
        (private.url, "failed"),
        (missing, "failed"),
        (malformed, "failed"),
    ]
    details = {result.line: result.message for result, _, _ in answer.context["results"]}
    assert "token" in details[private.url]
    assert "must look like" in details[malformed]
    assert "3 lines are left below." in answer.text
    assert answer.context["form"]["urls"].value().split("\n") == [private.url, missing, malformed]
    assert f'href="/admin/deliveries_app/apprepository/{watch.pk}/change/"' in answer.text
    watch.refresh_from_db()
    assert (AppRepository.objects.count(), watch.generation) == (2, 1)
    again = submit(operator, world.app, private.url, github_token="secret")
    assert "Watching now" in again.text
    assert "left below" not in again.text
    assert "secret" not in again.text
    assert AppRepository.objects.get(repository__name="private").github_token == "secret"


def test_options_apply_to_every_repository(world: World, operator: Client) -> None:
    repos = [world.git.repo(f"acme/{name}", {"a.txt": b"1"}) for name in ("one", "two")]
    patterns = {"ignore_patterns": "/drafts/", "include_patterns": "*.md", "exclude_patterns": "*.tmp"}
    submit(operator, world.app, *(repo.url for repo in repos), ref="main", **patterns)
    stored = AppRepository.objects.values_list("ref", "ignore_patterns", "include_patterns", "exclude_patterns")
    assert list(stored) == [("main", "/drafts/", "*.md", "*.tmp")] * 2
    wrong = submit(operator, world.app, repos[0].url, ref="a..b")
    assert wrong.context["form"].errors.keys() == {"ref"}
    wrong = submit(operator, world.app, repos[0].url, ignore_patterns="[a")
    assert wrong.context["form"].errors.keys() == {"ignore_patterns"}


def test_single_form_takes_patterns_and_other_spellings(world: World, operator: Client) -> None:
    repo = world.git.repo("acme/one", {"a.txt": b"1"})
    wrong = operator.post(ADD, {"app": world.app.pk, "github_url": repo.url, "include_patterns": "[a"})
    assert wrong.context["form"].errors.keys() == {"include_patterns"}
    answer = operator.post(ADD, {"app": world.app.pk, "github_url": "git@gitlab.invalid:a/b"})
    assert "Repositories on gitlab.invalid can&#x27;t be watched." in answer.text
    operator.post(ADD, {"app": world.app.pk, "github_url": repo.url, "ignore_patterns": "/drafts/", "ref": "main"})
    watch = AppRepository.objects.get()
    assert (watch.ignore_patterns, watch.ref) == ("/drafts/", "main")


def test_slow_host_leaves_lines_unchecked(world: World, monkeypatch) -> None:
    monkeypatch.setattr(watching_many, "TOTAL_SECONDS", 1.0)
    monkeypatch.setattr(watching_many, "LEAST_SECONDS", 0.8)
    monkeypatch.setattr(watching_many, "CONCURRENT_CHECKS", 2)
    repos = [world.git.repo(f"acme/number-{number}", {"a.txt": b"1"}) for number in range(6)]
    world.git.server.on_request = lambda method, target: time.sleep(0.4)
    began = time.monotonic()
    results = watch_many(ME, world.app, [repo.url for repo in repos], validate_options())
    assert time.monotonic() - began < 8
    assert {LineStatus.UNCHECKED} < {result.status for result in results}
    assert AppRepository.objects.count() == sum(result.status == LineStatus.WATCHED for result in results)
    assert [result.line for result in results] == [repo.url for repo in repos]


def test_token_is_sent_to_one_host_only(world: World, operator: Client, settings) -> None:
    settings.ALLOWED_GIT_HOSTS = ["github.com", "gitlab.com"]
    lines = "https://github.com/acme/docs", "git@gitlab.com:acme/docs"
    answer = submit(operator, world.app, *lines, github_token="secret")
    assert "The token would be sent to several hosts." in answer.text
    assert "secret" not in answer.text


def test_number_of_lines_and_permission(world: World, operator: Client) -> None:
    lines = [f"x/{number}" for number in range(MAX_LINES + 1)]
    assert "There are 201 lines. Enter at most 200 at a time." in submit(operator, world.app, *lines).text
    assert submit(operator, world.app).context["form"].errors.keys() == {"urls"}
    viewer = staff("vera", "view_app", "view_apprepository")
    assert submit(viewer, world.app, "x").status_code == 403
    assert "watch-many" not in viewer.get(f"/admin/deliveries_app/app/{world.app.pk}/change/").text
    assert page_of(world.app) in operator.get(f"/admin/deliveries_app/app/{world.app.pk}/change/").text


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("git@github.com:acme/docs.git", "https://github.com/acme/docs.git"),
        (" deploy@gitlab.example:group/sub/docs ", "https://gitlab.example/group/sub/docs"),
        ("ssh://git@github.com/acme/docs", "https://github.com/acme/docs"),
        ("ssh://git@github.example:2222/acme/docs.git", "https://github.example/acme/docs.git"),
        ("github.com/acme/docs", "https://github.com/acme/docs"),
        ("git.example:8443/acme/docs", "https://git.example:8443/acme/docs"),
        ("https://github.com/acme/docs", "https://github.com/acme/docs"),
        ("http://git.example/acme/docs", "http://git.example/acme/docs"),
        ("acme/docs", "acme/docs"),
        ("git@github.com:/acme/docs", "git@github.com:/acme/docs"),
        ("-oProxyCommand=x@host:a/b", "-oProxyCommand=x@host:a/b"),
        ("ext::sh -c x", "ext::sh -c x"),
        ("user:password@github.com/a/b", "user:password@github.com/a/b"),
        ("git@github.com:a/b c", "git@github.com:a/b c"),
    ],
)
def test_other_spellings_are_read_as_https(text: str, url: str) -> None:
    assert as_https(text) == url
