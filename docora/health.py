"""Is it alive, and which version is it? Both public, and cheap enough to be asked every second."""

import os
import time

from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from docora import __version__

_started = time.monotonic()


@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """`{timestamp, uptime}`; uptime in seconds of this web process."""
    stamp = timezone.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return JsonResponse({"timestamp": stamp, "uptime": round(time.monotonic() - _started, 3)})


@require_safe
def version(request: HttpRequest) -> JsonResponse:
    """`{version, buildNumber, gitSha, buildDate}`; a build sets the last three through `DOCORA_BUILD_…`."""
    return JsonResponse(
        {
            "version": __version__,
            "buildNumber": os.environ.get("DOCORA_BUILD_NUMBER", ""),
            "gitSha": os.environ.get("DOCORA_BUILD_SHA", ""),
            "buildDate": os.environ.get("DOCORA_BUILD_DATE", ""),
        }
    )
