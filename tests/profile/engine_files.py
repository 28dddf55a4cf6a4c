"""Judges chat templates, adapters and limits with vLLM's own code: runs with the engine's Python, JSON in and out."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
chat_utils = import_module("vllm.entrypoints.chat_utils")
compile_template = import_module("transformers.utils.chat_template_utils")._compile_jinja_template
lora_action = import_module("vllm.entrypoints.openai.cli_args").LoRAParserAction
peft_helper = import_module("vllm.lora.peft_helper").PEFTHelper
lora_config = import_module("vllm.config.lora").LoRAConfig
multimodal_config = import_module("vllm.config.multimodal").MultiModalConfig
speculative_config = import_module("vllm.config").SpeculativeConfig


def template(value: str) -> None:
    """Read and compile a chat template as a start and the first request do."""
    chat_utils.validate_chat_template(value)
    compile_template(chat_utils.load_chat_template(value))


def module(item: str) -> None:
    """Parse one item of --lora-modules."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lora-modules", nargs="*", action=lora_action)
    parser.parse_args(["--lora-modules", item])


def adapter(folder: str) -> None:
    """Read the configuration of an adapter, with the largest rank of a LoRAConfig."""
    peft_helper.from_local_dir(folder, None).validate_legal(lora_config())


def limit(value: dict[str, Any]) -> None:
    """Read limit-mm-per-prompt."""
    multimodal_config(limit_per_prompt=value)


def speculative(value: dict[str, Any]) -> None:
    """Read speculative-config, without a model."""
    speculative_config(**value)


CHECKS: dict[str, Callable[[Any], None]] = {
    "template": template,
    "module": module,
    "adapter": adapter,
    "limit": limit,
    "speculative": speculative,
}


def takes(name: str, value: Any) -> bool:
    """Whether vLLM's code accepts a value."""
    try:
        CHECKS[name](value)
    except (Exception, SystemExit):  # noqa: BLE001  any exception ends vLLM's start
        return False
    return True


print("taken: " + json.dumps([takes(name, value) for name, value in json.load(sys.stdin)]))
