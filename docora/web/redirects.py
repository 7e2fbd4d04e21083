"""Where to go after a request: only to pages of this site."""

from django.http import HttpRequest
from django.utils.http import url_has_allowed_host_and_scheme


def own_url(request: HttpRequest, url: str, default: str) -> str:
    """Return this URL, which comes from the browser, if it leads to this site. Otherwise, return `default`."""
    hosts, is_secure = {request.get_host()}, request.is_secure()
    return url if url_has_allowed_host_and_scheme(url, hosts, require_https=is_secure) else default
