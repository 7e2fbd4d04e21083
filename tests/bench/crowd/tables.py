"""The rows of the smaller tables: apps, repositories, watches and their failures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any

from django.conf import settings
from django.db.models import Model

from deliveries_app.models import App, AppRepository, AppToken, DeliveryFailure, FailureKind, RootCause, Status
from deliveries_app.models.deliveries import path_digest
from deliveries_app.models.root_causes import CLEARED_FAILURE
from deliveries_app.planning.delivery_rows import delivery_rules_of
from docora.security.crypto import hash_token
from repositories_app.models import Repository, Snapshot
from tests.bench.crowd.deliveries import WatchRow
from tests.bench.crowd.layout import FAILING, Amounts, DrawnWatch, Role, Tree

FAR_AHEAD = timedelta(minutes=100)
"""When the next checks and attempts are due. Until then, an instance on this database fetches and sends nothing.

It needs `RESCAN_INTERVAL_SECONDS=3600`: the sweep takes a check that is more than two intervals ahead for one that a wrong clock
has scheduled.
"""

_AGE = timedelta(days=400)
_BATCH = 500
_MOST_FAILING_FILES = 40
_KINDS = ("Portal", "Search", "Wiki", "Archive", "Mirror", "Reader", "Index", "Monitor")
_OWNERS = ("acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "wonka")
_REPOSITORY_CAUSES = {RootCause.GIT_HOST, RootCause.GIT_NOT_FOUND, RootCause.GIT_CONTENT}


@dataclass(frozen=True)
class ExampleFailure:
    """An example of a root cause: short cause, message and the app's response. `lists_files` if it names failing files."""

    cause: str
    message: str
    status: int | None = None
    answer: str = ""
    lists_files: bool = True


FAILURES = {
    RootCause.DNS: ExampleFailure("dns", "Couldn't reach the endpoint: DNS lookup failed."),
    RootCause.TLS: ExampleFailure("tls", "The endpoint's certificate has expired."),
    RootCause.CONNECTION: ExampleFailure("connect", "Couldn't reach the endpoint: connection refused."),
    RootCause.TIMEOUT: ExampleFailure("timeout", "The app didn't respond within 30 s."),
    RootCause.REFUSED: ExampleFailure("http", "The app returned HTTP 401.", 401, '{"error": "bad signature"}'),
    RootCause.CLIENT_ERROR: ExampleFailure("http", "The app returned HTTP 422.", 422, '{"error": "path is too long"}'),
    RootCause.SERVER_ERROR: ExampleFailure(
        "http", "The app returned HTTP 502.", 502, "<html><h1>502 Bad Gateway</h1></html>"
    ),
    RootCause.UNEXPECTED: ExampleFailure("http", "The app returned HTTP 302.", 302),
    RootCause.ADDRESS: ExampleFailure("refused_address", "The endpoint's address may not be called."),
    RootCause.GIT_AUTH: ExampleFailure("auth", "The git host rejected the token.", lists_files=False),
    RootCause.GIT_NOT_FOUND: ExampleFailure("not_found", "The repository no longer exists.", lists_files=False),
    RootCause.GIT_HOST: ExampleFailure("timeout", "The git host timed out.", lists_files=False),
    RootCause.GIT_CONTENT: ExampleFailure("corrupt", "A tree of the repository cannot be read.", lists_files=False),
    RootCause.RULES: ExampleFailure("transform", "The transform `minify` failed: unexpected end of input."),
    RootCause.QUOTA: ExampleFailure(
        "quota", "The repository has 1,200 files, and the app's quota is 1,000.", lists_files=False
    ),
    RootCause.INTERNAL: ExampleFailure(
        "internal", "An internal error stopped the sync. Check the worker's log.", lists_files=False
    ),
}


def make(amounts: Amounts, drawn_watches: Sequence[DrawnWatch], now: datetime) -> list[WatchRow]:
    """Create all rows. Return each drawn watch with its row."""
    apps = _make_apps(amounts, now)
    repositories = _make_repositories(amounts, drawn_watches, now)
    dice = amounts.dice("rows of drawings")
    watches = [_watch(dice, drawn, apps[drawn.app], repositories[drawn.tree.number], now) for drawn in drawn_watches]
    watched = [WatchRow(drawn, watch) for drawn, watch in zip(drawn_watches, _create(watches), strict=True)]
    _create(failure for one in watched for failure in _failures(one, now))
    for rows in (apps, list(repositories.values()), watches):  # saving them set `created_at` to now
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
            paused_reason="The app returned HTTP 410 and was paused." if paused else "",
            down_count=3 if down else 0,
            cooldown_until=now + timedelta(hours=1) if down else None,
        )
        apps.append(app)
        for old in range(1 + (number % 20 == 0)):
            digest, expires = hash_token(_hex(dice, 64)), now + timedelta(hours=20) if old else None
            tokens.append(AppToken(app=app, digest=digest, ending=_hex(dice, 4), last_used_at=now, expires_at=expires))
    _create(apps)
    _create(tokens)
    return apps


def _make_repositories(amounts: Amounts, drawn_watches: Sequence[DrawnWatch], now: datetime) -> dict[int, Repository]:
    """Create the repositories with their latest snapshots, and return them by the number of their trees."""
    dice = amounts.dice("repositories")
    first: dict[int, DrawnWatch] = {}
    for drawn in drawn_watches:
        first.setdefault(drawn.tree.number, drawn)
    rows = {number: _repository(dice, amounts.seed, drawn, now) for number, drawn in first.items()}
    _create(rows.values())
    _create(
        Snapshot(
            repository=rows[number],
            commit_sha=_hex(dice, 40),
            branch="main",
            file_count=drawn.tree.files,
            total_bytes=drawn.tree.size,
        )
        for number, drawn in first.items()
        if drawn.role != Role.NEW
        for _ in range(3 if number % 10 == 0 else 1)
    )
    return rows


def _repository(dice: Random, seed: int, drawn: DrawnWatch, now: datetime) -> Repository:
    """Make a repository. Its circuit is open if its only watch cannot read it."""
    owner, name = f"{dice.choice(_OWNERS)}-{seed}", f"repository-{drawn.tree.number:05d}"
    row = Repository(
        repository_id=f"repo_{_hex(dice, 24)}",
        canonical_url=f"https://git.example/{owner}/{name}",
        owner=owner,
        name=name,
        is_private=dice.random() < 0.3,
    )
    if drawn.cause in _REPOSITORY_CAUSES and drawn.tree.watchers == 1:
        failure = FAILURES[drawn.cause]
        row.last_error, row.last_error_cause, row.last_failure_at = failure.message, failure.cause, now
        row.consecutive_failures = settings.CIRCUIT_BREAKER_THRESHOLD
        row.circuit_open_until = now + FAR_AHEAD
    return row


def _watch(dice: Random, drawn: DrawnWatch, app: App, repository: Repository, now: datetime) -> AppRepository:
    watch = AppRepository(
        app=app,
        repository=repository,
        watch_id=_hex(dice, 16),
        github_url=repository.canonical_url,
        github_token=f"ghp_{_hex(dice, 36)}" if repository.is_private else "",
        next_check_at=now + FAR_AHEAD,
        next_sync_at=None if drawn.role == Role.SYNCED else now + FAR_AHEAD,
    )
    if drawn.role == Role.NEW:
        return watch
    watch.generation, watch.request_count, watch.fencing_token = (
        dice.randrange(1, 6),
        dice.randrange(1, 900),
        dice.randrange(1, 900),
    )
    watch.resend_floor = dice.randrange(1, watch.generation + 1)
    watch.tree_files, watch.tree_bytes, watch.branch = drawn.tree.files, drawn.tree.size, "main"
    watch.last_commit = watch.base_commit = _hex(dice, 40)
    watch.base_rules = delivery_rules_of(watch).fingerprint
    watch.last_synced_at = now - timedelta(minutes=dice.randrange(60 * 24 * 20))
    watch.last_scanned_at = now - timedelta(seconds=dice.randrange(settings.RESCAN_INTERVAL_SECONDS.__ceil__()))
    watch.sequence_high = int(now.timestamp() * 1_000_000) + dice.randrange(1_000_000) + drawn.tree.files
    if dice.random() < 0.1:
        watch.left_out = {"symlink": dice.randrange(1, 4)}
    watch.status = Status.SYNCED
    if drawn.role in FAILING:
        _fail(dice, drawn, watch, now)
    elif drawn.role in {Role.REQUESTED, Role.SENDING}:
        watch.generation += 1
        watch.resend_floor = watch.generation
        watch.status = Status.PENDING if drawn.role == Role.REQUESTED else Status.SCANNING
        if drawn.role == Role.SENDING:  # the first announcement clears the base
            watch.base_commit = watch.base_rules = ""
    return watch


def _fail(dice: Random, drawn: DrawnWatch, watch: AppRepository, now: datetime) -> None:
    assert drawn.cause is not None
    failure = FAILURES[drawn.cause]
    if failure.lists_files:
        watch.files_failing = min(drawn.tree.files, dice.randrange(1, _MOST_FAILING_FILES))
    given_up = drawn.role == Role.FAILED
    watch.status = Status.FAILED if given_up else Status.PENDING
    watch.retry_count = settings.MAX_RETRY_ATTEMPTS - 1 if given_up else 1
    columns: dict[str, Any] = CLEARED_FAILURE | {
        "last_error": failure.message,
        "last_error_cause": failure.cause,
        "root_cause": drawn.cause,
        "last_status_code": failure.status,
        "last_response": failure.answer,
        "failing_since": now - timedelta(minutes=dice.randrange(1, 60 * 24 * 5)),
    }
    for name, value in columns.items():
        setattr(watch, name, value)


def _failures(watched: WatchRow, now: datetime) -> Iterable[DeliveryFailure]:
    """Yield the failing files, which are the first ones of the tree, and the symbolic links left out."""
    watch, tree = watched.watch, watched.drawn.tree
    if watched.drawn.cause is not None:
        failure = FAILURES[watched.drawn.cause]
        for number in range(watch.files_failing):
            yield _failure(watch, tree, tree.path(number), FailureKind.FAILED, failure, now)
    link = ExampleFailure("symlink", "A symbolic link is not sent.")
    for number in range(watch.left_out.get("symlink", 0)):
        yield _failure(watch, tree, f"latest-{number}", FailureKind.SKIPPED, link, now)


def _failure(
    watch: AppRepository, tree: Tree, path: str, kind: FailureKind, failure: ExampleFailure, now: datetime
) -> DeliveryFailure:
    return DeliveryFailure(
        watch=watch,
        path_digest=path_digest(path.encode()),
        path=path,
        kind=kind,
        cause=failure.cause,
        status_code=failure.status,
        message=failure.message,
        body=failure.answer,
        attempts=max(1, watch.retry_count),
        first_at=watch.failing_since or now,
        last_at=now,
    )
