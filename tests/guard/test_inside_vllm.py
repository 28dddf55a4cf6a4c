"""What the guard changes in vLLM's own code, checked with the installed vLLM in its own Python."""

import json
import subprocess
from typing import Any

import pytest

from servekit.serve.guard import INSIDE
from tests.conftest import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PYTHON = ROOT / ".venv-engine" / "bin" / "python"


def run_inside(program: str) -> Any:
    """Run a program with the engine's Python and the guard on its path; return the JSON on its last line."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": str(INSIDE)}
    done = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_table_of_fields_is_what_the_installed_vllm_gives() -> None:
    """The committed table equals a fresh one from the engine's own request models."""
    script = ROOT / "scripts" / "request_fields.py"
    done = subprocess.run([PYTHON, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


VALIDATION = """
import json
from fastapi import FastAPI
from vllm.entrypoints.anthropic.api_router import router as messages
from vllm.entrypoints.openai.chat_completion.api_router import router as chat
from vllm.entrypoints.openai.completion.api_router import router as completions
from vllm.entrypoints.openai.responses.api_router import router as responses
from servekit_guard.routes import CLIENT_ROUTES
from servekit_guard.vllm_patches import stop_at_first_mistakes
app = FastAPI()
for router in (messages, chat, completions, responses):
    app.include_router(router)
bodies = {
    "/v1/responses": [{"input": [{"role": "user", "content": word}] * 200} for word in ("x", 5)],
    "/v1/chat/completions": [{"messages": [{"role": role, "content": "x"}] * 200} for role in ("user", 7)],
    "/v1/completions": [{"prompt": [[5] * 100, [5, last]]} for last in (5, "a")],
    "/v1/messages": [
        {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": word}] * 200} for word in ("x", 5)
    ],
}
def mistakes():
    fields = {route.path: route.body_field for route in app.routes if getattr(route, "body_field", None)}
    return {path: [len(fields[path].validate(each)[1]) for each in both] for path, both in bodies.items()}
before = mistakes()
stop_at_first_mistakes(app.routes, [route.path for route in CLIENT_ROUTES if route.generates])
print(json.dumps([before, mistakes()]))
"""


def test_validation_stops_at_the_first_wrong_item() -> None:
    """vLLM accepts the same bodies as before, and reports a refused body for one item's mistakes, not for all."""
    before, after = run_inside(VALIDATION)
    for path, (right, wrong) in after.items():
        assert right == before[path][0] == 0
        assert 0 < wrong <= before[path][1] / (1 if path == "/v1/completions" else 100)


def test_a_missing_route_is_reported() -> None:
    """A vLLM whose routes have other names does not start without this guard."""
    program = """
import json
from servekit_guard.vllm_patches import stop_at_first_mistakes
try:
    stop_at_first_mistakes([], ["/v1/chat/completions"])
except LookupError as error:
    print(json.dumps(str(error)))
"""
    assert "/v1/chat/completions" in run_inside(program)
