"""The rows of a few thousand: apps, repositories, watches, and what of them fails."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any

from django.conf import settings
from django.db.models import Model

from deliveries_app.causes import NO_TROUBLE
from deliveries_app.models import App, AppRepository, AppToken, DeliveryFailure, FailureKind, RootCause, Status
from deliveries_app.recorder import path_digest
from deliveries_app.rows import terms_of
from docora.crypto import hash_token
from docora.demo.crowd.deliveries import Watched
from docora.demo.crowd.layout import FAILING, Amounts, Role, Tree, Watch
from repositories_app.models import Repository, Snapshot

RESTS = timedelta(days=365)
"""So long nothing is due: an instance that runs on this database looks at nothing and sends nothing by itself."""

_AGE = timedelta(days=400)
_BATCH = 500
_MOST_FAILING_FILES = 40
_KINDS = ("Portal", "Search", "Wiki", "Archive", "Mirror", "Reader", "Index", "Monitor")
_OWNERS = ("acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "wonka")
_OF_EVERY_WATCHER = {RootCause.GIT_HOST, RootCause.GIT_NOT_FOUND, RootCause.GIT_CONTENT}


@dataclass(frozen=True)
class Trouble:
    """How a root cause shows: the short cause, the sentence, and the app's answer. `of_files`: it lists files."""

    cause: str
    message: str
    status: int | None = None
    answer: str = ""
    of_files: bool = True


TROUBLES = {
    RootCause.DNS: Trouble("dns", "The name of the endpoint cannot be resolved."),
    RootCause.TLS: Trouble("tls", "The endpoint's certificate has expired."),
    RootCause.CONNECTION: Trouble("connect", "No connection to the endpoint: connection refused."),
    RootCause.TIMEOUT: Trouble("timeout", "The app did not answer within 30 s."),
    RootCause.REFUSED: Trouble("http", "The app answered 401.", 401, '{"error": "bad signature"}'),
    RootCause.CLIENT_ERROR: Trouble("http", "The app answered 422.", 422, '{"error": "path is too long"}'),
    RootCause.SERVER_ERROR: Trouble("http", "The app answered 502.", 502, "<html><h1>502 Bad Gateway</h1></html>"),
    RootCause.UNEXPECTED: Trouble("http", "The app answered 302.", 302),
    RootCause.ADDRESS: Trouble("refused_address", "The endpoint's address may not be called."),
    RootCause.GIT_AUTH: Trouble("auth", "The token was refused by the git host.", of_files=False),
    RootCause.GIT_NOT_FOUND: Trouble("not_found", "The repository does not exist any more.", of_files=False),
    RootCause.GIT_HOST: Trouble("timeout", "The git host did not answer in time.", of_files=False),
    RootCause.GIT_CONTENT: Trouble("corrupt", "A tree of the repository cannot be read.", of_files=False),
    RootCause.RULES: Trouble("transform", "The transform `minify` failed: unexpected end of input."),
    RootCause.INTERNAL: Trouble("internal", "Something went wrong in Docora; its log has more.", of_files=False),
}


def make(amounts: Amounts, watches: Sequence[Watch], now: datetime) -> list[Watched]:
    """Write them all; the watches come back with their rows."""
    apps = _make_apps(amounts, now)
    repositories = _make_repositories(amounts, watches, now)
    dice = amounts.dice("rows of watches")
    pairs = [_pair(dice, watch, apps[watch.app], repositories[watch.tree.number], now) for watch in watches]
    watched = [Watched(watch, pair) for watch, pair in zip(watches, _create(pairs), strict=True)]
    _create(failure for one in watched for failure in _failures(one, now))
    for rows in (apps, list(repositories.values()), pairs):  # their first moment is set when they are saved
        pks = [row.pk for row in rows]
        for start in range(0, len(pks), _BATCH):
            manager = type(rows[0])._default_manager
            manager.filter(pk__in=pks[start : start + _BATCH]).update(created_at=now - _AGE)
    return watched


def _create[M: Model](rows: Iterable[M]) -> list[M]:
    rows = list(rows)
    return type(rows[0])._default_manager.bulk_create(rows, batch_size=_BATCH) if rows else []


def _hex(dice: Random, digits: int) -> str:
    return f"{dice.getrandbits(4 * digits):0{digits}x}"


def _make_apps(amounts: Amounts, now: datetime) -> list[App]:
    dice = amounts.dice("apps")
    apps, tokens = [], []
    for number in range(amounts.apps):
        name = f"{dice.choice(_OWNERS).capitalize()} {dice.choice(_KINDS)} {number}"
        paused, down = number % 50 == 7, number % 100 == 11
        app = App(
            app_id=f"app_{_hex(dice, 24)}",
            name=name,
            base_url=f"https://{name.lower().replace(' ', '-')}.example/hooks",
            email=f"ops@{name.lower().replace(' ', '-')}.example",
            client_auth_key=f"whsec_{_hex(dice, 40)}",
            paused=paused,
            paused_reason="The app answered 410 to three files." if paused else "",
            down_count=3 if down else 0,
            not_before=now + timedelta(hours=1) if down else None,
        )
        apps.append(app)
        for old in range(1 + (number % 20 == 0)):
            digest, expires = hash_token(_hex(dice, 64)), now + timedelta(hours=20) if old else None
            tokens.append(AppToken(app=app, digest=digest, ending=_hex(dice, 4), last_used_at=now, expires_at=expires))
    _create(apps)
    _create(tokens)
    return apps


def _make_repositories(amounts: Amounts, watches: Sequence[Watch], now: datetime) -> dict[int, Repository]:
    """By the number of their trees, each with its latest snapshots."""
    dice = amounts.dice("repositories")
    first: dict[int, Watch] = {}
    for watch in watches:
        first.setdefault(watch.tree.number, watch)
    rows = {number: _repository(dice, amounts.seed, watch, now) for number, watch in first.items()}
    _create(rows.values())
    _create(
        Snapshot(
            repository=rows[number],
            commit_sha=_hex(dice, 40),
            branch="main",
            file_count=watch.tree.files,
            total_bytes=watch.tree.size,
        )
        for number, watch in first.items()
        if watch.role != Role.NEW
        for _ in range(3 if number % 10 == 0 else 1)
    )
    return rows


def _repository(dice: Random, seed: int, watch: Watch, now: datetime) -> Repository:
    """Its circuit is open where its only watch found it unreadable."""
    owner, name = f"{dice.choice(_OWNERS)}-{seed}", f"repository-{watch.tree.number:05d}"
    row = Repository(
        repository_id=f"repo_{_hex(dice, 24)}",
        canonical_url=f"https://git.example/{owner}/{name}",
        owner=owner,
        name=name,
        is_private=dice.random() < 0.3,
    )
    if watch.cause in _OF_EVERY_WATCHER and watch.tree.watchers == 1:
        trouble = TROUBLES[watch.cause]
        row.last_error, row.last_error_cause, row.last_failure_at = trouble.message, trouble.cause, now
        row.consecutive_failures = settings.CIRCUIT_BREAKER_THRESHOLD
        row.circuit_open_until = now + RESTS
    return row


def _pair(dice: Random, watch: Watch, app: App, repository: Repository, now: datetime) -> AppRepository:
    pair = AppRepository(
        app=app,
        repository=repository,
        watch_id=_hex(dice, 16),
        github_url=repository.canonical_url,
        github_token=f"ghp_{_hex(dice, 36)}" if repository.is_private else "",
        next_check_at=now + RESTS,
        next_sync_at=None if watch.role == Role.SYNCED else now + RESTS,
    )
    if watch.role == Role.NEW:
        return pair
    pair.generation, pair.wanted, pair.claim = dice.randrange(1, 6), dice.randrange(1, 900), dice.randrange(1, 900)
    pair.resend_floor = dice.randrange(1, pair.generation + 1)
    pair.tree_files, pair.tree_bytes, pair.branch = watch.tree.files, watch.tree.size, "main"
    pair.last_commit = pair.base_commit = _hex(dice, 40)
    pair.base_rules = terms_of(pair).fingerprint
    pair.last_synced_at = now - timedelta(minutes=dice.randrange(60 * 24 * 20))
    pair.last_scanned_at = now - timedelta(seconds=dice.randrange(settings.RESCAN_INTERVAL_SECONDS.__ceil__()))
    pair.intent_high = int(now.timestamp() * 1_000_000) + dice.randrange(1_000_000) + watch.tree.files
    if dice.random() < 0.1:
        pair.left_out = {"symlink": dice.randrange(1, 4)}
    pair.status = Status.SYNCED
    if watch.role in FAILING:
        _fail(dice, watch, pair, now)
    elif watch.role in {Role.ASKED, Role.SENDING}:
        pair.generation += 1
        pair.resend_floor = pair.generation
        pair.status = Status.PENDING if watch.role == Role.ASKED else Status.SCANNING
        if watch.role == Role.SENDING:  # the first announcement takes the base away
            pair.base_commit = pair.base_rules = ""
    return pair


def _fail(dice: Random, watch: Watch, pair: AppRepository, now: datetime) -> None:
    assert watch.cause is not None
    trouble = TROUBLES[watch.cause]
    if trouble.of_files:
        pair.files_failing = min(watch.tree.files, dice.randrange(1, _MOST_FAILING_FILES))
    given_up = watch.role == Role.FAILED
    pair.status = Status.FAILED if given_up else Status.PENDING
    pair.retry_count = settings.MAX_RETRY_ATTEMPTS - 1 if given_up else 1
    facts: dict[str, Any] = NO_TROUBLE | {
        "last_error": trouble.message,
        "last_error_cause": trouble.cause,
        "root_cause": watch.cause,
        "last_status_code": trouble.status,
        "last_answer": trouble.answer,
        "failing_since": now - timedelta(minutes=dice.randrange(1, 60 * 24 * 5)),
    }
    for name, value in facts.items():
        setattr(pair, name, value)


def _failures(watched: Watched, now: datetime) -> Iterable[DeliveryFailure]:
    """The files that fail, which are the first ones of the tree, and the links that are left out."""
    pair, tree = watched.pair, watched.watch.tree
    if watched.watch.cause is not None:
        trouble = TROUBLES[watched.watch.cause]
        for number in range(pair.files_failing):
            yield _failure(pair, tree, tree.path(number), FailureKind.FAILED, trouble, now)
    link = Trouble("symlink", "A symbolic link is not sent.")
    for number in range(pair.left_out.get("symlink", 0)):
        yield _failure(pair, tree, f"latest-{number}", FailureKind.SKIPPED, link, now)


def _failure(
    pair: AppRepository, tree: Tree, path: str, kind: FailureKind, trouble: Trouble, now: datetime
) -> DeliveryFailure:
    return DeliveryFailure(
        pair=pair,
        path_digest=path_digest(path.encode()),
        path=path,
        kind=kind,
        cause=trouble.cause,
        status_code=trouble.status,
        message=trouble.message,
        body=trouble.answer,
        attempts=max(1, pair.retry_count),
        first_at=pair.failing_since or now,
        last_at=now,
    )
