"""Which profiles are worth a start on this card: a dozen at most, each with its reason.

A candidate changes free keys of the profile or settings of servekit, never the contract, and nothing that a client
can notice but by the speed: not the longest request, not the reuse of prompt beginnings, not the answers.
"""

import itertools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from servekit.preflight.memory.memory_plan import MemoryPlan
from servekit.preflight.memory.memory_report import OUTSIDE_BYTES
from servekit.profile import EngineArguments, Value
from servekit.settings import Settings

AS_IT_IS: Final = "as-it-is"
"""The name of the profile without a change, with which all others are compared."""
MOST: Final = 12
_GRAPHS: Final = 512
"""Without `max-cudagraph-capture-size` vLLM 0.20.2 captures graphs up to this many tokens (config/vllm.py)."""
_LEAST_GRAPHS: Final = 64
_LEAST_CORES: Final = 4


@dataclass(frozen=True)
class Candidate:
    """A profile to try: what it changes, and why that may help."""

    name: str
    reason: str
    changes: Mapping[str, Value] = field(default_factory=dict)
    """Keys of the profile."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """servekit's own settings, by the names of their fields."""


@dataclass(frozen=True)
class Situation:
    """What the reasons follow from."""

    goal: str
    arguments: EngineArguments
    values: Mapping[str, Value]
    """What the engine gets today."""
    settings: Settings
    memory: MemoryPlan | None
    on_gpu: bool
    streams: int
    """The most requests at once in the loads."""
    tokens: int
    """The most tokens of one request of the loads, prompt and answer."""
    images: bool
    cores: int

    @property
    def short_of_cache(self) -> bool:
        """Whether the loads need more KV cache than there is."""
        held = self.memory.typical_requests * self.memory.typical_tokens if self.memory else 0
        return self.streams * self.tokens > held


@dataclass(frozen=True)
class LeftOut:
    """An idea that is not tried here."""

    name: str
    why: str


Ideas = Iterator[Candidate | LeftOut]


def propose(situation: Situation) -> tuple[tuple[Candidate, ...], tuple[LeftOut, ...]]:
    """Return the candidates, the unchanged profile first and then the most promising ones, and what is left out."""
    ideas = [list(idea(situation)) for idea in _ORDER[situation.goal]]
    # The first of each kind before the second of any: a short budget should not try one key alone.
    turns = [each for turn in itertools.zip_longest(*ideas) for each in turn]
    chosen = [each for each in turns if isinstance(each, Candidate)][: MOST - 1]
    left = [each for idea in ideas for each in idea if isinstance(each, LeftOut)]
    return (unchanged(), *chosen), tuple(left)


def unchanged() -> Candidate:
    """Return the profile as it is."""
    return Candidate(AS_IT_IS, "the profile without a change: what all others are compared with")


def joined(first: Candidate, second: Candidate) -> Candidate | None:
    """Return what both change, as one candidate; None where both change the same."""
    if first.changes.keys() & second.changes.keys() or first.settings.keys() & second.settings.keys():
        return None
    reason = "the two best single changes together: gains of different causes add up, others do not"
    changes, settings = {**first.changes, **second.changes}, {**first.settings, **second.settings}
    return Candidate(f"{first.name}+{second.name}", reason, changes, settings)


def _batched(situation: Situation) -> Ideas:
    """`max-num-batched-tokens`: vLLM rejects fewer than max-num-seqs."""
    now, least = situation.arguments.max_num_batched_tokens, situation.arguments.max_num_seqs
    more = (
        "more tokens in a step: a queue of prompts is read in fewer steps, and each request holds more cache meanwhile"
    )
    less = "fewer tokens in a step: running answers wait less for the prompts of others, and requests hold less cache"
    factors: Sequence[float] = (0.5, 2) if situation.goal == "latency" else (2, 4, 0.5)
    for factor in factors:
        if (value := int(now * factor)) >= least:
            yield Candidate(f"batched-{value}", more if factor > 1 else less, {"max-num-batched-tokens": value})
        else:
            yield LeftOut(f"batched-{value}", f"vLLM wants at least max-num-seqs, {least}, tokens in a step")


def _graphs(situation: Situation) -> Ideas:
    """`max-cudagraph-capture-size`: a step with more requests than the largest graph runs without one."""
    now = situation.arguments.max_cudagraph_capture_size or min(2 * situation.arguments.max_num_seqs, _GRAPHS)
    if not situation.on_gpu or situation.arguments.enforce_eager:
        yield LeftOut("graphs", "this engine captures no CUDA graphs")
        return
    if situation.streams > now:
        value = min(situation.arguments.max_num_seqs, 2 * now)
        reason = f"steps of more than {now} requests run without a CUDA graph; more graphs take a little memory"
        yield Candidate(f"graphs-{value}", reason, {"max-cudagraph-capture-size": value})
    elif (value := max(_LEAST_GRAPHS, 1 << (situation.streams - 1).bit_length())) < now:
        reason = f"graphs for more than {value} tokens are of no use to {situation.streams} requests at once: fewer "
        reason += "graphs start sooner and leave memory, but a busier hour would run without them"
        yield Candidate(f"graphs-{value}", reason, {"max-cudagraph-capture-size": value})
    if situation.goal == "latency" and "performance-mode" not in situation.values:
        reason = "a CUDA graph for every number of requests up to 32, so that small batches are not padded"
        yield Candidate("interactivity", reason, {"performance-mode": "interactivity"})


def _utilization(situation: Situation) -> Ideas:
    """`gpu-memory-utilization`: up to what the engine has been seen to hold outside of its share."""
    now, memory = situation.arguments.gpu_memory_utilization, situation.memory
    if not situation.on_gpu or not memory or memory.explicit:
        yield LeftOut("utilization", "the share of the GPU does not decide the size of this KV cache")
    elif not situation.short_of_cache:
        held = f"{memory.typical_requests:,} requests of {memory.typical_tokens:,} tokens"
        yield LeftOut("utilization", f"the KV cache holds {held}, more than these loads need")
    elif (value := int(100 * (1 - OUTSIDE_BYTES / memory.total_bytes)) / 100) > now:
        reason = "more KV cache, so that fewer requests wait or are computed again; it leaves the least memory outside "
        reason += "of vLLM's share that has been seen to be enough"
        yield Candidate(f"utilization-{value:g}", reason, {"gpu-memory-utilization": value})
    else:
        yield LeftOut("utilization", f"{now} leaves no more memory outside of vLLM's share than it needs")


def _renderers(situation: Situation) -> Ideas:
    """`renderer-num-workers`: vLLM 0.20.2 has more than one only without the cache of images (config/model.py)."""
    if not situation.images:
        yield LeftOut("renderers", "the loads have no images")
    elif situation.cores < _LEAST_CORES:
        yield LeftOut("renderers", f"needs {_LEAST_CORES} cores; this host has {situation.cores}")
    elif "renderer-num-workers" not in situation.values:
        value = min(8, situation.cores // 2)
        reason = (
            f"vLLM prepares images in one thread; {value} prepare those of several requests at once. An image that "
        )
        reason += "is sent again is prepared again: vLLM has several threads only without its cache of images"
        changes: dict[str, Value] = {"renderer-num-workers": value, "mm-processor-cache-gb": 0}
        yield Candidate(f"renderers-{value}", reason, changes)


_OF_SETTINGS: Final[Mapping[str, str]] = {
    "embedding": "moves the per-layer embeddings, which are only looked up, between GPU and host memory",
    "sampler": "another sampler for requests with top-k and top-p, as Gemma asks for",
    "api_server": "more processes that tokenize and prepare images, where one is busy before the GPU is",
}
"""servekit's own settings that change speed and nothing else, by a part of the field's name, and what they do."""


def _settings(situation: Situation) -> Ideas:
    """Every other value of servekit's own settings for speed, as far as this servekit has them."""
    if not situation.on_gpu:
        yield LeftOut("settings", "those for speed are about the GPU")
        return
    for part, reason in _OF_SETTINGS.items():
        fields = [name for name in Settings.model_fields if part in name]
        for name in fields:
            now = getattr(situation.settings, name)
            for value in _others(Settings.model_fields[name].annotation, now, situation.cores):
                yield Candidate(f"{name.replace('_', '-')}-{value}", reason, settings={name: value})
        if not fields:
            yield LeftOut(part.replace("_", "-"), "this servekit has no such setting")


def _others(kind: Any, now: object, cores: int) -> list[str]:
    """Return the other values of a setting of some choices, of yes and no, or of a small number."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        values = [str(each.value) for each in kind]
    elif kind is bool:
        values = [str(not now).lower()]
    elif kind is int:
        values = [str(each) for each in (2, 4) if each <= cores // 2]
    else:
        values = [str(each) for each in typing.get_args(kind) if isinstance(each, str)]
    shown = str(now.value) if isinstance(now, Enum) else str(now)
    return [each for each in values if each not in (shown, "auto")]


_ORDER: Final[Mapping[str, Sequence[Callable[[Situation], Ideas]]]] = {
    "throughput": (_batched, _settings, _renderers, _utilization, _graphs),
    "energy": (_batched, _settings, _renderers, _utilization, _graphs),
    "latency": (_graphs, _batched, _settings, _renderers, _utilization),
}
"""The ideas in the order of what may be expected of them: a short budget leaves out the last ones."""
