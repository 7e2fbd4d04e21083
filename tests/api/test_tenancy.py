"""No app can see or change another app's watches: a foreign id is a 404, like one that never existed."""

import pytest

from deliveries_app.models import App, AppRepository, SyncRun
from docora.web.errors import NOT_FOUND
from repositories_app.models import Repository, Snapshot
from tests.api.caller import BASE, Caller, error_of
from tests.support.world import World

NOT_WATCHED = "Repository not found: GET /api/repositories lists what this app watches"
CALLS = [
    ("get", "/{}", None),
    ("delete", "/{}", None),
    ("get", "/{}/manifest", None),
    ("post", "/{}/resync", None),
    ("patch", "/{}/token", {"github_token": "stolen"}),
]


@pytest.fixture
def search(watches: list[AppRepository]) -> Caller:
    """Search watches acme/docs, as Portal does. Only Portal watches acme/site."""
    return Caller(watches[2].app)


def call(caller: Caller, verb: str, path: str, body: dict | None):
    return getattr(caller, verb)(path, *([body] if body is not None else []))


@pytest.mark.parametrize(("verb", "path", "body"), CALLS)
def test_repository_of_another_app_is_404(search: Caller, watches, verb: str, path: str, body) -> None:
    before = list(AppRepository.objects.order_by("pk").values())
    foreign = call(search, verb, path.format(watches[1].repository.repository_id), body)
    unknown = call(search, verb, path.format("repo_" + "0" * 24), body)
    assert error_of(foreign, 404) == error_of(unknown, 404) == NOT_WATCHED
    assert list(AppRepository.objects.order_by("pk").values()) == before
    assert not SyncRun.objects.exists()


@pytest.mark.parametrize(("verb", "path", "body"), CALLS)
@pytest.mark.parametrize("identifier", ["%00", "repo_%00", "%ff", "%ED%A0%80", "x" * 3000, "..%2f..", "' or 1=1"])
def test_malformed_id_is_404(search: Caller, verb: str, path: str, body, identifier: str) -> None:
    assert error_of(call(search, verb, path.format(identifier), body), 404) in {NOT_WATCHED, NOT_FOUND}


def test_list_has_own_repositories_only(search: Caller, portal: Caller) -> None:
    assert [row["name"] for row in search.get().json()["repositories"]] == ["docs"]
    assert [row["name"] for row in portal.get().json()["repositories"]] == ["docs", "site"]


@pytest.mark.parametrize(("is_private", "files"), [(True, 0), (False, 7)])
def test_runs_before_the_first_sync_of_a_private_repository_have_no_size(
    search: Caller, watches, is_private: bool, files: int
) -> None:
    """An app can watch a repository that it can't read. Its runs began with the number of files that another app gets."""
    repository = watches[2].repository
    Repository.objects.filter(pk=repository.pk).update(is_private=is_private)
    Snapshot.objects.create(repository=repository, commit_sha="c" * 40, branch="main", file_count=7, total_bytes=70)
    AppRepository.objects.filter(pk=watches[2].pk).update(tree_files=0, tree_bytes=0, last_commit="")
    path = f"/{repository.repository_id}"
    run_id = search.post(f"{path}/resync").json()["run_id"]
    run = search.get(f"{path}/runs/{run_id}").json()
    assert (run["files_total"], run["bytes_total"]) == (files, files * 10)


def watch_unchecked(app: App, url: str) -> Caller:
    headers = {"Prefer": "respond-async"}
    caller = Caller(app)
    answer = caller.client.post(BASE, {"github_url": url}, content_type="application/json", headers=headers)
    assert answer.status_code == 202
    return caller


def resync_size(caller: Caller, watch: AppRepository) -> tuple[int, int]:
    """Return the numbers of files and bytes with which a re-sync begins."""
    path = f"/{watch.repository.repository_id}"
    run = caller.get(f"{path}/runs/{caller.post(f'{path}/resync').json()['run_id']}").json()
    return run["files_total"], run["bytes_total"]


def test_size_of_a_repository_that_has_become_private(world: World) -> None:
    """The only app that watches it has a token, so no sync has noticed. A watch that nothing has checked counts as private."""
    repo = world.git.repo("acme/docs", {"a": b"1", "b": b"2"})
    watch = world.watch_url(repo, token="valid")
    assert not watch.repository.is_private
    world.git.tokens["acme/docs"] = {"valid"}
    repo.commit({"secret": b"3"})
    world.settle()
    stranger = watch_unchecked(world.add_app("Other"), repo.url)
    assert resync_size(stranger, watch) == (0, 0)
    stranger.delete(f"/{watch.repository.repository_id}")
    Repository.objects.update(is_private=False)
    stranger = watch_unchecked(App.objects.get(name="Other"), repo.url)
    assert resync_size(stranger, watch) == (0, 0), "it was watched again before its rows were removed"
    world.git.tokens.clear()
    world.sync(AppRepository.objects.get(app__name="Other"))
    assert not Repository.objects.get().is_private, "it was read without a token"


def test_refusal_without_a_token_shows_that_a_repository_has_become_private(world: World) -> None:
    repo, watch = world.watch({"a": b"1"}, name="acme/docs")
    repository = world.watch_url(repo, app=world.add_app("Other"), token="valid").repository
    world.git.tokens["acme/docs"] = {"valid"}
    world.settle()
    repository.refresh_from_db()
    assert repository.is_private
    world.git.tokens.clear()
    world.sync(watch)
    repository.refresh_from_db()
    assert not repository.is_private


def test_shared_repository_is_changed_for_the_caller_only(search: Caller, watches) -> None:
    path = f"/{watches[2].repository.repository_id}"
    run_id = search.post(f"{path}/resync").json()["run_id"]
    assert SyncRun.objects.get().run_id == run_id
    assert search.delete(path).status_code == 204
    for watch, ended in zip(watches, (False, False, True), strict=True):
        watch.refresh_from_db()
        assert (watch.ended_at is not None) == ended
    assert watches[0].resend_floor == 1
