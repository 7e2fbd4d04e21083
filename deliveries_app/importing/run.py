"""Going through the existing service's rows, in the order in which they refer to each other."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from deliveries_app.actors import Actor
from deliveries_app.importing import validate, write
from deliveries_app.importing.report import Report, Tally
from deliveries_app.importing.source import (
    Source,
    SourceApp,
    SourceFile,
    SourceKey,
    SourceRepository,
    SourceWatch,
    WrongKey,
)
from deliveries_app.importing.validate import Refused
from deliveries_app.models import App, AppRepository, AppToken, Imported
from docora.security.redaction import redact
from docora.text import clean_text
from repositories_app.git.url import RepositoryUrl
from repositories_app.models import Repository

logger = logging.getLogger(__name__)

Advance = Callable[[int], None]


def move_over(
    actor: Actor, source: Source, key: SourceKey, *, dry_run: bool = False, advance: Advance = lambda _: None
) -> Report:
    """Take everything that is not here yet and was not taken before. `dry_run` reads, decrypts and judges all the same,
    and writes nothing.

    `advance` is told of delivered files that were seen to. Raises `WrongKey` before anything is written.
    """
    actor.require("deliveries_app.onboard_app")
    actor.require("deliveries_app.add_apprepository")
    _check_key(source, key)
    move = _Move(actor, source, key, Report(dry_run), advance)
    move.take_apps()
    move.take_repositories()
    move.take_watches()
    if not dry_run:
        told = {name: getattr(move.report, name).taken for name in ("apps", "repositories", "watches", "files")}
        logger.info("imported", extra={**told, "by": actor.name, "problems": move.report.problem_count})
    return move.report


def _check_key(source: Source, key: SourceKey) -> None:
    """A key that opens nothing at all is the wrong one; a single damaged secret is a matter of its row."""
    stored = source.secrets()
    first = next(stored, None)
    if first is None or key.decrypt(first) is not None or any(key.decrypt(other) is not None for other in stored):
        return
    raise WrongKey("The encryption key opens none of the stored secrets: it is not the ENCRYPTION_KEY of this service.")


@dataclass
class _Repository:
    """A row of the source with ours. There is none where it was taken and has gone from here with its last watch: it is
    made anew only for a watch that is taken for the first time."""

    source: SourceRepository
    url: RepositoryUrl
    row: Repository | None


class _Move:
    """What was taken or found so far, by the `id` of the source's rows. In a dry run rows that would be made are not
    saved and have no key."""

    def __init__(self, actor: Actor, source: Source, key: SourceKey, report: Report, advance: Advance) -> None:
        self._actor, self._source, self._key, self._told = actor, source, key, advance
        self.report = report
        self._dry = report.dry_run
        self._apps: dict[str, tuple[SourceApp, App]] = {}
        self._removed_apps: set[str] = set()
        self._names: dict[str, str] = {}  # of apps and repositories of the source, taken or not
        self._token_hashes: set[str] = set()
        self._repositories: dict[str, _Repository] = {}
        self._spellings: set[str] = set()  # canonical URLs that were taken
        self._files_seen = 0

    def take_apps(self) -> None:
        for source in self._source.apps():
            name = f"{clean_text(source.app_name or '', 100)} ({clean_text(source.app_id, 50)})"
            self._names[source.id] = name
            app = App.objects.filter(app_id=source.app_id).first()
            if _was_removed(app, source.app_id):
                self._removed_apps.add(source.id)
                self._leave_removed(self.report.apps, "app", name, "removed here since: it stays so, with its watches.")
                continue
            if app is not None:
                self.report.apps.here += 1
            else:
                app = self._take_app(source, name)
            if app is not None:
                self._apps[source.id] = source, app
                self._token_hashes.add(source.token_hash)

    def _take_app(self, source: SourceApp, name: str) -> App | None:
        tell = partial(self.report.problem, "app", name), partial(self.report.remark, "app", name)
        try:
            facts = validate.judge_app(source, self._key, *tell)
        except Refused as error:
            self._leave(self.report.apps, "app", name, error)
            return None
        if facts.token_hash and self._is_known(facts.token_hash):
            tell[0]("Another app has the same token, and keeps it. Rotate its token to make a new one.")
            facts = replace(facts, token_hash="")
        self.report.apps.taken += 1
        if self._dry:
            return App(app_id=source.app_id, name=facts.name)
        return write.write_app(self._actor, source, facts)

    def _is_known(self, token_hash: str) -> bool:
        """Of an app of the source, which may have used it here already, or of any other."""
        return token_hash in self._token_hashes or AppToken.objects.filter(digest=token_hash).exists()

    def take_repositories(self) -> None:
        for source in self._source.repositories():
            name = self._names[source.id] = _spelled(source)
            try:
                url = validate.judge_repository(source)
            except Refused as error:
                self._leave(self.report.repositories, "repository", name, error)
                continue
            row = Repository.objects.filter(repository_id=source.repository_id).first()
            repository = self._repositories[source.id] = _Repository(source, url, row)
            if row is not None:
                self.report.repositories.here += 1
            elif not Imported.objects.filter(repository_id=source.repository_id).exists():
                self._take_repository(repository)

    def _take_repository(self, repository: _Repository) -> Repository:
        self.report.repositories.taken += 1
        source, url = repository.source, repository.url
        if url.canonical in self._spellings or write.next_twin(url):
            words = f"Another spelling of a repository that has another id already; {source.repository_id} is kept."
            self.report.remark("repository", _spelled(source), words)
        self._spellings.add(url.canonical)
        repository.row = Repository() if self._dry else write.write_repository(source, url)
        return repository.row

    def take_watches(self) -> None:
        counts = self._source.file_counts()
        for source in self._source.watches():
            if source.app in self._removed_apps:  # its remark speaks of them all
                self.report.watches.left += 1
                continue
            app, repository = self._apps.get(source.app or ""), self._repositories.get(source.repository or "")
            if app is None or repository is None:
                missing = "app" if app is None else "repository"
                of_repository = self._names.get(source.repository or "") or clean_text(source.told_repository, 50)
                of_app = self._names.get(source.app or "") or clean_text(source.told_app, 50)
                name = f"{of_repository} of {of_app}"
                self._leave(self.report.watches, "watch", name, f"Its {missing} was not taken, and so neither was it.")
                continue
            key = self._source.file_key(app[0], repository.source)
            self._take_watch(source, app[1], repository, key, counts.pop(key, 0))
        self.report.repositories.left += sum(repository.row is None for repository in self._repositories.values())
        rest = sum(counts.values())
        if rest:
            self.report.files.left += rest
            words = "They belong to no watch that was taken, and so were left out."
            self.report.remark("files", f"{rest:,} records", words)
            self._advance(rest)

    def _take_watch(
        self, source: SourceWatch, app: App, repository: _Repository, key: tuple[str, str], count: int
    ) -> None:
        name = f"{_spelled(repository.source)} of {app.name}"
        saved = app.pk is not None and repository.row is not None and repository.row.pk is not None
        watch = AppRepository.objects.filter(app=app, repository=repository.row).first() if saved else None
        if _was_removed(watch, app.app_id, repository.source.repository_id):
            self._leave_removed(self.report.watches, "watch", name, "unwatched here since: it stays so.")
            self.report.files.left += count
            self._advance(count)
            return
        if watch is not None and not watch.arriving:
            self.report.watches.here += 1
            self.report.files.here += count
            self._advance(count)
            return
        row = repository.row or self._take_repository(repository)
        token = validate.judge_token(source, self._key, partial(self.report.problem, "watch", name))
        state = validate.judge_state(source, partial(self.report.remark, "watch", name))
        files, left_before, seen_before = self._files(name, key), self.report.files.left, self._files_seen
        if self._dry:
            there = watch.deliveries.count() if watch else 0
            taken, completed = sum(1 for _ in files) - there, True
        else:
            watch = watch or write.begin_watch(app, row, repository.url.spelled, token)
            taken = write.write_records(watch, files)
            completed = write.complete_watch(self._actor, watch, source, state, has_records=count > 0)
        if not completed:
            words = "It was unwatched here in the middle of the import, or completed by another one."
            self._leave(self.report.watches, "watch", name, words)
            self.report.files.left = left_before + count
            self._advance(seen_before + count - self._files_seen)
            return
        self.report.watches.taken += 1
        self.report.files.taken += taken
        self.report.files.here += count - taken - (self.report.files.left - left_before)

    def _files(self, name: str, key: tuple[str, str]) -> Iterator[SourceFile]:
        """Those that can be taken."""
        for file in self._source.files(key):
            self._advance(1)
            try:
                yield validate.judge_file(file)
            except Refused as error:
                self._leave(self.report.files, "file", f"{clean_text(file.path, 200)} in {name}", error)

    def _advance(self, files: int) -> None:
        self._files_seen += files
        self._told(files)

    def _leave(self, tally: Tally, what: str, name: str, reason: object) -> None:
        tally.left += 1
        self.report.problem(what, name, str(reason))

    def _leave_removed(self, tally: Tally, what: str, name: str, since: str) -> None:
        """What was done here on purpose is no problem."""
        tally.left += 1
        self.report.remark(what, name, f"It was imported before and has been {since}")


def _was_removed(row: App | AppRepository | None, app_id: str, repository_id: str = "") -> bool:
    """Whether it is being removed, or an import has taken it once and it is not here any more."""
    if row is not None:
        return row.ended_at is not None
    return Imported.objects.filter(app_id=app_id, repository_id=repository_id).exists()


def _spelled(repository: SourceRepository) -> str:
    """Its URL, to be shown: credentials may stand in it."""
    return redact(clean_text(repository.github_url, 200))
