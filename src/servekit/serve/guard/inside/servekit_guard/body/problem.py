"""Why a request body must not reach the engine."""


class BodyError(Exception):
    """The guard refuses a body: the client gets 400 with this message."""

    def __init__(self, message: str, param: str | None = None) -> None:
        """`param`: the field at fault, as the client wrote it; None when the whole body is meant."""
        super().__init__(message)
        self.message = message
        self.param = param
