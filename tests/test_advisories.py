"""The list of published vulnerabilities, the tests for each of them, and the documents generated from both."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))  # scripts are not part of the installed package

from scripts import advisories
from scripts.advisories import Advisory, AdvisoryList

from servekit.profile.reserved import PINNED, RESERVED
from servekit.serve.watch.running_contract import CLOSED

A, B = (Advisory(name, "what", "closed", "protected_at_runtime", "why") for name in ("CVE-1", "CVE-2"))
SHOWN = {"CVE-1": ["a.py::test_a"], "CVE-2": ["b.py::test_b"]}


@pytest.fixture(scope="module")
def known() -> AdvisoryList:
    """The committed list."""
    return advisories.read_list(advisories.SOURCE.read_text())


def test_list_tests_and_documents_agree() -> None:
    """Each closed advisory has a test, each mark an advisory, and both documents match `make advisories`."""
    script = [sys.executable, str(ROOT / "scripts" / "advisories.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_each_advisory_has_a_line_and_an_entry(known: AdvisoryList) -> None:
    """Every id of the list is in the table and in the VEX document."""
    page, vex = advisories.PAGE.read_text(), advisories.VEX.read_text()
    assert len(known.advisories) >= 57
    for each in known.advisories:
        assert page.count(f"\n| {each.id} ") == 1
        assert vex.count(f'"id": "{each.id}"') == 1


def test_vex_is_valid() -> None:
    """The document is valid under CycloneDX's schema, which rejects an unknown field or state."""
    validator, text = JsonStrictValidator(SchemaVersion.V1_6), advisories.VEX.read_text()
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"not_affected"', '"unharmed"')) is not None


@pytest.mark.parametrize(("component", "lock"), [("starlette", "engine-cpu"), ("pillow", "engine-patches")])
def test_versions_are_those_of_the_engine(known: AdvisoryList, component: str, lock: str) -> None:
    """The list gives the versions of the packages that the engine runs with."""
    locked = re.search(rf"(?m)^{component}==(\S+)", (ROOT / "requirements" / f"{lock}.txt").read_text())
    assert locked
    assert known.components[component]["version"] == locked[1]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda: ([A, B, A], SHOWN), "CVE-1 is in the list 2 times"),
        (lambda: ([A, replace(B, aliases=("CVE-1",))], SHOWN), "CVE-1 is in the list 2 times"),
        (lambda: ([A, replace(B, state="mended")], SHOWN), "CVE-2: the state is mended, not one of closed"),
        (lambda: ([A, replace(B, vex="exploitable")], SHOWN), "CVE-2 is closed, and for CycloneDX exploitable"),
        (lambda: ([A, B], {"CVE-1": SHOWN["CVE-1"]}), "CVE-2 is closed, and no test shows it"),
        (lambda: ([A], SHOWN), "b.py::test_b shows CVE-2, which is not an id of the list"),
        (
            lambda: ([A, replace(B, state="open", vex="exploitable")], SHOWN),
            "CVE-2 is open, and b.py::test_b shows it closed",
        ),
    ],
)
def test_a_disagreement_is_named(
    change: Callable[[], tuple[list[Advisory], dict[str, list[str]]]], problem: str
) -> None:
    """Each way in which list and tests can differ gives one sentence that names the advisory."""
    assert advisories.disagreements([A, B], SHOWN) == []
    (said,) = advisories.disagreements(*change())
    assert said.startswith(problem)


def test_a_mark_is_found_where_pytest_finds_it() -> None:
    """The script finds a mark on the function and on a single case, but not a call that only resembles it."""
    text = """
@pytest.mark.advisory("CVE-1", "CVE-2")
@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.advisory("CVE-3")), other.mark.advisory("CVE-4")])
def test_a(x): ...
"""
    (function,) = ast.parse(text).body
    assert isinstance(function, ast.FunctionDef)
    assert sorted(advisories.marks(function.decorator_list)) == ["CVE-1", "CVE-2", "CVE-3"]


def test_every_killer_counts() -> None:
    """An advisory that a killer closes names the group's pytest id, and that test exists."""
    shown = advisories.showing_tests(ROOT / "tests")["CVE-2026-116181"]
    (node,) = [each for each in shown if each.startswith(advisories.KILLERS)]
    module = (ROOT / "tests" / node.partition("::")[0]).read_text()
    assert f"def {advisories.KILLERS.partition('::')[2]}(" in module
    assert node.endswith("[token ids]")


@pytest.mark.parametrize(("age_days", "fresh"), [(0, True), (60, True), (61, False), (-1, False)])
def test_an_old_list_stops_a_release(age_days: int, *, fresh: bool) -> None:
    """A list may be sixty days old; one with a date in the future is wrong."""
    today = date(2026, 12, 1)
    assert (advisories.age_problems(today - timedelta(days=age_days), today, 60) == []) is fresh


@pytest.mark.advisory("CVE-2026-105756", "CVE-2026-94626", "CVE-2026-116176", "CVE-2026-116180", "CVE-2026-115912")
def test_a_profile_cannot_turn_a_vulnerable_part_on() -> None:
    """Every part that the contract requires off is reserved, or pinned to that value."""
    for key, wanted in CLOSED.items():
        assert key in RESERVED or PINNED[key][0] == (wanted,)
