"""The only kind of job that Docora's workers perform.

RQ imports and calls the function that a job in Redis names, and by default unpickles its arguments: anyone who can write to
Redis could run code in the workers. Docora's jobs are JSON, and only functions of `settings.JOBS` are called.
"""

from django.conf import settings
from rq.exceptions import DeserializationError
from rq.job import UNEVALUATED, Job


class DocoraJob(Job):
    """A function of `settings.JOBS` with one string or integer. Reading any other job's function raises
    `DeserializationError`; callbacks and webhooks are ignored."""

    def _deserialize_data(self) -> None:
        super()._deserialize_data()  # type: ignore[no-untyped-call]
        name, arguments = self._func_name, self._args
        has_one_argument = isinstance(arguments, list) and [type(value) for value in arguments] in ([int], [str])
        if name not in settings.JOBS or self._instance is not None or not has_one_argument or self._kwargs:
            self._func_name = UNEVALUATED  # the next access refuses it, too
            raise DeserializationError(f"{name!r} is not one of Docora's jobs.")

    def restore(self, raw_data: object) -> None:
        super().restore(raw_data)
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self.webhooks = []
