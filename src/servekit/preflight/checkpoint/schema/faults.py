"""The faults that pydantic finds, as preflight reports them."""

from collections.abc import Collection

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    """A JSON object whose values must have their types: no number is read from a string."""

    model_config = ConfigDict(strict=True)


def faults_of(model: type[BaseModel], values: object, *, tags: Collection[str] = ()) -> dict[str, str]:
    """Return what is wrong with an object, by dotted keys; `tags` are no keys, but names of the model's unions."""
    try:
        model.model_validate(values)
    except ValidationError as faults:
        found = faults.errors(include_url=False, include_context=False)
        return {
            ".".join(str(part) for part in fault["loc"] if part not in tags): fault["msg"].removeprefix("Value error, ")
            for fault in found
        }
    return {}
