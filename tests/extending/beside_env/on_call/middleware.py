from on_call.models import Person


class OnCallMiddleware:
    """Name the person on call in the response of every page that fails."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        if response.status_code >= 500 or request.path == "/on-call/":
            response.headers["X-On-Call"] = str(Person.objects.first() or "nobody")
        return response
