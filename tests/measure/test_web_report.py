"""`servekit report --format html` in a real browser: one file with table and plots, on a phone too."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from servekit.cli.main import command
from servekit.errors import ConfigurationError
from servekit.measure.report.curves import curves_of
from tests.harness.browser import LOW_CONTRAST, WIDTH_OF_CONTENT
from tests.measure.replay import GPU, Run
from tests.measure.test_report import report, write

if TYPE_CHECKING:
    from tests.harness.browser import Browser

EVIL = """<script>document.documentElement.dataset.ran = "1"</script><img src=x onerror="document.documentElement.dataset.ran='2'">"""  # noqa: E501 - one value
TITLES = ["Power, W", "Output tokens per s", "KV cache in use, %", "Requests that wait"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two configurations with three runs of ten minutes, with names that are markup."""
    folder = tmp_path_factory.mktemp("report")
    group = [Run(name=EVIL, run_w=watts) for watts in (70.0, 71.0, 74.0)]
    fast, slow = (
        [write(folder, replace(run, run_s=seconds), f"{name}<i>{n}") for n, run in enumerate(group)]
        for name, seconds in (("fast", 600), ("slow", 900))
    )
    path = folder / "report.html"
    words = [sys.executable, "-m", "servekit.cli.main", "report", *fast, "--baseline", *slow, "--format", "html"]
    with path.open("wb") as file:  # not in this process: pygal 3.1.3 leaves an import hook that Python 3.11 warns of
        subprocess.run(words, stdout=file, check=True)
    return path


@pytest.mark.parametrize(("width", "dark"), [(390, True), (390, False), (1200, False)])
def test_the_page_is_readable(page: Path, browser: "Browser", width: int, *, dark: bool) -> None:
    """It fits the screen, has contrast in both colour schemes, and shows the table and four plots of each run."""
    browser.open(page.as_uri(), width=width, height=844, dark=dark)
    assert browser.ask(WIDTH_OF_CONTENT) == width
    assert browser.ask("document.querySelector('table').scrollWidth <= document.querySelector('table').clientWidth")
    assert browser.ask(LOW_CONTRAST) == []
    text = browser.text("table")
    assert "Average GPU power, W" in text
    assert "71.0 (70.0 to 74.0)" in text
    plots = browser.ask(
        "[...document.querySelectorAll('figure')].map((each) => each.querySelector('figcaption').innerText)"
    )
    assert plots == TITLES * 3
    lines = "[...document.querySelectorAll('figure')].map((each) => each.querySelectorAll('.series path').length)"
    assert browser.ask(lines) == [2] * 12, "the run and the baseline"
    colours = "[...document.querySelectorAll('.series path')].slice(0, 2).map((each) => getComputedStyle(each).stroke)"
    assert len(set(browser.ask(colours))) == 2


def test_names_run_no_code_and_nothing_is_loaded(page: Path, browser: "Browser") -> None:
    """Markup in names is text; the page asks no other address, has no script, and ten minutes take less than 1 MB."""
    browser.open(page.as_uri())
    assert browser.ask("document.documentElement.dataset.ran ?? ''") == ""
    assert browser.ask("document.scripts.length + document.images.length") == 0
    assert EVIL in browser.text("h1")
    assert "fast<i>0" in browser.text("section")
    assert browser.console() == []
    assert browser.ask("performance.getEntriesByType('resource').length") == 0
    assert page.stat().st_size < 1_000_000


def test_curves_are_the_traces(tmp_path: Path) -> None:
    """Power and tokens per second are those of the trace; a curve is interrupted where the trace has nothing."""

    def unread(t: float, values: dict[str, object]) -> dict[str, object]:
        return {} if 100 < t < 200 else values

    curves = curves_of(Run(reading=unread, gpus=(GPU, "GPU-2")).trace(tmp_path))
    assert list(curves) == TITLES
    watts = [value for _, value in curves["Power, W"] if value is not None]
    assert set(watts[1:-1]) == {143.0}, "two GPUs of 71.5 W"
    (gap,) = [number for number, (_, value) in enumerate(curves["Power, W"]) if value is None]
    ends = [curves["Power, W"][number][0] for number in (gap - 1, gap + 1)]
    assert ends == pytest.approx([100, 200], abs=2)
    rates = [value for _, value in curves["Output tokens per s"] if value is not None]
    assert rates == pytest.approx([200.0] * len(rates))
    assert max(value or 0 for _, value in curves["KV cache in use, %"]) == 40
    assert all(len(points) <= 301 for points in curves.values())


def test_a_record_without_its_trace_has_the_table(tmp_path: Path) -> None:
    """The page says that there are no plots."""
    path = write(tmp_path, Run(run_s=20, idle_s=0))
    (tmp_path / "run.trace.jsonl.gz").unlink()
    text = report(path, "--format", "html")
    assert "No plots: the raw trace is not beside the record." in text
    assert "<figure" not in text


def test_without_the_plotting_library(tmp_path: Path) -> None:
    """The message has the command that installs it; every other format needs nothing of it."""
    path = write(tmp_path, Run(run_s=20, idle_s=0))
    program = "import sys; sys.modules['pygal'] = None; from servekit.cli.main import main; main()"
    words = [sys.executable, "-c", program, "report", path, "--format"]
    ended = [subprocess.run([*words, kind], capture_output=True, text=True, check=False) for kind in ("html", "json")]
    assert [each.returncode for each in ended] == [2, 0]
    assert "--format html: pygal is not installed; in a checkout of servekit: pip install '.[html]'" in ended[0].stderr


def test_baselines_are_lists(tmp_path: Path) -> None:
    """`--baseline` takes what a shell's `*` gives; baselines of several names are compared by name."""
    for kind, watts in itertools.product(("fast", "slow"), (70.0, 72.0)):
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        for name in ("images", "text"):
            write(folder, Run(name=name, run_s=20, idle_s=0, run_w=watts * (1 + (kind == "slow"))), f"{name}{watts}")
    fast, slow = (sorted(map(str, (tmp_path / kind).glob("*.json"))) for kind in ("fast", "slow"))
    found = json.loads(report(*fast, "--baseline", *slow, "--format", "json"))
    assert [group["baseline"] for group in found["groups"]] == [True, True, False, False]
    (power,) = [row["values"] for row in found["rows"] if row["figure"] == "Average GPU power, W"]
    assert [each.get("factor") for each in power] == [None, None, *[pytest.approx(0.5, rel=0.02)] * 2]
    head = report(*fast, "--baseline", slow[0], "--baseline", slow[1]).splitlines()[0]
    assert re.split(r"\s{2,}", head.strip()) == ["images (baseline)", "images", "Δ", "text", "Δ"]
    text = report(*fast, "--baseline", *slow)
    assert "fast/text70.0.json: shorter than 600 s" in text
    assert "slow/text70.0.json: shorter than 600 s" in text
    assert "text (baseline): 2 runs" in text
    other = write(tmp_path, Run(name="other", run_s=20, idle_s=0))
    with pytest.raises(ConfigurationError, match=r"none of these is named other \(got images, text\)"):
        report(other, "--baseline", *slow)


@pytest.mark.parametrize("words", [["--baseline"], ["a.json", "--baseline"], ["--baseline", "a.json", "b.json"]])
def test_a_baseline_without_runs(words: list[str]) -> None:
    """An option without its records is a usage error."""
    assert CliRunner().invoke(command, ["report", *words]).exit_code == 2
