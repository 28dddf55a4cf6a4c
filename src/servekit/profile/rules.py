"""Rules between keys: what vLLM 0.20.2 or servekit rejects although each key alone is right."""

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from servekit.profile.contract import STRUCTURED_OUTPUTS_BACKEND
from servekit.profile.mistakes import Mistakes, shown
from servekit.profile.reserved import ATTENTION_BACKEND, PINNED, TAKE_OUT
from servekit.profile.values import KeyPath, Lines, Value

BATCHED: Final = "max-num-batched-tokens"
PARTIAL: Final = "max-num-partial-prefills"
LONG: Final = "max-long-partial-prefills"

_LEAST: Final = {"block-size": 1, "num-gpu-blocks-override": 1, "kv-cache-memory-bytes": 1, "cpu-offload-gb": 0}
"""Numbers that make no KV cache, or none that can be planned, below this."""

_MOST: Final = 2**60

_Broken = tuple[KeyPath, str, str, Value]
"""The key's path, what is wrong, what to do, and the value; None leaves the value out of the message."""


def note_broken_rules(
    arguments: Mapping[str, Value],
    lines: Lines,
    mistakes: Mistakes,
    *,
    deviate: Collection[str],
) -> None:
    """Add a mistake for what the keys of `arguments`, each right by itself, get wrong together or in this product."""
    for path, message, remedy, got in (*_product(arguments, deviate), *_scheduler(arguments)):
        line, text = lines.get(path, lines[path[:1]]), "" if got is None else shown(got)
        mistakes.add(line, message, key=".".join(path), got=text, remedy=remedy)


def _product(arguments: Mapping[str, Value], deviate: Collection[str]) -> Iterator[_Broken]:
    """Yield the rules of this product that are broken."""
    for key, (allowed, why) in PINNED.items():
        if key in arguments and arguments[key] not in allowed:
            yield (key,), why, f"write {' or '.join(map(shown, allowed))}, or take it out", arguments[key]
    for key, least in _LEAST.items():
        if isinstance(number := arguments.get(key), int | float) and not least <= number < _MOST:
            yield (key,), f"must be at least {least}, and a size that exists", "correct it, or take it out", number
    key = "kv-cache-dtype-skip-layers"
    if "kv-cache-dtype" not in deviate and arguments.get(key):
        remedy = "take it out, or allow it with --deviate kv-cache-dtype"
        yield (key,), "would keep a part of the cache out of kv-cache-dtype", remedy, None
    attention, structured = (arguments.get(key) for key in ("attention-config", "structured-outputs-config"))
    if isinstance(attention, dict) and "backend" in attention:
        yield ("attention-config", "backend"), ATTENTION_BACKEND, TAKE_OUT, attention["backend"]
    wanted = STRUCTURED_OUTPUTS_BACKEND
    if isinstance(structured, dict) and structured.get("backend", wanted) != wanted:
        yield (
            ("structured-outputs-config", "backend"),
            f"servekit bounds every grammar for one backend, {wanted}",
            f"write `backend: {wanted}`, or take it out",
            structured["backend"],
        )
    if arguments.get("enable-auto-tool-choice") is True and not arguments.get("tool-call-parser"):
        path = ("enable-auto-tool-choice",)
        yield path, "needs tool-call-parser", "add `tool-call-parser: gemma4`, or take it out", None


def _scheduler(arguments: Mapping[str, Value]) -> Iterator[_Broken]:
    """Yield what vLLM's SchedulerConfig.verify_max_model_len would reject after its imports."""
    numbers = {key: value for key, value in arguments.items() if isinstance(value, int)}
    length, seqs, batched = (numbers.get(key) for key in ("max-model-len", "max-num-seqs", BATCHED))
    # vLLM decides on chunked prefill by itself where the file is silent, so only a plain `false` counts.
    chunked = numbers.get("enable-chunked-prefill") is not False
    if batched is not None and length is not None and batched < length and not chunked:
        yield (
            (BATCHED,),
            f"must be at least max-model-len ({length}) while enable-chunked-prefill is false",
            f"raise it to {length}, or write `enable-chunked-prefill: true`",
            batched,
        )
    if batched is not None and seqs is not None and batched < seqs:
        yield (BATCHED,), f"must be at least max-num-seqs ({seqs})", f"raise it to {seqs}", batched
    partial, long = numbers.get(PARTIAL) or 1, numbers.get(LONG) or 1
    if partial > 1 and not chunked:
        yield (PARTIAL,), "needs chunked prefill", "write 1, or `enable-chunked-prefill: true`", partial
    if long > partial:
        yield (LONG,), f"must be at most {PARTIAL} ({partial})", f"write {partial}", long
    threshold = numbers.get("long-prefill-token-threshold")
    if partial > 1 and threshold is not None and length is not None and threshold > length:
        message = f"must be at most max-model-len ({length})"
        yield ("long-prefill-token-threshold",), message, f"lower it to {length} or less", threshold
