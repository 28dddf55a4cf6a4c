"""Rules between keys: what vLLM 0.20.2 or servekit rejects although each key alone is right."""

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from servekit import ENGINE_VERSION
from servekit.profile.argument_table import MODALITIES, engine_arguments, nearest
from servekit.profile.contract import LIMITS, STRUCTURED_OUTPUTS_BACKEND, UNLIMITED, item_count
from servekit.profile.mistakes import Mistakes, shown
from servekit.profile.reserved import ATTENTION_BACKEND, PINNED, TAKE_OUT
from servekit.profile.values import KeyPath, Lines, Value

BATCHED: Final = "max-num-batched-tokens"
PARTIAL: Final = "max-num-partial-prefills"
LONG: Final = "max-long-partial-prefills"

_LEAST: Final = {"block-size": 1, "num-gpu-blocks-override": 1, "kv-cache-memory-bytes": 1, "cpu-offload-gb": 0}
"""Numbers that make no KV cache, or none that can be planned, below this."""

_MOST: Final = 2**60

WEIGHTLESS_DRAFTERS: Final = ("ngram", "ngram_gpu", "suffix")
"""Methods of speculative-config that need no model."""
DRAFTER_HEADS: Final = ("eagle", "eagle3", "dflash", "medusa")
"""Methods of speculative-config whose model drafts from the hidden states of this one."""
_NAMED_HEADS: Final = {"eagle-": "eagle", "eagle3": "eagle3", "dflash": "dflash"}

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
    broken = (*_product(arguments, deviate), *_scheduler(arguments), *_unknown_names(arguments), *_drafter(arguments))
    for path, message, remedy, got in broken:
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


def _unknown_names(arguments: Mapping[str, Value]) -> Iterator[_Broken]:
    """Yield names that vLLM looks up only while it starts; without a plugin nothing can add to them."""
    structured = arguments.get("structured-outputs-config")
    inner = structured.get("reasoning_parser") if isinstance(structured, dict) else None
    places = (
        (("tool-call-parser",), arguments.get("tool-call-parser"), "tool-parser-plugin"),
        (("reasoning-parser",), arguments.get("reasoning-parser"), "reasoning-parser-plugin"),
        (("structured-outputs-config", "reasoning_parser"), inner, "reasoning-parser-plugin"),
        (("load-format",), arguments.get("load-format"), ""),
        (("quantization",), arguments.get("quantization"), ""),
    )
    for path, name, plugin in places:
        key = path[-1].replace("_", "-")
        names = engine_arguments()[key].names
        if isinstance(name, str) and name and name not in names and not arguments.get(plugin):
            guess = nearest(name, names)
            remedy = f"did you mean {guess}?" if guess else f"it can be one of {', '.join(names)}"
            yield path, f"is not a {key} of vLLM {ENGINE_VERSION}", remedy, name


def _drafter(arguments: Mapping[str, Value]) -> Iterator[_Broken]:
    """Yield what vLLM would reject once it has read the model: config/speculative.py, v1/spec_decode."""
    key = "speculative-config"
    if not isinstance(config := arguments.get(key), dict):
        return
    method, tokens, limits = drafter_method(config), config.get("num_speculative_tokens"), arguments.get(LIMITS)
    images = not isinstance(limits, dict) or any(item_count(limits.get(kind, UNLIMITED)) for kind in MODALITIES)
    if method == "draft_model" and images:
        remedy = f"write `method: ngram` without a model, or for such a model `method:` {' or '.join(DRAFTER_HEADS)}"
        yield (key, "model"), f"vLLM {ENGINE_VERSION} runs no draft model beside images", remedy, config.get("model")
    elif method not in (*WEIGHTLESS_DRAFTERS, *DRAFTER_HEADS, "draft_model"):
        remedy = f"write one of {', '.join((*WEIGHTLESS_DRAFTERS, *DRAFTER_HEADS))}"
        yield (key, "method"), f"is not a method that vLLM {ENGINE_VERSION} has for Gemma 4", remedy, method
    elif method not in WEIGHTLESS_DRAFTERS and not config.get("model"):
        yield (key, "method"), "needs a model", "write `model:`, or `method: ngram`", method
    if config.get("parallel_drafting") and method != "dflash" and images:
        path = (key, "parallel_drafting")
        yield path, f"vLLM {ENGINE_VERSION} has no parallel drafting beside images", TAKE_OUT, True
    if type(tokens) is not int or tokens < 1:
        yield (key, "num_speculative_tokens"), "must be a whole number of at least 1", "write how many tokens", tokens


def drafter_architectures() -> tuple[str, ...]:
    """Return the drafters that vLLM has, heads for other models among them."""
    return engine_arguments()["speculative-config"].names


def drafter_method(config: Mapping[str, Value]) -> str:
    """Return the method of a speculative-config: as written, or as vLLM takes it from the name of the model."""
    name = str(config.get("model") or "").lower()
    if name in ("ngram", "[ngram]") and not config.get("method"):
        return "ngram"
    found = next((method for mark, method in _NAMED_HEADS.items() if mark in name), "draft_model")
    return str(config.get("method") or found)
