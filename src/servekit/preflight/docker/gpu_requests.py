"""The GPUs that a Compose service asks for, in each of the ways that Docker knows, and what servekit needs of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from servekit.preflight.findings import Finding, error, warning

GPUS_KEY_SINCE: Final = (2, 30)
"""The first Compose that acts on a service's `gpus`; 2.26 reads the key and ignores it."""
ALL: Final = -1
"""As many GPUs as the host has: what Compose writes for `count: all` and where neither count nor ids are given."""
_RESERVATION: Final = "deploy.resources.reservations.devices"
_NEEDED: Final = ("compute", "utility")
"""Kinds of driver libraries: CUDA's and NVML's."""
_KINDS: Final = frozenset({*_NEEDED, "compat32", "graphics", "video", "display"})
"""Docker passes these on as NVIDIA_DRIVER_CAPABILITIES; without any the image decides (moby, nvidia_linux.go)."""


@dataclass(frozen=True)
class GpuRequest:
    """One request of a service: the key that makes it, how many GPUs (or ALL), and which kinds of libraries."""

    key: str
    count: int
    kinds: frozenset[str] = frozenset()
    """None: those that the image sets."""
    ids: frozenset[str] = frozenset()
    """The GPUs that it names, by number or UUID."""


def gpu_requests(service: Mapping[str, Any]) -> list[GpuRequest]:
    """Return what a service of a resolved project asks for; empty for one that gets no GPU."""
    resources = (service.get("deploy") or {}).get("resources") or {}
    reserved = (resources.get("reservations") or {}).get("devices") or ()
    environment = service.get("environment") or {}
    kinds = _kinds(str(environment.get("NVIDIA_DRIVER_CAPABILITIES") or "").split(","))
    requests = [
        *(_device(_RESERVATION, each, kinds) for each in reserved if _is_gpu(each)),
        *(_device("gpus", each, kinds) for each in service.get("gpus") or ()),
    ]
    named = [str(each.get("source", "")).partition("nvidia.com/gpu=")[2] for each in service.get("devices") or ()]
    requests += [GpuRequest("devices", ALL if name == "all" else 1, kinds) for name in named if name]
    if service.get("runtime") == "nvidia" and not requests:
        names = str(environment.get("NVIDIA_VISIBLE_DEVICES") or "all")
        if names not in {"none", "void"}:
            requests.append(GpuRequest("runtime", ALL if names == "all" else names.count(",") + 1, kinds))
    return requests


def check_gpu_requests(
    service: Mapping[str, Any], *, compose: tuple[int, ...], host_gpus: int | None
) -> Iterator[tuple[str, Finding]]:
    """Check that a service of servekit gets one GPU with CUDA and NVML; yield each finding with the key it is about.

    `host_gpus` is how many GPUs this host has; None where no driver answers.
    """
    requests = gpu_requests(service)
    if not requests:
        yield (
            "deploy",
            error(
                "compose-gpus",
                "reserves no GPU: the endpoint would end with exit code 3",
                remedy=f"add {_RESERVATION} as in compose.yaml, or use the image for the CPU (compose.cpu.yaml)",
            ),
        )
    if service.get("gpus") and compose < GPUS_KEY_SINCE:
        yield (
            "gpus",
            error(
                "compose-gpus",
                f"Compose {'.'.join(map(str, compose))} ignores it: the container starts without a GPU",
                remedy=f"use {_RESERVATION}",
            ),
        )
    for request in requests:
        lacking = [kind for kind in _NEEDED if request.kinds and kind not in request.kinds]
        if lacking:
            yield (
                request.key,
                error(
                    "compose-gpus",
                    f"gives the container the driver's {', '.join(sorted(request.kinds))} only",
                    remedy=f"add {' and '.join(lacking)}, or ask for the capability gpu alone",
                ),
            )
    every = any(each.count == ALL for each in requests)
    chosen = (service.get("environment") or {}).get("CUDA_VISIBLE_DEVICES")
    if (every or sum(each.count for each in requests) > 1) and host_gpus != 1 and not chosen:
        report = warning if host_gpus is None else error
        wanted = f"every GPU of the host{f', which has {host_gpus}' if host_gpus else ''}" if every else "several GPUs"
        message = f"asks for {wanted}: servekit serves on one, and ends with exit code 3 where it sees more"
        yield requests[0].key, report("compose-gpus", message, remedy='name one, such as device_ids: ["0"]')


def check_shared_gpus(services: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Finding]]:
    """Yield service, key and finding for each service that names a GPU which an earlier one has already."""
    owners: dict[str, str] = {}
    for name, service in services.items():
        for request in gpu_requests(service):
            for gpu in sorted(request.ids):
                if (owner := owners.setdefault(gpu, name)) != name:
                    message = f"asks for GPU {gpu}, which {owner} has: their memory would not fit together"
                    yield name, request.key, error("compose-gpus", message, remedy="give each service a GPU of its own")


def _is_gpu(device: Mapping[str, Any]) -> bool:
    wanted = {"gpu", "nvidia", *_KINDS}
    return device.get("driver") in {"nvidia", "cdi"} or bool(wanted.intersection(device.get("capabilities") or ()))


def _device(key: str, device: Mapping[str, Any], kinds: frozenset[str]) -> GpuRequest:
    ids = frozenset(map(str, device.get("device_ids") or ()))
    return GpuRequest(
        key, len(ids) or int(device.get("count") or ALL), _kinds(device.get("capabilities") or ()) or kinds, ids
    )


def _kinds(words: Any) -> frozenset[str]:
    return _KINDS.intersection(words)
