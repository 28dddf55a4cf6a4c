"""How the program inside lmms-eval sends requests: what is refused, what fails, and what is kept."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from servekit.measure.eval import lmms_program
from servekit.measure.eval.lmms_program import AnswerFile, Plan, describe
from servekit.measure.eval.mmmu_answers import Answer
from tests.measure.eval.lmms import OPTIONS

ROW = {"id": "test_Art_1", "subject": "Art", "answer": "B", "options": repr(OPTIONS)}
CONTENT = [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": "Which?"}]
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "B"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
}


class Api(ThreadingHTTPServer):
    """Answers each chat with `status` and `body`; keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body = 200, json.dumps(ANSWER)
        self.asked: list[dict[str, Any]] = []
        self.hold = threading.Event()
        self.hold.set()

    def handle_error(self, *_: object) -> None:
        """Pass over a client that was gone before its answer."""

    @property
    def url(self) -> str:
        """Its address, with /v1."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        if not self.server.status or (len(self.server.asked) > 1 and not self.server.hold.wait(60)):
            return
        body = self.server.body.encode()
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def running_api() -> Iterator[Api]:
    """Serve until the end of the block."""
    with Api() as api:
        threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield api
        api.hold.set()
        api.shutdown()


def plan_for(api: Api, out: Path, **more: Any) -> Plan:
    """Return a plan that asks this server."""
    fixed: dict[str, Any] = {
        "url": api.url,
        "model": "m",
        "subsets": ["standard"],
        "prompt": "direct",
        "data": "/nowhere",
    }
    return Plan(**fixed, limit=None, streams=1, out=str(out), **more)


def error(code: str) -> str:
    """Return the body of an error, whose message quotes the prompt."""
    return json.dumps({"error": {"message": "Which?", "type": "BadRequestError", "param": None, "code": code}})


@pytest.mark.parametrize(
    ("status", "body", "outcome", "why"),
    [
        (200, json.dumps(ANSWER), "answered", ""),
        (400, error("too_many_images"), "refused", "400 too_many_images"),
        (413, error("request_too_large"), "refused", "413 request_too_large"),
        (401, error("invalid_api_key"), "failed", "401 invalid_api_key"),
        (429, error("too_busy"), "failed", "429 too_busy"),
        (503, error("draining"), "failed", "503 draining"),
        (500, "no JSON", "failed", "500 None"),
        (200, "no JSON", "failed", "JSONDecodeError"),
        (200, json.dumps(ANSWER | {"choices": []}), "failed", "IndexError"),
        (0, "", "failed", "APIConnectionError"),
    ],
)
def test_outcomes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, body: str, outcome: str, why: str
) -> None:
    """An answer that is final is a refusal, every other error a failure, and neither has a text to score."""
    monkeypatch.setattr(lmms_program, "ATTEMPTS", 1)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-key")
    with running_api() as api:
        api.status, api.body = status, body
        answers = AnswerFile(plan_for(api, tmp_path / "a.jsonl"))
        answers.questions.append(describe("standard", "direct", ROW))
        told = answers.ask(seed=0, model="endpoint", messages=[{"role": "user", "content": CONTENT}], max_tokens=256)
        answers.close()
    text = "B" if outcome == "answered" else ""
    assert told.choices[0].message.content == text
    written = (tmp_path / "a.jsonl").read_text()
    (kept,) = Answer.read([written])
    assert (kept.outcome, kept.why, kept.text, kept.images, kept.correct) == (outcome, why, text, 1, "B")
    assert answers.any is (outcome == "answered")
    assert "Which?" not in written
    assert (tmp_path / "a.jsonl").stat().st_mode & 0o777 == 0o600
    assert [(asked["model"], asked["max_tokens"], "seed" in asked) for asked in api.asked] == [("m", 256, False)]


@pytest.mark.parametrize(("longest", "tokens"), [(0, 16384), (20000, 15904), (2048, 1024)])
def test_the_longest_answer_leaves_room_for_the_prompt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, longest: int, tokens: int
) -> None:
    """The CoT prompt's 16,384 tokens would be refused where prompt and answer together may be no longer."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-key")
    with running_api() as api:
        answers = AnswerFile(plan_for(api, tmp_path / "a.jsonl", max_model_len=longest))
        answers.questions.append(describe("standard", "cot", ROW))
        answers.ask(seed=0, messages=[{"role": "user", "content": CONTENT}], max_tokens=16384)
        answers.close()
    assert api.asked[0]["max_tokens"] == tokens


INTERRUPTED = """
import json, signal, sys
from servekit.measure.eval.lmms_program import AnswerFile, Plan
plan, question, content = map(json.loads, sys.argv[1:])
answers = AnswerFile(Plan(*plan))
signal.signal(signal.SIGINT, answers.stop)
answers.questions = [question, question]
for number in range(2):
    answers.ask(seed=number, messages=[{"role": "user", "content": content}], max_tokens=9)
"""


def test_an_interrupt_keeps_the_answers(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """Ctrl-C while a request waits ends at once, with the scores of the answers before it."""
    scores, out = tmp_path / "scores.json", tmp_path / "a.jsonl"
    with running_api() as api:
        api.hold.clear()
        words = map(json.dumps, (plan_for(api, out), describe("standard", "direct", ROW), CONTENT))
        environ = {"OPENAI_API_KEY": "sk-key", "MEASURE_SCORES_FILE": str(scores), "PYTHONPATH": ":".join(sys.path)}
        with subprocess.Popen([sys.executable, "-c", INTERRUPTED, *words], env=environ) as process:
            eventually(lambda: len(api.asked) == 2, within_s=50, what="the second request")
            process.send_signal(signal.SIGINT)
            assert process.wait(50) == 128 + signal.SIGINT
    assert json.loads(scores.read_text())["MMMU-Pro standard (1 of 1,730)"] == 100
    assert len(Answer.read(out.read_text().splitlines(keepends=True))) == 1
