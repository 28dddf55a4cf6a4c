"""Arguments of vLLM that a profile cannot set: servekit sets them itself, or could not keep its guarantees."""

from collections.abc import Mapping
from typing import Final

from servekit.profile.values import Value


def _setting(name: str, flag: str) -> str:
    return f"set SERVEKIT_{name} or {flag} instead"


TAKE_OUT = "take it out"
ONE_GPU = "this endpoint is one engine on one GPU"
MULTI_HOST = (ONE_GPU, TAKE_OUT)
TLS = ("servekit sets HTTPS up", "see docs/security.md for HTTPS, with servekit or with Caddy in front")
ROUTES = ("the guard answers 404 on those routes in any case", TAKE_OUT)
PAGES = ("the guard answers browsers", _setting("CORS_ORIGINS", "--cors-origins"))
PRIVACY = ("would put what users write and read into the log", TAKE_OUT)
ATTENTION_BACKEND = "Gemma 4 mixes two head sizes, and vLLM chooses the one backend that is right for both"
SOCKETS = ("opens ports that the guard does not see", TAKE_OUT)

RESERVED: Final[Mapping[str, tuple[str, str]]] = {
    "model": ("servekit names the model", _setting("MODEL", "--model")),
    "model-tag": ("servekit names the model", _setting("MODEL", "--model")),
    "revision": ("servekit pins the revision", _setting("REVISION", "--revision")),
    "served-model-name": ("servekit names the model", _setting("SERVED_NAME", "--served-name")),
    "config": ("a profile cannot name another one", "give the other file to servekit with --config FILE"),
    "host": ("servekit sets the address", _setting("HOST", "--host")),
    "port": ("servekit sets the port", _setting("PORT", "--port")),
    "uds": ("servekit's probes need an address and a port", _setting("HOST", "--host")),
    "api-key": (
        "vLLM logs its keys and leaves routes open; the guard keeps them",
        _setting("API_KEYS_FILE", "--api-keys-file"),
    ),
    "hf-token": (
        "every user of this host would see it in the process list",
        "set HF_TOKEN in the environment instead",
    ),
    "shutdown-timeout": ("servekit derives it from its own drain", _setting("DRAIN_S", "--drain-s")),
    "allowed-media-domains": ("servekit sets it", _setting("MEDIA_DOMAINS", "--media-domains")),
    "allowed-local-media-path": ("would let a request read files of this host", TAKE_OUT),
    "log-config-file": ("servekit reads the engine's log", _setting("LOG_FORMAT", "--log-format")),
    "disable-log-stats": ("without vLLM's counters servekit cannot see a hung engine", TAKE_OUT),
    "middleware": ("reserved for servekit's guard, which protects every route", TAKE_OUT),
    "root-path": ("the guard decides by the path of the request", TAKE_OUT),
    "allowed-origins": ("servekit sets it", _setting("CORS_ORIGINS", "--cors-origins")),
    "allowed-methods": PAGES,
    "allowed-headers": PAGES,
    "allow-credentials": ("clients send a bearer key, never a cookie", TAKE_OUT),
    "disable-fastapi-docs": ROUTES,
    "enable-offline-docs": ROUTES,
    "enable-tokenizer-info-endpoint": ROUTES,
    "ssl-keyfile": (TLS[0], _setting("TLS_KEY", "--tls-key")),
    "ssl-certfile": (TLS[0], _setting("TLS_CERT", "--tls-cert")),
    "ssl-ca-certs": TLS,
    "ssl-cert-reqs": TLS,
    "ssl-ciphers": TLS,
    "enable-ssl-refresh": TLS,
    "enable-log-requests": PRIVACY,
    "enable-log-outputs": PRIVACY,
    "enable-log-deltas": PRIVACY,
    "grpc": ("the guard protects HTTP only", TAKE_OUT),
    "headless": ("an engine without an API server cannot answer requests", TAKE_OUT),
    "tokens-only": ("the endpoint answers the OpenAI routes", TAKE_OUT),
    "api-server-count": ("the guard counts requests in one API server", TAKE_OUT),
    "tool-server": ("would let a request run code or call other hosts", TAKE_OUT),
    "kv-transfer-config": SOCKETS,
    "kv-events-config": SOCKETS,
    "ec-transfer-config": SOCKETS,
    "weight-transfer-config": SOCKETS,
    "attention-backend": (ATTENTION_BACKEND, TAKE_OUT),
    "master-addr": MULTI_HOST,
    "master-port": MULTI_HOST,
    "node-rank": MULTI_HOST,
    "data-parallel-address": MULTI_HOST,
    "data-parallel-backend": MULTI_HOST,
    "data-parallel-external-lb": MULTI_HOST,
    "data-parallel-hybrid-lb": MULTI_HOST,
    "data-parallel-rank": MULTI_HOST,
    "data-parallel-rpc-port": MULTI_HOST,
    "data-parallel-size-local": MULTI_HOST,
    "data-parallel-start-rank": MULTI_HOST,
}
"""Why a profile cannot set a key, and what to do instead."""

CLIENT_CODE = "would let a client's request reach code that trusts it"
NEEDS_LANGUAGE = "the endpoint answers text and images with text"

PINNED: Final[Mapping[str, tuple[tuple[Value, ...], str]]] = {
    "tensor-parallel-size": ((1,), ONE_GPU),
    "pipeline-parallel-size": ((1,), ONE_GPU),
    "data-parallel-size": ((1,), ONE_GPU),
    "decode-context-parallel-size": ((1,), ONE_GPU),
    "prefill-context-parallel-size": ((1,), ONE_GPU),
    "nnodes": ((1,), ONE_GPU),
    "distributed-executor-backend": (("mp", "uni"), ONE_GPU),
    "enable-elastic-ep": ((False,), ONE_GPU),
    "trust-remote-code": ((False,), "Gemma 4 needs no code from the checkpoint"),
    "trust-request-chat-template": ((False,), CLIENT_CODE),
    "enable-prompt-embeds": ((False,), CLIENT_CODE),
    "enable-mm-embeds": ((False,), CLIENT_CODE),
    "mm-processor-cache-type": (("lru",), "the cache in shared memory has a known vulnerability (CVE-2026-115912)"),
    "calculate-kv-scales": ((False,), "deprecated in vLLM 0.20.2, and wrong for layers that share their cache"),
    "language-model-only": ((False,), NEEDS_LANGUAGE),
    "mm-encoder-only": ((False,), NEEDS_LANGUAGE),
    "skip-tokenizer-init": ((False,), NEEDS_LANGUAGE),
    "runner": (("auto", "generate"), NEEDS_LANGUAGE),
    "convert": (("auto", "none"), NEEDS_LANGUAGE),
}
"""The values that a key may have here, out of those that vLLM takes, and why."""

H11: Final = "vLLM's server reads HTTP with httptools, and the guard has limits of its own"

WITHOUT_EFFECT: Final[Mapping[str, str]] = {
    "enable-server-load-tracking": "the guard answers 404 on /load, which would show it; see servekit's metrics",
    "enable-sleep-mode": "the guard answers 404 on /sleep and /wake_up, so the engine never sleeps",
    "profiler-config": "the guard answers 404 on /start_profile and /stop_profile",
    "enable-request-id-headers": "the guard puts X-Request-Id on every answer",
    "h11-max-header-count": H11,
    "h11-max-incomplete-event-size": H11,
    "max-log-len": "requests are not logged",
}
"""Keys that a profile may have and that change nothing behind the guard, and why."""
