"""generation_config.json: the sampling defaults that vLLM 0.20.2 gives every request (sampling_params.py).

A wrong one makes vLLM answer 400 to each request that does not set the parameter itself.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from servekit.preflight.checkpoint.schema.faults import Strict, faults_of


class _Generation(Strict):
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    max_new_tokens: Annotated[int, Field(gt=0)] | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


def generation_faults(generation: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong in a generation_config.json, by key."""
    numbers = {key: int(value) if isinstance(value, bool) else value for key, value in generation.items()}
    return {key.partition(".")[0]: why for key, why in faults_of(_Generation, numbers).items()}
