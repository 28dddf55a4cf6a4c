"""The first start from a hub with the real vLLM 0.20.2 on the CPU."""

from collections.abc import Callable

import openai
import pytest

from tests.harness.endpoint import Endpoint
from tests.harness.server import ENGINE
from tests.hub.conftest import COMMIT
from tests.hub.rig import Hub


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_slow_first_start_then_offline(serve: Callable[..., Endpoint], demo_hub: Hub) -> None:
    """After a slow link that breaks and a killed servekit the next start goes on and serves; then no hub is needed."""
    demo_hub.faults.bytes_per_s = 1_000_000
    demo_hub.faults.break_after = [1_500_000]
    first = serve(SERVEKIT_ENGINE=str(ENGINE))
    first.until(lambda: (first.status().get("download") or {}).get("bytes", 0) > 3_000_000, "half of the bytes")
    first.finish()
    second = serve(SERVEKIT_ENGINE=str(ENGINE))
    second.until_ready()
    assert answer(second) == 8
    status = second.status()
    assert (status["commit"], status["start_phases"][1]["phase"]) == (COMMIT, "download")
    assert demo_hub.sent < status["download"]["total_bytes"] + 500_000
    assert second.stop() == 0
    third = serve(SERVEKIT_ENGINE=str(ENGINE), HF_ENDPOINT="http://127.0.0.1:9")
    third.until_ready()
    assert answer(third) == 8
    assert third.stop() == 0


def answer(endpoint: Endpoint) -> int:
    """Return how many tokens a chat request gets."""
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0, timeout=60) as client:
        made = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Hello"}], max_tokens=8, extra_body={"ignore_eos": True}
        )
        assert made.usage is not None
        return made.usage.completion_tokens
