"""The contract in the running engine: what was planned against what the live objects say, not against the flags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from servekit.preflight.host.patches import PILLOW_FLOOR, is_recent_pillow
from servekit.profile import STRUCTURED_OUTPUTS_BACKEND, Value

GEMMA4_BACKEND = "TRITON_ATTN"
"""vLLM 0.20.2 forces this backend on Gemma 4, whose layers differ in head size: others corrupt its output."""

CLOSED: Mapping[str, Value] = MappingProxyType(
    {
        "enable-prompt-embeds": False,
        "enable-mm-embeds": False,
        "mm-processor-cache-type": "lru",
        "kv-transfer-config": None,
    }
)
"""Parts of vLLM 0.20.2 with known vulnerabilities, as an engine reports them that does not use them; see the table of
advisories in docs/security.md."""

_UNSEEN = "nothing the guard can see"

_DEFAULT_DTYPES = frozenset({"auto", "bfloat16", "float16"})
"""How vLLM may name a KV cache in the model's own type, which a profile calls `auto`."""


@dataclass(frozen=True)
class ContractItem:
    """One thing that must hold in the running engine."""

    name: str
    wanted: Value
    got: Value

    @property
    def met(self) -> bool:
        """Whether the engine does what was planned."""
        if self.name == "kv-cache-dtype" and self.wanted == "auto":
            return self.got in _DEFAULT_DTYPES
        if self.name == "pillow":
            return is_recent_pillow(self.got)
        return self.got == self.wanted

    def __str__(self) -> str:
        """`name: wanted X, the engine runs with Y`."""
        return f"{self.name}: wanted {self.wanted}, the engine runs with {self.got}"


def compare_contract(
    arguments: Mapping[str, Value], served_name: str, effective: Mapping[str, Any]
) -> tuple[ContractItem, ...]:
    """Compare the planned engine arguments (dashed names) with the guard's report of the live configuration.

    A value the report lacks is got as None, so that what cannot be seen is not met.
    """
    limits = effective.get("limit_mm_per_prompt") or {}
    wanted_limits = arguments.get("limit-mm-per-prompt")
    items = [
        ContractItem("kv-cache-dtype", arguments.get("kv-cache-dtype", "auto"), effective.get("kv_cache_dtype")),
        ContractItem("quantization", arguments.get("quantization"), effective.get("quantization")),
        ContractItem("max-num-seqs", arguments.get("max-num-seqs"), effective.get("max_num_seqs")),
        ContractItem("attention-backend", GEMMA4_BACKEND, effective.get("attention_backend")),
        ContractItem(
            "structured-outputs-config.backend", STRUCTURED_OUTPUTS_BACKEND, effective.get("structured_outputs_backend")
        ),
        ContractItem("served-model-name", [served_name], effective.get("served_model_names")),
    ]
    if not isinstance(wanted_limits, Mapping) or wanted_limits.get("image") != 0:
        items.append(ContractItem("pillow", f"{PILLOW_FLOOR} or newer", effective.get("pillow")))
    if isinstance(wanted_limits, Mapping):
        items += [ContractItem(f"{kind} limit", count, limits.get(kind)) for kind, count in wanted_limits.items()]
    items += [
        ContractItem(key, arguments[key], effective.get(key.replace("-", "_")))
        for key in ("enable-prefix-caching", "enable-chunked-prefill", "max-model-len", "max-num-batched-tokens")
        if key in arguments
    ]
    items += [
        ContractItem(key, wanted, effective.get(key.replace("-", "_"), _UNSEEN)) for key, wanted in CLOSED.items()
    ]
    return tuple(items)


def broken(items: Sequence[ContractItem]) -> str:
    """Say which items are not met; empty when all are."""
    return "; ".join(str(item) for item in items if not item.met)
