"""The values that must hold in the running engine, and what it means when one knowingly does not."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from servekit.errors import Finding
from servekit.profile.mistakes import WHOLE_FILE, Mistakes, shown
from servekit.profile.values import Lines, Value

CONTRACT: Mapping[str, object] = MappingProxyType(
    {
        "kv-cache-dtype": "fp8_e4m3",
        "quantization": "compressed-tensors",
        "limit-mm-per-prompt": {"image": 3},
        "max-num-seqs": 1024,
    }
)
"""What the endpoint promises. Missing or different is an error, unless the key is named as a deviation."""

STRUCTURED_OUTPUTS_BACKEND = "guidance"
"""The one backend of structured output. With vLLM's `auto` the first request chooses for the engine's life, and a later
grammar that this one cannot compile ends EngineCore; docs/results.md compares it with xgrammar."""

CLOSED_MODALITIES = ("audio", "video")
"""The model's other modalities. vLLM 0.20.2 allows 999 items of a modality that the limits leave out."""

UNLIMITED = 999


@dataclass(frozen=True)
class Deviation:
    """One contract value knowingly not met: named, logged and exported."""

    key: str
    wanted: object
    used: object
    reason: str


def note_unknown_deviations(deviate: Collection[str], mistakes: Mistakes) -> None:
    """Note every key of `deviate` that is no part of the contract."""
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
    """Note every contract value that `arguments` lacks or changes, except for the keys in `skip`."""
    for key, wanted in CONTRACT.items():
        if key in skip:
            continue
        if key == "limit-mm-per-prompt":
            _note_limits(arguments.get(key), lines, mistakes)
        elif key not in arguments:
            mistakes.add(WHOLE_FILE, "is missing", key=key, remedy=_remedy(key, f"{key}: {wanted}"))
        elif arguments[key] != wanted:
            message = f"the contract of this endpoint is {wanted}"
            remedy = _remedy(key, f"{key}: {wanted}")
            mistakes.add(lines[key,], message, key=key, got=shown(arguments[key]), remedy=remedy)


def deviations(
    arguments: Mapping[str, Value], deviate: Collection[str], defaults: Mapping[str, Value]
) -> tuple[Deviation, ...]:
    """Give the deviations that were allowed and are really there, in the order of the contract."""
    return tuple(
        Deviation(key, wanted, used, "--deviate")
        for key, wanted in CONTRACT.items()
        if key in deviate and not _met(key, wanted, used := arguments.get(key, defaults.get(key)))
    )


def _met(key: str, wanted: object, used: Value) -> bool:
    if key == "limit-mm-per-prompt":
        return used == {"image": 3} | dict.fromkeys(CLOSED_MODALITIES, 0)
    return used == wanted


def _note_limits(limits: Value, lines: Lines, mistakes: Mistakes) -> None:
    key = "limit-mm-per-prompt"
    wanted = {"image": 3} | dict.fromkeys(CLOSED_MODALITIES, 0)
    if not isinstance(limits, dict):
        flow = ", ".join(f"{modality}: {count}" for modality, count in wanted.items())
        mistakes.add(WHOLE_FILE, "is missing", key=key, remedy=_remedy(key, f"{key}: {{{flow}}}"))
        return
    for modality, count in wanted.items():
        line = lines.get((key, modality), lines[key,])
        name = f"{key}.{modality}"
        remedy = _remedy(key, f"{modality}: {count}", below="" if modality in limits else f" under {key}")
        if modality not in limits:
            message = f"is missing, and vLLM allows {UNLIMITED} items of a kind that is left out"
            mistakes.add(line, message, key=name, remedy=remedy)
        elif limits[modality] != count:
            message = f"the contract of this endpoint is {count}"
            mistakes.add(line, message, key=name, got=shown(limits[modality]), remedy=remedy)


def _remedy(key: str, line: str, below: str = "") -> str:
    return f"write `{line}`{below}, or allow it with --deviate {key}"
