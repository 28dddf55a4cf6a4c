"""The values that the running engine must have, and the deviations from them that a run may declare."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from servekit.errors import Finding
from servekit.profile.argument_table import engine_arguments
from servekit.profile.mistakes import WHOLE_FILE, Mistakes, shown
from servekit.profile.values import KeyPath, Lines, Value

LIMITS: Final = "limit-mm-per-prompt"

CONTRACT: Final[Mapping[str, object]] = {
    "kv-cache-dtype": "fp8_e4m3",
    "quantization": "compressed-tensors",
    LIMITS: {"image": 3, "audio": 0, "video": 0},
    "max-num-seqs": 1024,
}
"""What the endpoint promises. A missing or different value is an error, unless --deviate names its key."""

STRUCTURED_OUTPUTS_BACKEND: Final = "guidance"
"""The one backend of structured output. With vLLM's `auto` the first request chooses for the engine's life, and a later
grammar that this one cannot compile ends EngineCore; docs/results.md compares it with xgrammar."""

UNLIMITED: Final = 999
"""What vLLM 0.20.2 allows of a modality that limit-mm-per-prompt does not list (config/multimodal.py)."""


@dataclass(frozen=True)
class Deviation:
    """A contract value that this run knowingly does not meet; servekit logs and exports it."""

    key: str
    wanted: object
    used: object
    reason: str


CPU_DEVIATION: Final = Deviation(
    key="kv-cache-dtype",
    wanted=CONTRACT["kv-cache-dtype"],
    used="auto",
    reason="the CPU engine has no FP8 KV cache with chunked prefill and prefix caching",
)
"""The CPU build of vLLM 0.20.2 falls back silently without those two (v1/attention/backends/cpu_attn.py)."""


def unknown_deviations(deviate: Collection[str]) -> list[Finding]:
    """Return a mistake for every key of `deviate` that is not part of the contract."""
    remedy = f"it can be one of {', '.join(CONTRACT)}"
    unknown = sorted(set(deviate) - set(CONTRACT))
    return [Finding("is not a key of the contract", "--deviate", got=key, remedy=remedy) for key in unknown]


def note_broken_contract(
    arguments: Mapping[str, Value],
    lines: Lines,
    mistakes: Mistakes,
    *,
    skip: Collection[str],
) -> None:
    """Add a mistake for every contract value that `arguments` lacks or changes, except for the keys in `skip`."""
    values = _counted(arguments)
    for key, wanted in CONTRACT.items():
        if key not in skip:
            _note_difference((key,), wanted, values, lines, mistakes)


def deviations(arguments: Mapping[str, Value], deviate: Collection[str]) -> tuple[Deviation, ...]:
    """Return the deviations that are allowed and take place, in the order of the contract."""
    values = _counted(arguments)
    used = {key: values.get(key, engine_arguments()[key].default) for key in CONTRACT if key in deviate}
    return tuple(
        Deviation(key, CONTRACT[key], value, "--deviate") for key, value in used.items() if value != CONTRACT[key]
    )


def item_count(limit: Value) -> Value:
    """Return the number of items that a limit of limit-mm-per-prompt allows, with or without sizes."""
    return limit.get("count", UNLIMITED) if isinstance(limit, dict) else limit


def _counted(arguments: Mapping[str, Value]) -> dict[str, Value]:
    """Return `arguments` without the sizes in limit-mm-per-prompt: the contract is about the number of items."""
    limits = arguments.get(LIMITS)
    if not isinstance(limits, dict):
        return dict(arguments)
    return {**arguments, LIMITS: {kind: item_count(limit) for kind, limit in limits.items()}}


def _note_difference(
    path: KeyPath, wanted: object, values: Mapping[str, Value], lines: Lines, mistakes: Mistakes
) -> None:
    """Add a mistake where `values`, the mapping that holds the last key of `path`, lacks or changes `wanted`."""
    key, used = path[-1], values.get(path[-1])
    if isinstance(wanted, dict) and isinstance(used, dict):
        for modality, count in wanted.items():
            _note_difference((*path, modality), count, used, lines, mistakes)
    elif used != wanted:
        text = str(wanted).replace("'", "")  # a mapping as YAML writes it
        message, below = f"the contract of this endpoint is {wanted}", ""
        if key not in values:
            message = "is missing"
            if key != path[0]:
                message += f", and vLLM allows {UNLIMITED} items of a kind that is left out"
                below = f" under {path[0]}"
        mistakes.add(
            lines.get(path, lines.get(path[:1], WHOLE_FILE)),
            message,
            key=".".join(path),
            got=shown(used) if key in values else "",
            remedy=f"write `{key}: {text}`{below}, or allow it with --deviate {path[0]}",
        )
