"""The faults that pydantic finds, as preflight reports them."""

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """A JSON object whose values must have their types: no number is read from a string."""

    model_config = ConfigDict(strict=True)


def faults_of(model: type[BaseModel], values: Mapping[str, Any], *, tags: Collection[str] = ()) -> dict[str, str]:
    """Return what is wrong with an object, by dotted keys; `tags` are no keys, but names of the model's unions."""
    try:
        model.model_validate(values)
    except ValidationError as faults:
        found = faults.errors(include_url=False, include_context=False)
        return {".".join(str(part) for part in fault["loc"] if part not in tags): fault["msg"] for fault in found}
    return {}
