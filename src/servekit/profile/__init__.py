"""The profile: one YAML file of vLLM's arguments, read strictly and held to the endpoint's contract."""

from servekit.profile.argument_table import nearest
from servekit.profile.contract import CONTRACT, CPU_DEVIATION, STRUCTURED_OUTPUTS_BACKEND, UNLIMITED, Deviation
from servekit.profile.engine_arguments import EngineArguments, resolve
from servekit.profile.load import Profile, load_profile
from servekit.profile.render import render
from servekit.profile.rules import WEIGHTLESS_DRAFTERS, drafter_architectures, drafter_method
from servekit.profile.values import Value

__all__ = [
    "CONTRACT",
    "CPU_DEVIATION",
    "STRUCTURED_OUTPUTS_BACKEND",
    "UNLIMITED",
    "WEIGHTLESS_DRAFTERS",
    "Deviation",
    "EngineArguments",
    "Profile",
    "Value",
    "drafter_architectures",
    "drafter_method",
    "load_profile",
    "nearest",
    "render",
    "resolve",
]
