"""The facts of a checkpoint, from its headers and configuration alone: preflight reads no weight."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from servekit.file_trouble import Trouble, explain, find_trouble
from servekit.preflight.checkpoint.architectures import MULTIMODAL_ARCHITECTURES
from servekit.preflight.checkpoint.config_file import (
    CONFIG,
    DTYPE_BYTES,
    ModelConfig,
    check_context,
    check_vision,
    read_config,
)
from servekit.preflight.checkpoint.contents.tensors import check_tensors
from servekit.preflight.checkpoint.contents.weight_sizes import WeightSizes, weights_on_gpu
from servekit.preflight.checkpoint.default_template import check_template
from servekit.preflight.checkpoint.processor_files import check_processor
from servekit.preflight.checkpoint.quantization.coverage import check_layers
from servekit.preflight.checkpoint.quantization.kernels import L4, Device
from servekit.preflight.checkpoint.quantization.kv_scales import check_kv_scales
from servekit.preflight.checkpoint.quantization.scheme import WeightScheme
from servekit.preflight.checkpoint.quantization.section import check_quantization
from servekit.preflight.checkpoint.schema.config_types import check_types
from servekit.preflight.checkpoint.shard_header import Tensor
from servekit.preflight.checkpoint.shards import read_shards
from servekit.preflight.checkpoint.tokenizer_files import check_tokenizer
from servekit.preflight.findings import Finding, error, located
from servekit.profile import EngineArguments

READ_BY_VLLM: Final = frozenset({".json", ".jinja", ".model", ".safetensors", ".txt"})
"""Suffixes of the files of a checkpoint that vLLM may read."""


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint: its folder, its configuration and its tensors."""

    folder: Path
    revision: str
    config: ModelConfig
    scheme: WeightScheme | None
    tensors: tuple[Tensor, ...] = field(repr=False)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors in the shards."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    def model_dtype(self, arguments: EngineArguments) -> str:
        """Return the dtype that vLLM computes in: the profile's, or the checkpoint's, with bfloat16 for float32."""
        if arguments.dtype != "auto":
            return arguments.dtype
        return self.config.dtype if self.config.dtype in {"bfloat16", "float16"} else "bfloat16"

    def kv_cache_dtype(self, arguments: EngineArguments) -> str:
        """Return the dtype of the KV cache: the profile's, unless the checkpoint dictates one.

        With a kv_cache_scheme vLLM 0.20.2 ignores the profile and uses FP8 (layers/attention/attention.py).
        """
        return "fp8" if (self.config.quantization or {}).get("kv_cache_scheme") else arguments.kv_cache_dtype

    def weights(self, arguments: EngineArguments) -> WeightSizes | None:
        """Size the weights on the GPU under this profile; None for other models than Gemma 4."""
        if self.config.text is None:
            return None
        return weights_on_gpu(
            self.tensors,
            self.config.text,
            self.scheme,
            dtype_bytes=DTYPE_BYTES.get(self.model_dtype(arguments), 2),
            limits=arguments.limit_mm_per_prompt,
            max_num_batched_tokens=arguments.max_num_batched_tokens,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as values that JSON can hold."""
        return {
            "folder": str(self.folder),
            "revision": self.revision,
            "architecture": self.config.architecture,
            "dtype": self.config.dtype,
            "quantization": self.scheme
            and {
                "bits": self.scheme.first.num_bits,
                "group_size": self.scheme.first.group,
                "symmetric": self.scheme.first.symmetric,
            },
            "tensors": len(self.tensors),
            "shards": len({tensor.shard for tensor in self.tensors}),
            "stored_bytes": self.stored_bytes,
        }


def inspect_checkpoint(
    folder: Path,
    *,
    arguments: EngineArguments,
    target: str = "cuda",
    capability: tuple[int, int] | None = None,
    revision: str = "",
    whole: bool = True,
) -> tuple[CheckpointFacts | None, tuple[Finding, ...]]:
    """Check the checkpoint in a folder against a profile's arguments; `revision` is its commit.

    Returns None and the reasons if there is no readable config.json. Of a checkpoint that is not whole yet it checks
    the files that are there, and returns no facts.
    """
    if denied := _unreadable(folder):
        return None, denied
    config, findings = read_config(folder)
    tensors, shard_findings = read_shards(folder)
    findings += shard_findings
    facts = None
    if config:
        dtype = config.dtype if arguments.dtype == "auto" else arguments.dtype
        device = Device(None if target == "cpu" else capability or L4, dtype)
        limits = arguments.limit_mm_per_prompt
        scheme, more = check_quantization(config, arguments.quantization, target)
        findings += more
        if whole and tensors and (scheme or config.quantization is None):
            # The tensors of a damaged shard are missing too, so only the shard is reported: one cause, one finding.
            damaged = any(not finding.name.startswith("tensor-") for finding in shard_findings)
            caused = {"tensor-missing", "tower-missing"} if damaged else set()
            findings += (f for f in check_tensors(tensors, config, scheme, limits) if f.name not in caused)
        findings += [
            *check_types(config),
            *(check_kv_scales(tensors, config, target) if whole else ()),
            *_check_modality(config, limits["image"]),
            *check_vision(config, limits["image"]),
            *check_tokenizer(folder, config, limits["image"]),
            *check_template(folder, config, arguments),
            *check_processor(folder, config, arguments),
            *(check_layers(scheme, config, device) if scheme else ()),
            *(check_context(config.text, arguments.max_model_len) if config.text else ()),
        ]
        facts = CheckpointFacts(folder, revision, config, scheme, tensors)
    if not whole:
        return None, tuple(located(each, folder / each.file) for each in findings if (folder / each.file).is_file())
    return facts, tuple(located(each, folder / each.file) if each.file else each for each in findings)


def _unreadable(folder: Path) -> tuple[Finding, ...]:
    """Report the files that vLLM would read and this user cannot: one finding, however many they are."""
    if trouble := find_trouble(folder):
        return (error("checkpoint-unreadable", subject=str(folder), **trouble),)
    denied: dict[Path, Trouble] = {}
    for path in sorted(each for each in folder.iterdir() if each.suffix in READ_BY_VLLM):
        try:
            with path.open("rb") as file:
                file.read(1)
        except FileNotFoundError:
            pass  # a broken link counts as a missing file
        except OSError as problem:
            denied[path] = explain(problem, path)
    if not denied:
        return ()
    first, why = next(iter(denied.items()))
    if len({each["message"] for each in denied.values()}) > 1:
        why["message"] += f" and {len(denied) - 1} other files"
        if "chmod" in why["remedy"]:
            shared = os.path.commonpath([path.resolve().parent for path in denied])
            why["remedy"] = f"run: sudo chmod -R a+rX {shlex.quote(shared)}"
    return (error("checkpoint-unreadable", file=str(first), **why),)


def _check_modality(config: ModelConfig, images: int) -> Iterator[Finding]:
    if images and config.architecture not in MULTIMODAL_ARCHITECTURES:
        yield error(
            "architecture-text-only",
            f"{config.architecture} takes text only, but limit-mm-per-prompt allows {images} images: the running "
            "engine could not accept them",
            file=CONFIG,
            key="architectures",
            remedy="serve a multimodal model, or set every limit to 0 with --deviate limit-mm-per-prompt",
        )
