"""The only kind of job that Docora's workers perform.

RQ imports and calls the function that a job in Redis names, and by default unpickles its arguments: anyone who can write to
Redis could run code in the workers. Docora's jobs are JSON, and only functions of `settings.JOBS` are called.
"""

from django.conf import settings
from rq.exceptions import DeserializationError
from rq.executions import Execution, ExecutionRegistry
from rq.job import UNEVALUATED, Job


class _Executions(ExecutionRegistry):
    """The executions of a job, without reading them: RQ only deletes them here.

    An execution expires if its worker is frozen. RQ lists it for a minute after that, but fails to read it.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job.id, connection=job.connection)
        self._worker_name = job.worker_name or ""  # RQ also deletes the execution from this worker's list

    def get_executions(self, start: int = 0, end: int = -1) -> list[Execution]:
        names = self.get_execution_ids(start, end)
        return [Execution(name, self.job_id, self.connection, self._worker_name) for name in names]


class DocoraJob(Job):
    """A call of a function of `settings.JOBS` with one string or integer. Callbacks and webhooks are ignored.

    Reading any other job's function raises `DeserializationError`.
    """

    def _deserialize_data(self) -> None:
        super()._deserialize_data()  # type: ignore[no-untyped-call]
        name, arguments = self._func_name, self._args
        has_one_argument = isinstance(arguments, list) and [type(value) for value in arguments] in ([int], [str])
        if name not in settings.JOBS or self._instance is not None or not has_one_argument or self._kwargs:
            self._func_name = UNEVALUATED  # the next access refuses it, too
            raise DeserializationError(f"{name!r} is not one of Docora's jobs.")

    @property
    def execution_registry(self) -> ExecutionRegistry:
        return _Executions(self)

    def restore(self, raw_data: object) -> None:
        super().restore(raw_data)
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self.webhooks = []
