"""API operations on the app itself: its endpoint's settings, a test ping, and its signing key."""

from typing import Any

from django.http import HttpRequest
from ninja import Router, Status

from deliveries_app.api import callers, schemas
from deliveries_app.api.callers import BODY, ONE_PING, REFUSED, WITH_BODY, AppToken
from deliveries_app.models import App
from deliveries_app.services import keys, pinging
from deliveries_app.services.app_settings import change_own_settings
from deliveries_app.services.quotas import usage_of
from docora.web.api import READ, documented_responses
from docora.web.concurrency import ConcurrencyLimit
from docora.web.error_codes import ErrorCode
from docora.web.errors import ApiError

router = Router(auth=AppToken(), tags=["App"])

_KEY_ROTATION_CONFLICT = {409: "The state of the key rotation does not allow this step. The error says why."}
# Each waits for the app: up to 30 s, or 60 s during a key rotation.
PINGS = ConcurrencyLimit("pings", per_caller=1, total=2)


@router.api_operation(
    READ,
    "",
    summary="Get the app's settings",
    **documented_responses(200, schemas.Endpoint, "The settings and the state of the endpoint.", REFUSED),
)
def get_app(request: HttpRequest) -> dict[str, Any]:
    """Returns where notifications go, how many are sent at once, and whether they are paused or on hold."""
    return _endpoint(callers.caller(request))


@router.patch(
    "",
    summary="Change the app's settings",
    auth=WITH_BODY,
    **documented_responses(
        200,
        schemas.Endpoint,
        "The settings as they are now.",
        REFUSED | BODY | {409: "An administrator has paused the app, so only an administrator can resume it."},
    ),
)
def change_app(request: HttpRequest, settings: schemas.EndpointSettings) -> dict[str, Any]:
    """Pauses or resumes all notifications, sets how many are sent at once, and turns `/sync_completed` and `/verify` on or
    off."""
    app = change_own_settings(callers.actor(request), callers.caller(request), **settings.model_dump())
    return _endpoint(app)


@router.post(
    "/ping",
    summary="Send a test ping",
    auth=WITH_BODY,
    **documented_responses(
        200,
        schemas.Ping,
        "The result. `delivered` says whether the app accepted it.",
        REFUSED | ONE_PING | BODY | _KEY_ROTATION_CONFLICT,
    ),
)
def send_ping(request: HttpRequest, how: schemas.PingWith) -> dict[str, Any]:
    """Sends a signed `/ping` to the app and waits for its response, up to 30 seconds, or 60 during a key rotation.

    An app can send one ping at a time.
    """
    app = callers.caller(request)
    if how.new_key and not app.is_rotating_key:
        raise ApiError("No key rotation is in progress, so there is no new key", 409, code=ErrorCode.KEY_ROTATION)
    with PINGS.slot(app.pk):
        result = pinging.send_ping(callers.actor(request), app, new_key=how.new_key)
    return {
        "delivered": result.delivered,
        "message": result.message,
        "hint": result.hint,
        "status": result.status,
        "milliseconds": round(result.seconds * 1000),
        "response": result.body,
    }


@router.post(
    "/key",
    summary="Start a key rotation",
    auth=WITH_BODY,
    **documented_responses(
        201,
        schemas.NewKey,
        "The new key. Notifications now carry a signature made with each key.",
        REFUSED | BODY | _KEY_ROTATION_CONFLICT,
    ),
)
def rotate_key(request: HttpRequest, choice: schemas.KeyChoice) -> Status[dict[str, str]]:
    """Returns the new key, which is not shown again. `webhook-signature` now holds a signature made with each key.
    `X-Docora-Signature` uses the old key until the app rejects it and accepts the new one, so the app can switch at any
    time. Then retire the old key."""
    new_key = keys.start_key_rotation(callers.actor(request), callers.caller(request), choice.key or "")
    return Status(201, {"key": new_key})


@router.post(
    "/key/retire",
    summary="Retire the old signing key",
    **documented_responses(204, None, "Only the new key is used.", REFUSED | _KEY_ROTATION_CONFLICT),
)
def retire_old_key(request: HttpRequest) -> Status[None]:
    """Ends the rotation and keeps the new key. This needs proof that the app uses it: a notification that the app accepted
    with the new key, such as a ping with `new_key`."""
    keys.retire_old_key(callers.actor(request), callers.caller(request))
    return Status(204, None)


@router.delete(
    "/key",
    summary="Discard the new signing key",
    **documented_responses(204, None, "Only the old key is used.", REFUSED | _KEY_ROTATION_CONFLICT),
)
def discard_new_key(request: HttpRequest) -> Status[None]:
    """Ends the rotation and keeps the old key, for example because the new one was lost."""
    keys.cancel_key_rotation(callers.actor(request), callers.caller(request))
    return Status(204, None)


def _endpoint(app: App) -> dict[str, Any]:
    rotation = {"started_at": app.key_rotation_started_at, "new_key_accepted_at": app.new_key_accepted_at}
    return {
        "app_id": app.app_id,
        "name": app.name,
        "base_url": app.base_url,
        "paused": app.paused,
        "paused_reason": app.paused_reason or None,
        "max_in_flight": app.max_in_flight,
        "max_in_flight_limit": app.max_in_flight_limit,
        "send_sync_completed": app.send_sync_completed,
        "answers_verify": app.answers_verify,
        "on_hold_until": app.cooldown_until if app.is_on_hold else None,
        "key_rotation": rotation if app.is_rotating_key else None,
        "quotas": usage_of(app),
    }
