"""The shipped rules: Prometheus' own tools read and test them, they are complete, and their series exist."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from servekit.serve.watch import probe
from tests.deploy.dashboard import metric_names, rules
from tests.deploy.prometheus import FOLDER, program

TRIALS = Path(__file__).parent / "rules"
SEVERITIES = {"critical", "warning"}


def promtool(*arguments: str | Path) -> None:
    """Run promtool; fail with its output."""
    made = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr


def alerts() -> list[dict[str, Any]]:
    """Return the shipped alerts as the files define them."""
    groups = yaml.safe_load((FOLDER / "rules" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("file", ["prometheus.yml", "prometheus.scale.yml"])
def test_configuration_is_valid(file: str) -> None:
    """Prometheus accepts each configuration, and finds the rules at the path in it."""
    promtool("check", "config", "--lint=all", "--lint-fatal", FOLDER / file)


@pytest.mark.parametrize("file", ["recording.yml", "alerts.yml"])
def test_rules_are_valid(file: str) -> None:
    """Every rule parses, and no rule is a duplicate."""
    promtool("check", "rules", "--lint=all", "--lint-fatal", FOLDER / "rules" / file)


@pytest.mark.parametrize("file", ["recording_test.yml", "alerts_test.yml"])
def test_rules_do_what_they_say(file: str) -> None:
    """On known series the recording rules have the right values, and the alerts fire exactly when they should."""
    promtool("test", "rules", TRIALS / file)


def test_every_rule_is_tried() -> None:
    """The trials have a value for every recording rule, and for every alert a moment when it fires and one when not."""
    tests = yaml.safe_load((TRIALS / "alerts_test.yml").read_text())["tests"]
    moments = {
        (each["alertname"], bool(each["exp_alerts"])) for test in tests for each in test.get("alert_rule_test", ())
    }
    wanted = {(alert["alert"], fires) for alert in alerts() for fires in (True, False)}
    assert moments == wanted
    tests = yaml.safe_load((TRIALS / "recording_test.yml").read_text())["tests"]
    tried = " ".join(each["expr"] for test in tests for each in test["promql_expr_test"] if each["exp_samples"])
    recorded = {rule.where for rule in rules(FOLDER / "rules") if rule.by_default}
    assert {name for name in recorded if name not in tried} == set()


def test_recorded_names_are_recorded() -> None:
    """A rule that reads another rule's result names an existing rule."""
    every = rules(FOLDER / "rules")
    read = {name for rule in every for name in metric_names(rule.text) if name.startswith("instance:")}
    assert read
    assert read <= {rule.where for rule in every}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_alert_says_what_to_do(alert: dict[str, Any], root: Path) -> None:
    """Each alert has a severity, a summary, a description and an existing section of the runbook."""
    assert alert["labels"]["severity"] in SEVERITIES
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert alert["annotations"]["description"].endswith(".")
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    text = (root / page).read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    if anchor == "alerts":
        assert f"`{alert['alert']}`" in text, "the section has a line for it"


def test_a_wedged_engine_is_no_target_that_is_down() -> None:
    """Prometheus waits longer than servekit waits for the two answers of the engine that a scrape needs."""
    settings = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]
    timeout_s, interval_s = (float(settings[name].removesuffix("s")) for name in ("scrape_timeout", "scrape_interval"))
    assert 2 * probe.TIMEOUT_S < timeout_s < interval_s
