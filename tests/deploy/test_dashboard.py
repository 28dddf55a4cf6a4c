"""The shipped Grafana files: they fit together, panels are complete, and expressions parse and read existing series."""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from servekit.observe.guard_metrics import guard_families
from servekit.observe.metrics import exposition, make_registry, status_families
from servekit.observe.usage_metrics import usage_families
from servekit.profile import load_profile
from servekit.serve.plan import build_plan
from servekit.serve.status import Phase, State, StatusStore
from servekit.serve.watch.running_contract import ContractItem
from servekit.settings import read_settings
from tests.conftest import ROOT
from tests.deploy.dashboard import NVML_ROW, expressions, metric_names, panels, rules
from tests.deploy.prometheus import FOLDER
from tests.deploy.test_rules import promtool
from tests.fake_nvml import FakeNvml
from tests.observe.test_gpu_metrics import reader
from tests.observe.test_guard_metrics import Engine
from tests.observe.test_usage_metrics import PRICES, counted

GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "servekit.json"


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    """The dashboard, parsed as Grafana does."""
    body = json.loads(DASHBOARD.read_text())
    assert isinstance(body, dict)
    return body


def provisioned(kind: str) -> Iterator[dict[str, Any]]:
    """Yield the contents of the provisioning files of one kind."""
    for path in sorted((GRAFANA / "provisioning" / kind).glob("*.yml")):
        yield from yaml.safe_load(path.read_text())["datasources" if kind == "datasources" else "providers"]


def test_every_expression_parses(tmp_path: Path) -> None:
    """Prometheus' own parser accepts every expression of the dashboard, once Grafana's variables are replaced."""
    every = expressions(DASHBOARD)
    assert len(every) > 40
    written = [{"record": f"expression:{number}", "expr": each.text} for number, each in enumerate(every)]
    file = tmp_path / "expressions.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": written}]}))
    promtool("check", "rules", "--lint=none", file)


def test_every_name_of_servekit_exists(tmp_path: Path) -> None:
    """Every series of servekit's that the dashboard and the rules read is exported by the code, the GPU's included."""
    exported = names_of_servekit(tmp_path)
    recorded = {rule.where for rule in rules(FOLDER / "rules") if rule.by_default}
    read = {
        name
        for each in (*expressions(DASHBOARD), *rules(FOLDER / "rules"))
        for name in metric_names(each.text)
        if "servekit" in name
    }
    assert len(read) > 25
    assert read <= exported | recorded


def names_of_servekit(folder: Path) -> set[str]:
    """Return every name that servekit's collectors export, given a guard that answers and an L4 that reports all."""
    plan = build_plan(load_profile(ROOT / "vllm_config.yaml"), read_settings({"target": "cpu"}, {}), {})
    board = StatusStore()
    board.enter(State.STARTING, "")
    board.enter_phase(Phase.PREFLIGHT)
    board.record(contract=(ContractItem("max-num-seqs", 1024, 1024),))
    gauges = ("in_flight", "max_in_flight", "buffered_bytes", "max_buffered_bytes", "authentication", "keys")
    requests = [{"route": "/v1/models", "outcome": "allowed", "count": 1}]
    counters = dict.fromkeys(gauges, 1) | {"requests": requests, "wrong_keys": {"": 1}}
    books = counted(folder)
    registry = make_registry(
        lambda: status_families(plan, board.read(), time.monotonic()),
        lambda: guard_families(Engine(counters), 0),
        reader(FakeNvml()),
        lambda: usage_families(books, PRICES),
    )
    page = exposition(registry, lambda: "").decode()
    return {line.partition(" ")[0].partition("{")[0] for line in page.splitlines() if not line.startswith("#")}


def test_names_are_found_in_an_expression() -> None:
    """Only series names are found: no function, label, duration, string or keyword."""
    text = (
        'sum by (le, a) (rate(x:y_z{b="c{d}", e=~"f"}[5m])) / on (g) group_left (h) min_over_time(i[1m]) > 0 or j * 2'
    )
    assert metric_names(text) == {"x:y_z", "i", "j"}


def test_every_panel_is_complete(dashboard: dict[str, Any]) -> None:
    """Each panel has a description, a unit and the chosen data source; those that are empty without NVML say so."""
    for row, panel in panels(dashboard):
        title = panel["title"]
        assert row, title
        assert panel["description"].endswith("."), title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], title
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title
        assert panel["targets"], title
        assert ("Empty without NVML." in panel["description"]) == (row == NVML_ROW), title


def test_gpu_figures_stand_in_their_row() -> None:
    """Series that need NVML appear in that row only, so that a panel without a GPU does not look broken."""
    nvml = {rule.where for rule in rules(FOLDER / "rules") if rule.needs_nvml}
    for each in expressions(DASHBOARD):
        reads = {name for name in metric_names(each.text) if name.startswith("servekit_gpu_") or name in nvml}
        assert bool(reads) == each.needs_nvml, each.where


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    """Every panel has a unique id, and no two overlap on the 24 columns."""
    every = dashboard["panels"]
    ids = [panel["id"] for panel in every]
    assert len(ids) == len(set(ids))
    places = [(panel["title"], panel["gridPos"]) for panel in every]
    assert all(place["x"] + place["w"] <= 24 for _, place in places)
    for (one, a), (other, b) in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or below, f"{one} and {other}"


def test_rates_follow_the_time_range(dashboard: dict[str, Any]) -> None:
    """No expression has a fixed window: it follows the time range, and is never shorter than four scrapes."""
    for _, panel in panels(dashboard):
        for target in panel["targets"]:
            windows = [part.partition("]")[0] for part in target["expr"].split("[")[1:]]
            assert set(windows) <= {"$__rate_interval", "$__range"}, panel["title"]
    interval = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]["scrape_interval"]
    (source,) = provisioned("datasources")
    assert source["jsonData"]["timeInterval"] == interval


def test_files_fit_together(dashboard: dict[str, Any]) -> None:
    """The dashboard's default data source is the provisioned one, with the address from the shipped configuration."""
    (source,) = provisioned("datasources")
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == source["uid"] == "servekit-prometheus"
    assert variables["datasource"]["query"] == source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    assert dashboard["uid"] == "servekit"
    (provider,) = provisioned("dashboards")
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs} == {
        "servekit": ["servekit:9400"],
        "prometheus": ["localhost:9090"],
    }
