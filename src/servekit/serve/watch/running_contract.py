"""The contract in the running engine: the plan compared with vLLM's live objects, not with the flags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from servekit.preflight.host.patches import PILLOW_FLOOR, is_recent_pillow
from servekit.profile import STRUCTURED_OUTPUTS_BACKEND, UNLIMITED, EngineArguments, Value

GEMMA4_BACKEND: Final = "TRITON_ATTN"
"""vLLM 0.20.2 forces this backend on a Gemma 4 whose layers differ in head size: others corrupt its output."""
LARGEST_COMMON_HEAD: Final = 256
"""With heads of this size at most, all layers of a Gemma 4 can use one backend, and vLLM 0.20.2 forces none
(model_executor/models/config.py, Gemma4Config)."""

CLOSED: Final[Mapping[str, Value]] = {"enable-prompt-embeds": False, "kv-transfer-config": None}
CLOSED_MULTIMODAL: Final[Mapping[str, Value]] = {"enable-mm-embeds": False, "mm-processor-cache-type": "lru"}
"""Parts of vLLM 0.20.2 with known vulnerabilities, and the values an engine reports that does not use them; see the
advisories in docs/security.md. A model without images has no parts of the second kind."""

DEMANDED: Final = (
    *("quantization", "max_num_seqs", "enable_prefix_caching", "enable_chunked_prefill", "max_model_len"),
    "max_num_batched_tokens",
)
"""Fields of EngineArguments that the engine reports by the same names."""


@dataclass(frozen=True)
class ContractItem:
    """One thing that must hold in the running engine."""

    name: str
    wanted: Value
    got: Value

    @property
    def met(self) -> bool:
        """Whether the engine does what was planned."""
        match self.name, self.wanted:
            case "kv-cache-dtype", "auto":
                return self.got in {"auto", "bfloat16", "float16"}  # vLLM's names for the model's own type
            case "max-model-len", "auto":
                return type(self.got) is int  # what fits the memory
            case "per-layer-embeddings", _:
                return self.got in {*str(self.wanted).split(" or "), "none"}  # a model without such a table
            case "pillow", _:
                return is_recent_pillow(self.got)
        return self.got == self.wanted

    def __str__(self) -> str:
        """`name: wanted X, the engine runs with Y`."""
        return f"{self.name}: wanted {self.wanted}, the engine runs with {self.got}"


def compare_contract(
    arguments: EngineArguments,
    served_name: str,
    effective: Mapping[str, Any],
    loaded: Mapping[str, str] = MappingProxyType({}),
) -> tuple[ContractItem, ...]:
    """Compare the planned engine arguments, and what must be `loaded`, with the guard's report of the live engine.

    Only arguments that the profile or the target sets are demanded. A value that the report lacks counts as None, so an
    item that cannot be checked is not met.
    """
    limits = arguments.limit_mm_per_prompt
    multimodal = effective.get("multimodal") is not False
    items = [
        ContractItem("kv-cache-dtype", arguments.kv_cache_dtype, effective.get("kv_cache_dtype")),
        *(
            ContractItem(name.replace("_", "-"), getattr(arguments, name), effective.get(name))
            for name in DEMANDED
            if name in arguments.given
        ),
        ContractItem(
            "structured-outputs-config.backend", STRUCTURED_OUTPUTS_BACKEND, effective.get("structured_outputs_backend")
        ),
        ContractItem("served-model-name", [served_name], effective.get("served_model_names")),
    ]
    items += [ContractItem(name, wanted, (effective.get("worker") or {}).get(name)) for name, wanted in loaded.items()]
    if _heads_differ(effective):
        items.append(ContractItem("attention-backend", GEMMA4_BACKEND, effective.get("attention_backend")))
    if multimodal and limits["image"]:
        items.append(ContractItem("pillow", f"{PILLOW_FLOOR} or newer", effective.get("pillow")))
    got = (effective.get("limit_mm_per_prompt") or {}) if multimodal else dict.fromkeys(limits, 0)
    items += [
        ContractItem(f"{kind} limit", count, got.get(kind)) for kind, count in limits.items() if count != UNLIMITED
    ]
    closed = {**CLOSED, **(CLOSED_MULTIMODAL if multimodal else {})}
    items += [
        ContractItem(key, wanted, effective.get(key.replace("-", "_"), "not visible to the guard"))
        for key, wanted in closed.items()
    ]
    return tuple(items)


def broken(items: Sequence[ContractItem]) -> str:
    """Return which items are not met, as text; empty when all are."""
    return "; ".join(str(item) for item in items if not item.met)


def _heads_differ(effective: Mapping[str, Any]) -> bool:
    sizes = {effective.get(name) for name in ("head_dim", "global_head_dim")}
    return len(sizes) > 1 and None not in sizes and any(size > LARGEST_COMMON_HEAD for size in sizes if size)
