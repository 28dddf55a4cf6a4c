"""A real Prometheus on loopback for one test, and functions to query it."""

import json
import math
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, find_free_port, wait_until

FOLDER = ROOT / "deploy" / "prometheus"
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`; skip the test if it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"Debian's {name} is not installed: scripts/install.sh servers")
    return path


@contextmanager
def scraping(target: str, folder: Path, *, every_s: int) -> Iterator[str]:
    """Run Prometheus with the shipped configuration on the endpoint `target` (HOST:PORT); yields its URL.

    Only the addresses, the intervals and the path of the rules differ from deploy/prometheus/prometheus.yml.
    """
    port = find_free_port()
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), f"{every_s}s")
    config["rule_files"] = [str(FOLDER / each) for each in config["rule_files"]]
    addresses = {"servekit": target, "prometheus": f"127.0.0.1:{port}"}
    for job in config["scrape_configs"]:
        job["static_configs"][0]["targets"] = [addresses[job["job_name"]]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    flags += [f"--web.listen-address=127.0.0.1:{port}"]
    log = folder / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen([program("prometheus"), *flags], cwd=folder, stdout=output, stderr=output) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: process.poll() is not None or _ready(url), within_s=30, what="Prometheus")
            assert process.poll() is None, log.read_text()
            yield url
        finally:
            process.terminate()


def ask(url: str, expression: str) -> list[dict[str, Any]]:
    """Return an expression's current series as `{"metric": labels, "value": number}`, without NaN values.

    Raises ValueError with Prometheus' message if it rejects the expression.
    """
    result = _get(url, "/api/v1/query", {"query": expression})["result"]
    series = [{"metric": each["metric"], "value": float(each["value"][1])} for each in result]
    return [each for each in series if not math.isnan(each["value"])]


def alerts(url: str) -> dict[str, str]:
    """Return the alerts that are pending or firing, each with its state."""
    return {each["labels"]["alertname"]: each["state"] for each in _get(url, "/api/v1/alerts")["alerts"]}


def rule_errors(url: str) -> dict[str, str]:
    """Return the rules that have not been evaluated, or whose last evaluation failed, each with Prometheus' message."""
    groups = _get(url, "/api/v1/rules")["groups"]
    every = [rule for group in groups for rule in group["rules"]]
    return {rule["name"]: rule.get("lastError") or rule["health"] for rule in every if rule["health"] != "ok"}


def names(url: str) -> set[str]:
    """Return the name of every series that Prometheus has stored."""
    return set(_get(url, "/api/v1/label/__name__/values"))


def _get(url: str, path: str, query: Mapping[str, str] | None = None) -> Any:
    try:
        with _NO_PROXY.open(f"{url}{path}?{urllib.parse.urlencode(query or {})}", timeout=10) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        with error:
            message = f"{query or path}: {error.read().decode()}"
        raise ValueError(message) from None


def _ready(url: str) -> bool:
    try:
        with _NO_PROXY.open(f"{url}/-/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
