"""A real Prometheus with the shipped configuration on the real engine: every figure is there, no alert is false."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import openai

from tests.conftest import wait_until
from tests.deploy.dashboard import OF_PROMETHEUS, expressions, metric_names, rules
from tests.deploy.prometheus import FOLDER, alerts, ask, names, program, rule_errors, scraping
from tests.deploy.test_dashboard import DASHBOARD, names_of_servekit
from tests.engine.conftest import Endpoint
from tests.engine.test_serving import MODEL, look_at

SCRAPE_EVERY_S = 2


def test_prometheus_reads_everything(serve: Callable[..., Endpoint], tmp_path: Path) -> None:
    """Under load every rule and every panel beside the GPU's has a value and nothing alerts; stopped, it is down."""
    program("prometheus")  # skip before the engine starts
    endpoint = serve()
    with scraping(endpoint.observe_url.removeprefix("http://"), tmp_path, every_s=SCRAPE_EVERY_S) as url:
        endpoint.until_ready()
        assert "firing" not in alerts(url).values(), "a start is no alarm"
        every = [each for each in (*rules(FOLDER / "rules"), *expressions(DASHBOARD)) if each.by_default]
        wanted = {each.where: _question(each.where, each.text) for each in every if not each.needs_nvml}
        assert len(wanted) > 45
        with_load(endpoint, lambda: [where for where, question in wanted.items() if not ask(url, question)])

        assert ask(url, 'up{job="servekit"}')[0]["value"] == 1
        assert ask(url, "instance:vllm_generation_tokens:rate5m")[0]["value"] > 0
        assert 0 < ask(url, "instance:servekit_requests_refused:ratio_rate5m")[0]["value"] < 1
        assert ask(url, "instance:vllm_responses_failed:ratio_rate5m")[0]["value"] == 0
        wait_until(lambda: not rule_errors(url), what=f"every rule evaluated: {rule_errors(url)}")
        assert alerts(url) == {}, "a healthy endpoint with some load alerts nobody"
        read = {name for each in (*every, *rules(FOLDER / "rules")) for name in metric_names(each.text)}
        recorded = {each.where for each in every}
        assert read - recorded - OF_PROMETHEUS <= names(url) | names_of_servekit()

        assert endpoint.stop(signal.SIGTERM) == 0
        wait_until(lambda: "ServekitDown" in alerts(url), within_s=20, what="the alert for an endpoint that is gone")
        assert ask(url, 'up{job="servekit"}')[0]["value"] == 0


def _question(where: str, text: str) -> str:
    """A panel is asked its expression; a rule is asked what it has recorded."""
    return text if " / " in where else where


def with_load(endpoint: Endpoint, missing: Callable[[], list[str]], within_s: float = 45) -> None:
    """Let clients come until nothing is missing any more; fail with what still is."""
    end = time.monotonic() + within_s
    over = threading.Event()
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0, timeout=60) as client:
        clients = [threading.Thread(target=_visit, args=(client, endpoint.url, over)) for _ in range(2)]
        for each in clients:
            each.start()
        try:
            while left := missing():
                assert time.monotonic() < end, f"no value for {left}"
                over.wait(SCRAPE_EVERY_S / 2)
        finally:
            over.set()
            for each in clients:
                each.join(60)


def _visit(client: openai.OpenAI, url: str, over: threading.Event) -> None:
    """Chat, stream, show an image, show too many, and knock without a key and at a door that is not there."""
    while not over.is_set():
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Count to ten, please"}], max_tokens=12
        )
        for _ in client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=24, stream=True
        ):
            pass
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": look_at(1)}], max_tokens=4)
        for refused in ({"messages": [{"role": "user", "content": look_at(4)}], "model": MODEL}, {"model": "other"}):
            headers = {"Authorization": f"Bearer {client.api_key}"}
            assert httpx.post(f"{url}/v1/chat/completions", json=refused, headers=headers).status_code >= 400
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/metrics").status_code == 404
