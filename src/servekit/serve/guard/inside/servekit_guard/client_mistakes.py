"""A client's mistake is the client's: answered with 400, in words, without a traceback, on an open connection.

vLLM 0.20.2 gets both wrong. It registers its handler for `Exception` (`entrypoints/openai/api_server.py`), which
Starlette runs outermost and raises the exception once more after it: 150 lines in the log and a closed
connection for each fourth image or image that cannot be read. And `/v1/messages`
(`entrypoints/anthropic/api_router.py`) answers 500 to whatever the other routes answer with 400.
"""

import importlib
from typing import Any

from .error_shape import wrong_fields


def kinds_of_mistake() -> tuple[type[Exception], ...]:
    """Return what vLLM's own handler takes for the client's fault (`entrypoints/utils.py`)."""
    template_error: type[Exception] = importlib.import_module("jinja2").TemplateError
    # RecursionError: JSON text within JSON, as the arguments of a tool call, is parsed by vLLM once more.
    return ValueError, TypeError, OverflowError, NotImplementedError, RecursionError, template_error


def answer_where_they_happen(layer: Any, handler: Any, mistakes: tuple[type[Exception], ...]) -> None:
    """Register vLLM's handler with Starlette's inner layer, which does not raise the exception again.

    layer: the application below the guard; raises AttributeError when there is no such layer in it.
    """
    inner = _layer_of_handlers(layer)

    async def answer(request: Any, error: Exception) -> Any:
        return await handler(request, _as_mistake(error))

    for mistake in mistakes:
        inner.add_exception_handler(mistake, answer)


def _layer_of_handlers(layer: Any) -> Any:
    """Return Starlette's inner layer, which has the handlers of exceptions."""
    while not hasattr(layer, "add_exception_handler"):
        layer = layer.app
    return layer


def _as_mistake(error: Exception) -> Exception:
    """Return an exception that vLLM answers with 400: an unknown kind of content part is a 501 there, depth a 500."""
    return ValueError(str(error)) if isinstance(error, (NotImplementedError, RecursionError)) else error


def answer_wrong_fields(layer: Any) -> None:
    """Say in one line which field is wrong; vLLM's own handler repeats its value twice and names paths of this host.

    layer: as in `answer_where_they_happen`; the rest of the answer is made in `errors.py`.
    """
    invalid = importlib.import_module("fastapi.exceptions").RequestValidationError
    response = importlib.import_module("starlette.responses").JSONResponse

    async def answer(_request: Any, error: Any) -> Any:
        message, param = wrong_fields(error.errors(), error.body)
        return response({"error": {"message": message, "param": param}}, 400)

    _layer_of_handlers(layer).add_exception_handler(invalid, answer)


def answer_messages(state: Any, mistakes: tuple[type[Exception], ...]) -> None:
    """Let the handler of `/v1/messages` in the application's state answer as vLLM's other handlers do."""
    serving = getattr(state, "anthropic_serving_messages", None)
    if serving is None:
        return
    create_messages = serving.create_messages

    async def create_messages_or_answer(*arguments: Any, **named: Any) -> Any:
        try:
            return await create_messages(*arguments, **named)
        except mistakes as error:
            return serving.create_error_response(_as_mistake(error))

    serving.create_messages = create_messages_or_answer


def answer_images_without_a_place(renderer: Any) -> None:
    """Let an image that the chat template leaves out, as in a tool's answer, be the client's mistake.

    vLLM 0.20.2 asserts that each image has its place in the prompt (`multimodal/processing/processor.py`), and answers
    500 with a traceback. renderer: of vLLM's engine client.
    """
    process = renderer._process_multimodal_async  # noqa: SLF001 - its only door

    async def process_or_answer(*arguments: Any, **named: Any) -> Any:
        try:
            return await process(*arguments, **named)
        except AssertionError as error:
            raise ValueError(
                "An image has no place in the prompt: the chat template leaves images out of messages of this role."
                " Send it in a message of the user."
            ) from error

    renderer._process_multimodal_async = process_or_answer  # noqa: SLF001
