"""What guards the data path: servekit's side here, the guard inside vLLM's server in `inside/`."""

from .prepare import (
    CONFIG_FILE_NAME,
    COUNTERS_PATH,
    DRAIN_PATH,
    EFFECTIVE_PATH,
    INSIDE,
    MIDDLEWARE,
    Guard,
    GuardSettings,
    default_max_in_flight,
    guard_arguments,
    guard_environment,
    is_loopback,
    prepare_guard,
)

__all__ = [
    "CONFIG_FILE_NAME",
    "COUNTERS_PATH",
    "DRAIN_PATH",
    "EFFECTIVE_PATH",
    "INSIDE",
    "MIDDLEWARE",
    "Guard",
    "GuardSettings",
    "default_max_in_flight",
    "guard_arguments",
    "guard_environment",
    "is_loopback",
    "prepare_guard",
]
