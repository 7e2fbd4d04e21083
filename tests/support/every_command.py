"""Runs Docora's commands one after the other in this process, each as `manage.py` would, and prints what came of them.

A process of its own for each of a hundred command lines would take minutes. Reads a JSON list of command lines, prints a
JSON list of `[exit code, stdout, stderr]`.
"""

import contextlib
import io
import json
import sys
import traceback

from docora.cli.main import main


def outcome(arguments: list[str]) -> tuple[int, str, str]:
    out, err, code = io.StringIO(), io.StringIO(), 0
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
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    print(json.dumps([outcome(arguments) for arguments in json.load(sys.stdin)]))
