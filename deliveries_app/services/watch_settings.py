"""What can be changed about a watch: the token that its repository is read with, and the secret of its push hooks."""

import secrets
import unicodedata
from dataclasses import dataclass

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Case, F, Value, When
from django.db.models.functions import Now

from deliveries_app import scheduling
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Status
from deliveries_app.models.root_causes import CLEARED_FAILURE
from deliveries_app.planning.ignore_rules import compile_lines, words_for
from deliveries_app.services import audit
from deliveries_app.services.requests import NotFound
from deliveries_app.services.watching import ask_git, validate_token
from deliveries_app.sync import circuit

PERMISSION = "deliveries_app.change_apprepository"


def replace_github_token(actor: Actor, watch: AppRepository, token: str) -> None:
    """Read the repository with another token from now on (empty: with none), after asking git whether it can be.

    Errors and the circuit are cleared, the delivery records stay, and a sync is on its way. Raises `ValidationError`,
    `GitError` when the repository cannot be read with it, and `NotFound` when it is not watched any more.
    """
    actor.require(PERMISSION)
    actor.require_watch(watch)
    validate_token(token)
    ask_git(watch.github_url, token)
    with transaction.atomic():
        # The repository's row before the watch's, as where a failure is counted.
        circuit.close_circuit(watch.repository)
        _update(
            watch,
            github_token=token,
            retry_count=0,
            status=Case(When(status=Status.FAILED, then=Value(Status.PENDING)), default=F("status")),
            request_count=F("request_count") + 1,
            next_sync_at=Now(),
            **CLEARED_FAILURE,
        )
        audit.record(actor, [watch], "Replaced the repository's token")
        scheduling.enqueue(watch, "high")


def renew_push_secret(actor: Actor, watch: AppRepository) -> str:
    """A new secret for the git host to sign this watch's push hooks with; it cannot be shown again. The one before it
    is not accepted any more. Raises `NotFound` when the repository is not watched any more."""
    actor.require(PERMISSION)
    actor.require_watch(watch)
    secret = secrets.token_hex(32)
    with transaction.atomic():
        _update(watch, push_secret=secret)
        audit.record(actor, [watch], "Made a new push hook secret")
    return secret


def _update(watch: AppRepository, **changes: object) -> None:
    """In one UPDATE, so that nothing that a worker writes at the same moment is overwritten."""
    if not AppRepository.objects.alive().filter(pk=watch.pk).update(**changes):
        raise NotFound("Repository not found")
    watch.refresh_from_db()


PERMISSION = "deliveries_app.change_apprepository"
MAX_CHARACTERS = 10_000
MAX_PATTERNS = 500


@dataclass(frozen=True)
class PatternsSet:
    """The patterns as they are kept, how many they are, and whether they differ from what was there before."""

    text: str
    count: int
    changed: bool


def set_ignore_patterns(actor: Actor, watch: AppRepository, text: str) -> PatternsSet:
    """Let the watch ignore what these lines match, beside what `.docoraignore` says; empty for nothing more.

    The next sync, which is wished for at once, deletes at the client what is newly ignored and creates what is not any
    more. Raises `ValidationError`, and `NotFound` when the repository is not watched any more.
    """
    actor.require(PERMISSION)
    actor.require_watch(watch)
    text, count = validate_patterns(text)
    with transaction.atomic():
        alive = AppRepository.objects.alive().filter(pk=watch.pk)
        changed = alive.exclude(ignore_patterns=text).update(
            ignore_patterns=text, request_count=F("request_count") + 1, next_sync_at=Now()
        )
        if not changed and not alive.exists():
            raise NotFound("Repository not found")
        watch.refresh_from_db()
        if changed:
            audit.record(actor, [watch], f"Set the ignore patterns ({count} now)")
            scheduling.enqueue(watch, "high")
    return PatternsSet(text, count, bool(changed))


def validate_patterns(text: str) -> tuple[str, int]:
    """The text as it is kept, and how many patterns it holds."""
    text = text.replace("\r\n", "\n").rstrip("\n")
    if len(text) > MAX_CHARACTERS:
        raise ValidationError(
            f"The patterns have {len(text):,} characters; at most {MAX_CHARACTERS:,} are accepted.", code="too_long"
        )
    for number, line in enumerate(text.split("\n"), start=1):
        if any(unicodedata.category(character) in {"Cc", "Cs"} and character != "\t" for character in line):
            raise ValidationError(f"Line {number} holds a control character. Remove it.", code="control_character")
    patterns, problems = compile_lines(text.encode())
    if problems:
        raise ValidationError(f"{words_for(problems)} Correct or remove it.", code="pattern")
    if len(patterns) > MAX_PATTERNS:
        raise ValidationError(
            f"These are {len(patterns):,} patterns; at most {MAX_PATTERNS:,} are accepted.", code="too_many"
        )
    return text, len(patterns)
