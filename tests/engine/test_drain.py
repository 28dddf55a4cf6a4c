"""Clients that never pause while the real engine gets SIGTERM: each gets a complete answer or a proper refusal."""

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.guard.conftest import image, png
from tests.harness.endpoint import Endpoint

Serve = Callable[..., Endpoint]

TOKENS = 6
TEXT = {"type": "text", "text": "Once upon a time"}
PICTURE = png(64, 64)
KINDS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Once"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": [TEXT, image(PICTURE), image(PICTURE)]}]},
}
CLIENTS = 12


@pytest.mark.parametrize("attempt", [1, 2])
def test_requests_in_the_moment_of_the_stop(serve: Serve, attempt: int) -> None:
    """SIGTERM under load: no answer is empty or cut, and the endpoint exits with 0."""
    endpoint = serve()
    endpoint.until_ready()
    with under_fire(endpoint) as answers:
        endpoint.until(lambda: answers["whole"] >= 2 * CLIENTS, "answers")
        time.sleep(0.1 * attempt)  # at a different point of the clients' rounds each time
        endpoint.process.send_signal(signal.SIGTERM)
        assert endpoint.end(90) == 0, endpoint.lines[-20:]
    told = "\n".join(f"{count:6} {answer}" for answer, count in answers.most_common())
    print(f"\nattempt {attempt}:\n{told}")
    assert set(answers) <= {"whole", "503", "closed"}, told
    assert any("SIGTERM: draining, " in line for line in endpoint.lines)
    assert not any("may be answered with nothing" in line for line in endpoint.lines)


@contextmanager
def under_fire(endpoint: Endpoint) -> Iterator[Counter[str]]:
    """Let clients send text and images in turn, streamed and not; yield a live counter of the results."""
    answers: Counter[str] = Counter()
    over = threading.Event()

    def ask(number: int) -> None:
        headers = {"Authorization": f"Bearer {endpoint.key}"}
        with httpx.Client(base_url=endpoint.url, headers=headers, timeout=60) as client:
            turn = number
            while not over.is_set():
                turn += 1
                path = list(KINDS)[turn % 2]
                outcome = request(client, path, stream=turn % 4 < 2)
                if outcome == "port closed":
                    return
                answers[outcome] += 1

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    yield answers
    over.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def request(client: httpx.Client, path: str, *, stream: bool) -> str:
    """Send one request; return `whole`, a status, `closed` if the connection ended without an answer, or an error."""
    body = {"model": "gemma4-demo", "max_tokens": TOKENS, "ignore_eos": True, "stream": stream, **KINDS[path]}
    if stream:
        body["stream_options"] = {"include_usage": True}
    answered = False
    try:
        with client.stream("POST", path, json=body) as answer:
            answered = True
            text = answer.read().decode()
    except httpx.ConnectError:
        return "port closed"
    except httpx.TransportError as error:
        return f"cut: {error!r}" if answered else "closed"
    if answer.status_code != 200:
        return str(answer.status_code) if answer.status_code == 503 else f"{answer.status_code}: {text[:200]}"
    return "whole" if is_whole(text, stream=stream) else f"not whole: {path} {text[-300:]}"


def is_whole(text: str, *, stream: bool) -> bool:
    """Return whether an answer has all its tokens and a finish reason."""
    if not stream:
        answer = json.loads(text)
        return bool(
            answer["usage"]["completion_tokens"] == TOKENS and answer["choices"][0]["finish_reason"] == "length"
        )
    ended = f'"completion_tokens":{TOKENS}' in text and '"finish_reason":"length"' in text
    return ended and text.rstrip().endswith("data: [DONE]")
