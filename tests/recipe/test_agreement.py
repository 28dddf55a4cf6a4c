"""`servekit eval agreement`: the divergence, and the way through an endpoint."""

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from servekit.errors import ConfigurationError
from servekit.recipe.agreement import Endpoint, compare, divergence, read_base, read_prompts, record

WORDS = {"yes": 0.7, "no": 0.2}


def logs(words: dict[str, float]) -> dict[str, float]:
    """Return log probabilities."""
    return {word: math.log(share) for word, share in words.items()}


def test_divergence_of_the_same_is_zero() -> None:
    """A distribution does not diverge from itself."""
    assert divergence(logs(WORDS), logs(WORDS)) == pytest.approx(0)


def test_divergence_counts_all_other_words_as_one() -> None:
    """The rest is one class: KL over (0.7, 0.2, 0.1) and (0.6, 0.3, 0.1)."""
    expected = 0.7 * math.log(0.7 / 0.6) + 0.2 * math.log(0.2 / 0.3)
    assert divergence(logs(WORDS), logs({"yes": 0.6, "no": 0.3})) == pytest.approx(expected)


def test_a_word_that_the_other_lacks_joins_the_rest() -> None:
    """KL over (0.7, 0.3) and (0.6, 0.4) if the other's list has no `no`."""
    expected = 0.7 * math.log(0.7 / 0.6) + 0.3 * math.log(0.3 / 0.4)
    assert divergence(logs(WORDS), logs({"yes": 0.6, "maybe": 0.3})) == pytest.approx(expected)


class Handler(BaseHTTPRequestHandler):
    """An endpoint whose next word is always `yes` with the server's probability."""

    def do_GET(self) -> None:
        """List one model."""
        self.answer({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        """Answer with words and their probabilities."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)  # type: ignore[attr-defined]
        share: float = self.server.share  # type: ignore[attr-defined]
        tops = [{"token": "yes", "logprob": math.log(share)}, {"token": "no", "logprob": math.log(0.9 - share)}]
        words = [{"token": "yes", "top_logprobs": tops}] * body["max_tokens"]
        self.answer({"choices": [{"logprobs": {"content": words}}]})

    def answer(self, content: object) -> None:
        """Send JSON."""
        raw = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """The endpoint, on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.bodies, made.share = [], 0.7  # type: ignore[attr-defined]
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_record_and_compare(server: ThreadingHTTPServer) -> None:
    """Both ask after the same beginnings of the base's answer, and another distribution gives its divergence."""
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}")
    base = record(endpoint, [[{"role": "user", "content": "Well?"}]], positions=3, max_tokens=4)
    assert base["cases"][0]["beginnings"] == ["", "yes", "yesyes"]
    assert base["cases"][0]["tokens"] == 4
    continued = [body for body in server.bodies if body.get("continue_final_message")]  # type: ignore[attr-defined]
    assert sorted(body["messages"][-1]["content"] for body in continued) == ["yes", "yesyes"]
    server.share = 0.6  # type: ignore[attr-defined]
    found = compare(endpoint, json.loads(json.dumps(base)))
    expected = 0.7 * math.log(0.7 / 0.6) + 0.2 * math.log(0.2 / 0.3)
    assert found.divergence_nats == pytest.approx(expected)
    assert (found.positions, found.top1, found.merged, found.tokens) == (3, 1.0, 0.0, 4)
    assert "within" in found.text(expected + 1e-9)
    assert "above" in found.text(0)


def test_no_endpoint_is_a_clear_message(free_port: int) -> None:
    """A port that nobody serves is named."""
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{free_port}"):
        Endpoint(f"http://127.0.0.1:{free_port}").model()


def test_prompts(tmp_path: Path) -> None:
    """Without a file there are texts and pictures; a row without messages is named by its line, and no row too."""
    assert any(isinstance(prompt[0]["content"], list) for prompt in read_prompts(None))
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl: error: has no prompts"):
        read_prompts(path)
    path.write_text('{"messages": [{"role": "user", "content": "a"}]}\n{"text": "b"}\n')
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl:2"):
        read_prompts(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"max_tokens": 9, "cases": []}', '{"max_tokens": 9, "cases": [{}]}'])
def test_a_file_that_is_no_record(tmp_path: Path, text: str) -> None:
    """`--base` with any other file is a mistake of the user's, named with the file."""
    path = tmp_path / "base.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"base\.json: error: is no record"):
        read_base(path)
