"""PUT: watch a repository as wanted, and change nothing if the app already does."""

from django.db import connection
from django.test.utils import CaptureQueriesContext

from deliveries_app.models import AppRepository, AuditAction, SyncRun
from repositories_app.models import Repository
from tests.api.caller import Caller, code_of, error_of
from tests.support.audit import by_apps
from tests.support.world import World


def test_second_put_changes_nothing(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/docs", {"a": b"1"})
    first = caller.put({"github_url": repo.url})
    assert first.status_code == 201
    world.settle()
    before, sent = list(AppRepository.objects.values()), len(world.requests())
    again = caller.put({"github_url": repo.url})
    assert again.status_code == 200
    assert again.json()["repository_id"] == first.json()["repository_id"]
    assert again.json()["status"] == "synced"
    assert list(AppRepository.objects.values()) == before
    world.settle()
    assert len(world.requests()) == sent
    assert SyncRun.objects.count() == 1


def test_new_token_is_checked_and_nothing_is_sent_again(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/private", {"a": b"1"}, token="first")
    caller.put({"github_url": repo.url, "github_token": "first"})
    world.settle()
    world.git.tokens["acme/private"] = {"second"}
    refused = caller.put({"github_url": repo.url, "github_token": "wrong"})
    assert code_of(refused, 404) == "token_rejected"
    assert AppRepository.objects.get().github_token == "first"
    assert caller.put({"github_url": repo.url, "github_token": "second"}).status_code == 200
    world.settle()
    assert AppRepository.objects.get().github_token == "second"
    assert len(world.requests("create")) == 1
    before = list(AppRepository.objects.values())
    assert caller.put({"github_url": repo.url, "github_token": "second"}).status_code == 200
    assert list(AppRepository.objects.values()) == before, "it is not new"


def test_token_that_is_left_out_stays_and_null_removes_it(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/open", {"a": b"1"})
    caller.put({"github_url": repo.url, "github_token": "any"})
    caller.put({"github_url": repo.url})
    assert AppRepository.objects.get().github_token == "any"
    caller.put({"github_url": repo.url, "github_token": None})
    assert AppRepository.objects.get().github_token == ""
    assert by_apps(message="Changed the repository's token").count() == 1


def test_other_spelling_is_kept_without_a_sync(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/docs", {"a": b"1"})
    caller.put({"github_url": repo.url})
    world.settle()
    sent = len(world.requests())
    assert caller.put({"github_url": f"{repo.url}.git"}).json()["github_url"] == f"{repo.url}.git"
    world.settle()
    assert len(world.requests()) == sent


def test_repository_that_was_unwatched_is_watched_again(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/docs", {"a": b"1"})
    watched = caller.put({"github_url": repo.url}).json()
    world.settle()
    caller.delete(f"/{watched['repository_id']}")
    assert caller.put({"github_url": repo.url}).status_code == 201
    world.settle()
    assert len(world.requests("create")) == 2


def test_unknown_fields_are_refused_and_named(portal: Caller) -> None:
    message = error_of(portal.put({"github_url": "https://github.com/a/b", "branch_name": "x", "url": 1}), 422)
    assert message == "The field branch_name is not known; The field url is not known"


def test_post_still_ignores_unknown_fields(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/docs", {"a": b"1"})
    assert caller.post("", {"github_url": repo.url, "branch_name": "x"}).status_code == 201


def test_branch_and_patterns_send_what_they_change(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/docs", {"a.md": b"1", "b.png": b"2"})
    repo.commit({"b.png": b"2", "c.md": b"3"}, branch="next")
    watched = caller.put({"github_url": repo.url, "exclude_patterns": ["*.png"]}).json()
    assert (watched["ref"], watched["include_patterns"], watched["exclude_patterns"]) == (None, [], ["*.png"])
    world.settle()
    watch = AppRepository.objects.get()
    assert set(world.copy(watch)) == {"a.md"}
    changed = caller.put({"github_url": repo.url, "ref": "next"}).json()
    assert (changed["ref"], changed["exclude_patterns"]) == ("next", ["*.png"])
    world.settle()
    assert set(world.copy(watch)) == {"c.md"}
    caller.put({"github_url": repo.url, "exclude_patterns": None, "include_patterns": ["b*", "c*"]})
    world.settle()
    assert set(world.copy(watch)) == {"b.png", "c.md"}
    sent = len(world.requests())
    same = {"github_url": repo.url, "ref": "next", "include_patterns": ["b*", "c*"], "exclude_patterns": []}
    assert caller.put(same).status_code == 200
    world.settle()
    assert len(world.requests()) == sent
    assert len(world.requests("create")) == 3  # nothing was sent twice
    caller.put({"github_url": repo.url, "ref": None})
    world.settle()
    assert set(world.copy(watch)) == {"b.png"}


def test_status_stays_synced_until_the_sync_of_a_change_begins(world: World, caller: Caller) -> None:
    """So an app that waits for its change can't wait for `status` alone, and the reference says so."""
    repo = world.git.repo("acme/docs", {"a.md": b"1", "b.txt": b"2"})
    caller.put({"github_url": repo.url})
    world.settle()
    wanted = {"github_url": repo.url, "exclude_patterns": ["*.md"]}
    changed = caller.put(wanted).json()
    assert changed["status"] == "synced"
    assert changed["next_sync_at"]
    world.settle()
    settled = caller.put(wanted).json()
    assert (settled["status"], settled["next_sync_at"], settled["files"]) == ("synced", None, 1)
    statuses = caller.client.get("/docs/webhooks/").text.partition('id="statuses"')[2].partition('id="limits"')[0]
    assert "is <code>synced</code> and <code>next_sync_at</code> is null" in statuses


def test_branch_that_does_not_exist_is_404(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/docs", {"a.md": b"1"})
    assert code_of(caller.put({"github_url": repo.url, "ref": "none"}), 404) == "ref_not_found"
    assert not AppRepository.objects.exists()
    caller.put({"github_url": repo.url})
    assert code_of(caller.put({"github_url": repo.url, "ref": "none"}), 404) == "ref_not_found"
    assert AppRepository.objects.get().ref == ""


def test_refused_branch_leaves_the_token_unchanged(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/private", {"a": b"1"}, token="first")
    caller.put({"github_url": repo.url, "github_token": "first"})
    world.git.tokens["acme/private"] = {"first", "second"}
    wanted = {"github_url": repo.url, "github_token": "second", "ref": "none"}
    assert code_of(caller.put(wanted), 404) == "ref_not_found"
    assert AppRepository.objects.get().github_token == "first"
    repo.commit({"a": b"2"}, branch="next")
    assert caller.put(wanted | {"ref": "next"}).json()["ref"] == "next"
    assert AppRepository.objects.get().github_token == "second"


def test_malformed_ref_and_patterns_are_422(portal: Caller) -> None:
    url = "https://127.0.0.1/acme/docs"
    assert code_of(portal.put({"github_url": url, "ref": "a..b"}), 422) == "invalid_request"
    for pattern in ("a\nb", "a\rb", "a\0b"):
        message = error_of(portal.put({"github_url": url, "include_patterns": ["*.md", pattern]}), 422)
        assert message == "The field include_patterns.1 must be a single line without NUL"
    assert "must be a list" in error_of(portal.put({"github_url": url, "include_patterns": "*.md"}), 422)


def test_patterns_are_returned_as_they_were_sent(world: World, caller: Caller) -> None:
    """U+2028 is a line break for Python, but an ordinary character in the name of a file."""
    repo = world.git.repo("acme/docs", {"a.md": b"1"})
    patterns = ["a\u2028b", "", "c d/*"]
    watched = caller.put({"github_url": repo.url, "exclude_patterns": patterns}).json()
    assert watched["exclude_patterns"] == patterns
    assert watched["include_patterns"] == []


def test_each_spelling_left_by_an_import_has_its_own_watch(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/docs", {"a.md": b"1", "b.png": b"2"})
    for twin, url in enumerate((repo.url, f"{repo.url}.git")):
        row = Repository.objects.create(canonical_url=repo.url, twin=twin, owner="acme", name="docs")
        AppRepository.objects.create(app=world.app, repository=row, github_url=url)
    plain, dotted = AppRepository.objects.order_by("pk")
    answer = caller.put({"github_url": dotted.github_url, "include_patterns": ["*.md"]})
    assert answer.json()["repository_id"] == dotted.repository.repository_id
    for watch, patterns in ((plain, ""), (dotted, "*.md")):
        before = watch.github_url
        watch.refresh_from_db()
        assert (watch.github_url, watch.include_patterns.strip()) == (before, patterns)


def test_all_changes_of_one_put_are_stored_together(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/docs", {"a.md": b"1", "b.png": b"2"})
    repo.commit({"b.png": b"2", "c.md": b"3"}, branch="next")
    caller.put({"github_url": repo.url})
    world.settle()
    wanted = {"github_url": f"{repo.url}.git", "github_token": "any", "ref": "next", "exclude_patterns": ["*.png"]}
    with CaptureQueriesContext(connection) as captured:
        assert caller.put(wanted).status_code == 200
    written = [query["sql"] for query in captured if query["sql"].startswith('UPDATE "deliveries_app_apprepository"')]
    assert len(written) == 1
    assert by_apps(action=AuditAction.WATCH_CHANGED).count() == 4
    world.settle()
    assert set(world.copy(AppRepository.objects.get())) == {"c.md"}
