"""Clients of every kind, so that every figure of the dashboard gets a value."""

import threading
import time
from collections.abc import Callable, Iterable

import httpx
import openai

from tests.deploy.dashboard import Expression
from tests.deploy.prometheus import ask
from tests.engine.test_serving import MODEL, look_at

SCRAPE_EVERY_S = 2


def without_data(url: str, wanted: Iterable[Expression]) -> list[str]:
    """Return the expressions that have no value in the Prometheus at `url`, each with where it is used."""
    return [f"{each.where}: {each.text}" for each in wanted if not ask(url, each.text)]


def with_load(url: str, key: str, missing: Callable[[], list[str]], *, within_s: float = 45) -> None:
    """Run clients until nothing is missing; on a timeout, fail with what still is."""
    end = time.monotonic() + within_s
    over = threading.Event()
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        clients = [threading.Thread(target=_visit, args=(client, url, over)) for _ in range(2)]
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
    """Chat, stream, send an image, send too many, and request without a key and on a route that does not exist."""
    while not over.is_set():
        for _ in range(6):  # keeps the share of refusals low: otherwise ServekitRefusing would rightly become pending
            client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8)
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
