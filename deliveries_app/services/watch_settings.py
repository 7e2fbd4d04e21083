"""What can be changed about a watch: the token that its repository is read with, and the secret of its push hooks."""

import secrets

from django.db import transaction
from django.db.models import Case, F, Value, When
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.causes import NO_TROUBLE
from deliveries_app.models import AppRepository, Status
from deliveries_app.services import audit, circuits, waking
from deliveries_app.services.operations import NotFound
from deliveries_app.services.watching import ask_git, validate_token

PERMISSION = "deliveries_app.change_apprepository"


def replace_github_token(actor: Actor, pair: AppRepository, token: str) -> None:
    """Read the repository with another token from now on (empty: with none), after asking git whether it can be.

    Errors and the circuit are cleared, the delivery records stay, and a sync is on its way. Raises `ValidationError`,
    `GitError` when the repository cannot be read with it, and `NotFound` when it is not watched any more.
    """
    actor.require(PERMISSION)
    actor.require_pair(pair)
    validate_token(token)
    ask_git(pair.github_url, token)
    with transaction.atomic():
        # The repository's row before the pair's, as where a failure is counted.
        circuits.close_circuit(pair.repository)
        _update(
            pair,
            github_token=token,
            retry_count=0,
            status=Case(When(status=Status.FAILED, then=Value(Status.PENDING)), default=F("status")),
            wanted=F("wanted") + 1,
            next_sync_at=Now(),
            **NO_TROUBLE,
        )
        audit.record(actor, [pair], "Replaced the repository's token")
        waking.enqueue(pair, "high")


def renew_push_secret(actor: Actor, pair: AppRepository) -> str:
    """A new secret for the git host to sign this watch's push hooks with; it cannot be shown again. The one before it
    is not accepted any more. Raises `NotFound` when the repository is not watched any more."""
    actor.require(PERMISSION)
    actor.require_pair(pair)
    secret = secrets.token_hex(32)
    with transaction.atomic():
        _update(pair, push_secret=secret)
        audit.record(actor, [pair], "Made a new push hook secret")
    return secret


def _update(pair: AppRepository, **changes: object) -> None:
    """In one UPDATE, so that nothing that a worker writes at the same moment is overwritten."""
    if not AppRepository.objects.alive().filter(pk=pair.pk).update(**changes):
        raise NotFound("Repository not found")
    pair.refresh_from_db()
