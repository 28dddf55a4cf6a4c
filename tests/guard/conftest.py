"""The real engine behind the real guard: one for the session, on loopback."""

import base64
import contextlib
import socket
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import urllib3

from servekit.demo.build import build_demo_model
from servekit.serve.guard import (
    COUNTERS_PATH,
    EFFECTIVE_PATH,
    Guard,
    GuardSettings,
    guard_arguments,
    guard_environment,
    prepare_guard,
)
from tests.harness.collector import Collector
from tests.harness.engine import bare_engine
from tests.harness.server import PATCHES, Server
from tests.harness.shared import share

MAX_BODY_BYTES = 2 * 1024**2
MAX_IN_FLIGHT = 40
MAX_WRITE_S = 6.0


@dataclass
class GuardedEngine:
    """A running vLLM behind the guard, with requests as a client, as servekit, or without a key."""

    port: int
    key: str = field(repr=False)
    guard: Guard
    key_file: Path
    server: Server
    log: Path
    folder: Path
    collector: Collector
    """Gets the traces."""
    pool: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(maxsize=64, retries=False))

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: bool = True,
        headers: dict[str, str] | None = None,
        timeout_s: float = 60,
    ) -> urllib3.BaseHTTPResponse:
        """Send one request, by default with the valid key; `body` becomes JSON."""
        sent = {"authorization": f"Bearer {self.key}"} if key else {}
        sent |= headers or {}
        url = f"http://127.0.0.1:{self.port}{path}"
        if body is None:
            return self.pool.request(method, url, headers=sent, timeout=timeout_s)
        if isinstance(body, bytes):
            return self.pool.request(
                method, url, body=body, headers={"content-type": "application/json"} | sent, timeout=timeout_s
            )
        return self.pool.request(method, url, json=body, headers=sent, timeout=timeout_s)

    def own(self, path: str) -> Any:
        """Send a request as servekit itself and return the JSON."""
        response = self.request("GET", path, key=False, headers=self.guard.headers)
        assert response.status == 200, response.data
        return response.json()

    def effective(self) -> Any:
        """Return the effective configuration."""
        return self.own(EFFECTIVE_PATH)

    def counters(self) -> Any:
        """Return the guard's counters."""
        return self.own(COUNTERS_PATH)

    def count(self, route: str, outcome: str) -> int:
        """Return one counter."""
        for entry in self.counters()["requests"]:
            if (entry["route"], entry["outcome"]) == (route, outcome):
                return int(entry["count"])
        return 0

    def raw(self, data: bytes, timeout_s: float = 5) -> bytes:
        """Send bytes on a new connection and return what comes back until the end or the timeout."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            received = b""
            with contextlib.suppress(OSError):  # a refusal may close before everything was sent
                connection.sendall(data)
                while chunk := connection.recv(65536):
                    received += chunk
            return received

    def resident_peak_bytes(self) -> int:
        """Return the peak memory of the server process."""
        text = Path(f"/proc/{self.server.pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    def family(self) -> list[psutil.Process]:
        """Return the engine's processes."""
        leader = psutil.Process(self.server.pid)
        return [leader, *leader.children(recursive=True)]


def chat(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a small chat request with these content parts after a word of text."""
    content = [{"type": "text", "text": "hello"}, *parts]
    return {"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": content}]} | fields


def completion(**fields: Any) -> dict[str, Any]:
    """Return a small completion request."""
    return {"model": "demo", "prompt": "hello", "max_tokens": 4} | fields


def png(width: int, height: int) -> bytes:
    """Return a black PNG with one bit per pixel: 30000 x 30000 pixels fit 110 kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    compressor = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def image(url: str | bytes, kind: str = "png") -> dict[str, Any]:
    """Return an image part for a chat request; bytes become a data URL."""
    if isinstance(url, bytes):
        url = f"data:image/{kind};base64,{base64.b64encode(url).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


@pytest.fixture(scope="session")
def requests() -> SimpleNamespace:
    """The functions that build request bodies."""
    return SimpleNamespace(chat=chat, completion=completion, image=image, png=png)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 4 that the CPU engine serves."""
    folder = tmp_path_factory.mktemp("checkpoint") / "demo"
    build_demo_model(folder)
    return folder


@pytest.fixture(scope="session")
def engine(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedEngine]:
    """Start vLLM behind the guard and stop it, with everything it started, at the end of the session."""
    folder = tmp_path_factory.mktemp("engine")
    settings = GuardSettings(
        state_dir=folder / "state",
        max_in_flight=MAX_IN_FLIGHT,
        max_body_bytes=MAX_BODY_BYTES,
        max_write_s=MAX_WRITE_S,
        request_log=1,
    )
    guard = prepare_guard(settings, folder / "run")
    assert guard.key_file is not None
    key = guard.key_file.read_text().splitlines()[-1]
    log = folder / "engine.log"
    collector = Collector().start()
    flags = [
        "--otlp-traces-endpoint",
        collector.url,
        "--kv-cache-dtype",
        "auto",
        "--max-model-len",
        "4096",
        "--max-num-seqs",
        "32",
        *guard_arguments(()),
    ]
    own = {"VLLM_CACHE_ROOT": str(folder / "cache"), "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "30"}
    own |= {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_BSP_SCHEDULE_DELAY": "200"}
    own |= guard_environment(guard.config_path, PATCHES)
    with share("engine", bare_engine(checkpoint, log, flags, own).start()) as server:
        server.until_ready()
        engine = GuardedEngine(server.port, key, guard, guard.key_file, server, log, folder, collector)
        yield engine
        engine.pool.clear()
    collector.close()
