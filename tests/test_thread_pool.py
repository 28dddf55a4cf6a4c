"""Threads that wait for work: kept ones are reused, new ones start on demand, and none stays forever."""

import threading
from collections.abc import Callable

from servekit.thread_pool import ThreadPool


def names() -> set[int]:
    """The names of the pool's running threads."""
    return {thread.ident or 0 for thread in threading.enumerate() if thread.name == "worker"}


def test_jobs_one_after_the_other_need_no_new_thread(eventually: Callable[..., None]) -> None:
    """While one of the kept threads is idle, it does the job."""
    before = names()
    workers = ThreadPool(2, most=100)
    eventually(lambda: workers._idle == 2, what="waiting threads")
    kept, used = names() - before, set()
    for _ in range(20):
        done = threading.Event()

        def job(done: threading.Event = done) -> None:
            used.add(threading.get_ident())
            done.set()

        workers.run(job)
        assert done.wait(5)
        eventually(lambda: workers._idle == 2, what="waiting threads")
    assert used <= kept
    workers.close()
    eventually(lambda: not names() - before, what="the end of the threads")


def test_jobs_that_last_hold_up_nobody(eventually: Callable[..., None]) -> None:
    """More jobs than kept threads all run in parallel, and the extra threads do not stay."""
    before = names()
    workers = ThreadPool(2, most=100)
    begun, go_on = threading.Semaphore(0), threading.Event()

    def job() -> None:
        begun.release()
        assert go_on.wait(10)

    for _ in range(50):
        workers.run(job)
    for _ in range(50):
        assert begun.acquire(timeout=60)
    go_on.set()
    eventually(lambda: len(names() - before) == 2, what="two threads again")
    workers.close()
    eventually(lambda: not names() - before, what="the end of the threads")


def test_more_jobs_than_threads_wait(eventually: Callable[..., None]) -> None:
    """There are never more than `most` threads; jobs beyond them wait, and all are done, after the close too."""
    before = names()
    workers = ThreadPool(1, most=3)
    done, go_on = threading.Semaphore(0), threading.Event()

    def job() -> None:
        assert_set(go_on)
        done.release()

    for _ in range(20):
        workers.run(job)
    assert len(names() - before) == 3
    assert workers.waiting == 17
    workers.close()
    go_on.set()
    for _ in range(20):
        assert done.acquire(timeout=60)
    assert workers.waiting == 0
    eventually(lambda: not names() - before, what="the end of the threads")


def test_a_thread_at_work_goes_after_the_close(eventually: Callable[..., None]) -> None:
    """Closing does not wait for running jobs, and leaves no thread behind."""
    before = names()
    workers = ThreadPool(1, most=100)
    go_on = threading.Event()
    for _ in range(3):
        workers.run(lambda: assert_set(go_on))
    workers.close()
    go_on.set()
    eventually(lambda: not names() - before, what="the end of the threads")


def assert_set(event: threading.Event) -> None:
    """Wait for an event."""
    assert event.wait(10)
