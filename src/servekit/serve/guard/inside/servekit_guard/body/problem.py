"""What is wrong with a request body."""

from typing import NamedTuple


class Problem(NamedTuple):
    """Why a body must not reach the engine."""

    param: str | None
    """The field at fault, as the client wrote it; None when the whole body is meant."""
    message: str
