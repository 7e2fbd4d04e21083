"""Run many command lines in one process, each as `manage.py` would.

Reads a JSON list of command lines from stdin and prints a JSON list of `[exit code, stdout, stderr]`. A process for each
of a hundred command lines would take minutes.
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
