"""Why a run stops before the end of its plan."""

from docora.http.client import Outcome


class Superseded(Exception):
    """The watch belongs to another claim or generation now, so this worker must not record anything."""


class Paused(Exception):
    """The run has to stop now and continues later, for one of the reasons that `Slots.rebalance` lists."""


class SliceOver(Exception):
    """Another watch waits for a worker or a slot, and this attempt's slice is over. The run continues later."""


class EndpointDown(Exception):
    """The app's endpoint does not work, so every repository of the app has to wait.

    - `is_certain`: False if we only know that it accepts none of this watch's files. Then the attempt counts.
    - `answer`: the outcome of the last ping, if the run has sent one.
    """

    def __init__(self, *, is_certain: bool, answer: Outcome | None) -> None:
        super().__init__()
        self.is_certain, self.answer = is_certain, answer


class EndpointGone(Exception):
    """The app answered 410 to several files: it wants no more notifications."""
