"""Images in the engine's own environment: unchanged pixels, and nothing that ends or blocks the server."""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.host.patches import is_recent_pillow
from servekit.serve.guard import INSIDE
from tests.conftest import ROOT
from tests.guard.conftest import GuardedEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PYTHON = ROOT / ".venv-engine" / "bin" / "python"
PATCHES = ROOT / ".venv-engine-patches"
DECODER = Path(__file__).with_name("image_decoder.py")
FUZZED = 3000


def decoder(*words: str | Path, patched: bool = True) -> Any:
    """Run the decoder in the engine's environment, with or without the newer packages; return its output."""
    path = os.pathsep.join(map(str, (INSIDE, PATCHES) if patched else (INSIDE,)))
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [str(PYTHON), str(DECODER), *map(str, words)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image files of every kind that clients send, written by the engine's own Pillow."""
    folder = tmp_path_factory.mktemp("images") / "corpus"
    decoder("corpus", folder, patched=False)
    return folder


def test_pixels_are_the_same(corpus: Path) -> None:
    """Each kind of file gives the same pixels as in vLLM without the guard, with its own Pillow."""
    before = decoder("plain", corpus, patched=False)
    after = decoder("guarded", corpus)
    assert len(before) == len(list(corpus.iterdir())) > 40
    assert all(seen.startswith("RGB ") for seen in before.values()), before
    assert after == before


def test_half_a_picture_is_refused(corpus: Path) -> None:
    """A file that ends within its picture is refused with 400, in each format."""
    seen = decoder("cut", corpus)
    assert len(seen) > 30
    assert {name: what for name, what in seen.items() if not what.startswith("ValueError")} == {}


def test_broken_files_harm_nobody(corpus: Path) -> None:
    """Each of thousands of damaged files is served or refused, in bounded time and memory, and the process survives."""
    seen = decoder("fuzz", corpus, str(FUZZED), "1")
    assert seen["served"] > FUZZED / 10
    assert seen["errors"]["ValueError"] + seen["served"] == FUZZED, seen
    assert seen["grown_mib"] < 500


@pytest.mark.advisory("CVE-2026-112403", "CVE-2026-96639", "CVE-2026-96643")
def test_the_engine_decodes_with_the_newer_pillow(engine: GuardedEngine) -> None:
    """The folder of newer packages goes before the engine's own."""
    assert is_recent_pillow(engine.effective()["pillow"])


def test_every_kind_is_answered(engine: GuardedEngine, requests: Any, corpus: Path) -> None:
    """vLLM and transformers work with what the newer Pillow decodes, on each of the three routes that take images."""
    for path in sorted(corpus.iterdir()):
        answer = engine.request("POST", "/v1/chat/completions", requests.chat(requests.image(path.read_bytes())))
        assert answer.status == 200, (path.name, answer.data)
    url = requests.image((corpus / "RGB.jpg").read_bytes())["image_url"]["url"]
    picture = {"type": "input_image", "image_url": url, "detail": "auto"}
    response = {"model": "demo", "input": [{"role": "user", "content": [picture]}], "max_output_tokens": 4}
    source = {"type": "base64", "media_type": "image/jpeg", "data": url.partition(",")[2]}
    message = {"role": "user", "content": [{"type": "image", "source": source}]}
    for route, body in (
        ("/v1/responses", response),
        ("/v1/messages", {"model": "demo", "messages": [message], "max_tokens": 4}),
    ):
        answer = engine.request("POST", route, body)
        assert answer.status == 200, (route, answer.data)


@pytest.mark.advisory("CVE-2026-96643")
def test_broken_metadata_is_passed_over(engine: GuardedEngine, requests: Any, corpus: Path) -> None:
    """An image with broken Exif data is answered: vLLM without the guard hashes by Exif data and answers 500."""
    data = (corpus / "RGB.jpg").read_bytes()
    broken = data[:2] + b"\xff\xe1\0\x20Exif\0\0" + bytes(24) + data[2:]
    answer = engine.request("POST", "/v1/chat/completions", requests.chat(requests.image(broken)))
    assert answer.status == 200, answer.data


def test_a_costly_file_is_refused_quickly(engine: GuardedEngine, requests: Any, corpus: Path) -> None:
    """A JPEG of 200 scans and a PNG of 20,000 empty chunks are 400 immediately, because of their cost."""
    jpeg, png = ((corpus / name).read_bytes() for name in ("RGB-progressive.jpg", "RGB.png"))
    last, end = jpeg.rindex(b"\xff\xda"), jpeg.rindex(b"\xff\xd9")
    scans = jpeg[:last] + jpeg[last:end] * 200 + jpeg[end:]
    chunks = png[:33] + b"\0\0\0\0abCd\x95\x8c\x1b\x82" * 20_000 + png[33:]
    for data, said in ((scans, b"scans"), (chunks, b"chunks")):
        answer = engine.request("POST", "/v1/chat/completions", requests.chat(requests.image(data)))
        assert answer.status == 400, answer.data
        assert said in answer.data


def test_large_images_of_many_requests_take_turns(engine: GuardedEngine, requests: Any) -> None:
    """30 requests of 10 kB with three images of 3840 x 2160 each, 3 GB decoded, are answered in a third of that."""
    part = requests.image(requests.png(3840, 2160))
    before = engine.resident_peak_bytes()
    with ThreadPoolExecutor(30) as pool:
        bodies = [requests.chat({"type": "text", "text": str(each)}, part, part, part) for each in range(30)]
        answers = list(pool.map(lambda body: engine.request("POST", "/v1/chat/completions", body), bodies))
    assert {answer.status for answer in answers} == {200}
    assert engine.resident_peak_bytes() - before < 1.2 * 1024**3, engine.resident_peak_bytes() - before


# The uuid is refused where bodies are checked: vLLM 0.20.2 takes it for the image's name in all its caches
# (entrypoints/chat_utils.py, multimodal/processing/inputs.py), no matter who sent the image that has it.
def uuid_bodies(part: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return a request for each way to send vLLM 0.20.2 a uuid with an image; `part` has the image."""
    url, uuid = part["image_url"]["url"], "mine"
    forms = (part, {"image_url": url}, {"type": "input_image", "image_url": url, "detail": "auto"})
    chats = [[{"role": role, "content": [{**form, "uuid": uuid}]}] for form in forms for role in ("user", "system")]
    picture = {**forms[2], "uuid": uuid}
    inputs = [
        [{"role": "user", "content": [picture]}],
        [{"type": "message", "role": "user", "content": [picture]}],
        [{"type": "function_call_output", "call_id": "c", "output": [picture]}],
    ]
    named = {"model": "demo", "temperature": 0}
    return [
        *(("/v1/chat/completions", {**named, "max_tokens": 8, "messages": messages}) for messages in chats),
        *(("/v1/responses", {**named, "max_output_tokens": 8, "input": given}) for given in inputs),
    ]


def test_no_uuid_of_a_client_names_an_image(engine: GuardedEngine, requests: Any, corpus: Path) -> None:
    """An image is never cached under a client's name: two clients with the same name would see each other's images."""
    part = requests.image((corpus / "RGB.jpg").read_bytes())
    for route, body in uuid_bodies(part):
        answer = engine.request("POST", route, body)
        assert answer.status == 400, (route, body, answer.data)
        assert b"uuid" in answer.data


@pytest.mark.parametrize("nothing", [{"image_url": None}, {"image_embeds": None, "type": "image_embeds"}])
def test_no_image_is_had_by_its_uuid_alone(engine: GuardedEngine, requests: Any, nothing: dict[str, Any]) -> None:
    """A name without an image would give anyone who guesses it another client's image."""
    answer = engine.request("POST", "/v1/chat/completions", requests.chat({**nothing, "uuid": "mine"}))
    assert answer.status == 400
