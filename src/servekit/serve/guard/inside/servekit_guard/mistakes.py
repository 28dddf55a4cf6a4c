"""A client's mistake is the client's: answered with 400, without a traceback, on a connection that stays open.

vLLM 0.20.2 gets both wrong. It registers its handler for `Exception` (`entrypoints/openai/api_server.py`), which
Starlette runs outermost and raises the exception once more after it: 150 lines in the log and a closed
connection for each fourth image or image that cannot be read. And `/v1/messages`
(`entrypoints/anthropic/api_router.py`) answers 500 to whatever the other routes answer with 400.
"""

import importlib
from typing import Any


def client_mistakes() -> tuple[type[Exception], ...]:
    """Return what vLLM's own handler takes for the client's fault (`entrypoints/utils.py`)."""
    template_error: type[Exception] = importlib.import_module("jinja2").TemplateError
    # RecursionError: JSON text within JSON, as the arguments of a tool call, is parsed by vLLM once more.
    return ValueError, TypeError, OverflowError, NotImplementedError, RecursionError, template_error


def answer_where_they_happen(layer: Any, handler: Any, mistakes: tuple[type[Exception], ...]) -> None:
    """Register vLLM's handler with Starlette's inner layer, which does not raise the exception again.

    layer: the application below the guard; raises AttributeError when there is no such layer in it.
    """
    while not hasattr(layer, "add_exception_handler"):
        layer = layer.app
    for mistake in mistakes:
        layer.add_exception_handler(mistake, handler)


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
            return serving.create_error_response(error)

    serving.create_messages = create_messages_or_answer
