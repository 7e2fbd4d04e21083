"""The bar of an operation, answered before anything else is asked.

Whoever follows an operation asks for its bar every second, and so does everybody else who follows one. Of such a poll
nine tenths of the time went into what is the same as a second ago: who asks, in which session, with which token.
"""

import re
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from deliveries_app import actors
from deliveries_app.admin.fragments import is_known
from deliveries_app.progress import context as progress_context

_BAR = re.compile(r"/admin/progress/([-\w]+)/")


class PollsMiddleware:
    """Answers for the sessions that the view has just let in, as long as the operation is under way.

    Everything else goes on to the view: the first poll and one every `KEPT_SECONDS`, whoever may not see it, and
    an operation that has ended.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        asked = _BAR.fullmatch(request.path_info) if request.method == "GET" else None
        if asked and is_known(request, actors.can_view_operations):
            bar = progress_context.running(asked[1], said=request.GET.get("said"))
            if bar is not None:
                return HttpResponse(bar)
        return self.get_response(request)
