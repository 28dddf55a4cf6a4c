"""The guard of the data path: servekit's side is here, the guard inside vLLM's server in `inside/`."""

from .inside.servekit_guard.flight import InFlight, read_flights
from .prepare import (
    CONFIG_FILE_NAME,
    COUNTERS_PATH,
    DRAIN_PATH,
    EFFECTIVE_PATH,
    FLIGHT_FILE_NAME,
    INSIDE,
    LEDGER_FILE_NAME,
    MIDDLEWARE,
    RING_FILE_NAME,
    Guard,
    GuardSettings,
    default_max_in_flight,
    guard_arguments,
    guard_environment,
    guard_mistakes,
    limit_penalties,
    prepare_guard,
)

__all__ = [
    "CONFIG_FILE_NAME",
    "COUNTERS_PATH",
    "DRAIN_PATH",
    "EFFECTIVE_PATH",
    "FLIGHT_FILE_NAME",
    "INSIDE",
    "LEDGER_FILE_NAME",
    "MIDDLEWARE",
    "RING_FILE_NAME",
    "Guard",
    "GuardSettings",
    "InFlight",
    "default_max_in_flight",
    "guard_arguments",
    "guard_environment",
    "guard_mistakes",
    "limit_penalties",
    "prepare_guard",
    "read_flights",
]
