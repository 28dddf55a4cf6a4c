"""Threads that are there before they are needed.

A thread made for each question waited for a core for up to 2.7 s while the engine kept all of them busy: Linux lets a
new thread queue behind those that run, one that has slept for a while before them.
"""

import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]


class ThreadPool:
    """Does each job at once: on a thread that waits for one, or on a new one where none does."""

    def __init__(self, kept: int) -> None:
        """Keep so many threads waiting; more of them go when they are done."""
        self._kept = kept
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = False
        for _ in range(kept):
            self._start(None)

    def run(self, job: Job) -> None:
        """Have a job done; it must not raise."""
        with self._lock:
            taken = self._waiting > 0
            if taken:
                self._waiting -= 1
        if taken:
            self._jobs.put(job)
        else:
            self._start(job)

    def close(self) -> None:
        """Let the threads that wait go; those at work go when they are done."""
        with self._lock:
            self._closed = True
            for _ in range(self._waiting):
                self._jobs.put(None)
            self._waiting = 0

    def _start(self, job: Job | None) -> None:
        threading.Thread(target=self._work, args=(job,), name="worker", daemon=True).start()

    def _work(self, job: Job | None) -> None:
        if job is not None:
            job()
        while self._may_wait():
            job = self._jobs.get()
            if job is None:
                return
            job()

    def _may_wait(self) -> bool:
        with self._lock:
            if self._closed or self._waiting >= self._kept:
                return False
            self._waiting += 1
            return True
