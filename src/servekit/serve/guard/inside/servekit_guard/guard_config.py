"""The guard's configuration file: servekit writes it, the guard reads it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

CONFIG_VARIABLE = "SERVEKIT_GUARD_CONFIG"
"""The environment variable that names the configuration file. It holds a path, never a secret."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits that the operator and the plan set."""

    max_in_flight: int
    """Requests for text that may run or wait in the engine at the same time."""
    max_body_bytes: int = 32 * 1024**2
    """By default three images of 7.5 MiB, a third more for base64, and 2 MiB of JSON."""
    media_domains: tuple[str, ...] = ()
    """Hosts that images may be fetched from; without any, only `data:` URLs are accepted."""
    structured_outputs: tuple[str, ...] = ()
    """Kinds of structured output that are accepted besides JSON and choices."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may use the endpoint from a browser."""
    settle_s: float = 15.0
    """How long a drain may wait for requests to reach EngineCore: servekit sets half of the drain's time."""
    max_write_s: float = 60.0
    """An answer is ended, and its request with it, when the client has read nothing for this time."""


@dataclass(frozen=True, kw_only=True)
class Rules(Limits):
    """Every limit of the guard. It contains no key and no token: a copy of the file gives no access."""

    token_sha256: str
    """SHA-256 of servekit's private token, in hexadecimal."""
    api_keys_file: str | None
    """The file of the clients' keys; None turns authentication off (`--no-auth`)."""
    max_buffered_bytes: int
    """Bytes of request bodies in memory, over all requests in flight."""
    max_structured_weight: int = 65_536
    """Of all structured output in flight (`body/structured.py`): a thousand rows with a pattern each."""
    max_body_s: float = 120.0
    """A body must arrive within this time."""
    max_image_pixels: int = 33_177_600
    """Width times height of one image: 33,177,600 is 8K (7680 x 4320), 95 MiB once decoded."""
    max_head_bytes: int = 65_536
    """Request line and headers together."""
    max_head_s: float = 10.0
    """The request line and the headers must arrive within this time."""
    retry_after_s: int = 1
    """`Retry-After` of a 429, and of a 503 during a drain."""
    penalised_tokens: int | None = None
    """The longest prompt of a request with penalties, from the memory plan; None: no bound."""
    flight_file: str | None = None
    """The file that records the requests in flight (`flight.py`); None: no record."""
    usage_file: str | None = None
    """The file that counts what each key uses (`usage/ledger.py`); None: only in memory."""
    request_log_file: str | None = None
    """The file that passes the request log on to servekit (`usage/request_ring.py`); None: no log."""

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> "Rules":
        """Read the file. A missing, unknown or misspelt key raises TypeError, so that the engine does not start."""
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**fields | {name: tuple(value) for name, value in fields.items() if isinstance(value, list)})
