"""Query the engine over loopback, and servekit's own server."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import urllib3

from servekit.serve.guard import DRAIN_PATH

T = TypeVar("T")

TIMEOUT_S = 5.0
_TOKEN_TIMEOUT_S = 120.0
"""The first token after a start may wait for kernels that are compiled on first use."""
_WARM_UP_BATCHES = (3, 16)
"""Prompts per request. The tokens are enough for all of a batch to run until the last one has arrived."""
_WARM_UP_PROMPT = "1 2 3"
_STRUCTURED_WARM_UP = {"prompt": [_WARM_UP_PROMPT] * 2, "max_tokens": 1, "structured_outputs": {"json_object": True}}


class ProbeError(Exception):
    """A query got no answer, or an unexpected one; the text says which."""


@dataclass(frozen=True)
class Settled:
    """The guard's answer at the beginning of a drain."""

    in_flight: int | None
    """Requests that run; None where the guard did not answer."""
    arrived: bool
    """Whether EngineCore has all of them."""


class EngineClient:
    """The few queries servekit sends to the engine, without retries or proxies: the caller judges a failure."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, *, fingerprint: str | None = None) -> None:
        """Query `url`; over HTTPS only a server with the certificate of this SHA-256 `fingerprint`."""
        self.url = url
        # The certificate names the public host, not loopback: the fingerprint identifies it, not the name.
        pinned: dict[str, Any] = {"cert_reqs": "CERT_NONE", "assert_fingerprint": fingerprint} if fingerprint else {}
        self._pool = urllib3.PoolManager(headers=dict(headers or {}), retries=False, maxsize=6, **pinned)

    def health(self, *, timeout_s: float = TIMEOUT_S) -> int | None:
        """Return the HTTP status of `/health`: 0 if the port is closed, None if no answer comes in time."""
        try:
            return int(self._pool.request("GET", f"{self.url}/health", timeout=timeout_s).status)
        except urllib3.exceptions.NewConnectionError:
            return 0
        except urllib3.exceptions.HTTPError:
            return None

    def served_models(self) -> list[str]:
        """Return the names in `/v1/models`."""
        return self._read("GET", "/v1/models", lambda body: [str(model["id"]) for model in body["data"]])

    def generate_token(self, model: str) -> int:
        """Generate one token; return how many the engine reports."""
        # temperature 0 and a single token: the least work that goes through scheduler, model and sampler. The prompt is
        # one token too (Gemma's <bos>), so that canaries can be subtracted from the engine's count of prompt tokens.
        return self._generate({"model": model, "prompt": [2], "max_tokens": 1, "temperature": 0.0, "ignore_eos": True})

    def warm_up(self, model: str) -> int:
        """Generate as clients do, first few then many prompts per request; return the number of tokens reported.

        vLLM 0.20.2 warms up no batch that holds a prompt, and Triton compiles its attention kernel (num_seqs in
        v1/attention/ops/triton_unified_attention.py) for one request, for a multiple of 16 and for any other number.
        Structured output compiles a kernel, and its table of the vocabulary where `core/ready_tokenizer.py` of the
        guard has not made it: two seconds for 262,144 words (v1/structured_output/__init__.py, `grammar_init`).
        Sampling is the checkpoint's own; 8 requests and more take another path (v1/sample/ops/topk_topp_sampler.py).
        """
        batches = [
            {"model": model, "prompt": [_WARM_UP_PROMPT] * number, "max_tokens": 16, "ignore_eos": True}
            for number in _WARM_UP_BATCHES
        ]
        return sum(self._generate(each) for each in (*batches, {"model": model, **_STRUCTURED_WARM_UP}))

    def metrics(self, *, timeout_s: float = TIMEOUT_S) -> str:
        """Return the engine's own metrics in the Prometheus text format."""
        return self._request("GET", "/metrics", timeout_s=timeout_s).decode()

    def drain(self, *, within_s: float) -> Settled:
        """Let the guard refuse every new request and wait until EngineCore has the others; never raises."""
        try:
            return self._read(
                "POST",
                DRAIN_PATH,
                lambda body: Settled(int(body["in_flight"]), arrived=body["settled"] is True),
                timeout_s=within_s,
            )
        except ProbeError:
            return Settled(None, arrived=False)

    def get(self, path: str, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """Return the JSON object at `path`."""
        return self._read("GET", path, lambda body: {**body}, timeout_s=timeout_s)

    def close(self) -> None:
        """Close the connections that are kept open between calls; a later call opens a new one."""
        self._pool.clear()

    def _generate(self, request: Mapping[str, Any]) -> int:
        return self._read(
            "POST",
            "/v1/completions",
            lambda body: int(body["usage"]["completion_tokens"]),
            request,
            timeout_s=_TOKEN_TIMEOUT_S,
        )

    def _read(
        self, method: str, path: str, pick: Callable[[Any], T], body: object = None, *, timeout_s: float = TIMEOUT_S
    ) -> T:
        """Return what `pick` takes from the JSON that the server answers with."""
        answer = self._request(method, path, body, timeout_s=timeout_s)
        try:
            return pick(json.loads(answer))
        except (KeyError, TypeError, ValueError) as error:
            raise ProbeError(f"{path}: unexpected answer {answer[:200].decode(errors='replace')}") from error

    def _request(self, method: str, path: str, body: object = None, *, timeout_s: float) -> bytes:
        try:
            answer = self._pool.request(method, f"{self.url}{path}", json=body, timeout=timeout_s)
        except urllib3.exceptions.HTTPError as error:
            raise ProbeError(f"{path}: {error}") from error
        if answer.status != HTTPStatus.OK:
            raise ProbeError(f"{path}: HTTP {answer.status}: {answer.data[:300].decode(errors='replace')}")
        return answer.data


def query_server(url: str, question: str, *, timeout_s: float = 3.0) -> tuple[bool, str]:
    """Query `/livez` or `/readyz` of a running servekit; return the answer and its reason."""
    try:
        answer = urllib3.request("GET", f"{url}/{question}z", retries=False, timeout=timeout_s)
    except urllib3.exceptions.HTTPError as error:
        return False, f"no servekit answers on {url}: {error}"
    return answer.status == HTTPStatus.OK, answer.data.decode(errors="replace").strip()
