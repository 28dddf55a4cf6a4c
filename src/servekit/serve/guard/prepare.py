"""servekit's side of the guard: its settings, its configuration file, and what the engine needs to load it."""

import hashlib
import ipaddress
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from servekit.errors import ConfigurationError, Finding
from servekit.profile import STRUCTURED_OUTPUTS_BACKEND, Value

from .inside.servekit_guard.body.structured import EXTRA_KINDS
from .inside.servekit_guard.flight import make_flight_file
from .inside.servekit_guard.gate import COUNTERS, DRAIN, EFFECTIVE, TOKEN_HEADER
from .inside.servekit_guard.guard_config import CONFIG_VARIABLE, Rules
from .inside.servekit_guard.images.media import CONNECTOR
from .keys import OWNER_ONLY, OWNER_ONLY_FOLDER, ensure_key_file, load_keys, own_key_file

INSIDE = Path(__file__).parent / "inside"
"""The only folder of servekit on the engine's `PYTHONPATH`; it holds the guard's package and nothing else."""
MIDDLEWARE = "servekit_guard.entry.Guard"
CONFIG_FILE_NAME = "guard.json"
FLIGHT_FILE_NAME = "in_flight"
EFFECTIVE_PATH = EFFECTIVE.path
COUNTERS_PATH = COUNTERS.path
DRAIN_PATH = DRAIN.path
MEBIBYTE = 1024**2

DEFAULT_MAX_BODY_BYTES = 32 * MEBIBYTE
"""Three images of 7.5 MiB, a third more for base64, and 2 MiB of JSON."""
BUFFERED_BODIES = 32
"""How many bodies of the largest size may be held at once: 1 GiB by default."""
NO_MEDIA_DOMAINS = ("no domain: data URLs only",)
"""vLLM 0.20.2 takes an empty `--allowed-media-domains` for "every host"; no URL's host can hold a space."""
_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


@dataclass(frozen=True)
class GuardSettings:
    """What the operator decides about the guard."""

    state_dir: Path
    """Where a generated key is kept."""
    max_in_flight: int
    """See `default_max_in_flight`."""
    api_keys_file: Path | None = None
    """The operator's own key file; None: servekit makes one in the state folder."""
    no_auth: bool = False
    expose_without_auth: bool = False
    """Consent to `no_auth` on an address that other hosts reach."""
    host: str = "127.0.0.1"
    """The address the engine listens on."""
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    media_domains: tuple[str, ...] = ()
    structured_outputs: tuple[str, ...] = ()
    """Kinds of structured output that are open besides JSON and choices."""
    settle_s: float = Rules.settle_s
    """See `Plan.settle_s`."""
    max_write_s: float = Rules.max_write_s
    engine_patches: Path | None = None
    """The folder of packages that go before the engine's own."""


@dataclass(frozen=True)
class Guard:
    """What to start the engine with, and how to speak to it afterwards."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    config_path: Path
    key_file: Path | None
    """Where the clients' keys are; None with `no_auth`."""
    key_generated: bool
    """Whether that file was made just now: the log says where it is, never what is in it."""
    token: str = field(repr=False)
    """servekit's own key for this run. It exists in this process's memory only; the engine has its hash."""

    @property
    def headers(self) -> dict[str, str]:
        """The header servekit's own requests to the engine carry."""
        return {TOKEN_HEADER.decode(): self.token}


def default_max_in_flight(max_num_seqs: int) -> int:
    """Return how many requests may be in the engine at once: one full batch running and one waiting."""
    return 2 * max_num_seqs


def prepare_guard(settings: GuardSettings, run_dir: Path) -> Guard:
    """Write the guard's configuration (0600, in run_dir) and say what the engine needs to load it.

    Makes a key when none is configured. Raises ConfigurationError with every mistake in the settings.
    """
    mistakes = _mistakes(settings)
    key_file: Path | None = None
    generated = False
    if not settings.no_auth:
        key_file = (settings.api_keys_file or own_key_file(settings.state_dir)).absolute()
        try:
            if settings.api_keys_file is not None:
                load_keys(key_file)
            elif not mistakes:
                generated = ensure_key_file(key_file)
        except ConfigurationError as error:
            mistakes.extend(error.findings)
    if mistakes:
        raise ConfigurationError(mistakes)

    token = secrets.token_urlsafe(32)
    config_path = run_dir.absolute() / CONFIG_FILE_NAME
    flight_file = config_path.with_name(FLIGHT_FILE_NAME)
    _write_private(config_path, replace(_rules(settings, key_file, token), flight_file=str(flight_file)).to_json())
    make_flight_file(flight_file, settings.max_in_flight)
    return Guard(
        argv=guard_arguments(settings.media_domains),
        environment=MappingProxyType(guard_environment(config_path, settings.engine_patches)),
        config_path=config_path,
        key_file=key_file,
        key_generated=generated,
        token=token,
    )


def guard_arguments(media_domains: tuple[str, ...], structured_outputs: Value = None) -> tuple[str, ...]:
    """Return the arguments that make vLLM load the guard, fetch images from these hosts only and use one backend.

    structured_outputs: the profile's `structured-outputs-config`, whose other members are kept. One argument holds them
    all: vLLM's parser drops the JSON form beside a dotted one.
    """
    config = (structured_outputs if isinstance(structured_outputs, dict) else {}) | {
        "backend": STRUCTURED_OUTPUTS_BACKEND
    }
    return (
        *("--middleware", MIDDLEWARE),
        *("--structured-outputs-config", json.dumps(config)),
        *("--allowed-media-domains", *(media_domains or NO_MEDIA_DOMAINS)),
    )


def guard_environment(config_path: Path, engine_patches: Path | None = None) -> dict[str, str]:
    """Return the variables the guard and the engine's newer packages are found by; they hold paths, never a secret."""
    folders = (INSIDE, engine_patches) if engine_patches else (INSIDE,)
    return {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        CONFIG_VARIABLE: str(config_path),
        "VLLM_MEDIA_CONNECTOR": CONNECTOR,
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    }


def _rules(settings: GuardSettings, key_file: Path | None, token: str) -> Rules:
    return Rules(
        token_sha256=hashlib.sha256(token.encode()).hexdigest(),
        api_keys_file=str(key_file) if key_file else None,
        max_body_bytes=settings.max_body_bytes,
        max_in_flight=settings.max_in_flight,
        max_buffered_bytes=BUFFERED_BODIES * settings.max_body_bytes,
        media_domains=settings.media_domains,
        structured_outputs=settings.structured_outputs,
        settle_s=settings.settle_s,
        max_write_s=settings.max_write_s,
    )


def _mistakes(settings: GuardSettings) -> list[Finding]:
    mistakes = []
    if settings.no_auth and settings.api_keys_file is not None:
        remedy = "leave one of them out"
        mistakes.append(Finding("contradicts SERVEKIT_API_KEYS_FILE", "--no-auth", remedy=remedy))
    if settings.no_auth and not settings.expose_without_auth and not is_loopback(settings.host):
        message = "lets everybody in, and this address is reached from other hosts"
        remedy = "listen on 127.0.0.1, or consent with --expose-without-auth"
        mistakes.append(Finding(message, "--no-auth", got=f"SERVEKIT_HOST={settings.host}", remedy=remedy))
    for name, value in (
        ("SERVEKIT_MAX_BODY_MIB", settings.max_body_bytes),
        ("SERVEKIT_MAX_IN_FLIGHT", settings.max_in_flight),
    ):
        if value < 1:
            mistakes.append(Finding("must be at least 1", name, got=str(value)))
    for domain in settings.media_domains:
        if not _DOMAIN.fullmatch(domain):
            remedy = "write host names in lower case, without scheme, port, path or wildcard"
            mistakes.append(Finding("is not a host name", "SERVEKIT_MEDIA_DOMAINS", got=domain, remedy=remedy))
    for kind in settings.structured_outputs:
        if kind not in EXTRA_KINDS:
            remedy = f"use one of {', '.join(EXTRA_KINDS)}; JSON and choices are always open"
            message = "is not a kind of structured output that can be opened"
            mistakes.append(Finding(message, "SERVEKIT_STRUCTURED_OUTPUTS", got=kind, remedy=remedy))
    return mistakes


def is_loopback(host: str) -> bool:
    """Tell whether an address to listen on can be reached from this host only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(mode=OWNER_ONLY_FOLDER, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # never through a link, and never with an older file's mode
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
