"""Import the existing service's rows: apps, then repositories, then watches with their delivery records.

A report says what was imported, what was already here, and what was left out and why.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from deliveries_app.actors import Actor
from deliveries_app.importing import validate, write
from deliveries_app.importing.source import (
    Source,
    SourceApp,
    SourceError,
    SourceFile,
    SourceKey,
    SourceRecords,
    SourceRepository,
    SourceWatch,
)
from deliveries_app.importing.validate import Refused
from deliveries_app.models import App, AppRepository, AppToken, Imported
from deliveries_app.permissions import Permission
from docora.conf.installation import program
from docora.security.redaction import redact
from docora.text import clean_text, counted
from repositories_app.git.url import RepositoryUrl
from repositories_app.models import Repository

logger = logging.getLogger(__name__)

Advance = Callable[[int], None]

MAX_LISTED = 200  # files among the problems; more are only counted. Apps, repositories and watches are few.

LOSSY_COPIES_NOTE = (
    "The existing service delivered files that are neither UTF-8 nor on its list of binary types in a lossy form, and "
    "recorded them like all others, so Docora does not send them again. If an app needs them intact, send everything "
    f"again with `{program()} resync APP_ID [REPOSITORY_ID]`."
)


@dataclass(frozen=True)
class Item:
    """An entry of the report. `what` is the kind of object, such as `app`; `name` identifies it."""

    what: str
    name: str
    reason: str


@dataclass
class Counts:
    """How many objects were imported (or would be), were already here and stay unchanged, and were left out."""

    taken: int = 0
    here: int = 0
    left: int = 0


@dataclass
class Report:
    """The result of an import.

    `problems` were not imported, or only in part. `remarks` are about rows that were, about what was removed here, and about
    records of no imported watch.
    """

    dry_run: bool = False
    apps: Counts = field(default_factory=Counts)
    repositories: Counts = field(default_factory=Counts)
    watches: Counts = field(default_factory=Counts)
    files: Counts = field(default_factory=Counts)
    problem_count: int = 0
    problems: list[Item] = field(default_factory=list)
    remarks: list[Item] = field(default_factory=list)
    _files_left_out = 0  # not a field: not a part of `as_dict`

    def problem(self, what: str, name: str, reason: str) -> None:
        self.problem_count += 1
        if what == "file":
            self._files_left_out += 1
            if self._files_left_out > MAX_LISTED:
                return
        self.problems.append(Item(what, name, reason))

    def remark(self, what: str, name: str, reason: str) -> None:
        self.remarks.append(Item(what, name, reason))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-serializable data."""
        return asdict(self) | {"remark_count": len(self.remarks), "lossy": LOSSY_COPIES_NOTE}


def run_import(actor: Actor, source: Source, key: SourceKey, *, dry_run: bool, advance: Advance) -> Report:
    """Import everything that is not here and was never imported before.

    A dry run reads, decrypts and validates, but writes nothing. `advance` is called with the number of delivery records
    processed since its last call. Raises `SourceError`, before it writes anything, if the key decrypts none of the secrets.
    """
    actor.require(Permission.REGISTER_APPS)
    actor.require(Permission.WATCH)
    _check_key(source, key)
    report = Report(dry_run)
    run = _Import(actor, source, key, report, advance)
    run.import_apps()
    run.import_repositories()
    run.import_watches()
    if not dry_run:
        run.report_deliveries_meanwhile()
        counts = {name: getattr(report, name).taken for name in ("apps", "repositories", "watches", "files")}
        logger.info("imported", extra={**counts, "by": actor.name, "problems": report.problem_count})
    return report


def _check_key(source: Source, key: SourceKey) -> None:
    """Raise `SourceError` if the key decrypts none of the secrets. Single damaged secrets are reported with their rows."""
    stored = source.secrets()
    first = next(stored, None)
    if first is None or key.decrypt(first) is not None or any(key.decrypt(other) is not None for other in stored):
        return
    raise SourceError(
        "The encryption key decrypts none of the stored secrets, so it is not this service's ENCRYPTION_KEY."
    )


@dataclass
class _Repository:
    """A repository of the source and its row here.

    `row` is None if the repository was imported before and was removed with its last watch. It is recreated only for a
    watch that is imported for the first time.
    """

    source: SourceRepository
    url: RepositoryUrl
    row: Repository | None


class _Import:
    """The state of one import, keyed by the `id` of the source's rows. A dry run creates unsaved rows without a primary key."""

    def __init__(self, actor: Actor, source: Source, key: SourceKey, report: Report, advance: Advance) -> None:
        self._actor, self._source, self._key, self._on_advance = actor, source, key, advance
        self.report = report
        self._dry = report.dry_run
        self._apps: dict[str, tuple[SourceApp, App]] = {}
        self._removed_apps: set[str] = set()
        self._names: dict[str, str] = {}  # of all apps and repositories of the source
        self._token_hashes: set[str] = set()
        self._repositories: dict[str, _Repository] = {}
        self._canonical_urls: set[str] = set()  # imported so far
        self._records: dict[tuple[str, str], SourceRecords] = {}
        self._imported: dict[tuple[str, str], str] = {}  # names of the watches, by the keys of their records
        self._files_seen = 0
        self._continued: set[int] = set()  # incomplete watches that a dry run would complete

    def import_apps(self) -> None:
        for source in self._source.apps():
            name = f"{clean_text(source.app_name, 100)} ({clean_text(source.app_id, 50)})".lstrip()
            self._names[source.id] = name
            app = App.objects.filter(app_id=source.app_id).first()
            if _was_removed(app, source.app_id):
                self._removed_apps.add(source.id)
                self._leave_out_removed(
                    self.report.apps, "app", name, "removed here since. It stays removed, with its watches."
                )
                continue
            if app is not None:
                self.report.apps.here += 1
                if not app.tokens.exists():  # it was imported without one, and still has none
                    self._token_hash(source, name)
            else:
                app = self._import_app(source, name)
            if app is not None:
                self._apps[source.id] = source, app
                self._token_hashes.add(source.token_hash)

    def _import_app(self, source: SourceApp, name: str) -> App | None:
        try:
            app = validate.validate_app(source, self._key, partial(self.report.remark, "app", name))
        except Refused as error:
            self._leave_out(self.report.apps, "app", name, error)
            return None
        token_hash = self._token_hash(source, name)
        self.report.apps.taken += 1
        if not self._dry:
            write.write_app(self._actor, app, source.created_at, token_hash)
        return app

    def _token_hash(self, source: SourceApp, name: str) -> str:
        """Return the hash of the app's token. If it is unusable, report why and return an empty string."""
        problem = partial(self.report.problem, "app", name)
        token_hash = validate.validate_token_hash(source, problem)
        # The first use of a token here replaces its hash with a digest, so compare with the source's hashes as well.
        is_known = token_hash in self._token_hashes or AppToken.objects.filter(digest=token_hash).exists()
        if token_hash and is_known:
            problem("Another app has the same token and keeps it. Rotate this app's token.")
            return ""
        return token_hash

    def import_repositories(self) -> None:
        for source in self._source.repositories():
            name = self._names[source.id] = _spelled(source)
            try:
                url = validate.validate_repository(source)
            except Refused as error:
                self._leave_out(self.report.repositories, "repository", name, error)
                continue
            row = Repository.objects.filter(repository_id=source.repository_id).first()
            repository = self._repositories[source.id] = _Repository(source, url, row)
            if row is not None:
                self.report.repositories.here += 1
            elif not Imported.objects.filter(repository_id=source.repository_id).exists():
                self._import_repository(repository)

    def _import_repository(self, repository: _Repository) -> Repository:
        self.report.repositories.taken += 1
        source, url = repository.source, repository.url
        if url.canonical in self._canonical_urls or write.next_twin(url):
            reason = (
                f"Another spelling of a repository that already has a different id. {source.repository_id} is kept."
            )
            self.report.remark("repository", _spelled(source), reason)
        self._canonical_urls.add(url.canonical)
        repository.row = Repository() if self._dry else write.write_repository(source, url)
        return repository.row

    def import_watches(self) -> None:
        self._records = self._source.records
        unclaimed = dict(self._records)
        for source in self._source.watches():
            if source.app in self._removed_apps:  # the remark about the app covers its watches
                self.report.watches.left += 1
                continue
            app, repository = self._apps.get(source.app or ""), self._repositories.get(source.repository or "")
            if app is None or repository is None:
                missing = "app" if app is None else "repository"
                of_repository = self._names.get(source.repository or "") or clean_text(source.raw_repository, 50)
                of_app = self._names.get(source.app or "") or clean_text(source.raw_app, 50)
                name = f"{of_repository} of {of_app}"
                self._leave_out(self.report.watches, "watch", name, f"Its {missing} was not imported.")
                continue
            key = self._source.file_key(app[0], repository.source)
            self._import_watch(source, app[1], repository, key, unclaimed.pop(key, SourceRecords()))
        self.report.repositories.left += sum(repository.row is None for repository in self._repositories.values())
        orphans = sum(records.number for records in unclaimed.values())
        if orphans:
            self.report.files.left += orphans
            self.report.remark(
                "files", counted(orphans, "record"), "Left out, because they belong to no imported watch."
            )
            self._advance(orphans)
        self._report_incomplete()

    def _report_incomplete(self) -> None:
        """Report watches that an interrupted import left incomplete and this import did not find in the source."""
        incomplete = AppRepository.objects.filter(arriving=True, ended_at=None).select_related("app")
        for watch in incomplete.exclude(pk__in=self._continued).order_by("pk"):
            reason = (
                "An earlier import was interrupted before it had stored all records, and this one can't continue it. Nothing "
                "is sent until an import does, or you stop watching the repository here and watch it again."
            )
            self.report.problem("watch", f"{watch.github_url} of {watch.app.name}", reason)

    def _import_watch(
        self,
        source: SourceWatch,
        app: App,
        repository: _Repository,
        key: tuple[str, str],
        records: SourceRecords,
    ) -> None:
        name, (count, last_delivery) = f"{_spelled(repository.source)} of {app.name}", records
        saved = app.pk is not None and repository.row is not None and repository.row.pk is not None
        watch = AppRepository.objects.filter(app=app, repository=repository.row).first() if saved else None
        if watch is not None and not self._dry:  # the app may have watched it here itself, and may unwatch it later
            write.note_imported(app, repository.source.repository_id)
        if _was_removed(watch, app.app_id, repository.source.repository_id):
            self._leave_out_removed(self.report.watches, "watch", name, "unwatched here since. It stays unwatched.")
            self.report.files.left += count
            self._advance(count)
            return
        problem = partial(self.report.problem, "watch", name)
        if watch is not None and not watch.arriving:
            if not watch.github_token:  # report a token again that was left out and has not been entered since
                validate.validate_token_of(source, self._key, problem)
            self.report.watches.here += 1
            if last_delivery and not write.began_after(last_delivery, app, repository.source.repository_id):
                reason = (
                    "The existing service has delivered files of it since it was imported or watched here. Docora doesn't "
                    "know of that: re-sync it, in case the app has old content."
                )
                self.report.remark("watch", name, reason)
            if watch.deliveries.count() >= count:
                self.report.files.here += count
                self._advance(count)
            else:  # report records again that were left out
                self.report.files.here += sum(1 for _ in self._files(name, key))
            return
        row = repository.row or self._import_repository(repository)
        token = validate.validate_token_of(source, self._key, problem)
        state = validate.initial_state(source, partial(self.report.remark, "watch", name))
        files, left_before, seen_before = self._files(name, key), self.report.files.left, self._files_seen
        if self._dry:
            taken, completed = sum(1 for _ in files), True
            if watch:
                self._continued.add(watch.pk)
        else:
            watch = watch or write.begin_watch(app, row, repository.url.spelled, token)
            taken = write.write_records(watch, files) if watch else 0
            completed = watch is not None and write.complete_watch(
                self._actor, watch, source, state, token, has_records=count > 0
            )
        if not completed:
            reason = "It was unwatched here during the import, its app or repository was removed, or another import completed it."
            self._leave_out(self.report.watches, "watch", name, reason)
            self.report.files.left = left_before + count
            self._advance(seen_before + count - self._files_seen)
            return
        self.report.watches.taken += 1
        self.report.files.taken += taken
        self._imported[key] = name

    def report_deliveries_meanwhile(self) -> None:
        """Report watches of which the existing service has delivered files since the import began: it still runs."""
        self._source.renew()
        for key, records in self._source.records.items():
            before = self._records.get(key, SourceRecords())
            if key in self._imported and records.last_delivery != before.last_delivery:
                reason = (
                    "The existing service has delivered files of it during the import. Stop that service, then re-sync "
                    "the repository, in case the app has old content."
                )
                self.report.problem("watch", self._imported[key], reason)

    def _files(self, name: str, key: tuple[str, str]) -> Iterator[SourceFile]:
        """Yield the delivery records that can be imported, and report the others."""
        for file in self._source.files(key):
            self._advance(1)
            try:
                yield validate.validate_file(file)
            except Refused as error:
                self._leave_out(self.report.files, "file", f"{clean_text(file.path, 200)} in {name}", error)

    def _advance(self, files: int) -> None:
        self._files_seen += files
        self._on_advance(files)

    def _leave_out(self, counts: Counts, what: str, name: str, reason: object) -> None:
        """Count a row as left out and report why, as a problem."""
        counts.left += 1
        self.report.problem(what, name, str(reason))

    def _leave_out_removed(self, counts: Counts, what: str, name: str, removal: str) -> None:
        """Count a row as left out because it was removed here on purpose: a remark, not a problem."""
        counts.left += 1
        self.report.remark(what, name, f"It was imported before and has been {removal}")


def _was_removed(row: App | AppRepository | None, app_id: str, repository_id: str = "") -> bool:
    """Return whether the row is being removed, or was imported before and no longer exists."""
    if row is not None:
        return row.ended_at is not None
    return Imported.objects.filter(app_id=app_id, repository_id=repository_id).exists()


def _spelled(repository: SourceRepository) -> str:
    """Return the URL for display, without the credentials that it may contain."""
    return clean_text(redact(repository.github_url), 200)
