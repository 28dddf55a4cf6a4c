"""`measure` and `bench` on the real engine: their counters are those of the client, to the request and the token."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from servekit.measure.record import Record
from tests.engine.conftest import make_endpoint
from tests.engine.test_serving import MODEL
from tests.harness.endpoint import SERVEKIT, Endpoint, clean_environment
from tests.harness.server import ENGINE

LOAD = """
import concurrent.futures, json, os, sys, time, urllib.request
import httpx, openai

url, observe, key, model = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)

def canaries():
    page = urllib.request.urlopen(f"{observe}/metrics").read().decode()
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith("servekit_canary_tokens_total"))

def ask(number):
    if number % 2:
        return client.completions.create(model=model, prompt="one two " * number, max_tokens=3 + number).usage
    messages = [{"role": "user", "content": f"Hello {number}"}]
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=5 + number, stream=True, stream_options={"include_usage": True}
    )
    return [chunk.usage for chunk in stream if chunk.usage][-1]

with concurrent.futures.ThreadPoolExecutor(4) as pool:
    usages = list(pool.map(ask, range(16)))
for _ in range(3):
    assert httpx.post(f"{url}/v1/completions", json={"model": model, "prompt": "x"}).status_code == 401
before = canaries()
while canaries() == before:
    time.sleep(0.1)
scores = {
    "requests": len(usages),
    "prompt tokens": sum(usage.prompt_tokens for usage in usages),
    "output tokens": sum(usage.completion_tokens for usage in usages),
}
json.dump(scores, open(os.environ["MEASURE_SCORES_FILE"], "w"))
"""
"""Asks, is refused three times, waits for a canary, and leaves what the answers reported as its scores."""


GENERATOR_SAYS = ("Total generated tokens", "Total input tokens", "Successful requests")
"""Lines of `vllm bench serve`, in the order of the record's fields."""


@pytest.fixture(scope="module")
def measured(engine_cache: Path) -> Iterator[Endpoint]:
    """A ready endpoint that sends itself a canary in every idle second that it can."""
    with make_endpoint(engine_cache, environ={"SERVEKIT_CANARY_S": "1"}) as endpoint:
        endpoint.until_ready()
        yield endpoint


def servekit(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of servekit as a user does."""
    argv: Sequence[str] = [sys.executable, *SERVEKIT, *words]
    return subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, check=False)


def test_a_record_of_the_real_engine(measured: Endpoint, tmp_path: Path) -> None:
    """Requests, tokens and refusals are exact with a canary between them, and every field follows from the trace."""
    out = tmp_path / "demo.json"
    load = [sys.executable, "-c", LOAD, measured.url, measured.observe_url, measured.key, MODEL]
    words = ["--observe", measured.observe_url, "--name", "demo", "--out", str(out), "--idle-s", "2"]
    ended = servekit("measure", *words, "--", *load)
    assert ended.returncode == 0, ended.stderr
    record = Record.model_validate_json(out.read_bytes())

    assert record.run.work is not None
    told = {name.replace("_", " "): float(count) for name, count in record.run.work.model_dump().items()}
    assert told == record.scores
    assert record.engine.canaries >= 1
    assert record.engine.refused == {"unauthorized": 3}
    assert record.engine.requests == {"abort": 0, "error": 0, "length": 16, "repetition": 0, "stop": 0}
    assert record.engine.latency["request"].count >= 16
    assert record.run.energy.joules is None
    assert record.run.energy.why == "neither NVML nor servekit reports a GPU of this endpoint"

    identity = record.identity
    assert (identity.target, identity.served_name, identity.vllm) == ("cpu", MODEL, "0.20.2")
    assert identity.contract.met is True
    assert [each["key"] for each in identity.contract.deviations] == ["kv-cache-dtype"]
    assert identity.profile_sha256 is not None
    assert identity.checkpoint is not None
    assert identity.checkpoint.bytes_on_disk is not None
    assert {"config.json", "model.safetensors"} <= {each.name for each in identity.checkpoint.files}
    assert all(each.sha256 for each in identity.checkpoint.files)
    assert [each.kind for each in record.disturbances] == []

    verified = servekit("report", str(out), "--verify", "--format", "json")
    assert verified.returncode == 0, verified.stderr
    assert "fields follow from the raw trace" in verified.stderr
    rows = {row["figure"]: row["values"][0]["median"] for row in json.loads(verified.stdout)["rows"]}
    assert rows["Requests"] == 16


def test_the_engines_own_load_generator(measured: Endpoint, tmp_path: Path) -> None:
    """`servekit bench` records what `vllm bench serve` reports: requests, prompt tokens with images, output tokens."""
    fixed = ["--observe", measured.observe_url, "--engine", str(ENGINE), "--state-dir", str(measured.state_dir)]
    load = ["--loads", "images-1", "--streams", "2", "--repetitions", "1", "--seconds", "1", "--idle-s", "1"]
    ended = servekit("bench", *fixed, *load, "--dir", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    record = Record.model_validate_json((tmp_path / "images-1-2-sampled-1.json").read_bytes())
    told = [int(re.findall(rf"{name}: +(\d+)", ended.stdout)[-1]) for name in GENERATOR_SAYS]
    assert record.run.work is not None
    assert list(record.run.work.model_dump().values()) == told
    assert "--random-mm-base-items-per-request" in record.command
    assert measured.key not in record.model_dump_json()
