"""Where each Python process of a start spends its time: a thread looks at the main one's stack 100 times a second.

On `PYTHONPATH`, for `python -m benchmarks.gpu warm-start` only. Each process writes `START_SAMPLES/PID.json` every two
seconds: the seconds of each function and of each module's own code, callees included. A look is worth the time since
the last one: C code that keeps the GIL also keeps this thread from looking.
"""

import _thread
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

EVERY_S = 0.01
WRITTEN_S = 2.0


def watch(main: int, path: Path) -> None:
    """Look at the stack of the thread `main` until the process ends."""
    seconds: Counter[str] = Counter()
    began_s = last_s = written_s = time.monotonic()
    while True:
        time.sleep(EVERY_S)
        now_s = time.monotonic()
        frame = sys._current_frames().get(main)  # noqa: SLF001 - the only way to see another thread's stack
        names = set()
        while frame is not None:
            code = frame.f_code
            names.add(f"{'/'.join(code.co_filename.split('/')[-3:])}:{code.co_name}")
            frame = frame.f_back
        seconds.update(dict.fromkeys(names, now_s - last_s))
        last_s = now_s
        if now_s - written_s > WRITTEN_S:
            written_s = now_s
            path.write_text(json.dumps({"age_s": now_s - began_s, "argv": sys.argv, "seconds": seconds}))


def begin() -> None:
    """Watch this process from now on."""
    path = Path(os.environ["START_SAMPLES"]) / f"{os.getpid()}.json"
    # Not counted by `threading`: servekit's `early_core` forks only without threads.
    _thread.start_new_thread(watch, (threading.main_thread().ident or 0, path))


if "START_SAMPLES" in os.environ:
    os.register_at_fork(after_in_child=begin)
    begin()
