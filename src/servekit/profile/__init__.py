"""The profile: one YAML file of vLLM's arguments, read strictly and held to the endpoint's contract."""

from servekit.profile.contract import CONTRACT, STRUCTURED_OUTPUTS_BACKEND, Deviation
from servekit.profile.json_schema import profile_schema
from servekit.profile.load import Profile, load_profile
from servekit.profile.render import render
from servekit.profile.values import Value

__all__ = [
    "CONTRACT",
    "STRUCTURED_OUTPUTS_BACKEND",
    "Deviation",
    "Profile",
    "Value",
    "load_profile",
    "profile_schema",
    "render",
]
