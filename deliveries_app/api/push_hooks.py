"""Push hooks: a git host announces a push, and Docora checks the repository immediately instead of at the next rescan."""

from typing import Any

from django.http import HttpRequest
from ninja import Router, Status

from deliveries_app.actors import Actor
from deliveries_app.api.callers import RepositoryId
from deliveries_app.api.schemas import Announced
from deliveries_app.services import push_hooks
from docora.web.api import SHELL, THROTTLED, authentication_error, body_chunks, documented_responses, header_parameter

router = Router(tags=["Push hooks"])

MAX_BODY = 26214400  # bytes, the largest that GitHub sends
_REFUSED = (
    "The signature or the secret is missing or wrong, or there is no such repository. The response does not say which."
)

_HINT = "Sign the body with the push hook secret of the watch, in X-Hub-Signature-256 or your git host's own header"

_documented = documented_responses(
    202,
    Announced,
    "The signature or the secret is correct, and a check is queued.",
    {401: _REFUSED, 413: f"The body is larger than {MAX_BODY:,} bytes.", 429: THROTTLED},
)


_documented["openapi_extra"] |= {
    "parameters": [
        header_parameter(
            "X-Hub-Signature-256",
            "GitHub: `sha256=` and the hex HMAC-SHA256 of the body under the push hook secret of the watch.",
            example="sha256=88aab3ede8d3adf94d26ab90d3bafd4a2083070c3bcce9c014ee04a443847c0b",
            **{
                SHELL: """sha256=$(printf %s "$BODY" | openssl dgst -sha256 -hmac "$PUSH_SECRET" -r | cut -d ' ' -f 1)"""
            },
        ),
        header_parameter("X-Hub-Signature", "Bitbucket: the same value."),
        header_parameter("X-Gitea-Signature", "Gitea: the hex HMAC-SHA256 alone."),
        header_parameter("X-Forgejo-Signature", "Forgejo: the hex HMAC-SHA256 alone."),
        header_parameter("X-Gitlab-Token", "GitLab: the push hook secret itself."),
    ],
    "requestBody": {
        "description": "Whatever the host sends. It is only read to verify a signature.",
        "required": False,
        "content": {"application/json": {"schema": {}, "example": {"ref": "refs/heads/main"}}},
    },
}


@router.post("/push/{repository_id}", summary="Announce a push", **_documented)
def push_hook(request: HttpRequest, repository_id: RepositoryId) -> Status[dict[str, Any]]:
    """Use this URL in the webhook settings of the git host. One of the headers below is required; GitHub, GitLab, Bitbucket,
    Gitea and Forgejo send theirs once they have the secret. For Azure DevOps, enter the secret as the password of basic
    authentication, with any user name. The secret belongs to one watch and is shown once, when it is created by the app
    (`POST /api/repositories/{repository_id}/push-secret`) or in the admin. If several apps watch the repository, any of
    their secrets works."""
    try:
        proven = push_hooks.proven_watches(repository_id, request.headers, body_chunks(request, MAX_BODY))
    except OSError:  # the client disconnected
        proven = []
    if not proven:
        raise authentication_error(request, "push", _HINT, challenge='Basic realm="push hook"')
    push_hooks.repository_pushed(Actor.system(), repository_id, proven)
    return Status(202, {"message": "Check queued"})
