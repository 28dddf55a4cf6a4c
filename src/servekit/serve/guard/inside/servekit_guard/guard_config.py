"""The guard's configuration file: what servekit writes and the guard reads."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

CONFIG_VARIABLE = "SERVEKIT_GUARD_CONFIG"
"""The environment variable that names the configuration file. It holds a path, never a secret."""


@dataclass(frozen=True)
class Rules:
    """Every limit of the guard. No key and no token stands in it, so a copy of the file opens nothing."""

    token_sha256: str
    """SHA-256 of servekit's private token, in hexadecimal."""
    api_keys_file: str | None
    """The file of the clients' keys; None lets everybody in (`--no-auth`)."""
    max_body_bytes: int
    max_in_flight: int
    """Requests for text that may run or wait in the engine at once."""
    max_buffered_bytes: int
    """Bytes of request bodies that may be held at once, over all requests in flight."""
    max_structured_weight: int = 65_536
    """Of the structured output in flight (`body/structured.py`): a thousand rows with a pattern each."""
    max_body_s: float = 120.0
    """A body must have arrived within this time."""
    max_image_pixels: int = 33_177_600
    """Width times height of one image: 33,177,600 is 8K (7680 x 4320), 95 MiB once decoded."""
    media_domains: tuple[str, ...] = ()
    """Hosts images may be fetched from; none means `data:` URLs only."""
    structured_outputs: tuple[str, ...] = ()
    """Kinds of structured output that are open besides JSON and choices."""
    max_head_bytes: int = 65_536
    """Request line and headers together."""
    max_head_s: float = 10.0
    """The request line and the headers must have arrived within this time."""
    max_write_s: float = 60.0
    """An answer of which the client has taken nothing for this time is ended, and so is its request."""
    retry_after_s: int = 1
    """What a client is told to wait for after a 429, and after a 503 of a drain."""
    settle_s: float = 15.0
    """How long a drain may wait for requests to reach EngineCore: servekit gives it half of the drain."""
    flight_file: str | None = None
    """Where the requests in flight are recorded (`flight.py`); None: nowhere."""

    def to_json(self) -> str:
        """Write the file's text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> "Rules":
        """Read the file; a missing, unknown or misspelt key raises TypeError, so the engine does not start."""
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**fields | {name: tuple(fields.get(name, ())) for name in ("media_domains", "structured_outputs")})
