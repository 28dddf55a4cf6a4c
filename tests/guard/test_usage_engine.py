"""What the real engine has done for each key, against the engine's own counters."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from servekit.serve.guard import COUNTERS_PATH, LEDGER_FILE_NAME, RING_FILE_NAME
from servekit.serve.guard.inside.servekit_guard.usage.ledger import read_ledger
from tests.conftest import wait_until
from tests.guard.conftest import GuardedEngine
from tests.harness.tenants import ANSWERED, CHAT, COMPLETIONS, KINDS, MARK, REFUSED, send_mixed

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

NAMES = [f"team-{number}" for number in range(12)]
REQUESTS = 6 * len(KINDS)
OWN_PAGES = ("/metrics", COUNTERS_PATH)


def engine_total(engine: GuardedEngine, name: str) -> int:
    """Return one of vLLM's counters."""
    text = engine.request("GET", "/metrics", key=False, headers=engine.guard.headers).data.decode()
    return int(sum(float(value) for value in re.findall(rf"^vllm:{name}_total{{.*}} (\S+)$", text, re.MULTILINE)))


def test_the_keys_used_what_the_engine_did(engine: GuardedEngine) -> None:
    """The tokens of all names are the engine's own counts, and each key's outcomes are those that its client saw."""
    before = engine.key_file.read_text()
    keys = {f"sk-{name}-0123456789abcdef": name for name in NAMES}
    engine.key_file.write_text(before + "".join(f"{key}  # {name}\n" for key, name in keys.items()))
    ledger = engine.guard.config_path.with_name(LEDGER_FILE_NAME)
    header = {"x-api-key": list(keys)[-1]}
    wait_until(
        lambda: engine.request("GET", "/v1/models", key=False, headers=header).status == 200,
        within_s=60,
        what="the new keys",
    )
    try:
        seen = send_mixed(engine.port, list(keys), REQUESTS, model="demo")
        wait_until(lambda: not any(each.in_flight for each in read_ledger(ledger)[1].values()), within_s=60)
        counters = {"prompt_tokens": "prompt_tokens", "output_tokens": "generation_tokens"}

        def differences() -> list[tuple[str, int, int]]:
            used = read_ledger(ledger)[1].values()
            totals = {field: (sum(getattr(each, field) for each in used), engine_total(engine, name))
                      for field, name in counters.items()}  # fmt: skip
            return [(field, *both) for field, both in totals.items() if both[0] != both[1]]

        wait_until(lambda: not differences(), within_s=60, what=f"equal counts, not {differences()}")
    finally:
        engine.key_file.write_text(before)
    used = read_ledger(ledger)[1]
    for key, name in keys.items():
        outcomes = Counter({field: getattr(used[name], field) for field in ("ok", "cancelled", "refused", "failed")})
        assert +outcomes == seen[key], name
    assert sum(seen[key]["cancelled"] for key in keys) > 0
    assert sum(used[name].images for name in NAMES) > 0
    assert all(used[name].in_flight_us > 0 for name in NAMES)


def test_a_request_is_traced(engine: GuardedEngine, requests: SimpleNamespace) -> None:
    """vLLM's span of a request has its id, which the request log has too."""
    engine.request("POST", COMPLETIONS, requests.completion(), headers={"x-request-id": "traced-1"})
    wait_until(lambda: any(b"llm_request" in body and b"traced-1" in body for body in engine.collector.bodies))


def test_no_content_is_kept(engine: GuardedEngine, requests: SimpleNamespace) -> None:
    """No word of a prompt, of an answer or of a wrong key is in a file of the run, a metric or a trace."""
    answers = []
    for path, body in corpus(requests):
        answer = engine.request("POST", path, body, headers={"x-request-id": "searched-1"})
        answers.append(answer.data)
    engine.request("POST", COMPLETIONS, requests.completion(), key=False, headers={"x-api-key": f"{MARK}-{'k' * 30}"})
    assert any(MARK.encode() in answer for answer in answers), "the model repeats some of it"
    wait_until(lambda: any(b"searched-1" in body for body in engine.collector.bodies))
    kept = {str(path): path.read_bytes() for path in engine.folder.rglob("*") if path.is_file()}
    kept |= {path: engine.request("GET", path, key=False, headers=engine.guard.headers).data for path in OWN_PAGES}
    kept |= {f"trace {number}": body for number, body in enumerate(engine.collector.bodies)}
    assert [name for name, content in kept.items() if MARK.encode() in content] == []
    assert b"searched-1" in kept[str(engine.guard.config_path.with_name(RING_FILE_NAME))]


def corpus(requests: SimpleNamespace) -> Iterator[tuple[str, Any]]:
    """Yield requests with a marked word in each place where a client's text can stand."""
    draw = random.Random(0)
    yield from (make(draw, "demo") for make in {**ANSWERED, **REFUSED}.values())
    for field in ("user", "echo", "stop", "n", "model", "seed", "suffix", "logit_bias", "stream_options", "x" + MARK):
        yield COMPLETIONS, requests.completion(**{field: MARK})
        yield CHAT, requests.chat(**{field: {MARK: MARK}})
    yield CHAT, requests.chat({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{MARK}"}})
    yield CHAT, requests.chat({"type": MARK, MARK: MARK})
    yield COMPLETIONS, requests.completion(prompt=f"{MARK} " * 3, echo=True)
    yield COMPLETIONS, b'{"prompt": "' + MARK.encode()
    yield COMPLETIONS, MARK.encode()
