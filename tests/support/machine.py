"""Describe the machine that measurements were taken on."""

import os
import platform
import subprocess
from pathlib import Path


def machine() -> str:
    """Return for example `2 cores (Intel …), 8 GB, Linux 6.1, Python 3.13.5, git 2.47.3`."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?"
    )
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    git = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    return (
        f"{os.cpu_count()} cores ({cpu}), {memory / 1e6:.0f} GB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, git {git}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
