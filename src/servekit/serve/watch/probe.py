"""Ask the engine, over loopback, whether it does its work; ask servekit's own server whether it is ready."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import urllib3

from servekit.serve.guard import DRAIN_PATH

TIMEOUT_S = 5.0
_TOKEN_TIMEOUT_S = 120.0
"""The first token of a start may wait for kernels that are compiled on first use."""
_WARM_UP_BATCHES = (3, 16)
"""Prompts at once. All of a batch run until the last of them has come: tokens enough for that are asked for."""
_WARM_UP_PROMPT = "1 2 3"
_STRUCTURED_WARM_UP = {"prompt": [_WARM_UP_PROMPT] * 2, "max_tokens": 1, "structured_outputs": {"json_object": True}}


class ProbeError(Exception):
    """A probe got no answer, or not the one of a working server; the text says which."""


@dataclass(frozen=True)
class Settled:
    """What the guard answers at the beginning of a drain."""

    in_flight: int | None
    """Requests that run; None where the guard did not answer."""
    arrived: bool
    """Whether EngineCore has all of them."""


class EngineClient:
    """The few calls servekit makes to the engine, without retries or proxies: the caller knows what a failure means."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, *, fingerprint: str | None = None) -> None:
        """Speak to `url`; over HTTPS only to a server with the certificate of this SHA-256 `fingerprint`."""
        self.url = url
        # The certificate names the public host, not loopback, so it is known by its fingerprint and not by its name.
        pinned: dict[str, Any] = {"cert_reqs": "CERT_NONE", "assert_fingerprint": fingerprint} if fingerprint else {}
        self._pool = urllib3.PoolManager(headers=dict(headers or {}), retries=False, maxsize=6, **pinned)

    def answers(self, *, timeout_s: float) -> bool:
        """Whether the engine's server answers anything at all within this time, `/health` with 503 too."""
        try:
            self._pool.request("GET", f"{self.url}/health", timeout=timeout_s)
        except urllib3.exceptions.HTTPError:
            return False
        else:
            return True

    def health(self) -> bool:
        """Whether `/health` answers 200. False says little: the port is closed while the engine loads."""
        try:
            return self._pool.request("GET", f"{self.url}/health", timeout=TIMEOUT_S).status == HTTPStatus.OK
        except urllib3.exceptions.HTTPError:
            return False

    def refuses_health(self, *, timeout_s: float = TIMEOUT_S) -> bool:
        """Whether `/health` answers, and with something else than 200, or the port is closed.

        A time-out is no refusal: a server that is busy to the brim may take long to answer.
        """
        try:
            return self._pool.request("GET", f"{self.url}/health", timeout=timeout_s).status != HTTPStatus.OK
        except urllib3.exceptions.NewConnectionError:
            return True
        except urllib3.exceptions.HTTPError:
            return False

    def served_models(self) -> list[str]:
        """Return the names in `/v1/models`."""
        body = self._json("GET", "/v1/models")
        try:
            return [str(model["id"]) for model in body["data"]]
        except (KeyError, TypeError) as error:
            raise ProbeError(f"/v1/models: unexpected answer {str(body)[:200]}") from error

    def generate_token(self, model: str) -> int:
        """Generate one token and return how many the engine says it made."""
        # temperature 0 and a single token: the least work that goes through scheduler, model and sampler.
        return self._generate({"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0.0, "ignore_eos": True})

    def warm_up(self, model: str) -> int:
        """Generate as clients do, first few and then many at once; return how many tokens the engine says it made.

        vLLM 0.20.2 warms up no batch that holds a prompt, and Triton compiles its attention kernel (num_seqs in
        v1/attention/ops/triton_unified_attention.py) for one request, for a multiple of 16 and for any other number.
        EngineCore reads the vocabulary for structured output at the first such request, two seconds for 262,144 words
        (v1/structured_output/__init__.py, `grammar_init`).
        Sampling is the checkpoint's own; 8 requests and more take another way (v1/sample/ops/topk_topp_sampler.py).
        """
        batches = [
            {"model": model, "prompt": [_WARM_UP_PROMPT] * number, "max_tokens": 16, "ignore_eos": True}
            for number in _WARM_UP_BATCHES
        ]
        return sum(self._generate(each) for each in (*batches, {"model": model, **_STRUCTURED_WARM_UP}))

    def _generate(self, request: Mapping[str, Any]) -> int:
        body = self._json("POST", "/v1/completions", request, timeout_s=_TOKEN_TIMEOUT_S)
        try:
            return int(body["usage"]["completion_tokens"])
        except (KeyError, TypeError) as error:
            raise ProbeError(f"/v1/completions: unexpected answer {str(body)[:200]}") from error

    def metrics(self, *, timeout_s: float = TIMEOUT_S) -> str:
        """Return the engine's own metrics in the Prometheus text format."""
        return self._request("GET", "/metrics", timeout_s=timeout_s).decode()

    def drain(self, *, within_s: float) -> Settled:
        """Let the guard refuse every new request and wait until EngineCore has the ones before; never raises."""
        try:
            said = self._json("POST", DRAIN_PATH, timeout_s=within_s)
            return Settled(int(said["in_flight"]), arrived=said["settled"] is True)
        except (ProbeError, KeyError, TypeError, ValueError):
            return Settled(None, arrived=False)

    def close(self) -> None:
        """Close the connections that are kept open between calls; a later call opens a new one."""
        self._pool.clear()

    def get(self, path: str, *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """Return the JSON object at `path`."""
        body = self._json("GET", path, timeout_s=timeout_s)
        if not isinstance(body, dict):
            raise ProbeError(f"{path}: not a JSON object")
        return body

    def _json(self, method: str, path: str, body: object = None, *, timeout_s: float = TIMEOUT_S) -> Any:
        try:
            return json.loads(self._request(method, path, body, timeout_s=timeout_s))
        except ValueError as error:
            raise ProbeError(f"{path}: not JSON") from error

    def _request(self, method: str, path: str, body: object = None, *, timeout_s: float = TIMEOUT_S) -> bytes:
        try:
            answer = self._pool.request(method, f"{self.url}{path}", json=body, timeout=timeout_s)
        except urllib3.exceptions.HTTPError as error:
            raise ProbeError(f"{path}: {error}") from error
        if answer.status != HTTPStatus.OK:
            raise ProbeError(f"{path}: HTTP {answer.status}: {answer.data[:300].decode(errors='replace')}")
        return answer.data


def ask_server(url: str, question: str, *, timeout_s: float = 3.0) -> tuple[bool, str]:
    """Ask a running servekit `live` or `ready`; return the answer and its reason."""
    pool = urllib3.PoolManager(retries=False)
    try:
        answer = pool.request("GET", f"{url}/{question}z", timeout=timeout_s)
    except urllib3.exceptions.HTTPError as error:
        return False, f"no servekit answers on {url}: {error}"
    return answer.status == HTTPStatus.OK, answer.data.decode(errors="replace").strip()
