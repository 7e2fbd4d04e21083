"""Check whether HEAD, or the branch or tag that a watch follows, has moved: one small request per watch, hundreds at a time.

This runs in the sweep process, never in the queue. Each check uses the watch's own token, or a token of the GitHub App that
is assigned to its app, and compares with the watch's own base, so one app never profits from another app's access. Watches
that are already due for a sync are not checked.

While a git host is down, its watches are neither checked nor synced. One probe decides when that ends.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from deliveries_app import scheduling
from deliveries_app.models import AppRepository, AppRepositoryQuerySet, Notice, NoticeKind, Status
from deliveries_app.models.root_causes import GIT_CAUSES
from deliveries_app.models.watches import has_no_cooldown
from deliveries_app.planning.delivery_rows import delivery_rules_of
from deliveries_app.scheduling import next_check
from deliveries_app.sync import circuit
from docora.db.clock import from_now
from docora.db.compiled import compiled, compiled_and_prepared
from docora.http.client import HttpClient
from docora.redis import counters
from docora.security.crypto import Undecryptable
from repositories_app import github
from repositories_app import services as repositories
from repositories_app.git.exceptions import Cause, GitError, Interrupted, NoCommit
from repositories_app.git.protocol import Head
from repositories_app.git.remote import HeadQuery, HeadsByGit, ls_heads
from repositories_app.git.url import host_of
from repositories_app.models import HostOutage, Repository

logger = logging.getLogger(__name__)

SLICE = 500
_OUTAGE_CAUSES = {Cause.NETWORK, Cause.TIMEOUT}
_RECORD_SECONDS = 1.0  # how often answers are recorded while others are awaited
_TOKEN_SECONDS = 5.0
"""How long a check waits for each answer of GitHub's API, because all checks through GitHub Apps wait. A sync waits longer."""
TAKEN_SECONDS = 60.0
"""How long a check may take before another sweep repeats it, for example because this one was killed."""

type _Answer = tuple[AppRepository, Head | GitError]


def check_due(client: HttpClient, meanwhile: Callable[[], None] = lambda: None) -> int:
    """Check every watch that is due for a check, and request a sync if it has moved or cannot be read.

    Call `meanwhile` repeatedly while waiting for the git hosts. Return the number of watches that were due. Those that are
    due again before the others have been checked wait for the next call, so that the rest of the sweep gets its turn.

    Hosts without protocol v2 are asked by git, more slowly, while the watches that become due meanwhile are checked. If there
    is no time for some of their watches, these are due again `TAKEN_SECONDS` later. If `meanwhile` raises `Interrupted`,
    those that have no answer are due at once.
    """
    probe_hosts(client, meanwhile)
    checked: set[AppRepository] = set()
    watches: list[AppRepository] = []
    for_git: dict[AppRepository, HeadQuery[AppRepository]] = {}  # without an answer yet
    with HeadsByGit[AppRepository]() as by_git:
        try:
            while True:
                watches = _take_slice()
                has_more = len(watches) == SLICE and checked.isdisjoint(watches)
                checked.update(watches)
                queries = _Round(client, meanwhile).check(watches)
                for_git |= queries
                by_git.ask(queries.values())
                is_busy = by_git.proceed(0.0 if has_more else 1.0)
                answers = by_git.answers()
                _record(answers, set())
                for watch, _ in answers:
                    for_git.pop(watch, None)  # asked twice if a push made it due again meanwhile
                if not (is_busy or has_more):
                    break
                meanwhile()
        except Interrupted:
            with transaction.atomic():
                due = AppRepository.objects.filter(pk__in=[watch.pk for watch in [*for_git, *watches]])
                due.lock()
                due.update(next_check_at=Now())
            raise
    return len(checked)


def probe_hosts(client: HttpClient, meanwhile: Callable[[], None]) -> None:
    """Try one connection to each git host that is down, once its backoff is over. If the host answers, its watches continue.

    Otherwise each of its repositories counts one failure per rescan round, so that a long outage opens their circuits
    and their watchers get `sync_failed`. Call `meanwhile` before each circuit that opens or closes, because there may be thousands.
    """
    due = {outage: _any_url(outage) for outage in _due_outages()}
    queries = (HeadQuery(outage, url) for outage, url in due.items() if url)
    for outage, answer in list(ls_heads(client, queries, meanwhile)):  # no statement delays the other answers
        if isinstance(answer, GitError) and answer.no_answer:
            repositories.prolong_outage(outage, answer)
            failing = _watched_on(outage).filter(repositories.next_failure_counts())
            for repository in repositories.record_failures(failing, answer):
                meanwhile()
                circuit.record_git_failure(repository, answer)
        else:
            due[outage] = ""
    for outage in (outage for outage, url in due.items() if not url):
        failing = _watched_on(outage).filter(consecutive_failures__gt=0, last_error_cause__in=_OUTAGE_CAUSES)
        for repository in failing.exclude(circuit_open_until=None):
            meanwhile()
            circuit.close_circuit(repository)
        with transaction.atomic():
            repositories.close_circuits(failing.filter(circuit_open_until=None))  # that is, reset their counts
        outage.delete()  # last: if `meanwhile` has raised `Interrupted`, the next sweep closes the other circuits


@compiled_and_prepared
def _due_outages() -> QuerySet[HostOutage]:
    return HostOutage.objects.filter(retry_at__lte=Now())


def _watched_on(outage: HostOutage) -> QuerySet[Repository]:
    watched = Repository.objects.filter(canonical_url__startswith=outage.host, watches__ended_at=None)
    return watched.order_by("pk").distinct()


def _any_url(outage: HostOutage) -> str:
    """Return the URL of a random watched repository on the host, or an empty string if there is none."""
    watches = AppRepository.objects.alive().filter(repository__in=_watched_on(outage))
    return watches.order_by("?").values_list("github_url", flat=True).first() or ""


class _Round:
    """Checks a slice of watches."""

    def __init__(self, client: HttpClient, meanwhile: Callable[[], None]) -> None:
        self._client, self._meanwhile = client, meanwhile
        self._for_git: dict[AppRepository, HeadQuery[AppRepository]] = {}
        self._answering_hosts: set[str] = set()
        self._unconnected: list[_Answer] = []
        """Recorded last, because another of the host's repositories may still answer."""

    def check(self, watches: Sequence[AppRepository]) -> dict[AppRepository, HeadQuery[AppRepository]]:
        """Check these watches and record the answers. Return the queries that git has to make, see `HeadsByGit`."""
        undecryptable = {watch for watch in watches if _is_undecryptable(watch)}
        readable = [watch for watch in watches if watch not in undecryptable]
        for needs_token in (False, True):  # with a GitHub App last: GitHub may take long to issue tokens
            part = [watch for watch in readable if (watch.github_app is not None) == needs_token]
            if part:
                self._ask_hosts(part)
        _record(self._unconnected, self._answering_hosts, undecryptable)
        return self._for_git

    def _ask_hosts(self, watches: Sequence[AppRepository]) -> None:
        """Ask the hosts. Record answers every `_RECORD_SECONDS`, so that no watch waits for another's host."""
        tokens = _tokens(watches, self._meanwhile)
        queries = {
            watch: HeadQuery(watch, watch.github_url, tokens[watch.pk], watch.last_commit, watch.ref, watch.app_id)
            for watch in watches
        }
        answers: list[_Answer] = []
        next_record = time.monotonic() + _RECORD_SECONDS

        def record_if_due() -> None:
            nonlocal next_record
            self._meanwhile()
            if answers and time.monotonic() >= next_record:
                _record(answers, self._answering_hosts)
                answers.clear()
                next_record = time.monotonic() + _RECORD_SECONDS

        for watch, answer in ls_heads(self._client, queries.values(), record_if_due):
            if answer is None:
                self._for_git[watch] = queries[watch]
            elif isinstance(answer, GitError) and answer.no_connection:
                self._unconnected.append((watch, answer))
            else:
                answers.append((watch, answer))
        _record(answers, self._answering_hosts)


def _record(
    answers: Sequence[_Answer],
    answering_hosts: set[str],
    undecryptable: Collection[AppRepository] = (),
) -> None:
    """Record what the hosts answered, and request a sync for the watches that need one.

    `answering_hosts`: the hosts that have answered in this round, to which this adds those of these answers. A host that is not
    among them is down if no connection to it could be made.
    """
    to_sync = [watch.pk for watch in undecryptable if watch.next_sync_at is None]
    unconnected: dict[str, list[tuple[AppRepository, GitError]]] = {}  # by host
    for watch, answer in answers:
        host = host_of(watch.repository.canonical_url)
        if isinstance(answer, GitError):
            logger.info("check_failed", extra={"watch": watch.pk, "cause": answer.cause.value})
        if isinstance(answer, GitError) and answer.no_connection:
            unconnected.setdefault(host, []).append((watch, answer))
            continue
        answering_hosts.add(host)
        if _needs_sync(watch, answer):
            to_sync.append(watch.pk)  # the sync itself reports, counts and retries an error
    unchecked: set[int] = set()
    for host, failures in unconnected.items():
        if host in answering_hosts:
            to_sync += [watch.pk for watch, error in failures if _needs_sync(watch, error)]
        else:
            repositories.record_host_failure(failures[0][0].repository, failures[0][1])
            unchecked.update(watch.pk for watch, _ in failures)
    asked = {watch.pk for watch, _ in answers} | {watch.pk for watch in undecryptable}
    if not asked:
        return
    with transaction.atomic():
        AppRepository.objects.filter(pk__in=asked).lock()
        AppRepository.objects.filter(pk__in=unchecked).update(next_check_at=Now())  # once the host can be reached
        checked = AppRepository.objects.filter(pk__in=asked - unchecked)
        checked.update(last_scanned_at=Now(), next_check_at=next_check())
        if to_sync:
            scheduling.request_sync(_still_to_sync(to_sync, dict(answers)))
    counters.add({counters.CHECKS: len(answers)})


def _still_to_sync(pks: Sequence[int], answers: Mapping[AppRepository, Head | GitError]) -> AppRepositoryQuerySet:
    """Return those of these watches that still need a sync. One that began during the check has read HEAD itself."""
    rows = AppRepository.objects.alive().filter(pk__in=pks)
    # Others that wait without a failure were cancelled, or their host lags.
    now = rows.exclude(~_waits_for_notice(), next_sync_at__gt=Now(), failing_since=None)
    needed = (
        watch.pk
        for watch in now
        if (_needs_sync(watch, answers[watch]) if watch in answers else watch.next_sync_at is None)
    )
    return rows.filter(pk__in=list(needed))


def _is_undecryptable(watch: AppRepository) -> bool:
    github_app = watch.github_app
    secrets = (watch.github_token, github_app.private_key if github_app else "")
    return any(isinstance(secret, Undecryptable) for secret in secrets)


def _tokens(watches: Sequence[AppRepository], meanwhile: Callable[[], None]) -> dict[int, str]:
    """Return primary key → the token with which the watch reads its repository, or an empty string."""
    through = {watch: github_app for watch in watches if (github_app := watch.github_app)}
    wanted = [(github_app, watch.github_url) for watch, github_app in through.items()]
    found = github.access_to(wanted, meanwhile, timeout=_TOKEN_SECONDS)
    minted = {watch.pk: found[app.pk, watch.github_url].token for watch, app in through.items()}
    return {watch.pk: watch.github_token for watch in watches} | minted


def _needs_sync(watch: AppRepository, answer: Head | GitError) -> bool:
    if watch.next_sync_at is not None:  # it waits for its next attempt: only a new commit makes it due
        # If the last attempt failed before it asked git, for example without a signing key, no commit makes it due.
        last_attempt_asked_git = bool(watch.seen_commit) or watch.root_cause in GIT_CAUSES
        return last_attempt_asked_git and isinstance(answer, Head) and answer.commit != watch.seen_commit
    if isinstance(answer, NoCommit):
        return not watch.waits_for_first_commit
    if isinstance(answer, GitError):
        return True
    fingerprint = delivery_rules_of(watch).fingerprint
    return (answer.commit, answer.branch, fingerprint) != (watch.base_commit, watch.branch, watch.base_rules)


def _take_slice() -> list[AppRepository]:
    """Take watches to check now by moving their next check a little, so that two sweeps do not take the same one.

    The time of the regular next check is written with the answer.
    """
    with transaction.atomic():
        if watches := _due_for_check():
            taken = AppRepository.objects.filter(pk__in=[watch.pk for watch in watches])
            taken.update(next_check_at=from_now(TAKEN_SECONDS))
    return watches


def _waits_for_notice() -> Q:
    """Return the condition for watches that are synced and due again only to send a refused `sync_failed`."""
    return Q(Exists(Notice.objects.filter(watch=OuterRef("pk"), kind=NoticeKind.SYNC_FAILED)), status=Status.SYNCED)


@compiled
def _due_for_check() -> QuerySet[AppRepository]:
    closed = Q(repository__circuit_open_until=None) | Q(repository__circuit_open_until__lte=Now())
    # A failing watch that waits for its next attempt, or one that waits only to send a notice again. A cancelled one waits
    # for the rescan, even if something is pushed.
    waiting = Q(next_sync_at__gt=Now()) & (Q(failing_since__isnull=False) | _waits_for_notice()) & has_no_cooldown()
    return (
        AppRepository.objects.alive()
        .free()
        .unpaused()
        .filter(closed, Q(next_sync_at=None) | waiting, next_check_at__lte=Now())
        .exclude(repositories.host_is_down("repository__canonical_url"))
        .select_for_update(skip_locked=True, no_key=True)
        .select_related("repository")
        .prefetch_related("app__github_app")  # a join would decrypt the app's keys once for each watch
        .order_by("next_check_at")[:SLICE]
    )
