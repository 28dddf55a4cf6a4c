"""One id for each request: in the answer's headers, in the guard's errors, and in vLLM's own ids and log.

vLLM 0.20.2 builds the id of a request from the header `X-Request-Id`, or from the body's `request_id`
(`entrypoints/openai/engine/serving.py`), and adds 32 random bits to it (`v1/engine/input_processor.py`). Two
requests in flight with one id end EngineCore ("duplicate request id", `v1/core/sched/scheduler.py`), and a client
that sends the same id with thousands of requests need not wait long for 32 bits. So what vLLM gets is unique here.
"""

import os
import re
from typing import Any

HEADER = b"x-request-id"
PLAIN = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""What is taken from a client: it goes into a header and into the log."""
UNIQUE_BYTES = 16


def new_id() -> bytes:
    """Return an id that no other request has."""
    return os.urandom(UNIQUE_BYTES).hex().encode()


def name_request(scope: Any) -> bytes:
    """Return the id a request is answered with; in the scope's headers stands the one vLLM builds on.

    A client's own id is kept when it is short and plain, and given to vLLM with a unique end.
    """
    unique = new_id()
    headers = scope["headers"]
    sent = [value for name, value in headers if name == HEADER]
    if not sent:
        scope["headers"] = [*headers, (HEADER, unique)]
        return unique
    own = sent[0] if len(sent) == 1 and PLAIN.fullmatch(sent[0]) else b""
    others = [header for header in headers if header[0] != HEADER]
    scope["headers"] = [*others, (HEADER, own + b"-" + unique if own else unique)]
    return own or unique


def name_responses(state: Any) -> None:
    """Give the handler of `/v1/responses` the same id: it alone takes it from the body (`responses/serving.py`)."""
    serving = getattr(state, "openai_serving_responses", None)
    if serving is None:
        return
    create_responses = serving.create_responses

    async def create_named(request: Any, raw_request: Any = None) -> Any:
        if raw_request is not None:
            request.request_id = f"resp_{raw_request.headers[HEADER.decode()]}"
        return await create_responses(request, raw_request)

    serving.create_responses = create_named
