"""The settings that are not vLLM's: one model, filled from environment variables and flags (flags win)."""

import difflib
import os
import re
from collections.abc import Container, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails

from servekit import ENGINE_VERSION
from servekit.errors import ConfigurationError, Finding
from servekit.logs import LogFormat

PREFIX = "SERVEKIT_"

# Kubernetes sets variables for each service in every container: a service named `servekit` sets SERVEKIT_PORT=tcp://...
_SERVICE_LINK = re.compile(r"SERVEKIT_(SERVICE_.*|PORT_\d+_.*)$")
_NO_SERVICE_LINKS = "Kubernetes sets this for a service named servekit: set enableServiceLinks: false in the pod spec"
_HELP = "see servekit serve --help"


class Target(StrEnum):
    """What the engine runs on."""

    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


class Embeddings(StrEnum):
    """Which memory holds the table of per-layer embeddings."""

    AUTO = "auto"
    HOST = "host"
    GPU = "gpu"


class Sampler(StrEnum):
    """What draws tokens on a GPU."""

    VLLM = "vllm"
    FLASHINFER = "flashinfer"
    AUTO = "auto"


def _split(value: Any) -> Any:
    """Return the names in a variable's text, or in the texts of a flag that may be given again."""
    texts = [value] if isinstance(value, str) else value
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


def _xdg(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or f"~/{default}", "servekit")


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError("this user has no such home: set HOME, or write a whole path") from error


def _ascii(host: str) -> str:
    if not host.isascii() or "\0" in host:
        raise ValueError("is not an address or a host name")
    return host


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
UserPath = Annotated[Path, AfterValidator(_expanded)]
Host = Annotated[str, AfterValidator(_ascii)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseModel):
    """Every setting of servekit; a field `port` is the variable SERVEKIT_PORT and the flag --port."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True)

    config: UserPath = Field(Path("vllm_config.yaml"), description="The profile.")
    model: str = Field(
        "",
        description="Checkpoint folder or hub id. Default: salve-mundii/gemma4-E4B-opt; with target cpu the embedded "
        "demo checkpoint, which the first start builds.",
    )
    revision: Annotated[str, Field(pattern=r"^([A-Za-z0-9][\w./-]*)?$")] = Field(
        "",
        description="Branch, tag or commit of a hub model. Default: main, and what the cache has of it.",
    )
    served_name: str = Field(
        "", description="Model name in clients' requests. Default: the last part of the model's name."
    )
    target: Target = Field(
        Target.AUTO, description="What the engine runs on; auto is cuda where an NVIDIA driver is loaded."
    )
    deviate: Names = Field((), description="Contract keys that may differ in this run, for a baseline measurement.")
    embeddings: Embeddings = Field(
        Embeddings.AUTO,
        description="Where the per-layer embeddings of Gemma 4 are: gpu, or host for pinned host memory, which leaves "
        "5.25 GiB more for the KV cache of gemma-4-E4B. auto: host if the GPU has less than 40 GiB and the host has "
        "room for them.",
    )
    fp8_activations: bool = Field(
        default=False,
        description="Multiply 4-bit layers with FP8 activations, on compute capability 8.9 or 12.0: faster, less "
        "accurate, a named deviation.",
    )
    skip: Names = Field((), description="Names of preflight findings to skip; they are still logged.")
    engine: str = Field(
        "vllm", description=f"The engine's program: `vllm` of vLLM {ENGINE_VERSION}, by name on the PATH or by path."
    )
    engine_patches: UserPath | None = Field(
        None,
        description="Folder of newer packages that replace the engine's own, for their security fixes. Default: the "
        "folder next to the engine's environment, named like it plus `-patches`, if it exists.",
    )
    host: Host = Field("127.0.0.1", description="Address the endpoint listens on.")
    port: Port = Field(8000, description="Port of the endpoint.")
    observe_host: Host = Field("127.0.0.1", description="Address servekit's own server listens on.")
    observe_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        9400,
        description="Port of servekit's own server: /livez /readyz /status /metrics. 0: any; the log names it.",
    )
    api_keys_file: UserPath | None = Field(
        None,
        description="File with clients' keys, one on each line. Default: servekit creates one in the state folder.",
    )
    no_auth: bool = Field(default=False, description="Require no key; only on a loopback address.")
    expose_without_auth: bool = Field(
        default=False, description="Allow --no-auth on an address that other hosts can reach."
    )
    tls_cert: UserPath | None = Field(
        None, description="PEM file of the certificate chain, for HTTPS by the engine's own server; with --tls-key."
    )
    tls_key: UserPath | None = Field(None, description="PEM file of the certificate's private key.")
    max_body_mib: int = Field(32, ge=1, description="Largest request body, in MiB; enough for three images of 7.5 MiB.")
    max_in_flight: int = Field(
        0, ge=0, description="Concurrent requests in the engine; more get 429. 0: twice the profile's max-num-seqs."
    )
    media_domains: Names = Field(
        (),
        description="Host names from which images may come, comma-separated. Default: none, data: URLs only.",
    )
    cors_origins: Names = Field(
        (),
        description="Origins whose web pages may use the endpoint from a browser, comma-separated; for example "
        "https://app.example.org. Default: none.",
    )
    pass_env: Names = Field(
        (),
        description="Names of variables to pass to the engine that servekit withholds by default (docs/security.md), "
        "comma-separated; for example LD_PRELOAD for another allocator.",
    )
    structured_outputs: Names = Field(
        (),
        description="Kinds of structured output to allow besides JSON and choices, comma-separated: regex, grammar, "
        "structural_tag. Default: none.",
    )
    sampler: Sampler = Field(
        Sampler.AUTO,
        description="What draws tokens on a GPU. flashinfer needs a quarter less time than vllm; where its kernels are "
        "not compiled, the first start compiles them. auto is flashinfer where they are.",
    )
    start_s: float = Field(
        1800,
        gt=0,
        description="Seconds the engine may take from its start until it is ready; a download is not counted.",
    )
    drain_s: int = Field(60, ge=0, le=3600, description="Seconds running requests may take to finish after SIGTERM.")
    hang_s: float = Field(
        120, gt=0, description="Seconds an engine with work may make no progress before it counts as hung."
    )
    canary_s: float = Field(0, ge=0, description="Seconds between requests for one token to an idle engine; 0: none.")
    silent_s: float = Field(
        10,
        gt=0,
        description="Seconds without an answer from the engine's server after which /readyz returns 503, until the "
        "server answers.",
    )
    state_dir: UserPath = Field(
        default_factory=lambda: _xdg("XDG_STATE_HOME", ".local/state"),
        validate_default=True,
        description="Folder for servekit's state: keys, run files.",
    )
    cache_dir: UserPath = Field(
        default_factory=lambda: _xdg("XDG_CACHE_HOME", ".cache"),
        validate_default=True,
        description="Folder for compile caches and the demo checkpoint; keep it between runs for a fast start.",
    )
    request_log: int = Field(
        0,
        ge=0,
        description="Size in MiB of the request log in the state folder, one line for each request, without content; "
        "0: none.",
    )
    usage_days: int = Field(400, ge=1, description="Days for which the usage of each key is kept in the state folder.")
    gpu_hour_price: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="Price of the GPU an hour, in your currency, for the cost by key; 0: not set.",
    )
    kwh_price: float = Field(
        0, ge=0, allow_inf_nan=False, description="Price of a kWh in the same currency; 0: not set."
    )
    kwh_carbon_g: float = Field(0, ge=0, allow_inf_nan=False, description="Grams of CO2 for a kWh; 0: not set.")
    log_format: LogFormat = Field(LogFormat.TEXT, description="How the log is written.")
    _variables: frozenset[str] = PrivateAttr(default=frozenset())
    """The fields that come from a variable."""

    def as_given(self, finding: Finding) -> Finding:
        """Return a finding about a setting under the name by which it was given: its variable's, or its flag's."""
        name = finding.subject.removeprefix("--").removeprefix(PREFIX).replace("-", "_").lower()
        if not finding.subject.startswith(("--", PREFIX)) or name not in Settings.model_fields:
            return finding
        return replace(finding, subject=variable_of(name) if name in self._variables else flag_of(name))


def read_settings(flags: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Return the settings; a flag that is None or empty is not set. Raises ConfigurationError with every mistake."""
    variables = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and value and not _SERVICE_LINK.match(name)
    }
    given = {name: value for name, value in flags.items() if value not in (None, (), "")}
    try:
        settings = Settings.model_validate(variables | given)
    except ValidationError as error:
        raise ConfigurationError(_finding(each, given) for each in error.errors(include_url=False)) from error
    settings._variables = frozenset(variables.keys() - given.keys())  # noqa: SLF001 - its own module
    return settings


def variable_of(field: str) -> str:
    """Return the environment variable of a settings field."""
    return f"{PREFIX}{field.upper()}"


def flag_of(field: str) -> str:
    """Return the command line flag of a settings field."""
    return f"--{field.replace('_', '-')}"


def _finding(detail: ErrorDetails, flags: Container[str]) -> Finding:
    name, message, got = str(detail["loc"][0]), detail["msg"].removeprefix("Value error, "), detail["input"]
    got = str(got) if isinstance(got, Path) else got
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Settings.model_fields, n=1)
        remedy = f"did you mean {variable_of(near[0])}?" if near else _HELP
        return Finding("no such setting", variable_of(name), remedy=remedy)
    subject = flag_of(name) if name in flags else variable_of(name)
    remedy = _NO_SERVICE_LINKS if str(got).startswith("tcp://") else _HELP
    return Finding(message[:1].lower() + message[1:], subject, got=repr(got), remedy=remedy)
