"""`/.well-known/security.txt` (RFC 9116): where to report a vulnerability of this installation."""

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe

PATH = ".well-known/security.txt"


@csrf_exempt  # other methods are a 405, not a CSRF failure
@require_safe
def security_txt(request: HttpRequest) -> HttpResponse:
    """Return the file, or 404 unless SECURITY_CONTACTS is set."""
    if not settings.SECURITY_CONTACTS:
        raise Http404
    lines = [f"Contact: {contact}" for contact in settings.SECURITY_CONTACTS]
    lines += [
        f"Expires: {settings.SECURITY_CONTACTS_EXPIRE_ON:%Y-%m-%d}T00:00:00Z",
        "Preferred-Languages: en",
        f"Canonical: {settings.PUBLIC_URL}/{PATH}",
    ]
    return HttpResponse("\n".join(lines) + "\n", content_type="text/plain; charset=utf-8")
