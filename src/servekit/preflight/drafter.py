"""The model of speculative-config, which vLLM loads beside the one that it serves."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from servekit import ENGINE_VERSION
from servekit.preflight.checkpoint.architectures import KNOWN_ARCHITECTURES
from servekit.preflight.checkpoint.config_file import CONFIG, read_object
from servekit.preflight.checkpoint.shards import read_shards
from servekit.preflight.findings import Finding, error, located, note
from servekit.preflight.hub.hub_answer import ask_hub
from servekit.preflight.hub.hub_model import expanded, find_hub_model, not_found
from servekit.preflight.memory.gpu_models import gib
from servekit.preflight.start import Start
from servekit.profile import WEIGHTLESS_DRAFTERS, drafter_architectures, drafter_method

_KEY: Final = "speculative-config.model"
_MEDUSA: Final = "MedusaModel"
_OTHER: Final = "give a drafter that vLLM supports, or write `method: ngram` without a model"


def inspect_drafter(start: Start, environ: Mapping[str, str]) -> tuple[int, list[Finding]]:
    """Return the bytes of the drafter's weights, 0 where it has none or is not on this machine, and what is wrong."""
    config = start.arguments.speculative_config or {}
    model, method = str(config.get("model") or ""), drafter_method(config)
    if not model or method in WEIGHTLESS_DRAFTERS:
        return 0, []
    hub = find_hub_model(model, str(config.get("revision") or ""), environ, start.engine)
    folder = hub.snapshot if hub else expanded(model)
    if not os.path.isfile(folder / CONFIG):  # noqa: PTH113 - Path.is_file raises where this user may not look
        # the engine downloads nothing where the model that it serves is a folder: serve/plan.py
        missing = ask_hub(replace(hub, offline=hub.offline or start.hub is None), environ).findings if hub else ()
        unknown = note("memory-drafter", "the memory plan does not count its weights: they are not here", key=_KEY)
        return 0, [*(missing or [not_found(model)]), unknown]
    raw, problem, line = read_object(folder / CONFIG)
    architecture = _architecture(raw, method)
    known = KNOWN_ARCHITECTURES if method == "draft_model" else drafter_architectures()
    found = []
    if problem:
        found.append(error("config-invalid", problem, file=CONFIG, line=line, remedy=_OTHER))
    elif architecture not in known and "speculators_model_type" not in raw:  # vLLM translates that format by itself
        wrong = f"vLLM {ENGINE_VERSION} has no drafter {architecture!r}"
        found.append(error("architecture-unknown", wrong, file=CONFIG, key="architectures", remedy=_OTHER))
    tensors, shard_findings = read_shards(folder)
    size = sum(tensor.size_bytes for tensor in tensors)
    counted = note("memory-drafter", f"the memory plan counts its {gib(size, 2)} but not its KV cache", key=_KEY)
    return size, [*(located(each, folder / each.file) for each in (*found, *shard_findings)), counted]


def _architecture(raw: Mapping[str, Any], method: str) -> str:
    """Return the class that vLLM looks for: transformers_utils/configs/eagle.py and medusa.py."""
    names = raw.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else _MEDUSA if method == "medusa" else ""
    prefix = {"eagle": "Eagle", "eagle3": "Eagle3", "dflash": "DFlash"}.get(method, "")
    own = name.startswith(prefix) or (method != "eagle" and name.endswith(prefix))
    return name if own else f"{prefix}{name}"
