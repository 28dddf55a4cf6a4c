"""Whether vLLM 0.20.2 could load a LoRA adapter: lora/utils.py, lora/peft_helper.py and lora/lora_model.py."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from servekit import ENGINE_VERSION

_HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
_CONFIG: Final = "adapter_config.json"
_USABLE: Final[dict[str, tuple[Any, ...]]] = {"use_dora": (False,), "modules_to_save": (None, []), "bias": ("none",)}


def named_path(item: str) -> str:
    """Return the path in an item of lora-modules, `name=path` or JSON; an empty text where vLLM reads neither."""
    if "=" in item and "," not in item:  # how vLLM tells the two apart: entrypoints/openai/cli_args.py
        name, _, path = item.partition("=")
        return path if name and "=" not in path else ""
    try:
        fields = json.loads(item)
        known = isinstance(fields["name"], str) and set(fields) <= {"name", "path", "base_model_name"}
        return fields["path"] if known and isinstance(fields["path"], str) else ""
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""


def adapter_problems(path: str, max_rank: int) -> Iterator[tuple[str, str]]:
    """Yield what keeps vLLM from loading the adapter in a folder, and what to do; nothing about a hub id."""
    folder = Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises for an unknown user
    if not os.path.exists(folder):  # noqa: PTH110 - Path.exists raises where a parent cannot be read
        if folder.is_absolute() or path.startswith((".", "~")) or not _HUB_ID.fullmatch(path):
            yield "does not exist", "give the folder of the adapter"
        return
    if not any(os.path.isfile(folder / name) for name in _WEIGHTS):  # noqa: PTH113
        yield f"has no {_WEIGHTS[0]}", "give the folder of the adapter"
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
        rank = int(config["r"])
    except OSError as error:
        yield f"{_CONFIG} cannot be read: {error.strerror}", "give the folder of the adapter"
    except (ValueError, TypeError, KeyError, RecursionError):
        yield f"{_CONFIG} is not that of a LoRA", "save the adapter again"
    else:
        if rank > max_rank:
            yield f"has rank {rank}, and max-lora-rank is {max_rank}", f"write `max-lora-rank:` with {rank} or more"
        for key, usable in _USABLE.items():
            if config.get(key, usable[0]) not in usable:
                yield f"vLLM {ENGINE_VERSION} loads no adapter with {key}", "train it without"
