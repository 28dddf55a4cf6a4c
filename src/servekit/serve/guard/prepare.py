"""servekit's side of the guard: its settings, its configuration file, and how the engine loads it."""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from servekit.errors import ConfigurationError, Finding
from servekit.file_trouble import about
from servekit.profile import STRUCTURED_OUTPUTS_BACKEND, Value

from .inside.servekit_guard.body.structured import EXTRA_KINDS
from .inside.servekit_guard.flight import make_flight_file
from .inside.servekit_guard.gate import TOKEN_HEADER, is_loopback
from .inside.servekit_guard.guard_config import CONFIG_VARIABLE, Limits, Rules
from .inside.servekit_guard.images.media import CONNECTOR
from .inside.servekit_guard.routes import COUNTERS, DRAIN, EFFECTIVE
from .inside.servekit_guard.usage.ledger import make_ledger
from .inside.servekit_guard.usage.request_ring import make_ring
from .keys import ensure_key_file, load_keys, own_key_file, write_private

INSIDE = Path(__file__).parent / "inside"
"""The only folder of servekit on the engine's `PYTHONPATH`; it holds the guard's package and nothing else."""
MIDDLEWARE = "servekit_guard.entry.Guard"
CONFIG_FILE_NAME = "guard.json"
FLIGHT_FILE_NAME = "in_flight"
LEDGER_FILE_NAME = "usage"
RING_FILE_NAME = "requests"
EFFECTIVE_PATH = EFFECTIVE.path
COUNTERS_PATH = COUNTERS.path
DRAIN_PATH = DRAIN.path
BUFFERED_BODIES = 32
"""How many bodies of the largest size fit in memory together: 1 GiB by default."""
NO_MEDIA_DOMAINS = ("no domain: data URLs only",)
"""vLLM 0.20.2 treats an empty `--allowed-media-domains` as "every host"; no URL's host can contain a space."""
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


def _is_origin(value: str) -> bool:
    """Return whether a browser sends this as `Origin`: it leaves out the port that a scheme has by default."""
    return bool(_ORIGIN.fullmatch(value)) and not re.fullmatch(r"http:.*:80|https:.*:443", value)


_LISTS: dict[str, tuple[str, str, Callable[[str], object]]] = {
    "media_domains": (
        "is not a host name",
        "write host names in lower case, without scheme, port, path or wildcard",
        _DOMAIN.fullmatch,
    ),
    "cors_origins": (
        "is not an origin",
        "write https://app.example.org or http://localhost:3000: lower case, no path, no default port, and no wildcard",
        _is_origin,
    ),
    "structured_outputs": (
        "is not a kind of structured output that can be enabled",
        f"use one of {', '.join(EXTRA_KINDS)}; JSON and choices are always accepted",
        EXTRA_KINDS.__contains__,
    ),
}
"""Settings that are lists: what is wrong with a value, what to do, and which values are right."""


@dataclass(frozen=True, kw_only=True)
class GuardSettings(Limits):
    """The operator's settings for the guard; for `max_in_flight` see `default_max_in_flight`."""

    state_dir: Path
    """The folder of a generated key."""
    api_keys_file: Path | None = None
    """The operator's own key file; None: servekit creates one in the state folder."""
    no_auth: bool = False
    expose_without_auth: bool = False
    """Allows `no_auth` on an address that other hosts can reach."""
    host: str = "127.0.0.1"
    """The address the engine listens on."""
    request_log: int = 0
    """MiB of the request log; 0: none."""
    usage_days: int = 400
    """How long the books are kept."""

    @property
    def key_file(self) -> Path | None:
        """The file of the clients' keys; None without authentication."""
        return None if self.no_auth else (self.api_keys_file or own_key_file(self.state_dir)).absolute()


@dataclass(frozen=True)
class Guard:
    """What servekit needs to know of the guard while the engine runs."""

    config_path: Path
    key_file: Path | None
    """The file of the clients' keys; None with `no_auth`."""
    key_generated: bool
    """Whether that file was just created. The log has its path, never its content."""
    headers: dict[str, str] = field(repr=False)
    """The header of servekit's own requests, with its private token for this run. The token exists only in this
    process's memory; the engine has its hash."""


def default_max_in_flight(max_num_seqs: int) -> int:
    """Return how many requests may be in the engine: one full batch running and one waiting."""
    return 2 * max_num_seqs


def prepare_guard(settings: GuardSettings, run_dir: Path) -> Guard:
    """Write the guard's configuration (0600, in run_dir); `guard_arguments` and `guard_environment` make vLLM load it.

    Generates a key when none is configured. Raises ConfigurationError with every mistake in the settings.
    """
    if mistakes := guard_mistakes(settings):
        raise ConfigurationError(mistakes)
    key_file = settings.key_file
    generated = key_file is not None and not settings.api_keys_file and ensure_key_file(key_file)

    token = secrets.token_urlsafe(32)
    config_path = run_dir.absolute() / CONFIG_FILE_NAME
    flight_file, ledger, ring = map(config_path.with_name, (FLIGHT_FILE_NAME, LEDGER_FILE_NAME, RING_FILE_NAME))
    rules = Rules(
        token_sha256=hashlib.sha256(token.encode()).hexdigest(),
        api_keys_file=str(key_file) if key_file else None,
        max_buffered_bytes=BUFFERED_BODIES * settings.max_body_bytes,
        flight_file=str(flight_file),
        usage_file=str(ledger),
        request_log_file=str(ring) if settings.request_log else None,
        **{limit.name: getattr(settings, limit.name) for limit in fields(Limits)},
    )
    write_private(config_path, rules.to_json())
    ring.unlink(missing_ok=True)
    with about(run_dir):  # a full disk shows here: their space is allocated
        make_flight_file(flight_file, settings.max_in_flight)
        make_ledger(ledger)
        if settings.request_log:
            make_ring(ring)
    return Guard(
        config_path=config_path,
        key_file=key_file,
        key_generated=generated,
        headers={TOKEN_HEADER.decode(): token},
    )


def limit_penalties(config_path: Path, penalised_tokens: int) -> None:
    """Write the longest prompt with penalties that the memory plan allows into the guard's configuration."""
    write_private(config_path, replace(Rules.read(config_path), penalised_tokens=penalised_tokens).to_json())


def guard_arguments(media_domains: tuple[str, ...], structured_outputs: Value = None) -> tuple[str, ...]:
    """Return the arguments that make vLLM load the guard, fetch images only from these hosts, and use one backend.

    structured_outputs: the profile's `structured-outputs-config`, whose other members are kept. One argument has all:
    vLLM's parser drops the JSON form when a dotted one is given too.
    """
    others = structured_outputs if isinstance(structured_outputs, dict) else {}
    return (
        *("--middleware", MIDDLEWARE),
        *("--structured-outputs-config", json.dumps(others | {"backend": STRUCTURED_OUTPUTS_BACKEND})),
        *("--allowed-media-domains", *(media_domains or NO_MEDIA_DOMAINS)),
        *("--allowed-origins", "[]"),  # vLLM lets the pages of every origin read its answers; the guard decides
    )


def guard_environment(config_path: Path, engine_patches: Path | None = None) -> dict[str, str]:
    """Return the variables that locate the guard and the engine's newer packages; they contain no secret."""
    return {
        "PYTHONPATH": os.pathsep.join(str(folder) for folder in (INSIDE, engine_patches) if folder),
        CONFIG_VARIABLE: str(config_path),
        "VLLM_MEDIA_CONNECTOR": CONNECTOR,
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    }


def guard_mistakes(settings: GuardSettings) -> list[Finding]:
    """Return every mistake in the settings and in the key file; a key that servekit would generate is none."""
    mistakes: list[Finding] = []
    path = settings.key_file
    try:
        if path is not None and (settings.api_keys_file or path.exists()):
            load_keys(path)
    except ConfigurationError as error:
        mistakes.extend(error.findings)
    if settings.no_auth and settings.api_keys_file is not None:
        message = "contradicts the file of API keys that is set"
        mistakes.append(Finding(message, "--no-auth", got=str(settings.api_keys_file), remedy="remove one of them"))
    if settings.no_auth and not settings.expose_without_auth and not is_loopback(settings.host):
        mistakes.append(
            Finding(
                "gives access to everyone, and other hosts can reach this address",
                "--no-auth",
                got=settings.host,
                remedy="listen on 127.0.0.1, or allow this with --expose-without-auth",
            )
        )
    limits = ("SERVEKIT_MAX_BODY_MIB", settings.max_body_bytes), ("SERVEKIT_MAX_IN_FLIGHT", settings.max_in_flight)
    mistakes += [Finding("must be at least 1", name, got=str(value)) for name, value in limits if value < 1]
    for name, (problem, remedy, is_right) in _LISTS.items():
        wrong = [value for value in getattr(settings, name) if not is_right(value)]
        mistakes += [Finding(problem, f"SERVEKIT_{name.upper()}", got=value, remedy=remedy) for value in wrong]
    return mistakes
