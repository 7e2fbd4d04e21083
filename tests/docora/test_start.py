"""What is imported at the start of a command, and by a worker before it forks."""

from pathlib import Path

import pytest

from docora.redis import queues
from tests.support.commands import run_script

COMMAND = """
import sys
from docora.cli.main import main
try:
    main()
finally:
    print("pages:", *(name in sys.modules for name in ("docora.urls", "deliveries_app.admin", "ninja")), file=sys.stderr)
"""

WORKER = """
import os
import sys
from docora.cli.main import main
os.register_at_fork(before=lambda: print("jobs:", "deliveries_app.jobs" in sys.modules, file=sys.stderr))
os.register_at_fork(before=lambda: print("API:", "ninja" in sys.modules, file=sys.stderr))
main()
"""

COLLECTIONS = """
import gc
from docora.cli.main import main
collections = []
def freeze(really=gc.freeze):
    gc.callbacks.clear()
    really()
gc.freeze = freeze
gc.callbacks.append(lambda phase, info: collections.append(phase))
try:
    main()
finally:
    print("collections:", len(collections))
"""


@pytest.mark.parametrize(("command", "imports_pages"), [("list_apps", False), ("check", True)])
def test_only_commands_that_check_urls_import_pages_and_the_api(
    instance_environment: dict[str, str], tmp_path: Path, command: str, imports_pages: bool
) -> None:
    script = tmp_path / "script.py"
    script.write_text(COMMAND)
    done = run_script(script, command, environment=instance_environment)
    assert (done.returncode, done.stderr) == (0, f"pages: {imports_pages} {imports_pages} {imports_pages}\n")


def test_worker_imports_jobs_before_it_forks_and_never_the_api(
    instance_environment: dict[str, str], tmp_path: Path
) -> None:
    """The API's library takes 11 MB of each worker."""
    queues.enqueue("default", "deliveries_app.jobs.clean_up", "", "clean_up")
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    done = run_script(script, "rqworker", "default", "--burst", environment=instance_environment)
    assert done.returncode == 0
    assert "jobs: True\n" in done.stderr
    assert "jobs: False" not in done.stderr
    assert "API: False\n" in done.stderr
    assert "API: True" not in done.stderr


def test_garbage_is_collected_only_once_a_command_is_loaded(
    instance_environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(COLLECTIONS)
    code = "import gc; print(gc.isenabled())"
    done = run_script(script, "shell", "--verbosity", "0", "-c", code, environment=instance_environment)
    assert (done.stdout, done.stderr) == ("True\ncollections: 0\n", "")
