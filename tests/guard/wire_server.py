"""A real uvicorn with uvloop and httptools, as vLLM runs it, with the guard's protocol and gate, and a fake vLLM.

usage: wire_server.py RULES.json [CERTIFICATE KEY], with the engine's Python and the guard on its path. Prints its port.
`/v1/completions` answers with what it was given; `/v1/chat/completions` streams until its client is gone,
`/v1/responses` a few pieces.
"""

import asyncio
import importlib
import json
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servekit.serve.guard.inside.servekit_guard.asgi import Receive, Scope, Send
    from servekit.serve.guard.inside.servekit_guard.gate import Gate
    from servekit.serve.guard.inside.servekit_guard.guard_config import Rules
    from servekit.serve.guard.inside.servekit_guard.wire import header_limits, slow_readers
else:
    from servekit_guard.gate import Gate
    from servekit_guard.guard_config import Rules
    from servekit_guard.wire import header_limits, slow_readers

PIECE = b"data: " + b"x" * 4000 + b"\n\n"
PIECES = 3


async def play_vllm(scope: "Scope", receive: "Receive", send: "Send") -> None:
    """Answer as vLLM would."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/v1/chat/completions":
        await stream(receive, send)
        return
    if scope["path"] == "/v1/responses":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(PIECES):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    given = {
        "body": body.decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
    }
    body = json.dumps(given).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def stream(receive: "Receive", send: "Send") -> None:
    """Send endlessly, as Starlette does: until the client is reported as disconnected."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def pieces() -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(gone()), asyncio.create_task(pieces())]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()


def main(rules_file: str, certificate: str | None = None, key: str | None = None) -> None:
    """Serve until the end."""
    rules = Rules.read(rules_file)
    header_limits.limit(rules.max_head_bytes, rules.max_head_s)
    watch = slow_readers.watch(rules.max_write_s)
    gate = Gate(play_vllm, rules)
    watch.report = gate.count_unread
    uvicorn: Any = importlib.import_module("uvicorn")
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    print(listening.getsockname()[1], flush=True)
    tls = {"ssl_certfile": certificate, "ssl_keyfile": key}
    config = uvicorn.Config(gate, http="auto", loop="uvloop", log_level="warning", **tls)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
