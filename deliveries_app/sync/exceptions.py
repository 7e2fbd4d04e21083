"""Why a run stops before its plan is done."""

from docora.http.client import Outcome


class Superseded(Exception):
    """The watch belongs to another claim or generation now: whatever this worker still records would be wrong."""


class Paused(Exception):
    """An administrator paused the app, or all syncing, while it was being sent to, or another run has put it on hold."""


class SliceOver(Exception):
    """Another app waits for a worker, and this attempt has had its share of the time. The run continues later."""


class EndpointDown(Exception):
    """The app's endpoint does not work, so every repository of the app has to wait.

    `is_certain` unless all that is known is that it accepts none of this watch's files: then the attempt counts. `answer`
    is the ping's, if nothing else was sent.
    """

    def __init__(self, *, is_certain: bool, answer: Outcome | None) -> None:
        super().__init__()
        self.is_certain, self.answer = is_certain, answer


class RateLimited(Exception):
    """The app asked for a rest that is too long to be waited for here."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The app asked to wait {seconds:.0f} seconds.")
        self.seconds = seconds


class EndpointGone(Exception):
    """The app answered 410 often enough to be believed: it wants no more notifications."""
