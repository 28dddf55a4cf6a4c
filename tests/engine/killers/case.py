"""A request, its correct result, and how it is sent and judged."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
COUNT = "/v1/messages/count_tokens"

REFUSED = frozenset({400})
RIGHT = frozenset({200})
UNHARMED = frozenset({200, 400, 429})
"""Refused or answered correctly: these cases only check that no other request is affected."""

ANSWER_S = 60
"""Longer than any admitted request takes on two busy cores, and shorter than a hang of the server."""


@dataclass(frozen=True)
class Target:
    """An endpoint as a client knows it, and what a case needs to know about its model."""

    port: int
    key: str = field(repr=False)
    model: str
    vocabulary: int
    folder: str = ""
    """The checkpoint's folder, which no answer may contain."""


@dataclass(frozen=True)
class Answer:
    """An answer; status 0 if there was none."""

    status: int
    body: bytes = b""
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    """Why there was no answer."""

    def json(self) -> Any:
        """Return the body as JSON, or None if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def message(self) -> str:
        """Return the error's message, or an empty string if there is none."""
        said = self.json()
        error = said.get("error") if isinstance(said, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        return message if isinstance(message, str) else ""


@dataclass(frozen=True)
class Case:
    """One request and its correct result."""

    name: str
    body: Callable[[Target], Any]
    """Returns an object to encode as JSON, or the bytes of a body."""
    path: str = CHAT
    statuses: frozenset[int] = REFUSED
    says: tuple[str, ...] = ()
    """Texts that the message of a refusal must contain, usually the field."""
    hides: Callable[[Target], Iterable[str]] = lambda _target: ()
    """Texts that no answer may contain."""
    headers: tuple[str, ...] = ()
    method: str = "POST"
    closes: tuple[str, ...] = ()
    """The published vulnerabilities that this request would exploit."""

    def request(self, target: Target) -> bytes:
        """Return the complete request as sent over the wire."""
        content = self.body(target)
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        own = {line.partition(":")[0].lower() for line in self.headers}
        usual = {
            "host": "Host: localhost",
            "authorization": f"Authorization: Bearer {target.key}",
            "content-type": "Content-Type: application/json",
            "content-length": f"Content-Length: {len(body)}",
            "connection": "Connection: close",
        }
        lines = [line for name, line in usual.items() if name not in own]
        head = "\r\n".join([f"{self.method} {self.path} HTTP/1.1", *lines, *self.headers])
        return head.encode("latin-1") + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Group:
    """Cases that run in this order beside one greedy stream."""

    name: str
    cases: tuple[Case, ...]


def send(target: Target, data: bytes, answer_s: float = ANSWER_S) -> Answer:
    """Send a complete request on a new connection and read the answer."""
    began = time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", target.port), timeout=answer_s) as connection:
            problem = ""
            try:
                connection.sendall(data)
            except OSError as error:  # refused before the whole body was sent: there may still be an answer
                problem = repr(error)
            response = http.client.HTTPResponse(connection)
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, response.read(), time.monotonic() - began, headers, problem)
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, b"", time.monotonic() - began, {}, repr(error))


def fire(target: Target, case: Case) -> tuple[Answer, list[str]]:
    """Send one case; return its answer and everything that is wrong with it."""
    answer = send(target, case.request(target))
    return answer, [f"{case.name}: {wrong}" for wrong in judge(target, case, answer)]


def judge(target: Target, case: Case, answer: Answer) -> list[str]:
    """Return what is wrong with an answer; an empty list if it is right."""
    if answer.status == 0:
        return [] if 0 in case.statuses else [f"no answer after {answer.seconds:.1f} s ({answer.problem})"]
    wrong = []
    if answer.status not in case.statuses:
        wrong.append(f"{answer.status}, not {sorted(case.statuses)}: {answer.body[:200]!r}")
    if answer.status >= 400:
        wrong += _judge_refusal(case, answer)
    text = answer.body.decode("utf-8", "replace")
    wrong += [f"tells {secret}" for secret in (*case.hides(target), target.key) if secret and secret in text]
    return wrong


def _judge_refusal(case: Case, answer: Answer) -> list[str]:
    if not answer.message:
        return [f"{answer.status} without a message: {answer.body[:200]!r}"]
    missing = [word for word in case.says if word.lower() not in answer.message.lower()]
    wrong = [f"the message does not say {missing}: {answer.message[:200]!r}"] if missing else []
    if " at 0x" in answer.message:
        wrong.append(f"the message tells an address in memory: {answer.message[:200]!r}")
    return wrong


def chat(content: Any = "Hello", /, **fields: Any) -> dict[str, Any]:
    """Return a small chat request."""
    return {"max_tokens": 4, "messages": [{"role": "user", "content": content}]} | fields


def completion(prompt: Any = "Hello", /, **fields: Any) -> dict[str, Any]:
    """Return a small completion request."""
    return {"prompt": prompt, "max_tokens": 4} | fields


def response(content: Any = "Hello", /, **fields: Any) -> dict[str, Any]:
    """Return a small request for /v1/responses."""
    return {"input": content, "max_output_tokens": 4} | fields


def message(content: Any = "Hello", /, **fields: Any) -> dict[str, Any]:
    """Return a small request for /v1/messages, which has no field for a missing model."""
    return {"max_tokens": 4, "messages": [{"role": "user", "content": content}]} | fields


def count(content: Any = "Hello", /, **fields: Any) -> dict[str, Any]:
    """Return a small request for the number of a prompt's tokens."""
    return {"messages": [{"role": "user", "content": content}]} | fields


MAKERS: dict[str, Callable[..., dict[str, Any]]] = {
    CHAT: chat,
    COMPLETIONS: completion,
    RESPONSES: response,
    MESSAGES: message,
    COUNT: count,
}


def fields(name: str, path: str = CHAT, /, *, made: Callable[[Target], Any], **right: Any) -> Case:
    """Return the case of an ordinary request with these fields added: `made` returns them for a target."""
    return Case(name, lambda target: MAKERS[path](model=target.model) | made(target), path, **right)


def plain(name: str, path: str = CHAT, /, *, added: dict[str, Any], **right: Any) -> Case:
    """Return the case of an ordinary request with fields that are the same for every model."""
    return fields(name, path, made=lambda _target: added, **right)
