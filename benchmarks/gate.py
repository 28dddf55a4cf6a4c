"""CPU time of the guard's gate for one request, without a server around it.

The gate reads the body, checks key and fields, and passes the request on to an application that sends an empty answer.
The application parses the body where the gate has not, as FastAPI does; its own CPU time is subtracted.
`guard_overhead.py` measures the same on a running engine.
"""

import asyncio
import base64
import hashlib
import json
import random
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.programs import spread
from servekit.serve.guard.inside.servekit_guard.asgi import CHECKED_BODY, App, Message, Receive, Scope, Send
from servekit.serve.guard.inside.servekit_guard.gate import Gate
from servekit.serve.guard.inside.servekit_guard.guard_config import Rules

NAME = "gate"
ROUNDS = 7
KEY = "k" * 32
IMAGE_BYTES = 120_000
"""A JPEG of 448 x 448 pixels of noise."""
VOCABULARY = 262_144


def run(rounds: int | None) -> dict[str, Any]:
    """Return the microseconds of CPU time per request in each round, by kind of body."""
    with tempfile.TemporaryDirectory(prefix="servekit-bench-") as folder:
        keys = Path(folder) / "keys"
        keys.touch(0o600)
        keys.write_text(KEY + "\n")
        gate = Gate(_nothing, _rules(keys))
        taken: dict[str, list[float]] = {name: [] for name in BODIES}
        for _ in range(rounds or ROUNDS):
            for name, (path, body) in BODIES.items():
                count = max(200, min(3000, 100_000_000 // len(body)))
                with_gate, without = (asyncio.run(_spent_us(app, path, body, count)) for app in (gate, _nothing))
                taken[name].append(round(with_gate - without, 1))
    return {"bodies": {name: len(body) for name, (_, body) in BODIES.items()}, "added_us": taken}


def table(result: dict[str, Any]) -> list[str]:
    """Format the result as lines."""
    rows = [f"{'':<24}{'bytes':>9}{'median':>9}{'best':>9}{'worst':>9} microseconds a request"]
    for name, values in result["added_us"].items():
        rows.append(f"{name:<24}{result['bodies'][name]:>9}{spread(values, 0, '')}")
    return rows


def _rules(keys: Path) -> Rules:
    return Rules(
        token_sha256=hashlib.sha256(b"t").hexdigest(),
        api_keys_file=str(keys),
        max_body_bytes=1 << 26,
        max_in_flight=1024,
        max_buffered_bytes=1 << 30,
    )


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    if CHECKED_BODY not in scope:
        json.loads(message["body"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def gate_scope(path: str, body: bytes, key: str) -> dict[str, Any]:
    """Return the scope of a request with this body and key."""
    config = SimpleNamespace(model_config=SimpleNamespace(hf_text_config=SimpleNamespace(vocab_size=VOCABULARY)))
    head = [(b"host", b"x"), (b"authorization", b"Bearer " + key.encode()), (b"content-length", b"%d" % len(body))]
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "headers": head,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "app": SimpleNamespace(state=SimpleNamespace(vllm_config=config)),
    }


async def _spent_us(app: App, path: str, body: bytes, count: int) -> float:
    """Return the mean CPU time of a request to `app`, in microseconds."""
    scope = gate_scope(path, body, KEY)

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(_message: Message) -> None:
        return None

    began_s = time.process_time()
    for _ in range(count):
        await app(dict(scope), receive, send)
    return 1e6 * (time.process_time() - began_s) / count


def _completion(characters: int) -> tuple[str, bytes]:
    fields = {"model": "m", "prompt": "x" * characters, "max_tokens": 64, "stream": True}
    return "/v1/completions", json.dumps(fields).encode()


def _chat_with_images() -> tuple[str, bytes]:
    image = base64.b64encode(random.Random(0).randbytes(IMAGE_BYTES)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}}
    message = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, part, part, part]}
    return "/v1/chat/completions", json.dumps({"model": "m", "messages": [message], "stream": True}).encode()


BODIES = {
    "1,000 characters": _completion(1_000),
    "20,000 characters": _completion(20_000),
    "three images": _chat_with_images(),
}
