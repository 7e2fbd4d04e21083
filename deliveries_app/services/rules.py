"""What an administrator adds to a repository's own `.docoraignore` for one watch."""

import unicodedata
from dataclasses import dataclass

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository
from deliveries_app.rules import compile_lines, words_for
from deliveries_app.services import audit, waking
from deliveries_app.services.operations import NotFound

PERMISSION = "deliveries_app.change_apprepository"
MAX_CHARACTERS = 10_000
MAX_PATTERNS = 500


@dataclass(frozen=True)
class PatternsSet:
    """The patterns as they are kept, how many they are, and whether they differ from what was there before."""

    text: str
    count: int
    changed: bool


def set_ignore_patterns(actor: Actor, pair: AppRepository, text: str) -> PatternsSet:
    """Let the watch ignore what these lines match, beside what `.docoraignore` says; empty for nothing more.

    The next sync, which is wished for at once, deletes at the client what is newly ignored and creates what is not any
    more. Raises `ValidationError`, and `NotFound` when the repository is not watched any more.
    """
    actor.require(PERMISSION)
    actor.require_pair(pair)
    text, count = validate_patterns(text)
    with transaction.atomic():
        alive = AppRepository.objects.alive().filter(pk=pair.pk)
        changed = alive.exclude(ignore_patterns=text).update(
            ignore_patterns=text, wanted=F("wanted") + 1, next_sync_at=Now()
        )
        if not changed and not alive.exists():
            raise NotFound("Repository not found")
        pair.refresh_from_db()
        if changed:
            audit.record(actor, [pair], f"Set the ignore patterns ({count} now)")
            waking.enqueue(pair, "high")
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
