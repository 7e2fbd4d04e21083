"""Repositories without a commit on HEAD: registered, shown as they are, and synced after the first push."""

import shutil

import pytest
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Outcome, Reason, Status
from deliveries_app.scheduling import request_sync
from deliveries_app.services import resync_single
from tests.api.caller import Caller
from tests.support.commands import run, run_json
from tests.support.git import Repo, git
from tests.support.histories import assert_promise_kept, refusing
from tests.support.staff import staff
from tests.support.world import World

WAITING = "waiting for the first commit"


def empty(world: World, **options: str) -> Repo:
    return world.git.repo("acme/new", **options)


def only_tags(world: World) -> Repo:
    repo = world.git.repo("acme/new", {"readme.md": b"#"})
    git(repo.path, "tag", "v1")
    git(repo.path, "update-ref", "-d", "refs/heads/main")
    return repo


def unborn_head(world: World) -> Repo:
    repo = world.git.repo("acme/new", {"readme.md": b"#"})
    git(repo.path, "symbolic-ref", "HEAD", "refs/heads/unborn")
    return repo


def in_sha256(world: World) -> Repo:
    return empty(world, object_format="sha256")


@pytest.mark.parametrize("make", [empty, only_tags, unborn_head, in_sha256], ids=lambda make: make.__name__)
def test_registered_before_its_first_commit_and_synced_after_it(world: World, make) -> None:
    repo = make(world)
    caller = Caller(world.app)
    answer = caller.post("", {"github_url": repo.url})
    assert answer.status_code == 201
    one = f"/{answer.json()['repository_id']}"
    assert caller.get(one).json()["status"] == Status.PENDING
    watch = world.sync(AppRepository.objects.get())
    seen = caller.get(one).json()
    assert (seen["status"], seen["next_sync_at"], seen["last_error"]) == (Status.PENDING, None, None)
    assert seen["last_synced_at"] is None
    assert [(run.reason, run.outcome, run.files_total) for run in world.runs(watch)] == [
        (Reason.INITIAL, Outcome.SUCCEEDED, 0)
    ]
    world.settle()  # nothing is due
    assert world.requests() == []

    repo.commit({"a.txt": b"a"})
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)
    assert {(record.kind, record.reason) for record in world.requests()} == {("create", "initial")}


def test_command_registers_an_empty_repository(world: World) -> None:
    repo = empty(world)
    assert run_json("watch_repository", world.app.app_id, repo.url)["name"] == "new"
    world.sync(AppRepository.objects.get())
    assert WAITING in run("list_watches")


def test_private_empty_repository(world: World) -> None:
    repo = empty(world, token="sesame")
    watch = world.watch_url(repo, token="sesame")
    assert watch.repository.is_private
    world.git.tokens.clear()
    assert not world.watch_url(repo, token="sesame").repository.is_private


def test_admin_registers_it_and_says_what_the_watch_waits_for(world: World, admin: Client) -> None:
    form = {"app": world.app.pk, "github_url": empty(world).url, "github_token": ""}
    added = admin.post("/admin/deliveries_app/apprepository/add/", form, follow=True)
    assert "now watches" in added.content.decode()
    watch = world.sync(AppRepository.objects.get())
    for page in (
        f"/admin/deliveries_app/apprepository/{watch.pk}/change/",
        "/admin/deliveries_app/apprepository/",
        f"/admin/deliveries_app/app/{watch.app_id}/change/",
    ):
        text = admin.get(page).content.decode()
        assert WAITING in text, page
        assert "every 2s" not in text or "/app/" in page, page
    assert "Next check <time" in text


def test_page_says_what_to_do_if_the_files_are_on_another_branch(world: World, admin: Client) -> None:
    """As after a first push to a branch that isn't the default one."""
    watch = world.sync(world.watch_url(unborn_head(world)))
    page = f"/admin/deliveries_app/apprepository/{watch.pk}/change/"
    advice = "The default branch has no commits yet. Docora syncs once it has one. If the files are on another branch"
    assert advice in admin.get(page).text
    viewed = staff("vera", "view_apprepository").get(page).text
    assert "The default branch has no commits yet." in viewed
    assert advice not in viewed, "a viewer can't choose another branch"
    admin.post(page.replace("change", "ref"), {"ref": "main"})
    assert set(world.copy(world.sync(watch))) == {"readme.md"}
    assert advice not in admin.get(page).text


def test_push_hook_and_resync_of_an_empty_repository_wait_again(world: World) -> None:
    watch = world.sync(world.watch_url(empty(world)))
    request_sync(AppRepository.objects.all())
    watch.refresh_from_db()
    assert not watch.waits_for_first_commit
    assert world.sync(watch).waits_for_first_commit
    resync_single(Actor.command(), watch)
    assert world.sync(watch).waits_for_first_commit
    assert {run.outcome for run in world.runs(watch)} == {Outcome.SUCCEEDED}


@pytest.mark.parametrize("files", [{"a.txt": b"a"}, {}], ids=["with a file", "without files"])
def test_repository_that_loses_its_commits_keeps_the_copy_and_says_so(world: World, files: dict[str, bytes]) -> None:
    repo, watch = world.watch(files)
    world.settle()
    shutil.rmtree(repo.path)
    world.git.repo(repo.name)
    world.check()
    watch = world.sync(watch)
    assert watch.status == Status.FAILED
    assert watch.last_error.startswith("The repository has no commits on its default branch.")
    assert set(world.copy(watch)) == set(files)


def test_repository_with_a_dangling_head_syncs_without_a_push(world: World) -> None:
    """HEAD names a branch that doesn't exist. A push to another branch changes nothing, but the host can name another one."""
    repo, watch = world.watch({"a.txt": b"a"})
    world.settle()
    git(repo.path, "symbolic-ref", "HEAD", "refs/heads/unborn")
    world.check()
    assert world.sync(watch).last_error == (
        "The repository has no commits on its default branch. It syncs once that branch has a commit, or once another one is the "
        "default branch. Until then, the app keeps the files it has."
    )
    git(repo.path, "update-ref", "refs/heads/other", "refs/heads/main")  # as a push does
    world.check()
    watch.refresh_from_db()
    assert watch.status == Status.FAILED
    assert watch.pk not in AppRepository.objects.due().values_list("pk", flat=True)
    git(repo.path, "symbolic-ref", "HEAD", "refs/heads/other")
    world.settle()
    world.check()
    assert watch.pk in AppRepository.objects.due().values_list("pk", flat=True)
    assert world.sync(watch).status == Status.SYNCED


def test_first_files_in_doubt_are_not_forgotten(world: World) -> None:
    """The first sync did not complete, so the app may hold files."""
    repo, watch = world.watch({"a.txt": b"a", "b.txt": b"b"})
    world.answer(refusing("b.txt"))
    world.sync(watch)
    AppRepository.objects.update(last_commit="")
    git(repo.path, "symbolic-ref", "HEAD", "refs/heads/unborn")
    assert world.sync(watch).status == Status.FAILED
    assert App.objects.get().watches.get().deliveries.count() == 2
