"""The parts of processor_config.json, as far as a wrong value ends vLLM's start or the first image.

transformers 5.8 takes any value here and fails later, in the middle of its arithmetic.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from servekit.preflight.checkpoint.schema.faults import Strict, faults_of

_Switch = bool | int | float | str | None
"""Anything that Python can take for true or false and can hash."""


class _Image(Strict):
    do_normalize: _Switch = None
    do_rescale: _Switch = None
    rescale_factor: float = 0
    resample: Literal[0, 2, 3] = 3
    size: Annotated[dict[str, int], Field(min_length=1)] | int | None = None
    image_mean: list[float] | float | None = None
    image_std: list[float] | float | None = None


class _Audio(Strict):
    sampling_rate: Annotated[int, Field(ge=1000)] = 16_000


_PARTS: dict[str, type[Strict]] = {"image_processor": _Image, "feature_extractor": _Audio}


def processor_faults(part: str, section: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong in a part such as `image_processor`, by key."""
    found = faults_of(_PARTS[part], section) if part in _PARTS else {}
    return {key.partition(".")[0]: why for key, why in found.items()}
