"""Threads that are started before they are needed.

A new thread for each probe waited up to 2.7 s for a core while the engine kept all cores busy: Linux queues a new
thread behind the running ones, and a thread that has slept for a while before them.
"""

import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]


class ThreadPool:
    """Runs each job immediately, on an idle thread or on a new one, as long as it has fewer than `most` threads."""

    def __init__(self, kept: int, most: int) -> None:
        """Keep up to `kept` idle threads; any other thread ends with its job. Beyond `most` threads, jobs wait."""
        self._kept, self._most = kept, most
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads, self._idle = kept, 0
        self.waiting = 0
        """Jobs that no thread has begun."""
        self._closed = False
        for _ in range(kept):
            self._start(lambda: None)

    def run(self, job: Job) -> None:
        """Run a job, which must not raise."""
        with self._lock:
            if new := not self._idle and self._threads < self._most:
                self._threads += 1
            elif self._idle:
                self._idle -= 1
            else:
                self.waiting += 1
        if new:
            self._start(job)
        else:
            self._jobs.put(job)

    def close(self) -> None:
        """End the idle threads now, the others after their jobs."""
        with self._lock:
            self._closed = True
            for _ in range(self._idle):
                self._jobs.put(None)
            self._threads -= self._idle
            self._idle = 0

    def _start(self, job: Job) -> None:
        threading.Thread(target=self._work, args=(job,), name="worker", daemon=True).start()

    def _work(self, job: Job | None) -> None:
        while job is not None:
            job()
            with self._lock:
                if self.waiting:
                    self.waiting -= 1
                elif self._closed or self._idle >= self._kept:
                    self._threads -= 1
                    return
                else:
                    self._idle += 1
            job = self._jobs.get()
