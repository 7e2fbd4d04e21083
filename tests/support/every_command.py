"""Run many command lines in one process, each as `manage.py` would.

Reads a JSON list of `[command line, environment variables]` from stdin and prints a JSON list of `[exit code, stdout,
stderr]`. The variables are added for that line alone: Docora reads its settings again if they were invalid. A process for
each of a hundred command lines would take minutes.
"""

import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Mapping

from docora.cli.main import main


def outcome(arguments: list[str], variables: Mapping[str, str]) -> tuple[int, str, str]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = dict(os.environ)
    os.environ.update(variables)
    sys.argv = ["manage.py", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
            if isinstance(ended.code, str):
                err.write(ended.code)
        except BaseException:
            traceback.print_exc()
    os.environ.clear()
    os.environ.update(before)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    print(json.dumps([outcome(*line) for line in json.load(sys.stdin)]))
