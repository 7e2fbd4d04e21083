"""Docora's commands as tests run them: in this process, or as a shell would."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.core.management import call_command

PROJECT = Path(__file__).resolve().parents[2]


def run(name: str, *arguments: str, **options: Any) -> str:
    """What the command printed as its result."""
    out = io.StringIO()
    call_command(name, *arguments, stdout=out, **options)
    return out.getvalue()


def run_json(name: str, *arguments: str) -> Any:
    """The one object that it printed with `--json`: more, or anything beside it, is no JSON."""
    return json.loads(run(name, *arguments, "--json"))


def manage(
    *arguments: str, environment: Mapping[str, str] = os.environ, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROJECT / "manage.py"), *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **{"stdin": subprocess.DEVNULL, **options},
    )
