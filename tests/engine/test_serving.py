"""What clients get from the real engine, started by servekit from vllm_config.yaml."""

import base64
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionContentPartParam
from prometheus_client.parser import text_string_to_metric_families

from servekit.serve.watch.probe import EngineClient
from tests.conftest import ROOT, wait_until
from tests.harness.endpoint import Endpoint
from tests.harness.processes import started
from tests.harness.server import ENGINE

MODEL = "gemma4-demo"


def png(width: int = 64, height: int = 48, shade: int = 120) -> str:
    """Return a grey PNG as a data URL."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes([shade]) * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(body).decode()}"


def look_at(images: int) -> list[ChatCompletionContentPartParam]:
    """Return the content of a message with this many images."""
    parts: list[ChatCompletionContentPartParam] = [{"type": "text", "text": "What is this?"}]
    parts += [{"type": "image_url", "image_url": {"url": png(shade=40 * n)}} for n in range(images)]
    return parts


def test_models(client: openai.OpenAI) -> None:
    """/v1/models lists the one model under its served name."""
    assert [model.id for model in client.models.list()] == [MODEL]


def test_chat(client: openai.OpenAI) -> None:
    """A chat completion has as many tokens as requested, and some text."""
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=16, temperature=0
    )
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 16
    assert answer.choices[0].message.content


def test_streamed_chat_is_the_same_text(client: openai.OpenAI) -> None:
    """A streamed answer arrives in several pieces that join to the same text as the unstreamed answer."""

    def ask(*, stream: bool) -> str:
        options = {"max_tokens": 24, "temperature": 0, "seed": 1}
        messages = [{"role": "user", "content": "Count to ten"}]
        made = client.chat.completions.create(model=MODEL, messages=messages, stream=stream, **options)  # type: ignore[call-overload]
        if not stream:
            return str(made.choices[0].message.content)
        pieces = [chunk.choices[0].delta.content or "" for chunk in made if chunk.choices]
        assert len(pieces) > 2
        return "".join(pieces)

    assert ask(stream=True) == ask(stream=False)


def test_completion(client: openai.OpenAI) -> None:
    """A plain completion continues a prompt."""
    answer = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=8)
    assert answer.usage is not None
    assert answer.usage.completion_tokens >= 1


@pytest.mark.parametrize("images", [1, 2, 3])
def test_images(client: openai.OpenAI, images: int) -> None:
    """One to three images are accepted, and each adds its tokens to the prompt."""
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": look_at(images)}], max_tokens=4
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 40 * images


def test_four_images_are_refused(client: openai.OpenAI) -> None:
    """A fourth image is a client error: 400 with the limit in the message."""
    with pytest.raises(openai.BadRequestError, match=r"At most 3 image\(s\)"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": look_at(4)}], max_tokens=4)


@pytest.mark.advisory("CVE-2026-114053", "CVE-2026-116179", "CVE-2026-105758", "CVE-2026-105760")
@pytest.mark.advisory("CVE-2026-126396", "CVE-2026-114052")
def test_video_and_audio_are_refused(client: openai.OpenAI) -> None:
    """Modalities that the model card does not list are turned off."""
    audio = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}
    with pytest.raises(openai.BadRequestError, match=r"At most 0 audio"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": [audio]}], max_tokens=4)  # type: ignore[list-item, misc]


def test_unknown_model_is_refused(client: openai.OpenAI) -> None:
    """An unknown model name is 404."""
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "x"}])


def test_too_long_a_prompt_is_refused(client: openai.OpenAI) -> None:
    """A prompt longer than max-model-len is 400 and does no harm."""
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=MODEL, prompt=[20] * 20_001, max_tokens=1)


def test_curl(endpoint: Endpoint) -> None:
    """The README's curl call works."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    command = ["curl", "-sf", f"{endpoint.url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    command += ["-H", f"Authorization: Bearer {endpoint.key}"]
    made = subprocess.run([*command, "-d", json.dumps(body)], capture_output=True, check=True, timeout=60)
    assert json.loads(made.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_probes_and_status(endpoint: Endpoint) -> None:
    """The ready endpoint is live and ready, and its status holds phases, contract and this target's deviation."""
    assert endpoint.observe("/livez")[0] == 200
    assert endpoint.observe("/readyz") == (200, "ready\n")
    status = endpoint.status()
    phases = [phase["phase"] for phase in status["start_phases"]]
    assert phases == ["preflight", "imports", "engine", "weights", "compile", "warm-up", "verify"]
    assert status["plan"]["deviations"][0]["used"] == "auto"
    contract = {item["item"]: item["got"] for item in status["contract"] if item["met"]}
    assert len(contract) == len(status["contract"])
    assert contract["max-num-seqs"] == 1024
    assert contract["quantization"] == "compressed-tensors"
    assert contract["per-layer-embeddings"] == "cpu"  # as vLLM's worker has found the loaded tensor
    assert (contract["image limit"], contract["audio limit"], contract["video limit"]) == (3, 0, 0)
    assert abs(sum(phase["seconds"] for phase in status["start_phases"]) - status["start_seconds"]) < 0.01
    assert status["engine_pid"] == endpoint.roles()["server"]


def test_engine_core_was_there_before_vllm_started_it(endpoint: Endpoint) -> None:
    """It is the fork of `early_core`: vLLM starts the resource tracker first, and then a new Python."""
    tracker = next(pid for name, pid in endpoint.roles().items() if "resource_tracker" in name)
    assert started(endpoint.roles()["core"]) < started(tracker)


def test_probe_command(endpoint: Endpoint) -> None:
    """`servekit probe` returns the same verdict as its exit code."""
    for question in ("live", "ready"):
        flags = ["probe", question, "--observe-port", str(endpoint.observe_port)]
        assert subprocess.run([sys.executable, "-m", "servekit.cli.main", *flags], check=False).returncode == 0


def test_metrics_of_both_in_one_scrape(endpoint: Endpoint, client: openai.OpenAI) -> None:
    """One scrape holds servekit's and the engine's families, each once, and the engine runs as planned."""
    client.completions.create(model=MODEL, prompt="x", max_tokens=1)
    families = list(text_string_to_metric_families(endpoint.observe("/metrics")[1]))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    samples = {sample.name: sample for family in families for sample in family.samples}
    assert samples["servekit_ready"].value == 1
    assert samples["servekit_engine_scrape_success"].value == 1
    assert samples["vllm:generation_tokens_total"].value > 0
    assert samples["servekit_contract_met"].value == 1
    assert samples["servekit_embeddings_info"].labels == {"planned": "cpu", "memory": "cpu"}
    assert samples["servekit_pinned_host_bytes"].value == 0
    assert samples["servekit_guard_authentication"].value == 1
    running = samples["vllm:cache_config_info"].labels
    assert running["cache_dtype"] == "auto"
    assert running["enable_prefix_caching"] == "True"


def test_warm_up_is_what_the_engine_takes(endpoint: Endpoint) -> None:
    """The real engine answers the batches of servekit's warm-up completely."""
    client = EngineClient(endpoint.url, {"Authorization": f"Bearer {endpoint.key}"})
    assert client.warm_up(MODEL) == 16 * (3 + 16) + 2


def test_log_tells_the_start(endpoint: Endpoint) -> None:
    """The log has the deviation once, the phases as they begin, the timeline, and the engine's own lines."""
    text = "\n".join(endpoint.lines)
    assert text.count("deviation from the contract: kv-cache-dtype is auto instead of fp8_e4m3") == 1
    assert "servekit | starting: weights" in text
    assert "servekit | ready after" in text
    assert "engine   | (EngineCore pid=" in text
    # torch.cpu._is_avx512_supported, by which vLLM chooses its compiled extension, requires these flags too.
    own = "avx512bw" in Path("/proc/cpuinfo").read_text()
    kernel = "CPUWNA16LinearKernel" if own else "UnpackedW4A16LinearKernel"
    assert f"Using {kernel}" in text, "the quantized weights run through a kernel for W4A16"


def test_second_instance_is_refused(endpoint: Endpoint) -> None:
    """On a port in use, where vLLM would start and split the connections, servekit exits with 3 within seconds."""
    environ = {"PATH": "/usr/bin:/bin", "SERVEKIT_ENGINE": str(ENGINE)}
    taken = str(endpoint.observe_port)
    flags = ["serve", "--target", "cpu", "--port", str(endpoint.port), "--observe-port", taken]
    made = subprocess.run(
        [sys.executable, "-m", "servekit.cli.main", *flags],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 3
    assert f"127.0.0.1:{taken}: servekit's own server cannot listen here" in made.stderr
    assert endpoint.observe("/readyz")[0] == 200, "the first one is not disturbed"


def test_key_rotation_without_restart(endpoint: Endpoint) -> None:
    """A new key is valid within two seconds, the kept one stays valid, and another is refused in OpenAI's format."""
    old = endpoint.key
    flags = ["key", "--new", "--keep-old", "--state-dir", str(endpoint.state_dir)]
    subprocess.run([sys.executable, "-m", "servekit.cli.main", *flags], check=True, capture_output=True)
    assert endpoint.key != old

    def status(key: str) -> tuple[int, str]:
        answer = httpx.get(f"{endpoint.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
        return answer.status_code, str(answer.json().get("error", {}).get("code", ""))

    wait_until(lambda: status(endpoint.key) == (200, ""), what="the new key")
    assert status(old) == (200, "")
    assert status("sk-servekit-of-somebody-else") == (401, "invalid_api_key")
