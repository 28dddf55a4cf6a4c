"""A real Prometheus with the shipped configuration on the real engine: every figure has data, and no alert is false."""

import signal
from collections.abc import Callable
from pathlib import Path

from tests.conftest import wait_until
from tests.deploy.dashboard import OF_PROMETHEUS, Expression, expressions, metric_names, rules
from tests.deploy.prometheus import FOLDER, alerts, ask, names, program, rule_errors, scraping
from tests.deploy.test_dashboard import DASHBOARD, names_of_servekit
from tests.deploy.visitors import SCRAPE_EVERY_S, with_load, without_data
from tests.harness.endpoint import Endpoint


def test_prometheus_reads_everything(serve: Callable[..., Endpoint], tmp_path: Path) -> None:
    """Under load every rule and panel except the GPU's has a value and no alert fires; a stop raises ServekitDown."""
    program("prometheus")  # skip before the engine starts
    endpoint = serve()
    with scraping(endpoint.observe_url.removeprefix("http://"), tmp_path, every_s=SCRAPE_EVERY_S) as url:
        endpoint.until_ready()
        assert "firing" not in alerts(url).values(), "a start is no alarm"
        every = [each for each in (*rules(FOLDER / "rules"), *expressions(DASHBOARD)) if each.by_default]
        wanted = [each for each in every if not each.needs_nvml]
        assert len(wanted) > 60
        # Prometheus sees no increase in a counter that first appears with 1: the share of refusals needs a second one.
        refused = Expression("refused", "instance:servekit_requests_refused:ratio_rate5m > 0", needs_nvml=False)
        with_load(endpoint.url, endpoint.key, lambda: without_data(url, [*wanted, refused]))

        assert ask(url, 'up{job="servekit"}')[0]["value"] == 1
        assert ask(url, "instance:vllm_generation_tokens:rate5m")[0]["value"] > 0
        assert ask(url, "instance:servekit_requests_refused:ratio_rate5m")[0]["value"] < 1
        assert ask(url, "instance:vllm_responses_failed:ratio_rate5m")[0]["value"] == 0
        wait_until(lambda: not rule_errors(url), what=f"every rule evaluated: {rule_errors(url)}")
        assert alerts(url) == {}, "a healthy endpoint with some load alerts nobody"
        read = {name for each in (*every, *rules(FOLDER / "rules")) for name in metric_names(each.text)}
        recorded = {each.where for each in every if " / " not in each.where}
        without_nvml = {each.where for each in wanted} & recorded
        assert without_nvml <= names(url), "what a rule gives is stored under its name"
        read = {name for name in read if not name.startswith("vllm_router_")}  # tests/deploy/test_scale.py
        assert read - recorded - OF_PROMETHEUS <= names(url) | names_of_servekit(tmp_path)

        assert endpoint.stop(signal.SIGTERM) == 0
        wait_until(lambda: "ServekitDown" in alerts(url), within_s=20, what="the alert for an endpoint that is gone")
        assert ask(url, 'up{job="servekit"}')[0]["value"] == 0
