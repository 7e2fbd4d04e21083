"""Watches of a branch or a tag, and several of one repository. Real git over HTTP."""

import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models.functions import Now
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Status
from deliveries_app.models.root_causes import RootCause
from deliveries_app.services import push_hooks, resync_single, unwatch_repository, watch_repository
from deliveries_app.services.requests import NotFound
from deliveries_app.services.watch_settings import change_watch
from repositories_app.git.exceptions import GitError, RefNotFound
from repositories_app.mirror import mirror as mirrors
from repositories_app.models import Repository
from repositories_app.services import mirror_of
from tests.deliveries.test_circuit import serve_folder_as_file
from tests.support.audit import by_users, messages
from tests.support.commands import run_json
from tests.support.git import Repo, git
from tests.support.histories import assert_promise_kept, at_notification, compare_plans, kill_worker
from tests.support.staff import staff
from tests.support.world import World

FILES = {"a.txt": b"a", "b.txt": b"b", "d/c.txt": b"c"}
WATCHES = "/admin/deliveries_app/apprepository/"


@pytest.fixture
def repo(world: World) -> Repo:
    """`dev` has another a.txt, no b.txt and a new file; `v1` is its tag."""
    repo = world.git.repo("acme/widgets", FILES)
    repo.commit({**FILES, "a.txt": b"dev", "b.txt": None, "new.txt": b"n"}, branch="dev")
    repo.tag("v1", "dev")
    return repo


def settled(world: World, watch: AppRepository) -> AppRepository:
    world.settle()
    watch.refresh_from_db()
    return watch


def sent_since(world: World, count: int) -> list[tuple[str, str]]:
    return sorted((record.kind, record.path) for record in world.requests()[count:])


@pytest.mark.parametrize("annotated", [False, True])
def test_tag_is_followed_when_it_moves(world: World, repo: Repo, annotated: bool) -> None:
    repo.tag("v1", "dev", annotated=annotated)
    watch = settled(world, world.watch_url(repo, ref="v1"))
    assert watch.branch == "v1"
    assert_promise_kept(world, repo, watch, revision="v1")
    repo.commit({"b.txt": b"not tagged"}, branch="dev")
    repo.commit({"b.txt": b"not tagged either"})
    sent = len(world.requests())
    settled(world, watch)
    assert sent_since(world, sent) == []
    repo.tag("v1", "dev", annotated=annotated)
    settled(world, watch)
    assert sent_since(world, sent) == [("create", "b.txt")]
    assert_promise_kept(world, repo, watch, revision="v1")


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
@pytest.mark.parametrize("ref", ["dev", "refs/heads/dev"])
def test_branch_is_followed(world: World, object_format: str, ref: str) -> None:
    repo = world.git.repo("acme/other", FILES, object_format=object_format)
    repo.commit({"a.txt": b"dev"}, branch="dev")
    watch = settled(world, world.watch_url(repo, ref=ref))
    assert (watch.branch, watch.ref) == ("dev", ref)
    assert_promise_kept(world, repo, watch, revision="dev")
    repo.commit({"x.txt": b"x"}, branch="dev")
    assert_promise_kept(world, repo, settled(world, watch), revision="dev")
    repo.force_push({"y.txt": b"y"}, branch="dev")
    assert_promise_kept(world, repo, settled(world, watch), revision="dev")
    assert set(world.copy(watch)) == {"y.txt"}


def test_server_without_protocol_v2(world: World, repo: Repo) -> None:
    world.git.server.speaks_v2 = False
    repo.tag("v2", "dev", annotated=True)
    watches = {ref: world.watch_url(repo, app=world.add_app("Other"), ref=ref) for ref in ("dev", "v2")}
    world.settle()
    repo.commit({"x.txt": b"x"}, branch="dev")
    world.settle()
    for ref, watch in watches.items():
        assert_promise_kept(world, repo, watch, revision=ref)
    with pytest.raises(RefNotFound):
        world.watch_url(repo, ref="gone")


def test_push_hook_finds_a_change_of_the_branch(world: World, repo: Repo) -> None:
    watch = settled(world, world.watch_url(repo, ref="dev"))
    repo.commit({"x.txt": b"x"}, branch="dev")
    assert push_hooks.repository_pushed(Actor.system(), watch.repository.repository_id, [watch.pk]) == 1
    world.sync(watch)
    assert_promise_kept(world, repo, watch, revision="dev")


def test_branch_that_disappears_keeps_the_copy_and_says_so(world: World, repo: Repo) -> None:
    watch = settled(world, world.watch_url(repo, ref="dev"))
    before, gone = world.copy(watch), repo.commit_of("dev")
    repo.delete_ref("refs/heads/dev")
    repo.delete_ref("refs/tags/v1")
    sent = len(world.requests())
    world.check()
    world.sync(watch)
    assert (watch.status, watch.last_error_cause, watch.root_cause) == (
        Status.FAILED,
        "not_found",
        RootCause.GIT_NOT_FOUND,
    )
    assert watch.last_error == (
        'The repository has no branch or tag named "dev". Push it, or choose another branch or tag. Until then, the app '
        "keeps the files it has."
    )
    assert (world.copy(watch), len(world.requests())) == (before, sent)
    assert watch.repository.consecutive_failures == 0
    world.check()
    watch.refresh_from_db()
    assert watch.next_sync_at is not None
    assert watch.next_sync_at > watch.last_scanned_at + timedelta(seconds=60)  # nothing new: no attempt before its time
    git(repo.path, "update-ref", "refs/heads/dev", gone)
    world.check()
    assert AppRepository.objects.due().get() == watch
    world.sync(watch)
    assert_promise_kept(world, repo, watch, revision="dev")
    assert len(world.requests()) == sent


def test_branch_takes_precedence_over_a_tag_of_its_name(world: World, repo: Repo) -> None:
    repo.tag("dev", "main")
    watch = settled(world, world.watch_url(repo, ref="dev"))
    assert_promise_kept(world, repo, watch, revision="refs/heads/dev")
    repo.delete_ref("refs/heads/dev")
    assert_promise_kept(world, repo, settled(world, watch), revision="refs/tags/dev")


# --- Several refs of one repository ----------------------------------------------------------------------------------


@pytest.fixture
def both(world: World, repo: Repo) -> tuple[AppRepository, AppRepository]:
    """Portal follows the default branch, Search follows dev."""
    portal, search = world.watch_url(repo), world.watch_url(repo, app=world.add_app("Search"), ref="dev")
    world.settle()
    return portal, search


def check_both(world: World, repo: Repo, both: tuple[AppRepository, AppRepository]) -> None:
    for watch, revision in zip(both, ("main", "dev"), strict=True):
        assert_promise_kept(world, repo, watch, revision=revision)


def test_two_refs_take_turns_without_a_full_plan(world: World, repo: Repo, both) -> None:
    check_both(world, repo, both)
    world.git.server._log.clear()
    with compare_plans() as plans:
        for number in range(12):
            branch = ("main", "dev")[number % 2]
            repo.commit({f"{branch}-{number}.txt": b"%d" % number, "d/c.txt": b"%d" % number}, branch=branch)
            world.settle()
            check_both(world, repo, both)
    assert all(plan.paths is not None for plan in plans)
    # For each change: two checks, HEAD and objects for one watch, and two checks that find nothing.
    assert len(world.git.server.requests) == 12 * 6
    mirror = mirror_of(both[0].repository)
    assert mirror._git(["fsck", "--strict", "--no-dangling"]) == b""


def test_repacked_mirror_keeps_both_refs(world: World, repo: Repo, both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "MAX_PACKS", 1)
    with compare_plans() as plans:
        for number in range(6):
            repo.commit({"d/c.txt": b"%d" % number}, branch=("main", "dev")[number % 2])
            world.settle()
        check_both(world, repo, both)
    assert all(plan.paths is not None for plan in plans)
    assert len(mirror_of(both[0].repository)._packs()) <= 2


@pytest.mark.parametrize("break_it", ["remove", "truncate"])
def test_mirror_is_rebuilt_for_both_refs(world: World, repo: Repo, both, break_it: str) -> None:
    directory = mirror_of(both[0].repository).directory
    for branch in ("dev", "main", "dev"):
        _break(directory, break_it)
        repo.commit({"d/c.txt": os.urandom(8)}, branch=branch)
        world.settle()
        check_both(world, repo, both)


def _break(directory: Path, how: str) -> None:
    if how == "remove":
        shutil.rmtree(directory)
        return
    for pack in directory.glob("objects/pack/*.pack"):
        pack.chmod(0o600)
        os.truncate(pack, pack.stat().st_size // 2)


def test_branch_that_cannot_be_read_holds_back_no_other(world: World, repo: Repo, both, settings) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 2
    portal, search = both
    settings.MAX_FILES = 20
    repo.commit({f"many/{number}": b"" for number in range(30)}, branch="dev")
    for _ in range(3):
        resync_single(Actor.command(), search)  # a full plan, which counts the files first
        world.sync(search)
        assert (search.status, search.last_error_cause) == (Status.FAILED, "too_large")
        Repository.objects.update(last_failure_at=Now() - timedelta(seconds=1000))
    assert Repository.objects.get().consecutive_failures == 0
    repo.commit({"a.txt": b"changed"})
    world.check()
    assert_promise_kept(world, repo, world.sync(portal))
    # Once both follow it, it is the repository's failure.
    AppRepository.objects.update(ref="dev")
    for watch in both:
        resync_single(Actor.command(), watch)
        world.sync(watch)
    assert Repository.objects.get().consecutive_failures == 1


def test_tag_of_something_other_than_a_commit(world: World, repo: Repo, both) -> None:
    """The mirror is not taken for damaged: it would be rebuilt again and again under the other watches."""
    for name, target in (("of-a-file", "main:a.txt"), ("of-a-folder", "main:d")):
        repo.tag(name, target, annotated=name == "of-a-file")
        watch = world.watch_url(repo, app=world.add_app("Odd"), ref=name)
        for _ in range(2):
            world.sync(watch)
            assert watch.status == Status.FAILED
            assert watch.last_error == (
                f'The tag named "{name}" doesn\'t point to a commit, so it has no files. Choose another branch or tag.'
            )
        assert world.copy(watch) == {}
    with compare_plans() as plans:
        repo.commit({"x.txt": b"x"}, branch="dev")
        repo.commit({"y.txt": b"y"})
        for watch in both:
            world.sync(watch)
        check_both(world, repo, both)
    assert all(plan.paths is not None for plan in plans)


def test_damaged_branch_costs_the_others_the_mirror_only_once(world: World, repo: Repo, both) -> None:
    portal, search = both
    directory = mirror_of(portal.repository).directory
    serve_folder_as_file(repo, "dev")

    def is_kept() -> bool:
        """Return whether the mirror survives an attempt of the damaged branch, then sync the other one."""
        (directory / "is-kept").touch()
        assert world.sync(search).last_error_cause == "corrupt"
        assert "is still unreadable after its mirror was rebuilt" in search.last_error
        kept = (directory / "is-kept").exists()
        repo.commit({"a.txt": os.urandom(8)}, branch="main")
        world.sync(portal)
        return kept

    assert [is_kept() for _ in range(4)] == [False, True, True, True]
    _break(directory, "truncate")
    assert [is_kept() for _ in range(2)] == [False, True]
    # The branch may be readable again although it has not moved: the disk was faulty.
    [note] = directory.glob("docora-unreadable-*")
    old = time.time() - mirrors.UNREADABLE_SECONDS
    os.utime(note, (old, old))
    assert not is_kept()
    repo.force_push({"d/c.txt": b"repaired"}, branch="dev")
    for watch in both:
        world.sync(watch)
    check_both(world, repo, both)


# --- Changing the ref ------------------------------------------------------------------------------------------------


def change(watch: AppRepository, ref: str) -> bool:
    return change_watch(Actor.command(), watch, ref=ref)


def test_change_sends_only_the_differences(world: World, repo: Repo) -> None:
    watch = settled(world, world.watch_url(repo))
    floor = watch.resend_floor
    for ref, revision, expected in [
        ("dev", "dev", [("create", "new.txt"), ("delete", "b.txt"), ("update", "a.txt")]),
        ("v1", "v1", []),
        ("HEAD", "main", [("create", "b.txt"), ("delete", "new.txt"), ("update", "a.txt")]),
        ("refs/tags/v1", "v1", [("create", "new.txt"), ("delete", "b.txt"), ("update", "a.txt")]),
    ]:
        sent = len(world.requests())
        with compare_plans() as plans:
            assert change(watch, ref)
            assert AppRepository.objects.due().get() == watch
            settled(world, watch)
        assert sent_since(world, sent) == expected
        assert all(plan.paths is not None for plan in plans)
        assert_promise_kept(world, repo, watch, revision=revision)
        assert watch.branch == revision
    assert watch.resend_floor == floor
    assert not change(watch, " refs/tags/v1 ")
    assert not AppRepository.objects.due().exists()


def test_change_during_a_run(world: World, repo: Repo) -> None:
    watch = world.watch_url(repo)
    world.answer(at_notification(2, lambda: change(AppRepository.objects.get(), "dev")))
    world.sync(watch)
    world.answer(None)
    assert AppRepository.objects.due().get() == watch
    world.settle()
    assert_promise_kept(world, repo, watch, revision="dev")


def test_change_after_a_worker_died(world: World, repo: Repo) -> None:
    watch = world.watch_url(repo)
    kill_worker(world, watch, lambda note: note.path == "b.txt")
    change(watch, "dev")
    world.settle()
    assert_promise_kept(world, repo, watch, revision="dev")


def test_change_mends_a_failing_watch(world: World, repo: Repo) -> None:
    watch = settled(world, world.watch_url(repo, ref="dev"))
    repo.delete_ref("refs/heads/dev")
    world.sync(watch)
    assert watch.status == Status.FAILED
    with pytest.raises(
        RefNotFound, match=r'no branch or tag named "gone"\. Push it, or choose another branch or tag\.$'
    ):
        change(watch, "gone")
    with pytest.raises(ValidationError, match="can't contain spaces"):
        change(watch, "a b")
    watch.refresh_from_db()
    assert (watch.ref, watch.status) == ("dev", Status.FAILED)
    change(watch, "")
    assert (watch.status, watch.last_error, watch.retry_count) == (Status.PENDING, "", 0)
    assert_promise_kept(world, repo, settled(world, watch))


def test_token_can_be_replaced_while_the_branch_is_gone(world: World, repo: Repo) -> None:
    watch = settled(world, world.watch_url(repo, ref="dev"))
    repo.delete_ref("refs/heads/dev")
    change_watch(Actor.command(), watch, github_token="new")
    assert world.sync(watch).last_error.startswith("The repository has no branch or tag")


def test_only_those_who_may_change_a_watch_change_its_ref(world: World, repo: Repo) -> None:
    watch = world.watch_url(repo)
    user = User.objects.create_user("paul", is_staff=True)
    with pytest.raises(PermissionDenied):
        change_watch(Actor.of_user(user), watch, ref="dev")
    with pytest.raises(PermissionDenied):
        change_watch(Actor.of_app(world.add_app("Other")), watch, ref="dev")
    user.user_permissions.add(Permission.objects.get(codename="change_apprepository"))
    assert change_watch(Actor.of_user(User.objects.get()), watch, ref="dev")
    assert messages(by_users()) == ["Changed the branch or tag to dev"]
    unwatch_repository(Actor.command(), watch)
    with pytest.raises(NotFound):
        change(watch, "")


# --- Watching --------------------------------------------------------------------------------------------------------


def test_missing_ref_is_not_registered(world: World, repo: Repo) -> None:
    with pytest.raises(
        RefNotFound, match=r'no branch or tag named "gone"\. Push it, or choose another branch or tag\.$'
    ):
        world.watch_url(repo, ref="gone")
    with pytest.raises(ValidationError) as caught:
        world.watch_url(repo, ref="-x")
    assert caught.value.code == "ref"
    assert not AppRepository.objects.exists()


def test_private_repository_with_a_ref(world: World) -> None:
    repo = world.git.repo("acme/private", FILES, token="sesame")
    repo.commit({"a.txt": b"dev"}, branch="dev")
    watch = world.watch_url(repo, token="sesame", ref="dev")
    assert watch.repository.is_private
    with pytest.raises(GitError, match="rejected the token"):
        change_watch(Actor.command(), _with_token(watch, "wrong"), ref="main")


def _with_token(watch: AppRepository, token: str) -> AppRepository:
    AppRepository.objects.update(github_token=token)
    watch.refresh_from_db()
    return watch


def test_watching_again_keeps_the_ref_unless_one_is_given(world: World, repo: Repo) -> None:
    watch = settled(world, world.watch_url(repo, ref="dev"))
    assert world.watch_url(repo).ref == "dev"
    assert_promise_kept(world, repo, settled(world, watch), revision="dev")
    assert world.watch_url(repo, ref="v1").ref == "v1"
    assert settled(world, watch).branch == "v1"
    assert watch.resend_floor == watch.generation == 3


def test_revived_watch_starts_with_the_given_ref(world: World, repo: Repo) -> None:
    watch = settled(world, world.watch_url(repo, ref="dev"))
    for ref, revision in (("", "main"), ("v1", "v1")):
        unwatch_repository(Actor.command(), watch)
        assert world.watch_url(repo, ref=ref) == watch
        assert_promise_kept(world, repo, settled(world, watch), revision=revision)
        assert watch.ref == ref


def test_empty_repository_waits_for_its_first_push(world: World) -> None:
    repo = world.git.repo("acme/new")
    watch = world.sync(world.watch_url(repo, ref="dev"))
    assert watch.waits_for_first_commit
    world.check()
    assert not AppRepository.objects.due().exists()
    repo.commit({"a.txt": b"a"})
    world.check()
    assert world.sync(watch).last_error.startswith('The repository has no branch or tag named "dev".')
    repo.commit({"b.txt": b"b"}, branch="dev")
    world.check()
    world.sync(watch)
    assert_promise_kept(world, repo, watch, revision="dev")


def test_repository_that_loses_all_its_refs_keeps_the_copy(world: World, repo: Repo) -> None:
    watch = settled(world, world.watch_url(repo, ref="dev"))
    shutil.rmtree(repo.path)
    world.git.repo(repo.name)
    world.check()
    assert world.sync(watch).last_error == (
        "The repository has no commits. It syncs after the next push to dev. Until then, the app keeps the files it has."
    )
    assert "new.txt" in world.copy(watch)


# --- Admin and command -----------------------------------------------------------------------------------------------


@pytest.fixture
def keeper(db) -> Client:
    return staff("karla", "view_app", "view_apprepository", "add_apprepository", "change_apprepository")


def test_admin_watches_a_branch(world: World, repo: Repo, keeper: Client) -> None:
    form = {"app": world.app.pk, "github_url": repo.url, "github_token": ""}
    assert "Leave blank for the default branch." in keeper.get(f"{WATCHES}add/").text
    page = keeper.post(f"{WATCHES}add/", form | {"ref": "gone"})
    assert page.context["form"].errors.keys() == {"ref"}
    assert "no branch or tag named &quot;gone&quot;" in page.text
    assert keeper.post(f"{WATCHES}add/", form | {"ref": "a..b"}).context["form"].errors.keys() == {"ref"}
    assert keeper.post(f"{WATCHES}add/", form | {"ref": "dev"}).status_code == 302
    assert AppRepository.objects.get().ref == "dev"


def test_admin_changes_the_ref(world: World, repo: Repo, keeper: Client) -> None:
    watch = settled(world, world.watch_url(repo))
    page, url = f"{WATCHES}{watch.pk}/change/", f"{WATCHES}{watch.pk}/ref/"
    assert "Default branch: main" in keeper.get(page).text
    assert url in keeper.get(page).text
    assert "Files that are the same are not sent again" in keeper.get(url).text
    refused = keeper.post(url, {"ref": "gone"})
    assert "no branch or tag named &quot;gone&quot;" in refused.text
    done = keeper.post(url, {"ref": "dev"}, follow=True).text
    assert "Branch or tag saved. A sync is queued." in done
    assert "<dd>dev " in done
    assert 'value="dev"' in keeper.get(url).text
    assert "No changes to save." in keeper.post(url, {"ref": "dev"}, follow=True).text
    assert_promise_kept(world, repo, settled(world, watch), revision="dev")
    reader = staff("rita", "view_apprepository")
    assert url not in reader.get(page).text
    assert (reader.get(url).status_code, reader.post(url, {"ref": ""}).status_code) == (403, 403)


def test_command_watches_a_tag(world: World, repo: Repo) -> None:
    keys = {"repository_id", "github_url", "owner", "name", "is_private", "created_at"}
    assert run_json("watch_repository", world.app.app_id, repo.url, "--ref", "v1").keys() == keys
    assert AppRepository.objects.get().ref == "v1"


def test_ref_is_given_by_the_app_itself(world: World, repo: Repo) -> None:
    actor = Actor.of_app(App.objects.get())
    watch = watch_repository(actor, world.app, repo.url, ref="dev").watch
    assert change_watch(actor, watch, ref="")
