"""How long an engine has made no progress, from readings of its counters."""

from servekit.serve.watch.progress import Progress


def test_a_stop_between_two_readings() -> None:
    """An engine that stopped just after a reading has stood still since then, not since the next reading."""
    progress = Progress(0)
    assert progress.record(5, (1.0,), pending=True, quiet_s=0.5) == 0.5
    assert progress.record(10, (2.0,), pending=True, quiet_s=4.5) == 4.5
    assert progress.left_s(10, 30) == 25.5
    assert progress.record(15, (2.0,), pending=True, quiet_s=9.5) == 9.5
    assert progress.record(20, None, pending=True) == 14.5


def test_an_idle_engine() -> None:
    """The time without work does not count, and the first request after it does not look like an old one."""
    progress = Progress(0)
    assert progress.record(100, (1.0,), pending=False, quiet_s=99) == 0
    assert progress.record(105, (1.0,), pending=True, quiet_s=104) == 5
    assert progress.record(110, (2.0,), pending=True, quiet_s=200) == 10
