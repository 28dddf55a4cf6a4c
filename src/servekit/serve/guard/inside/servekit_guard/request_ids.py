"""One id for each request: in the answer's headers, in the guard's errors, and in vLLM's own ids and log.

vLLM 0.20.2 builds the id of a request from the header `X-Request-Id`, or from the body's `request_id`
(`entrypoints/openai/engine/serving.py`), and adds 32 random bits to it (`v1/engine/input_processor.py`). Two
requests in flight with the same id end EngineCore ("duplicate request id", `v1/core/sched/scheduler.py`), and a client
that sends the same id with thousands of requests soon repeats 32 bits. So the id that vLLM gets is made unique here.
"""

import os
import re
from typing import Any

HEADER = b"x-request-id"
PLAIN = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""The ids accepted from a client: they appear in a header and in the log."""
UNIQUE_BYTES = 16


def new_id() -> bytes:
    """Return an id that no other request has."""
    return os.urandom(UNIQUE_BYTES).hex().encode()


def name_request(scope: Any) -> bytes:
    """Return the id for the answer to a request, and put the id for vLLM into the scope's headers.

    A client's own id is kept when it is short and plain; vLLM gets it with a unique suffix.
    """
    unique, headers = new_id(), scope["headers"]
    sent = [value for name, value in headers if name == HEADER]
    own = sent[0] if len(sent) == 1 and PLAIN.fullmatch(sent[0]) else b""
    others = [header for header in headers if header[0] != HEADER] if sent else headers
    scope["headers"] = [*others, (HEADER, own + b"-" + unique if own else unique)]
    return own or unique
