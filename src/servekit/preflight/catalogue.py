"""Every name of a finding, with its meaning: the names for `--skip`, which the documentation lists."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from servekit import ENGINE_VERSION

CATALOGUE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "engine-missing": "The engine's program does not exist.",
        "engine-patches": "The folder of newer packages for the engine does not exist, or its Pillow is too old.",
        # Where the model is.
        "model-missing": "The model's folder does not exist.",
        "model-name": "The model is neither a folder nor a hub id such as `owner/name`.",
        "hub-offline": "The model is not in the local cache, and offline mode forbids a download.",
        "hub-unreachable": "The model is not in the local cache, and the hub does not answer or denies access.",
        "hub-download": "The model is not in the local cache; the engine downloads it during the start.",
        # config.json.
        "config-missing": "The checkpoint has no config.json.",
        "config-invalid": "config.json is not a JSON object.",
        "architecture-unknown": f"vLLM {ENGINE_VERSION} has no model of this architecture.",
        "architecture-unplanned": "The architecture is not a Gemma 4: preflight checks neither tensors nor memory.",
        "text-config-invalid": "The text configuration lacks values or contradicts itself.",
        "vision-config": "The vision configuration lacks what vLLM reads from it.",
        "token-ids": "A special token id of config.json lies outside the vocabulary.",
        "context-length": "`max-model-len` is longer than the model's own context.",
        # quantization_config.
        "quantization-missing": "The profile needs a quantized checkpoint, this one is not quantized.",
        "quantization-method": "The checkpoint is quantized by another method than the profile says.",
        "quantization-format": "The compressed-tensors format is not pack-quantized.",
        "quantization-groups": "quantization_config has no usable config_groups.",
        "quantization-bits": f"vLLM {ENGINE_VERSION} has no weight-only kernel for these weights.",
        "quantization-scheme": "The scheme is not symmetric int4 in groups of 128.",
        "quantization-activations": "Activations are quantized too; the profile is made for W4A16.",
        "ignore-list": "A part that must stay at full precision is not in the ignore list.",
        "ignore-split": "The ignore list splits projections that vLLM fuses.",
        "sparsity": "The weights are stored in a sparse format.",
        # KV cache scales.
        "kv-scales": "Calibrated KV cache scales on a model whose later layers share the cache.",
        "kv-scales-unit": "KV cache scales are stored and all 1.0.",
        "kv-cache-scheme": "quantization_config dictates a KV cache format.",
        # Weight files.
        "weights-missing": "The checkpoint has no safetensors file.",
        "weights-pickle": "The checkpoint has pickled weights only.",
        "weights-consolidated": "A consolidated*.safetensors file makes vLLM read the folder as a Mistral one.",
        "index-invalid": "The index of the shards cannot be read.",
        "index-stale": "The index and the shards disagree about which tensor is where.",
        "shard-missing": "A shard that the index names does not exist.",
        "shard-stray": "A safetensors file is not named by the index.",
        "shard-empty": "A safetensors file is empty.",
        "shard-pointer": "A safetensors file is a Git LFS pointer, not the weights.",
        "shard-header": "The header of a safetensors file cannot be read.",
        "shard-truncated": "A safetensors file is shorter than its header says.",
        "shard-oversized": "A safetensors file is longer than its header says.",
        "tensor-duplicate": "A tensor is stored in two shards.",
        # Tensors.
        "tensor-missing": "A tensor the model needs is not stored.",
        "tensor-shape": "A tensor's shape contradicts config.json.",
        "tensor-unexpected": "A tensor belongs to no part of the configured model.",
        "tensor-unquantized": "A layer should be quantized, but its plain weight is stored.",
        "tensor-quantized": "A layer is stored quantized, but nothing says so or the ignore list denies it.",
        "scale-missing": "A quantized layer comes without its scales or zero points.",
        "kv-shared-weights": "The projections of KV-shared layers were dropped; vLLM rejects an unquantized model.",
        "tower-missing": "The configured vision or audio tower has no or not all weights.",
        # Companions.
        "tokenizer-missing": "The checkpoint has no tokenizer.",
        "tokenizer-invalid": "tokenizer.json cannot be read.",
        "tokenizer-vocabulary": "The tokenizer knows ids the embedding does not have.",
        "tokenizer-config": "tokenizer_config.json is missing or cannot be read.",
        "processor-missing": "Images are allowed, but the checkpoint has no processor configuration.",
        "processor-invalid": "The processor configuration cannot be read or has another number of image tokens.",
        "chat-template": "The checkpoint has no chat template: every chat request would fail.",
        "generation-config": "generation_config.json is missing or cannot be read.",
        # Host.
        "gpu-missing": "NVML finds no NVIDIA GPU.",
        "gpu-visible": "Not exactly one GPU is visible.",
        "gpu-capability": "The GPU's compute capability is below 8.9: it has no FP8.",
        "gpu-mig": "The GPU is split by MIG.",
        "gpu-memory": "Less memory is free on the GPU than `gpu-memory-utilization` claims.",
        "gpu-processes": "Other processes use the GPU.",
        "gpu-ecc": "The GPU counts uncorrected memory errors.",
        "gpu-throttled": "The GPU slows itself down.",
        "gpu-driver": "The driver is too old for CUDA 13.",
        "cpu-library": "A shared library that the CPU engine is linked with is not installed.",
        "cpu-features": "The CPU lacks the vector instructions the CPU engine is built for.",
        "cpu-memory": "The host's memory does not hold the weights, the KV cache and the processes.",
        "port-taken": "A port servekit or the engine wants is not free.",
        "cache-folder": "The cache folder cannot be written.",
        "cache-space": "The cache folder's file system is too full.",
        "shared-memory": "The shared memory is too small for the engine's queues.",
        # Memory plan.
        "memory-weights": "The weights do not fit the budget.",
        "memory-one-request": "The KV cache cannot hold one request of full length.",
        "memory-layout": "vLLM cannot lay out a KV cache for this configuration.",
        "memory-unplanned": "The memory cannot be planned.",
        "memory-bottleneck": "What runs out first.",
        "memory-headroom": "The budget leaves too little of the GPU for what the engine holds beside it.",
        # Docker.
        "docker-sdk": "The docker SDK is not installed.",
        "docker-unreachable": "The Docker Engine does not answer.",
        "docker-engine": "The Docker Engine is too old.",
        "docker-compose": "Docker Compose is missing or too old.",
        "docker-gpu": "Docker has neither the NVIDIA runtime nor CDI devices.",
        "docker-image": "The image is not on this host.",
        "docker-platform": "The image or the engine is not for linux/amd64.",
        "compose-gpus": "The Compose file asks for GPUs in a way this Compose ignores.",
        "compose-grace": "Docker would kill the container before its drain is over.",
        "compose-mount": "A file or folder that the Compose project mounts does not exist.",
        "compose-secret": "The container could not use the key file.",
    }
)
