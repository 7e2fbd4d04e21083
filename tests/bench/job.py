"""Run one worker job in this process and measure it: `python -m tests.bench.job sync_watch 7`.

Prints a line of JSON with the seconds it took, the CPU seconds of this process and of its children (git), and the memory
in MB that the job took above what the process used before. PROFILE=FILE writes a profile.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

import django


def main() -> None:
    django.setup()
    from django.db import connection

    from deliveries_app import jobs
    from deliveries_app.sync import attempt  # noqa: F401  a worker has imported the engine before it forks
    from docora.redis.connection import connection as redis
    from docora.security import crypto

    connection.ensure_connection()
    redis().ping()
    crypto.derive_keys()
    if os.environ.get("PROFILE"):
        import cProfile

        profile = cProfile.Profile()
        profile.enable()
    idle = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    cpu, began = time.process_time(), time.perf_counter()
    getattr(jobs, sys.argv[1])(int(sys.argv[2]))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    if os.environ.get("PROFILE"):
        profile.disable()
        profile.dump_stats(os.environ["PROFILE"])
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu": cpu,
                "children_cpu": children.ru_utime + children.ru_stime,
                "idle_mb": idle,
                "peak_mb": _memory("VmHWM") - idle,
                "children_mb": children.ru_maxrss / 1000,
            }
        )
    )


def _memory(name: str) -> float:
    """Return this value of the process's memory in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(name)


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "docora.settings")
    main()
