"""Watch and unwatch repositories, and delete apps (`engine.md` §9)."""

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import batched
from typing import Any, TypedDict, Unpack

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Case, F, When
from django.db.models.functions import Now

from deliveries_app import audit, scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    AuditAction,
    DeliveryFailure,
    Notice,
    Outcome,
    PendingRelease,
    Reason,
)
from deliveries_app.models.root_causes import CLEARED_FAILURE
from deliveries_app.models.watches import new_watch_id
from deliveries_app.permissions import Permission
from deliveries_app.planning.ignore_rules import compile_lines, describe_problems
from deliveries_app.progress import runs
from deliveries_app.services import quotas, requests
from deliveries_app.services.host_checks import check_readable
from deliveries_app.services.resync import request_resync
from deliveries_app.webhooks.client import info_of
from deliveries_app.webhooks.payloads import timestamp
from docora.redis import queues
from docora.text import counted
from repositories_app import services as repositories
from repositories_app.git.refs import InvalidRef, parse_ref
from repositories_app.git.url import RepositoryUrl, parse_url
from repositories_app.models import Repository

ENDED_AT_ONCE = 500
MAX_CHARACTERS = 10_000  # of the patterns in one list
MAX_PATTERNS = 500


class AlreadyWatched(ValueError):
    """The app already watches the repository, with this `watch`."""

    def __init__(self, watch: AppRepository) -> None:
        super().__init__(f"{watch.app} already watches this repository.")
        self.watch = watch


@dataclass(frozen=True)
class Watched:
    """The watch. `created` is False if the app was already watching the repository."""

    watch: AppRepository
    created: bool


def registered_fields(watch: AppRepository) -> dict[str, Any]:
    """Return the fields of a new watch that the REST API and the command respond with."""
    more = {"is_private": watch.repository.is_private, "created_at": timestamp(watch.created_at)}
    return asdict(info_of(watch)) | more


def validate_token(token: str) -> str:
    """Return the token. Raises `ValidationError` unless it is empty or 1 to 255 printable ASCII characters, no spaces."""
    if token and not (len(token) <= 255 and token.isascii() and token.isprintable() and " " not in token):
        message = "The token must be 1 to 255 printable ASCII characters without spaces."
        raise ValidationError(message, code="github_token")
    return token


def validate_ref(ref: str) -> str:
    """Return the name of a branch or tag as it is stored; empty for HEAD. Raises `ValidationError`."""
    try:
        return parse_ref(ref)
    except InvalidRef as error:
        raise ValidationError(str(error), code="ref") from None


class GivenOptions(TypedDict, total=False):
    """How a repository is to be watched, as entered. `WatchOptions` explains the options. Of a new watch, those that
    are left out are empty; of an existing one, they keep their values.

    An administrator sets `ignore_patterns`. The app can choose the others itself.
    """

    github_token: str
    ref: str
    include_patterns: str
    exclude_patterns: str
    ignore_patterns: str


def validate_patterns(text: str) -> tuple[str, int]:
    """Return the text as stored and its number of patterns. Raises `ValidationError`."""
    text = text.replace("\r\n", "\n").rstrip("\n")
    if len(text) > MAX_CHARACTERS:
        raise ValidationError(f"The patterns have {len(text):,} characters. The limit is {MAX_CHARACTERS:,}.")
    for number, line in enumerate(text.split("\n"), start=1):
        if any(unicodedata.category(character) in {"Cc", "Cs"} and character != "\t" for character in line):
            raise ValidationError(f"Line {number} contains a control character. Remove it.")
    patterns, problems = compile_lines(text.encode())
    if problems:
        them = "it" if len(problems) == 1 else "them"
        raise ValidationError(f"{describe_problems(problems)} Fix or remove {them}.")
    if len(patterns) > MAX_PATTERNS:
        raise ValidationError(f"There are {len(patterns):,} patterns. The limit is {MAX_PATTERNS:,}.")
    return text, len(patterns)


def validate_list(name: str, text: str) -> str:
    """Return the patterns of the field `name` as stored. Raises `ValidationError`, whose message and code name the field."""
    try:
        return validate_patterns(text)[0]
    except ValidationError as error:
        message = f"{name.replace('_', ' ').capitalize()}: {' '.join(error.messages)}"
        raise ValidationError(message, code=name) from None


def watch_repository(
    actor: Actor,
    app: App,
    url: str,
    *,
    must_be_new: bool = False,
    ask_host: bool = True,
    **given: Unpack[GivenOptions],
) -> Watched:
    """Watch a repository for the app, after checking with git that it can be read.

    Without `ask_host`, git is not asked: if the repository cannot be read, its first sync fails. If the app is already
    watching the repository, replace its token and every other option that is given, and send every file again; with
    `must_be_new`, raise `AlreadyWatched` instead.
    Raises `InvalidUrl`, `ValidationError`, `GitError`, `NotFound` if the app is being removed, and for an app
    `TooManyWatches` or `TooManyResyncs`, each with a message for the user.
    """
    actor.require_app(app, Permission.WATCH)
    parsed = parse_url(url)
    options = validate_options(**given)
    if must_be_new:
        _require_new(app, parsed)
    require_quota(actor, app, parsed)
    is_private = None
    if ask_host:
        github_app = app.github_app_for(parsed.canonical, options.github_token)
        is_private = check_readable(actor, parsed.spelled, options.github_token, options.ref, github_app)
    return store_watch(actor, app, parsed, options, is_private=is_private, must_be_new=must_be_new)


def require_quota(actor: Actor, app: App, url: RepositoryUrl) -> None:
    """Raise `TooManyWatches` or `TooManyResyncs` if the app has no quota left. Called before the git host is asked."""
    if not quotas.is_limited(actor, app):
        return
    if _watches_of(app, url).alive().exists():
        quotas.require_resync(actor, app)  # watching it again sends everything again
    else:
        quotas.require_room_for_watch(actor, app)


@dataclass(frozen=True)
class WatchOptions:
    """How a repository is watched.

    `github_token` reads it, if there is one. `ref` is the branch or tag to follow, or empty for the default branch. Each list
    of patterns is one text: files that match `include_patterns` (empty for all) but not the others are sent.
    """

    github_token: str = field(repr=False)
    ref: str
    include_patterns: str = ""
    exclude_patterns: str = ""
    ignore_patterns: str = ""


def validate_options(**given: Unpack[GivenOptions]) -> WatchOptions:
    """Return the options as they are stored. Raises `ValidationError`, whose code names the field."""
    patterns: Any = {name: validate_list(name, str(text)) for name, text in given.items() if name.endswith("_patterns")}
    return WatchOptions(validate_token(given.get("github_token", "")), validate_ref(given.get("ref", "")), **patterns)


def store_watch(
    actor: Actor, app: App, parsed: RepositoryUrl, options: WatchOptions, *, is_private: bool | None, must_be_new: bool
) -> Watched:
    """Watch a repository. See `watch_repository`, which asks git first.

    `is_private` is None if git was not asked. For a new watch, the repository then counts as private until a later check, because
    runs must not begin with the size that only another app can read.
    """
    if is_private is not None:
        actor.require_active()
    with transaction.atomic():  # lock the app before its watch, as the claim does
        locked = requests.lock_app(actor, app, Permission.WATCH)  # it may have been deleted while git was asked
        if must_be_new:
            _require_new(app, parsed)  # again: another request may have watched it meanwhile
        repository = _find_or_create(app, parsed, is_private=is_private)
        # Lock the watch. Otherwise one that has ended could be removed just after it is revived.
        watches = AppRepository.objects.select_for_update(no_key=True).select_related("app", "repository")
        watch, created = watches.get_or_create(
            app=app,
            repository=repository,
            defaults={
                "github_url": parsed.spelled,
                **asdict(options),
                "next_check_at": Now(),
                "sequence_high": locked.sequence_high,
            },
        )
        if not created and watch.ended_at is None:
            _send_again(actor, watch, parsed.spelled, options)
            return Watched(watch, False)
        if is_private is None:  # it may have become private since it was last read without a token
            repositories.record_privacy(repository, is_private=True)
        quotas.require_room_for_watch(actor, locked, excluding=watch.pk)
        if not created:
            _revive(watch, parsed.spelled, options)
        opened = requests.open_runs(actor, [watch.pk], Reason.INITIAL)
        changes = audit.Changes.initial(AppRepository, {"github_url": parsed.spelled, **asdict(options)})
        audit.record(actor, AuditAction.WATCHED, opened, "Started watching", changes)
        scheduling.enqueue(watch)
    return Watched(watch, True)


def _send_again(actor: Actor, watch: AppRepository, url: str, options: WatchOptions) -> None:
    """Replace the token, the URL's spelling and the other options that are given, and send every file again."""
    given = {name: value for name, value in asdict(options).items() if value}
    given |= {"github_url": url, "github_token": options.github_token}
    changes = audit.Changes.of(AppRepository, {name: getattr(watch, name) for name in given}, given)
    if changes:
        audit.record(actor, AuditAction.WATCH_CHANGED, [watch], changes.summary, changes)
    AppRepository.objects.filter(pk=watch.pk).update(**given)
    watch.refresh_from_db()
    request_resync(actor, watch)


def _require_new(app: App, url: RepositoryUrl) -> None:
    """Raise `AlreadyWatched` if the app watches the repository, under any spelling of the URL."""
    watch = _watches_of(app, url).alive().select_related("app", "repository").first()
    if watch is not None:
        raise AlreadyWatched(watch)


def _watches_of(app: App, url: RepositoryUrl) -> AppRepositoryQuerySet:
    """Return the app's watches of the repository, including ended ones.

    An import may leave several, for different spellings of the URL: the one with this spelling comes first.
    """
    as_spelled = Case(When(github_url=url.spelled, then=0), default=1)
    watches = AppRepository.objects.filter(app=app, repository__canonical_url=url.canonical)
    return watches.order_by(as_spelled, "repository__twin")


def _revive(watch: AppRepository, url: str, options: WatchOptions) -> None:
    """Revive an ended watch that has not been removed yet. It starts like a new one, but keeps its id and its records.

    The app may have dropped or kept its copy. Therefore no earlier record counts, even if a later re-sync is cancelled.
    The records stay, so that files deleted in the meantime are deleted in the copy too. After an interrupted import,
    which stored only some of the records, the watch gets a new id, which tells the app to drop its copy.
    """
    AppRepository.objects.filter(pk=watch.pk).update(
        ended_at=None,
        created_at=Now(),
        watch_id=new_watch_id() if watch.arriving else watch.watch_id,
        arriving=False,
        paused_at=None,
        paused_by="",
        tree_files=0,
        tree_bytes=0,
        files_failing=0,
        deletes_failing=0,
        left_out={},
        last_commit="",
        seen_commit="",
        branch="",
        moved_at=None,
        last_synced_at=None,
        resend_floor=F("generation") + 1,
        lowest_floor=F("generation") + 1,
        base_commit="",
        base_rules="",
        push_secret="",
        next_check_at=Now(),
        github_url=url,
        **asdict(options),
        **scheduling.SUPERSEDE,
        **CLEARED_FAILURE,
    )
    DeliveryFailure.objects.filter(watch=watch).delete()
    watch.refresh_from_db()


def _find_or_create(app: App, url: RepositoryUrl, *, is_private: bool | None) -> Repository:
    """Return the locked repository for this URL. If the app already watches it, return the row whose id the app knows."""
    known = _watches_of(app, url).values_list("repository_id", flat=True).first()
    repository = repositories.lock(known) if known else None
    if repository is None:
        return repositories.find_or_create(url, is_private=is_private)
    if is_private is not None:
        repositories.record_privacy(repository, is_private=is_private)
    return repository


def unwatch_repository(actor: Actor, watch: AppRepository) -> None:
    """Stop watching. Nothing more is sent; the rows are removed once no worker is using them."""
    unwatch_many(actor, [watch])


def unwatch_many(actor: Actor, watches: Iterable[AppRepository]) -> None:
    """Stop watching these repositories.

    Up to `ENDED_AT_ONCE` end in one transaction, so that thousands of watches do not stay locked until the last has ended.
    """
    actor.require(Permission.UNWATCH)
    for batch in batched(watches, ENDED_AT_ONCE):
        with transaction.atomic():
            for watch in batch:
                actor.require_watch(watch)
                quotas.count_unwatch(actor, watch)
            ended = _end([watch.pk for watch in batch])
            audit.record(
                actor, AuditAction.UNWATCHED, [watch for watch in batch if watch.pk in ended], "Stopped watching"
            )


def _end(watch_pks: Sequence[int]) -> Collection[int]:
    """End these watches, and return the keys of those that had not ended yet. The new generation fences their workers.

    All watches are locked before any run or operation, as everywhere else: a worker that ends a run holds its watch when
    it locks the operation.
    """
    watches = AppRepository.objects.filter(pk__in=watch_pks, ended_at=None)
    locked = watches.select_for_update(no_key=True).select_related("app", "repository").order_by("pk")
    job_ids = {watch.pk: watch.job_id for watch in locked}
    ended = AppRepository.objects.filter(pk__in=job_ids)
    ended.update(ended_at=Now(), generation=F("generation") + 1, next_sync_at=None)
    Notice.objects.filter(watch__in=job_ids).delete()
    unreleased = PendingRelease.objects.filter(watch__in=job_ids)
    operations = set(unreleased.values_list("operation_id", flat=True))
    if operations:
        unreleased.delete()
    runs.end_all_runs(list(job_ids), Outcome.ENDED, also_close=operations)
    transaction.on_commit(lambda: queues.drop(list(job_ids.values())), robust=True)
    return job_ids.keys()


def delete_app(actor: Actor, app: App) -> None:
    """Remove a client app. It and its watches end now; the rows are removed once no worker is using them."""
    actor.require_app(app, Permission.DELETE_APPS)
    with transaction.atomic():  # lock the app before its watches, as the claim does
        is_new = App.objects.filter(pk=app.pk, ended_at=None).update(ended_at=Now())
        ended = _end(list(app.watches.values_list("pk", flat=True)))
        if is_new:
            count = counted(len(ended), "watched repository")
            audit.record(actor, AuditAction.APP_DELETED, [app], f"Deleted, with {count}")
