"""Write the table of advisories in docs/security.md and the VEX file from docs/advisories.yaml and the tests.

usage: .venv/bin/python scripts/advisories.py [--check] [--max-age-days N]

A test shows an advisory if it carries `pytest.mark.advisory(ID, ...)`, or sends a case of tests/engine/killers that
`closes` it. `--check` writes nothing and exits with 1 if the list, the tests and the two documents disagree.
`--max-age-days` only checks the age of the list, for a release.
"""

import argparse
import ast
import json
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the tests are not installed

from tests.engine.killers.catalogue import GROUPS  # noqa: E402

KILLERS = "engine/killers/test_killers.py::test_engine_lives_and_others_notice_nothing"
SOURCE = ROOT / "docs" / "advisories.yaml"
PAGE = ROOT / "docs" / "security.md"
VEX = ROOT / "docs" / "vex.cdx.json"
BEGIN = "<!-- advisories: generated from advisories.yaml by `make advisories` -->\n"
END = "<!-- end of advisories -->\n"
SPEC_VERSION = "1.6"

STATES = {"closed": "closed", "unreachable": "not reachable", "open": "**open**"}
JUSTIFICATIONS = ("code_not_present", "code_not_reachable", "requires_configuration", "protected_at_runtime")
"""CycloneDX's reasons for `not_affected`; `vex` in the list is one of these or an analysis state."""
SOURCES = {
    "CVE": ("NVD", "https://nvd.nist.gov/vuln/detail/{}"),
    "GHSA": ("GitHub", "https://github.com/advisories/{}"),
    "PYSEC": ("OSV", "https://osv.dev/vulnerability/{}"),
    "vllm#": ("vLLM", "https://github.com/vllm-project/vllm/issues/{}"),
}
"""Publisher and URL of an id, by its prefix."""


@dataclass(frozen=True)
class Advisory:
    """One published vulnerability, and what servekit does about it."""

    id: str
    what: str
    state: str
    """A key of STATES."""
    vex: str
    why: str
    component: str = "vllm"
    aliases: tuple[str, ...] = ()
    severity: float | None = None
    """CVSS score."""
    affects: str = ""
    fixed: str = ""


@dataclass(frozen=True)
class AdvisoryList:
    """The contents of docs/advisories.yaml."""

    checked: date
    components: Mapping[str, Mapping[str, str]]
    advisories: tuple[Advisory, ...]


def main() -> int:
    """Write or check; the exit status is 1 if there are problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--max-age-days", type=int)
    options = parser.parse_args()
    known = read_list(SOURCE.read_text(encoding="utf-8"))
    if options.max_age_days is not None:
        return report(age_problems(known.checked, datetime.now(UTC).date(), options.max_age_days))
    tests = showing_tests(ROOT / "tests")
    problems = disagreements(known.advisories, tests)
    written = {PAGE: page(PAGE.read_text(encoding="utf-8"), known, tests), VEX: vex(known, tests)}
    for path, text in written.items():
        if not options.check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            problems.append(f"docs/{path.name} differs from what the list and the tests say: run `make advisories`")
    return report(problems)


def report(problems: Sequence[str]) -> int:
    """Print the problems; return the exit status."""
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def read_list(text: str) -> AdvisoryList:
    """Read the list; a misspelt key raises TypeError."""
    raw = yaml.safe_load(text)
    advisories = [
        Advisory(id=name, **shared, **facts | {"aliases": tuple(facts.get("aliases", ()))})
        for shared in raw["advisories"]
        for name, facts in shared.pop("ids").items()
    ]
    return AdvisoryList(raw["checked"], raw["components"], tuple(advisories))


def showing_tests(folder: Path) -> dict[str, list[str]]:
    """Return the tests that show each advisory, by its id, as pytest names them below `folder`."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for name in sorted(set(marks(node.decorator_list))):
                    found.setdefault(name, []).append(f"{path.relative_to(folder).as_posix()}::{node.name}")
    for group in GROUPS:
        for name in sorted({name for case in group.cases for name in case.closes}):
            found.setdefault(name, []).append(f"{KILLERS}[{group.name}]")
    return found


def marks(decorators: Iterable[ast.expr]) -> list[str]:
    """Return the ids in `pytest.mark.advisory(...)`, also inside a `pytest.param`."""
    calls = [node for each in decorators for node in ast.walk(each) if isinstance(node, ast.Call)]
    return [
        ast.literal_eval(argument)
        for call in calls
        if ast.unparse(call.func) == "pytest.mark.advisory"
        for argument in call.args
    ]


def disagreements(advisories: Sequence[Advisory], tests: Mapping[str, Sequence[str]]) -> list[str]:
    """Return every contradiction within the list, or between the list and the tests."""
    names = [name for each in advisories for name in (each.id, *each.aliases)]
    problems = [
        f"{name} is in the list {names.count(name)} times" for name in sorted(set(names)) if names.count(name) > 1
    ]
    for each in advisories:
        if each.state not in STATES:
            problems.append(f"{each.id}: the state is {each.state}, not one of {', '.join(STATES)}")
        if (each.vex in JUSTIFICATIONS or each.vex == "resolved") == (each.state == "open"):
            problems.append(f"{each.id} is {each.state}, and for CycloneDX {each.vex}")
        if each.state == "closed" and each.id not in tests:
            problems.append(f"{each.id} is closed, and no test shows it")
        if each.state == "open" and each.id in tests:
            problems.append(f"{each.id} is open, and {tests[each.id][0]} shows it closed")
    ids = {each.id for each in advisories}
    problems += [
        f"{where[0]} shows {name}, which is not an id of the list" for name, where in tests.items() if name not in ids
    ]
    return problems


def age_problems(checked: date, today: date, max_age_days: int) -> list[str]:
    """Return a problem if the list is older than a release allows, or dated in the future."""
    age_days = (today - checked).days
    if 0 <= age_days <= max_age_days:
        return []
    age = f"{age_days} days ago (allowed: 0 to {max_age_days})"
    return [f"docs/advisories.yaml was checked {age}: read the databases again, then set `checked` (got {checked})"]


def page(text: str, known: AdvisoryList, tests: Mapping[str, Sequence[str]]) -> str:
    """Return the page with the table between its two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(known, tests) + END + after


def table(known: AdvisoryList, tests: Mapping[str, Sequence[str]]) -> str:
    """Return one row for each advisory, open ones first."""
    count = {state: sum(each.state == state for each in known.advisories) for state in STATES}
    counts = f"{count['closed']} closed, {count['unreachable']} not reachable, {count['open']} open"
    rows = [
        f"Checked on {known.checked}: {len(known.advisories)} advisories, {counts}.\n",
        "| advisory | score | fixed in | what | state | tests |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    order = list(STATES)
    for each in sorted(known.advisories, key=lambda advisory: order.index(advisory.state), reverse=True):
        name = f"{each.id} ({', '.join(each.aliases)})" if each.aliases else each.id
        score = "" if each.severity is None else f"{each.severity:g}"
        fixed = f"{each.component} {each.fixed}" if each.fixed else ""
        shown = ", ".join(f"`{test.replace(KILLERS, 'killers')}`" for test in tests.get(each.id, ()))
        rows.append(f"| {name} | {score} | {fixed} | {each.what} | {STATES[each.state]}: {each.why} | {shown} |")
    return "\n".join(rows) + "\n"


def vex(known: AdvisoryList, tests: Mapping[str, Sequence[str]]) -> str:
    """Return the list as a CycloneDX VEX document. The same list gives the same bytes."""
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {
            "timestamp": f"{known.checked}T00:00:00Z",
            "component": {"type": "application", "bom-ref": "servekit", "name": "servekit"},
        },
        "components": [
            {"type": "library", "bom-ref": name, "name": name, **facts} for name, facts in known.components.items()
        ],
        "vulnerabilities": [vulnerability(each, known, tests.get(each.id, ())) for each in known.advisories],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(document))
    return json.dumps({"serialNumber": f"urn:uuid:{serial}"} | document, indent=1) + "\n"


def vulnerability(advisory: Advisory, known: AdvisoryList, tests: Sequence[str]) -> dict[str, Any]:
    """Return one advisory as a CycloneDX vulnerability."""
    if advisory.vex in JUSTIFICATIONS:
        analysis = {"state": "not_affected", "justification": advisory.vex, "detail": advisory.why}
    else:
        analysis = {"state": advisory.vex, "detail": advisory.why}
    affected = "affected" if advisory.state == "open" else "unaffected"
    version = known.components[advisory.component]["version"]
    entry: dict[str, Any] = {
        "id": advisory.id,
        "source": source(advisory.id),
        "references": [{"id": alias, "source": source(alias)} for alias in advisory.aliases],
        "description": advisory.what,
        "analysis": analysis,
        "affects": [{"ref": advisory.component, "versions": [{"version": version, "status": affected}]}],
        "properties": [{"name": "servekit:test", "value": f"tests/{test}"} for test in tests],
    }
    if advisory.severity is not None:
        entry["ratings"] = [{"score": advisory.severity, "severity": rating(advisory.severity), "method": "other"}]
    if advisory.fixed:
        entry["recommendation"] = f"Fixed in {advisory.component} {advisory.fixed}."
    if advisory.affects:
        entry["properties"].append({"name": "servekit:affects", "value": advisory.affects})
    return entry


def source(name: str) -> dict[str, str]:
    """Return publisher and URL of an id."""
    publisher, url = next(found for start, found in SOURCES.items() if name.startswith(start))
    return {"name": publisher, "url": url.format(name.removeprefix("vllm#"))}


def rating(score: float) -> str:
    """Return CVSS's word for a score."""
    return next(word for low, word in ((9, "critical"), (7, "high"), (4, "medium"), (0, "low")) if score >= low)


if __name__ == "__main__":
    sys.exit(main())
