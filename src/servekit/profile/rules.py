"""Rules between keys: what vLLM 0.20.2 would refuse, or servekit must, although each key alone is right."""

from collections.abc import Collection, Mapping

from servekit.profile.contract import STRUCTURED_OUTPUTS_BACKEND
from servekit.profile.mistakes import Mistakes, shown
from servekit.profile.reserved import PINNED
from servekit.profile.values import Lines, Value


def note_broken_rules(
    arguments: Mapping[str, Value],
    lines: Lines,
    mistakes: Mistakes,
    *,
    deviate: Collection[str],
) -> None:
    """Note what the keys of `arguments`, each right by itself, get wrong together or in this product."""
    for key, (allowed, why) in PINNED.items():
        if key in arguments and arguments[key] not in allowed:
            remedy = f"write {' or '.join(shown(value) for value in allowed)}, or take it out"
            mistakes.add(lines[key,], why, key=key, got=shown(arguments[key]), remedy=remedy)
    _note_scheduler(_Numbers(arguments), lines, mistakes)
    if "kv-cache-dtype" not in deviate and arguments.get("kv-cache-dtype-skip-layers"):
        key = "kv-cache-dtype-skip-layers"
        remedy = "take it out, or allow it with --deviate kv-cache-dtype"
        mistakes.add(lines[key,], "would keep a part of the cache out of kv-cache-dtype", key=key, remedy=remedy)
    attention = arguments.get("attention-config")
    if isinstance(attention, dict) and "backend" in attention:
        key = "attention-config"
        line = lines.get((key, "backend"), lines[key,])
        message = "Gemma 4 mixes two head sizes, and vLLM chooses the one backend that is right for both"
        mistakes.add(line, message, key=f"{key}.backend", got=shown(attention["backend"]), remedy="take it out")
    structured = arguments.get("structured-outputs-config")
    if (
        isinstance(structured, dict)
        and structured.get("backend", STRUCTURED_OUTPUTS_BACKEND) != STRUCTURED_OUTPUTS_BACKEND
    ):
        key = "structured-outputs-config"
        line = lines.get((key, "backend"), lines[key,])
        message = f"servekit bounds every grammar for one backend, {STRUCTURED_OUTPUTS_BACKEND}"
        remedy = f"write `backend: {STRUCTURED_OUTPUTS_BACKEND}`, or take it out"
        mistakes.add(line, message, key=f"{key}.backend", got=shown(structured["backend"]), remedy=remedy)
    if arguments.get("enable-auto-tool-choice") is True and not arguments.get("tool-call-parser"):
        key = "enable-auto-tool-choice"
        remedy = "add `tool-call-parser: gemma4`, or take it out"
        mistakes.add(lines[key,], "needs tool-call-parser", key=key, remedy=remedy)


class _Numbers:
    """The scheduler's numbers, None where the file leaves them to vLLM."""

    def __init__(self, arguments: Mapping[str, Value]) -> None:
        self._arguments = arguments

    def __getitem__(self, key: str) -> int | None:
        value = self._arguments.get(key)
        return value if isinstance(value, int) else None


def _note_scheduler(numbers: _Numbers, lines: Lines, mistakes: Mistakes) -> None:
    """Note what vLLM's SchedulerConfig.verify_max_model_len would refuse after its imports."""
    batched, length, seqs = numbers["max-num-batched-tokens"], numbers["max-model-len"], numbers["max-num-seqs"]
    # vLLM decides on chunked prefill by itself where the file is silent, so only a plain `false` counts.
    chunked = numbers["enable-chunked-prefill"] is not False
    key = "max-num-batched-tokens"
    if batched is not None and length is not None and batched < length and not chunked:
        message = f"must be at least max-model-len ({length}) while enable-chunked-prefill is false"
        remedy = f"raise it to {length}, or write `enable-chunked-prefill: true`"
        mistakes.add(lines[key,], message, key=key, got=shown(batched), remedy=remedy)
    if batched is not None and seqs is not None and batched < seqs:
        message = f"must be at least max-num-seqs ({seqs})"
        mistakes.add(lines[key,], message, key=key, got=shown(batched), remedy=f"raise it to {seqs}")
    partial, long = numbers["max-num-partial-prefills"] or 1, numbers["max-long-partial-prefills"] or 1
    if partial > 1 and not chunked:
        key = "max-num-partial-prefills"
        remedy = "write 1, or `enable-chunked-prefill: true`"
        mistakes.add(lines[key,], "needs chunked prefill", key=key, got=shown(partial), remedy=remedy)
    if long > partial:
        key = "max-long-partial-prefills"
        message, remedy = f"must be at most max-num-partial-prefills ({partial})", f"write {partial}"
        mistakes.add(lines[key,], message, key=key, got=shown(long), remedy=remedy)
    threshold = numbers["long-prefill-token-threshold"]
    if partial > 1 and threshold is not None and length is not None and threshold > length:
        key = "long-prefill-token-threshold"
        message, remedy = f"must be at most max-model-len ({length})", f"lower it to {length} or less"
        mistakes.add(lines[key,], message, key=key, got=shown(threshold), remedy=remedy)
