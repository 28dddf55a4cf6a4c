"""Everything the guard changes in vLLM's server, with what vLLM 0.20.2 does and in which file.

`apply_at_import` and `apply` list it; the larger patches have modules of their own, which say the same.
`core/worker.py` changes the processes that hold the model.
"""

import gc
import importlib
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any

from .asgi import CHECKED_BODY
from .core.handoff import current_request
from .guard_config import Rules
from .images import image_cache, media
from .request_ids import HEADER
from .routes import NAMED_MODEL
from .usage.meter import fail_stream
from .wire import header_limits, slow_readers
from .wrong_fields import describe_mistake, describe_wrong_field

OBJECTS_BEFORE_GARBAGE = 10_000
"""Generation-0 threshold of the garbage collector. Python's default is 700 objects, which some thirty requests create:
all of them are still in use, so the collector found nothing and took 2 % of the server's time, 9 % in a burst."""


def apply_at_import(rules: Rules) -> slow_readers.Unread:
    """Apply the patches that vLLM's application is built with; return the watch over its connections."""
    gc.set_threshold(OBJECTS_BEFORE_GARBAGE, *gc.get_threshold()[1:])
    read_checked_bodies()
    media.register(rules.max_image_pixels, rules.media_domains)  # checks of images, a fast path for `data:` URLs
    header_limits.limit(rules.max_head_bytes, rules.max_head_s)  # size and time of request heads
    return slow_readers.watch(rules.max_write_s)  # connections whose client reads nothing


def apply(app: Any, layer: Any, generating: Collection[str]) -> None:
    """Patch vLLM's FastAPI application, once its state is complete and before it serves.

    layer: the ASGI application below the guard. generating: the paths of the routes that generate text.
    """
    stop_at_first_mistakes(app.routes, generating)
    while not hasattr(layer, "add_exception_handler"):
        layer = layer.app  # AttributeError when there is no Starlette layer with exception handlers
    answer_mistakes_inside(layer)
    answer_wrong_fields(layer)
    state, renderer = app.state, app.state.engine_client.renderer
    image_cache.watch(renderer, current_request)  # forgets images whose request never reached EngineCore
    wrap(state.engine_client, "shutdown", fail_what_is_left)
    wrap(renderer, "_process_multimodal_async", answer_images_without_a_place)
    wrap(state.openai_serving_models, "show_available_models", hide_paths)
    answer_named_models(app)
    for name in ("create_messages", "count_tokens"):
        wrap(getattr(state, "anthropic_serving_messages", None), name, answer_messages)
    wrap(getattr(state, "openai_serving_responses", None), "create_responses", name_responses)
    for name in ("openai_serving_chat", "openai_serving_completion", "anthropic_serving_messages"):
        wrap(getattr(state, name, None), "create_streaming_error_response", fail_stream)
    read_answers(state)


def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Call `wrapper(method, ...)` in place of a method of this object; nothing when there is no such object."""
    if owner is not None:
        setattr(owner, name, partial(wrapper, getattr(owner, name)))


def read_answers(state: Any) -> None:
    """Let `answers/parsers.py` read streams, and see the end of each choice."""
    parsers: Any = importlib.import_module("servekit_guard.answers.parsers")
    for chat in ("openai_serving_chat", "anthropic_serving_messages"):
        wrap(getattr(state, chat, None), "chat_completion_stream_generator", parsers.read_chat)
    responses = getattr(state, "openai_serving_responses", None)
    wrap(responses, "_process_simple_streaming_events", parsers.read_responses)
    serving = importlib.import_module("vllm.entrypoints.openai.chat_completion.serving")
    wrap(serving, "maybe_filter_parallel_tool_calls", parsers.say_length)


def mistake_types() -> tuple[type[Exception], ...]:
    """Return the exceptions that vLLM's own handler treats as the client's mistake (`entrypoints/utils.py`)."""
    # RecursionError: vLLM parses JSON text within JSON, such as the arguments of a tool call, once more.
    known = ValueError, TypeError, OverflowError, NotImplementedError, RecursionError
    return *known, importlib.import_module("jinja2").TemplateError


def answer_mistakes_inside(layer: Any) -> None:
    """Answer a client's mistake in one line, without a traceback in the log and without closing the connection.

    vLLM registers its handler for `Exception` (`entrypoints/openai/api_server.py`). Starlette runs that one outermost
    and raises the exception again: 150 lines of log and a closed connection for each image that cannot be read. Its
    answer is 501 for an unknown type of content part, 500 for depth, and all of pydantic's text for a wrong part.
    """
    response = importlib.import_module("starlette.responses").JSONResponse

    async def answer(request: Any, error: Exception) -> Any:
        return response(error_of(error, request).model_dump(), 400)

    for mistake in mistake_types():
        layer.add_exception_handler(mistake, answer)


def error_of(error: Exception, request: Any) -> Any:
    """Return a client's mistake as vLLM's `ErrorResponse` with status 400."""
    message, param = describe_mistake(error, request.scope.get(CHECKED_BODY))
    return importlib.import_module("vllm.entrypoints.utils").create_error_response(message, param=param)


def answer_wrong_fields(layer: Any) -> None:
    """Answer a wrong field in one line; `error_shape.py` completes the answer.

    vLLM's handler (`entrypoints/openai/server_utils.py`) repeats the value twice and names paths of this host.
    """
    response = importlib.import_module("starlette.responses").JSONResponse

    async def answer(_request: Any, error: Any) -> Any:
        message, param = describe_wrong_field(error.errors(), error.body)
        return response({"error": {"message": message, "param": param}}, 400)

    layer.add_exception_handler(importlib.import_module("fastapi.exceptions").RequestValidationError, answer)


def fail_what_is_left(shutdown: Any, timeout: float | None = None) -> None:
    """Fail the requests that EngineCore has not finished when it has ended in a drain.

    vLLM waits until EngineCore has ended, cancels the task that reads its outputs (`v1/engine/async_llm.py`), and then
    waits for the open requests. If EngineCore was killed, nothing ends those.
    """
    client = shutdown.__self__
    shutdown(timeout=timeout)
    if client.output_handler is not None:
        error = importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError()
        client.output_handler.get_loop().call_soon_threadsafe(client.output_processor.propagate_error, error)


async def answer_messages(method: Any, request: Any, raw_request: Any) -> Any:
    """Answer 400 on `/v1/messages` and below where the other routes do.

    vLLM answers every exception with 500 there (`entrypoints/anthropic/api_router.py`).
    """
    try:
        return await method(request, raw_request)
    except mistake_types() as error:
        return error_of(error, raw_request)


async def answer_images_without_a_place(process: Any, *arguments: Any, **named: Any) -> Any:
    """Answer 400 when the chat template leaves an image out, for example in a tool's answer.

    vLLM asserts that each image has its place in the prompt (`multimodal/processing/processor.py`): a 500 with a
    traceback.
    """
    try:
        return await process(*arguments, **named)
    except AssertionError as error:
        raise ValueError(
            "An image has no place in the prompt: the chat template leaves images out of messages of this role."
            " Send it in a user message."
        ) from error


def answer_named_models(app: Any) -> None:
    """Answer `GET /v1/models/NAME`, which vLLM 0.20.2 does not have, with the entry of that name in `/v1/models`."""
    response = importlib.import_module("starlette.responses").JSONResponse

    async def named_model(name: str) -> Any:
        models = await app.state.openai_serving_models.show_available_models()
        for model in models.data:
            if model.id == name:
                return response(model.model_dump())
        return response({"error": {"message": f"The model `{name}` does not exist.", "param": "model"}}, 404)

    app.add_api_route(NAMED_MODEL + "{name:path}", named_model)


async def hide_paths(show_available_models: Any) -> Any:
    """Set each model's and adapter's `root` in `/v1/models` to its name, as OpenAI did.

    vLLM puts the folder of the weights there (`entrypoints/openai/models/serving.py`), and only displays it.
    """
    models = await show_available_models()
    for model in models.data:
        model.root = model.id
    return models


async def name_responses(create_responses: Any, request: Any, raw_request: Any = None) -> Any:
    """Use the request's id in `/v1/responses` too.

    vLLM takes the id of this route from the body, where two clients can send the same one (`responses/serving.py`).
    """
    if raw_request is not None:
        request.request_id = f"resp_{raw_request.headers[HEADER.decode()]}"
    return await create_responses(request, raw_request)


def read_checked_bodies() -> None:
    """Let Starlette's requests return the body that the guard has parsed, so that one parser decides what it says."""
    request_class = importlib.import_module("starlette.requests").Request
    read = request_class.json

    async def json(self: Any) -> Any:
        return self.scope[CHECKED_BODY] if CHECKED_BODY in self.scope else await read(self)

    request_class.json = json


def stop_at_first_mistakes(routes: Iterable[Any], paths: Collection[str]) -> None:
    """Rebuild the validators of these routes' bodies so that each list stops at its first wrong item.

    pydantic validates a whole list and collects every mistake, for each member of a union: 2,000 wrong items of
    `/v1/responses` gave 408,001 mistakes and blocked vLLM's event loop for five seconds.
    routes: FastAPI's; raises LookupError when one of the `paths` has no body that is validated.
    """
    with_body = {route.path: route for route in routes if getattr(route, "body_field", None)}
    if missing := set(paths) - with_body.keys():
        raise LookupError(f"no validated body on {', '.join(sorted(missing))}")
    for path in paths:
        for each in (with_body[path].body_field, *with_body[path].dependant.body_params):
            _rebuild(each._type_adapter)  # noqa: SLF001 - FastAPI has no public way to a route's validator


def _rebuild(adapter: Any) -> None:
    models = []
    for schema in _schemas(adapter.core_schema):
        if schema["type"] in {"list", "tuple", "set"}:
            schema["fail_fast"] = True
        elif schema["type"] == "model" and vars(schema["cls"]).get("__pydantic_complete__"):
            models.append(schema["cls"])
    try:
        for model in models:  # pydantic-core would use a complete model's own validator instead of its schema
            model.__pydantic_complete__ = False
        adapter.validator = importlib.import_module("pydantic_core").SchemaValidator(
            adapter.core_schema,
            adapter._config,  # noqa: SLF001
        )
    finally:
        for model in models:
            model.__pydantic_complete__ = True


def _schemas(value: Any) -> Iterator[dict[str, Any]]:
    pending, seen = [value], set()
    while pending:
        value = pending.pop()
        if isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, dict) else value)
            if isinstance(value, dict) and isinstance(value.get("type"), str):
                yield value
