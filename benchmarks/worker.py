"""A process that does what the benchmark asks it to, one request after the other: ``python worker.py MODULE``.

Requests and answers are lines of JSON. The first names the arguments of the module's ``Task``, every other a method of it
and that method's arguments. Between requests the process waits for its standard input and uses no processor.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any


def peak_bytes() -> int:
    """Most memory this process ever had resident. Of the program itself: ``ru_maxrss`` would begin with its parent's."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    task: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if task is None:
            started = time.perf_counter()
            module = importlib.import_module(sys.argv[1])
            imported = {"import_seconds": time.perf_counter() - started, "import_peak_bytes": peak_bytes()}
            task = module.Task(**request)
            answer = task.facts() | imported
        else:
            answer = getattr(task, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
