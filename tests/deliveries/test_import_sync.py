"""The first sync after an import sends exactly the files that differ."""

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection

from deliveries_app.models import App, AppRepository, Delivery, HourlyTraffic, Imported, Reason, Status
from deliveries_app.receiver import Answer
from repositories_app.models import Repository
from tests.api.caller import Caller
from tests.api.test_manifest import lines_of
from tests.deliveries.test_import import progress_of, run
from tests.support.existing import ExistingService
from tests.support.git import Entry, Repo
from tests.support.histories import assert_promise_kept, compare_plans, refusing, sha
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.world import KEY, World

FILES = {f"{number % 3}/{number}.txt": b"content %d" % number for number in range(12)}


def give_copy(world: World, app_id: str, repository_id: str, files: Mapping[str, bytes]) -> None:
    """Put this copy of the repository on the client's disk."""
    folder = world.receiver.directory / app_id / repository_id
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def imported(
    world: World, existing: ExistingService, monkeypatch, files: Mapping[str, bytes], *, url: str = "{}", **changes
) -> tuple[Repo, AppRepository]:
    """Return a repository with these files and its watch, imported with delivery records for all of them."""
    app = existing.app(world.receiver.url, "Moved", key=KEY)
    repo = world.git.repo("acme/imported", files)
    repository = existing.repository(url.format(repo.url))
    existing.watch(app, repository, files, **changes)
    give_copy(world, app.app_id, repository.repository_id, files)
    run(existing, monkeypatch)
    return repo, AppRepository.objects.select_related("app", "repository").get(app__app_id=app.app_id)


def sent(world: World) -> list[tuple[str, str]]:
    return sorted((record.kind, record.path) for record in world.requests())


@pytest.mark.parametrize("status", ["synced", "scanning", "pending_snapshot", "failed"])
def test_nothing_is_sent_if_nothing_differs(world: World, existing: ExistingService, monkeypatch, status: str) -> None:
    repo, watch = imported(world, existing, monkeypatch, FILES, status=status)
    world.check()
    world.sync(watch)
    assert sent(world) == []
    assert_promise_kept(world, repo, watch)
    assert not watch.is_failing


def test_only_differences_are_sent(world: World, existing: ExistingService, monkeypatch) -> None:
    repo, watch = imported(world, existing, monkeypatch, FILES)
    repo.commit({"0/0.txt": b"changed", "1/1.txt": None, "new.txt": b"new", "2/2.txt": FILES["2/2.txt"] + b"!"})
    world.settle()
    assert sent(world) == [
        ("create", "new.txt"), ("delete", "1/1.txt"), ("update", "0/0.txt"), ("update", "2/2.txt"),
    ]  # fmt: skip
    assert {record.reason for record in world.requests()} == {Reason.CHANGE}
    written = ("0/0.txt", "2/2.txt", "new.txt")  # the traffic has no bytes of those that the app held already
    assert sum(HourlyTraffic.objects.values_list("bytes", flat=True)) == sum(
        len(repo.files()[path]) for path in written
    )
    assert_promise_kept(world, repo, watch)


def test_files_that_docora_never_sends_are_deleted(
    world: World, existing: ExistingService, monkeypatch, settings
) -> None:
    """The existing service had delivered them. The handbook mentions this."""
    settings.MAX_FILE_BYTES = 100
    held = {"link": b"a.txt", "large.bin": b"x" * 101, "ignored.log": b"x"}
    repo, _ = imported(world, existing, monkeypatch, FILES | held)
    repo.commit({"link": Entry(b"a.txt", "120000"), ".docoraignore": b"*.log\n"})
    world.settle()
    assert sent(world) == [("create", ".docoraignore"), *(("delete", path) for path in sorted(held))]


def test_adopted_records_allow_a_fast_plan(world: World, existing: ExistingService, monkeypatch) -> None:
    repo, watch = imported(world, existing, monkeypatch, FILES)
    caller = Caller(watch.app)
    manifest = f"/{watch.repository.repository_id}/manifest"
    assert {(line["sha"], line["size"]) for line in lines_of(caller.get(manifest))} == {
        (sha(content), None) for content in FILES.values()
    }
    world.settle()
    assert {line["path"]: (line["sha"], line["size"]) for line in lines_of(caller.get(manifest))} == {
        path: (sha(content), len(content)) for path, content in FILES.items()
    }
    assert not Delivery.objects.filter(source_key=None).exists()
    watch.refresh_from_db()
    assert (watch.tree_files, watch.tree_bytes) == (len(FILES), sum(map(len, FILES.values())))
    repo.commit({"0/0.txt": b"changed"})
    with compare_plans() as plans:
        world.settle()
    assert [plan.paths for plan in plans] == [[b"0/0.txt"]]
    assert sent(world) == [("update", "0/0.txt")]
    assert_promise_kept(world, repo, watch)


def test_adopted_record_keeps_its_last_notification(world: World, existing: ExistingService, monkeypatch) -> None:
    """Nothing is sent for it, so nothing else may be shown as last sent."""
    repo, watch = imported(world, existing, monkeypatch, FILES)
    sent_before = last_notifications(watch)
    assert {(kind, sequence) for kind, sequence, _ in sent_before.values()} == {("create", 0)}
    repo.commit({"0/0.txt": b"changed"})
    world.settle()
    sent_since = {path: last for path, last in last_notifications(watch).items() if last != sent_before[path]}
    assert sent_since.keys() == {"0/0.txt"}


def last_notifications(watch: AppRepository) -> dict[str, tuple[object, ...]]:
    rows = Delivery.objects.filter(watch=watch)
    return {path: tuple(last) for path, *last in rows.values_list("path", "kind", "sequence", "updated_at")}


def test_second_move_into_an_empty_database_continues_the_clients_copy(
    world: World, existing: ExistingService, monkeypatch
) -> None:
    """As the handbook says for moving over again. Under another watch id, the client would drop its copy and be sent nothing."""
    repo, _ = imported(world, existing, monkeypatch, FILES)
    repo.commit({"0/0.txt": b"changed"})
    world.settle()
    for model in (AppRepository, App, Repository, Imported):  # as in an empty database
        model.objects.all().delete()
    repo.commit({"1/1.txt": b"changed"})
    run(existing, monkeypatch)
    world.settle()
    assert sent(world) == [("update", "0/0.txt"), ("update", "0/0.txt"), ("update", "1/1.txt")]
    assert_promise_kept(world, repo, AppRepository.objects.select_related("app", "repository").get())


def test_chunked_files_are_adopted(world: World, existing: ExistingService, monkeypatch, settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 100, 100
    large = {"large.bin": bytes(range(256)) * 3, "large.txt": b"a line of text\n" * 40, "other.bin": b"\xff" * 700}
    repo, watch = imported(world, existing, monkeypatch, large | FILES)
    repo.commit({"other.bin": b"\xfe" * 700})
    world.settle()
    assert set(sent(world)) == {("update", "other.bin")}
    assert_promise_kept(world, repo, watch)


def test_record_is_adopted_in_a_fast_plan(world: World, existing: ExistingService, monkeypatch) -> None:
    """The refused delete of `docs` blocks the files below it, so they are not compared in the run that sets the base."""
    repo, watch = imported(world, existing, monkeypatch, FILES)
    below = {"docs/a.txt": b"a", "docs/b.txt": b"b"}
    fields = {"mode": "100644", "kind": "create", "size": 0, "sequence": 0, "generation": 1, "acknowledged": True}
    for path, content in {"docs": b"was a file", **below}.items():
        digest = sha(content)
        Delivery.objects.create(
            watch=watch, path=path, sha=digest, acknowledged_sha=digest, updated_at=watch.created_at, **fields
        )
    repo.commit(below)
    world.answer(refusing("docs"))
    world.sync(watch)
    assert set(sent(world)) == {("delete", "docs")}
    assert set(Delivery.objects.filter(source_key=None, acknowledged=True).values_list("path", flat=True)) == set(below)
    world.answer(None)
    give_copy(world, watch.app.app_id, watch.repository.repository_id, below)
    with compare_plans() as plans:
        world.sync(watch)
    assert plans[0].paths is not None
    assert set(sent(world)) == {("delete", "docs")}
    assert not Delivery.objects.filter(source_key=None).exists()


def test_interrupted_adoption_continues(world: World, existing: ExistingService, monkeypatch, settings) -> None:
    settings.RECORD_BATCH, settings.MAX_RETRY_ATTEMPTS = 2, 5
    repo, watch = imported(world, existing, monkeypatch, FILES)
    repo.commit({"0/3.txt": b"changed"})
    world.answer(lambda note: Answer(503, headers={"Retry-After": "60"}))
    world.sync(watch)
    world.answer(None)
    world.settle()
    assert {path for _, path in sent(world)} == {"0/3.txt"}
    assert_promise_kept(world, repo, watch)


def test_transformed_content_is_compared(world: World, existing: ExistingService, monkeypatch, settings) -> None:
    settings.FILE_TRANSFORMS = ["tests.support.transforms.Shout"]
    repo, watch = imported(world, existing, monkeypatch, {"a.txt": b"ALREADY LOUD", "b.txt": b"quiet"})
    world.settle()
    assert sent(world) == [("update", "b.txt")]
    assert repo.files()["b.txt"] == b"quiet"
    assert world.copy(watch)["b.txt"] == sha(b"QUIET")


def test_lossy_copy_is_not_sent_again_before_a_resync(world: World, existing: ExistingService, monkeypatch) -> None:
    """Its record has the SHA-256 of the original bytes, which the client never received."""
    latin = "Füße".encode("latin-1")
    repo, watch = imported(world, existing, monkeypatch, {"a.txt": latin})
    world.settle()
    assert sent(world) == []
    call_command("resync", watch.app.app_id, watch.repository.repository_id, yes=True)
    world.settle()
    assert sent(world) == [("create", "a.txt")]
    assert repo.files()["a.txt"] == latin


def test_two_spellings_are_delivered_under_their_own_ids(world: World, existing: ExistingService, monkeypatch) -> None:
    app = existing.app(world.receiver.url, "Moved", key=KEY)
    repo = world.git.repo("acme/imported", FILES)
    rows = [existing.repository(f"{repo.url}{suffix}") for suffix in ("", ".git")]
    for row in rows:
        existing.watch(app, row, FILES)
    run(existing, monkeypatch)
    repo.commit({"0/0.txt": b"changed"})
    seen: list[tuple[str, str]] = []
    world.answer(lambda note: seen.append((note.payload["repository"]["repository_id"], note.path)))
    world.settle()
    assert sorted(seen) == sorted((row.repository_id, "0/0.txt") for row in rows)
    caller = Caller(AppRepository.objects.all()[0].app)
    for row in rows:
        answer = caller.get(f"/{row.repository_id}").json()
        assert (answer["repository_id"], answer["github_url"], answer["status"]) == (
            row.repository_id,
            row.url,
            "synced",
        )


REPOSITORIES, EACH = 21, 400


@pytest.fixture
def daemons(world: World, instance_environment, tmp_path: Path, settings):
    changed = {"REPOS_DIR": str(settings.REPOS_DIR), "SWEEP_INTERVAL_SECONDS": "1", "LOG_LEVEL": "warning"}
    daemons = Daemons(tmp_path, instance_environment | changed)
    yield daemons
    daemons.close()


@pytest.mark.timeout(300)
def test_three_apps_with_many_repositories(
    world: World, existing: ExistingService, monkeypatch, daemons: Daemons
) -> None:
    """With a sweep and two workers, each in its own process."""
    amount = REPOSITORIES if connection.vendor == "postgresql" else 4
    apps = [existing.app(world.receiver.url, name, key=KEY) for name in ("Portal", "Search", "Archive")]
    files = {f"folder-{n % 20}/file-{n:03}.txt": b"content of %d\n" % n for n in range(EACH)}
    first = world.git.repo("acme/number-00", files)
    repos = [
        first,
        *(
            Repo(f"acme/number-{n:02}", first.path.with_name(f"number-{n:02}.git"), first.server)
            for n in range(1, amount)
        ),
    ]
    for repo in repos[1:]:
        shutil.copytree(first.path, repo.path)
    for number, repo in enumerate(repos):
        app, repository = apps[number % 3], existing.repository(repo.url)
        existing.watch(app, repository, files)
        give_copy(world, app.app_id, repository.repository_id, files)
    expected = []
    for number, repo in enumerate(repos[::5]):
        changes = {"folder-1/file-001.txt": b"changed", "folder-2/file-002.txt": None, f"new/{number}.txt": b"new"}
        repo.commit(changes)
        kinds = dict(zip(changes, ("update", "delete", "create"), strict=True))
        expected += [(repo.name, path, kind) for path, kind in kinds.items()]
    assert progress_of(run(existing, monkeypatch)) == {
        "apps": (3, 0, 0), "repositories": (amount, 0, 0), "watches": (amount, 0, 0), "files": (amount * EACH, 0, 0),
    }  # fmt: skip
    for arguments in (("sweep",), ("rqworker", "high", "default", "low"), ("rqworker", "high", "low", "default")):
        daemons.start(*arguments)
    synced = AppRepository.objects.filter(app__app_id__in=[app.app_id for app in apps], status=Status.SYNCED)
    wait_for(lambda: synced.exclude(base_commit="").count() == amount, 200, 0.2)
    assert Counter((record.repository, record.path, record.kind) for record in world.requests()) == Counter(expected)
    for number, repo in enumerate(repos):
        watch = AppRepository.objects.select_related("app", "repository").get(
            repository__name=repo.name.partition("/")[2], app__app_id=apps[number % 3].app_id
        )
        assert_promise_kept(world, repo, watch)
