"""The record of a measurement, and its JSON Schema. What is unknown is null, never zero; `why` says why."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

SCHEMA_VERSION = 1
_DIGITS = 9

Number = Annotated[float, AfterValidator(lambda value: float(f"{value:.{_DIGITS}g}"))]
"""A figure, to nine significant digits: it reads well, and a computer of another kind gets the same."""


class Part(BaseModel):
    """A part of the record."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Gpu(Part):
    """A GPU of the endpoint, as NVML on the measuring host reports it; its UUID alone if that host does not have it."""

    uuid: str
    name: str | None = None
    driver: str | None = None
    cuda: str | None = None
    """The newest CUDA version that the driver supports."""
    memory_bytes: int | None = None
    power_limit_w: Number | None = None
    """The limit in force at the beginning."""
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    """The clocks at the beginning, before the load."""


class CheckpointFile(Part):
    """One file of the checkpoint."""

    name: str
    bytes: int
    sha256: str | None = None
    of: Literal["content", "hub", "header"] | None = None
    """What the hash is of: the content; the content by its name in the hub's cache; or, of a large shard in a plain
    folder, its header alone, which has the names, shapes and places of all tensors."""


class Checkpoint(Part):
    """The model, as servekit names it, and its files where the measuring host can read them."""

    model: str
    commit: str | None = None
    bytes_on_disk: int | None = None
    files: list[CheckpointFile] = []


class Contract(Part):
    """The endpoint's contract: whether the running engine meets it, and how it deviates knowingly."""

    met: bool | None = None
    items: list[dict[str, Any]] = []
    deviations: list[dict[str, Any]] = []


class Host(Part):
    """The host that measured: its kind, nothing that names it."""

    system: str
    processor: str
    cores: int
    memory_bytes: int | None = None


class Identity(Part):
    """What was measured."""

    endpoint: str | None = None
    served_name: str | None = None
    target: str | None = None
    servekit: str | None = None
    """The version that serves; null for an engine without servekit."""
    vllm: str | None = None
    profile: str | None = None
    profile_sha256: str | None = None
    """Of the file as it was at the measurement; null where the measuring host cannot read it."""
    arguments: list[str] = []
    """The engine's whole command line, which the profile became."""
    contract: Contract = Contract()
    checkpoint: Checkpoint | None = None
    gpus: list[Gpu] = []
    host: Host
    facts: dict[str, str] = {}
    """What the operator added with --fact, such as the image's digest."""


class Gaps(Part):
    """Where the power trace has no reading for more than three of its intervals."""

    count: int
    total_s: Number
    longest_s: Number


class GpuEnergy(Part):
    """The energy of one GPU in a window."""

    uuid: str
    joules: Number | None
    """By the counter; by the integral of power where the GPU has no counter."""
    source: Literal["counter", "trace"] | None
    error_j: Number | None
    """How far `joules` can be from the truth, as far as the readings show."""
    why: str
    """Why there is no energy; empty if there is."""
    counter_j: Number | None
    trace_j: Number | None
    disagreement: Number | None
    """The integral of power over the counter, minus 1."""
    gaps: Gaps


class Energy(Part):
    """The energy of all GPUs of the endpoint in a window."""

    joules: Number | None
    within_half_percent: bool
    """Whether the error bound of `joules` is at most half a percent."""
    why: str
    """Why there is no energy, or why it is less certain than half a percent."""
    mean_power_w: Number | None
    above_idle_j: Number | None
    """Minus the idle power before the run; null without that."""
    gpus: list[GpuEnergy]


class Work(Part):
    """What the engine did for clients in a window, without servekit's canaries."""

    output_tokens: int
    prompt_tokens: int
    requests: int
    """Requests that the engine answered in full: finished by a stop, the length, or a repetition."""


class Efficiency(Part):
    """Energy by work, each with its own name: a token is not a request. Null without energy or without work."""

    j_per_output_token: Number | None
    j_per_total_token: Number | None
    """Prompt and output tokens together: the prompt costs energy too."""
    j_per_request: Number | None
    output_tokens_per_wh: Number | None
    requests_per_wh: Number | None


class Window(Part):
    """A part of the measurement and its figures."""

    begin_s: Number
    end_s: Number
    """Seconds since the measurement began."""
    duration_s: Number
    work: Work | None
    """Null if the engine restarted, or its counters could not be read."""
    output_tokens_per_s: Number | None
    requests_per_s: Number | None
    energy: Energy
    efficiency: Efficiency
    efficiency_above_idle: Efficiency


class Idle(Part):
    """The time before the run."""

    duration_s: Number
    energy: Energy


class Latency(Part):
    """A latency by the engine's own histogram, canaries included; a quantile above its highest bound is null."""

    count: int
    mean_s: Number
    p50_s: Number | None
    p90_s: Number | None
    p95_s: Number | None
    p99_s: Number | None


class Range(Part):
    """The mean and the highest value of the scrapes during the run."""

    mean: Number
    highest: Number


class Engine(Part):
    """What the engine and the guard counted between the run's beginning and its last answer."""

    why: str
    """Why the counters say nothing; empty if they do."""
    requests: dict[str, int] = {}
    """By the engine's reason for the end of each request, canaries taken off."""
    refused: dict[str, int] = {}
    """By the guard's reason."""
    preemptions: int | None = None
    cached_prompt_tokens: int | None = None
    prefix_cache_queries: int | None = None
    prefix_cache_hits: int | None = None
    """In tokens."""
    canaries: int = 0
    """servekit's own requests for one token, which are in none of the figures for clients."""
    latency: dict[str, Latency] = {}
    running: Range | None = None
    waiting: Range | None = None
    kv_cache_usage: Range | None = None
    """Share of the KV cache."""


class GpuCondition(Part):
    """One GPU during the run."""

    uuid: str
    temperature_before_c: Number | None
    temperature_after_c: Number | None
    temperature_highest_c: Number | None
    power_highest_w: Number | None
    sm_clock_lowest_mhz: int | None
    sm_clock_median_mhz: int | None
    sm_clock_highest_mhz: int | None


class CodeCarbon(Part):
    """What CodeCarbon read meanwhile, from the same counters of the same GPUs."""

    version: str
    interval_s: Number
    """Between two of its readings."""
    joules: Number | None
    """Null if it returned nothing."""
    counter_j: Number | None
    """Of this record, in CodeCarbon's time: it begins before the run and ends after it."""
    disagreement: Number | None
    """CodeCarbon's energy over `counter_j`, minus 1."""
    warnings: list[str]
    """What it logged about GPUs."""


class Disturbance(Part):
    """Something that makes a run less comparable."""

    kind: str
    begin_s: Number
    end_s: Number
    what: str


class TraceFile(Part):
    """The raw trace, from which `servekit report --verify` computes every field again."""

    file: str
    sha256: str
    complete: bool
    """False if `measure` itself was killed before it could finish the file."""
    readings: int
    scrapes: int


class Record(Part):
    """One measurement of a running endpoint."""

    schema_version: Literal[1] = 1
    name: str
    measured_by: str
    """The version of servekit that measured."""
    began: str
    """ISO 8601, UTC."""
    command: list[str]
    exit_code: int | None
    """Of the command; 128 and the signal's number if a signal ended it; null if it was still running."""
    interrupted: bool
    identity: Identity
    idle: Idle | None
    run: Window
    """From the command's start to its end."""
    steady: Window | None
    """From the first scrape at which the endpoint was full (nine tenths of the most requests that it had) to the last
    one; null if there are no two such scrapes."""
    engine: Engine
    conditions: list[GpuCondition]
    disturbances: list[Disturbance]
    scores: dict[str, Number]
    """What the command itself wrote to the file in MEASURE_SCORES_FILE, such as an accuracy in percent."""
    codecarbon: CodeCarbon | None = None
    """Null without --codecarbon."""
    trace: TraceFile


def record_schema() -> dict[str, Any]:
    """Return the JSON Schema of the record."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Record.model_json_schema(mode="serialization")}
