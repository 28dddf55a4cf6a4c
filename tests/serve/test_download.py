"""How far a download is, read from the lines of hub_program."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from servekit.errors import ExitCode
from servekit.preflight.hub.hub_model import HubModel
from servekit.preflight.hub.hub_program import MARK
from servekit.serve.download import Download, DownloadReader
from servekit.serve.plan import Plan
from servekit.serve.status import Phase, StatusStore
from servekit.serve.supervisor import Supervisor
from servekit.serve.watch.probe import EngineClient
from tests.serve.test_status import Clock


class Reports:
    """Reports of the program, one a second."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.reader = DownloadReader(self.clock)

    def take(self, after_s: float = 1, **report: Any) -> Download:
        """Read the next report."""
        self.clock.now += after_s
        download = self.reader.read(MARK + json.dumps(report))
        assert download is not None
        return download


@pytest.fixture
def reports() -> Reports:
    """A download that has just begun."""
    return Reports()


def test_rate_and_time_left(reports: Reports) -> None:
    """What was in the cache before counts as present, and not for the rate."""
    download = reports.take(bytes=2_000_000_000, total=10_000_000_000)
    assert (download.bytes_per_s, download.seconds_left, str(download)) == (0, None, "2.00 GB of 10.00 GB")
    for second in range(1, 61):
        download = reports.take(bytes=2_000_000_000 + second * 10_000_000, total=10_000_000_000)
    assert str(download) == "2.60 GB of 10.00 GB, 10.0 MB/s, 12 min left"
    assert download.moved_s == reports.clock.now


def test_the_log_has_a_line_every_ten_seconds(reports: Reports) -> None:
    """The first moment, then one in ten; whatever keeps the download is noted at once."""
    noted = [reports.take(bytes=second * 1000, total=10_000_000).noted for second in range(30)]
    assert [second for second, each in enumerate(noted) if each] == [0, 10, 20]
    assert reports.take(retry="busy", message="the hub limits the rate of requests (429)").noted


def test_a_problem_stays_until_bytes_arrive(reports: Reports) -> None:
    """A link that fails is told, with the bytes so far, and does not count as movement."""
    moved_s = reports.take(bytes=5_000, total=10_000).moved_s
    assert str(reports.take(retry="network", message="the hub cannot be reached (ReadTimeout)")) == (
        "5.0 kB of 10.0 kB; waiting, the hub cannot be reached (ReadTimeout)"
    )
    download = reports.take(30, bytes=5_000, total=10_000)
    assert (download.problem != "", download.moved_s) == (True, moved_s)
    download = reports.take(bytes=6_000, total=10_000)
    assert (download.problem, download.moved_s) == ("", reports.clock.now)


def test_hashes_and_end(reports: Reports) -> None:
    """Comparing hashes is movement too; the commit ends the download."""
    reports.take(bytes=10_000, total=10_000)
    download = reports.take(bytes=10_000, total=10_000, verified=4_000)
    assert download.moved_s == reports.clock.now
    assert (download.noted, str(download)) == (True, "comparing 10.0 kB with the hub's hashes, 4.0 kB done")
    assert reports.take(commit="a1").commit == "a1"


def test_problem_that_ends_it(reports: Reports) -> None:
    """The last words say what the user must do."""
    download = reports.take(problem="gated", message="the model is gated (403)", remedy="accept its terms")
    assert (str(download), download.noted) == ("the model is gated (403); accept its terms", True)


def test_other_lines_are_the_engines() -> None:
    """A line without the program's mark is not a report; a warning that does not end its line hides none."""
    assert DownloadReader().read('{"bytes": 1}') is None
    download = DownloadReader().read(f'a warning{MARK}{{"commit": "a1"}}')
    assert download is not None
    assert download.commit == "a1"


def test_a_download_that_stands_still_ends_the_start(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a new byte the start fails with what keeps the download; time for the start alone does not end it."""
    monkeypatch.setattr("servekit.serve.phases.STALL_S", 1.0)
    model = HubModel("o/m", "main", Path("/nowhere"), commit="", whole=False, offline=False, python="python3")
    report = f"{MARK}{json.dumps({'retry': 'busy', 'message': 'the hub limits the rate'})}"
    plan = replace(make_plan(start_s=0.1), hub=model, argv=("/bin/sh", "-c", f"echo '{report}'; exec sleep 60"))
    store = StatusStore()
    supervisor = Supervisor(plan, store, EngineClient(plan.url), {})
    assert supervisor.run() is ExitCode.START_FAILED
    assert store.read().reason == "the download has stood still for 1 s: the hub limits the rate"
    assert [phase for phase, _ in store.read().starts] == [Phase.DOWNLOAD]
