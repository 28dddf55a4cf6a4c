"""Threads that start before they are needed.

A thread that was started for each probe waited for a core for up to 2.7 s while the engine kept all of them busy: Linux
queues a new thread behind those that run, and a thread that has slept for a while before them.
"""

import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]


class ThreadPool:
    """Runs each job at once: on a waiting thread, or on a new one where none waits."""

    def __init__(self, kept: int) -> None:
        """Keep up to `kept` threads waiting; any other ends with its job."""
        self._kept = kept
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = False
        for _ in range(kept):
            self._start(lambda: None)

    def run(self, job: Job) -> None:
        """Run a job, which must not raise."""
        with self._lock:
            if self._waiting:
                self._waiting -= 1
                self._jobs.put(job)
                return
        self._start(job)

    def close(self) -> None:
        """End the waiting threads now, the others after their jobs."""
        with self._lock:
            self._closed = True
            for _ in range(self._waiting):
                self._jobs.put(None)
            self._waiting = 0

    def _start(self, job: Job) -> None:
        threading.Thread(target=self._work, args=(job,), name="worker", daemon=True).start()

    def _work(self, job: Job | None) -> None:
        while job is not None:
            job()
            with self._lock:
                if self._closed or self._waiting >= self._kept:
                    return
                self._waiting += 1
            job = self._jobs.get()
