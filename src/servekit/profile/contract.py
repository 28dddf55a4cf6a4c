"""The values that must hold in the running engine, and what it means when one knowingly does not."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from servekit.errors import Finding
from servekit.profile.argument_table import engine_arguments
from servekit.profile.mistakes import WHOLE_FILE, Mistakes, shown
from servekit.profile.values import Lines, Value

CONTRACT: Final[Mapping[str, object]] = MappingProxyType(
    {
        "kv-cache-dtype": "fp8_e4m3",
        "quantization": "compressed-tensors",
        "limit-mm-per-prompt": {"image": 3, "audio": 0, "video": 0},
        "max-num-seqs": 1024,
    }
)
"""What the endpoint promises. Missing or different is an error, unless the key is named as a deviation."""

STRUCTURED_OUTPUTS_BACKEND: Final = "guidance"
"""The one backend of structured output. With vLLM's `auto` the first request chooses for the engine's life, and a later
grammar that this one cannot compile ends EngineCore; docs/results.md compares it with xgrammar."""

UNLIMITED: Final = 999
"""What vLLM 0.20.2 allows of a modality that limit-mm-per-prompt does not list (config/multimodal.py)."""


@dataclass(frozen=True)
class Deviation:
    """One contract value knowingly not met: named, logged and exported."""

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


def note_unknown_deviations(deviate: Collection[str], mistakes: Mistakes) -> None:
    """Add a mistake for every key of `deviate` that is not part of the contract."""
    for key in sorted(set(deviate) - set(CONTRACT)):
        remedy = f"it can be one of {', '.join(CONTRACT)}"
        mistakes.found.append(Finding("is not a key of the contract", "--deviate", got=key, remedy=remedy))


def note_broken_contract(
    arguments: Mapping[str, Value],
    lines: Lines,
    mistakes: Mistakes,
    *,
    skip: Collection[str],
) -> None:
    """Add a mistake for every contract value that `arguments` lacks or changes, except for the keys in `skip`."""
    for key, wanted in CONTRACT.items():
        used = arguments.get(key)
        if key in skip or used == wanted:
            continue
        if isinstance(wanted, dict) and isinstance(used, dict):
            _note_limits(key, wanted, used, lines, mistakes)
        elif key in arguments:
            message = f"the contract of this endpoint is {wanted}"
            mistakes.add(lines[key,], message, key=key, got=shown(used), remedy=_remedy(key, f"{key}: {wanted}"))
        else:
            flow = str(wanted).replace("'", "")  # a mapping as YAML writes it
            mistakes.add(WHOLE_FILE, "is missing", key=key, remedy=_remedy(key, f"{key}: {flow}"))


def deviations(arguments: Mapping[str, Value], deviate: Collection[str]) -> tuple[Deviation, ...]:
    """Return the deviations that are allowed and take place, in the order of the contract."""
    used = {key: arguments.get(key, engine_arguments()[key].default) for key in CONTRACT if key in deviate}
    return tuple(
        Deviation(key, CONTRACT[key], value, "--deviate") for key, value in used.items() if value != CONTRACT[key]
    )


def _note_limits(
    key: str, wanted: Mapping[str, int], limits: Mapping[str, Value], lines: Lines, mistakes: Mistakes
) -> None:
    for modality, count in wanted.items():
        name, line = f"{key}.{modality}", lines.get((key, modality), lines[key,])
        if modality not in limits:
            message = f"is missing, and vLLM allows {UNLIMITED} items of a kind that is left out"
            remedy = _remedy(key, f"{modality}: {count}", below=f" under {key}")
            mistakes.add(line, message, key=name, remedy=remedy)
        elif limits[modality] != count:
            message, got = f"the contract of this endpoint is {count}", shown(limits[modality])
            mistakes.add(line, message, key=name, got=got, remedy=_remedy(key, f"{modality}: {count}"))


def _remedy(key: str, line: str, below: str = "") -> str:
    return f"write `{line}`{below}, or allow it with --deviate {key}"
