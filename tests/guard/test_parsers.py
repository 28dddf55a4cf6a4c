"""Gemma 4's answers through the code of vLLM's server: its own parsers, and those that servekit puts in their place."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from servekit.serve.guard import INSIDE
from tests.conftest import ROOT
from tests.guard.test_reader import TEXTS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PROGRAM = Path(__file__).with_name("parsers_inside.py")


@pytest.fixture(scope="module")
def read() -> dict[str, dict[str, Any]]:
    """What vLLM's own parsers and servekit's read in every answer."""
    done = subprocess.run(
        [ROOT / ".venv-engine" / "bin" / "python", PROGRAM],
        input=json.dumps({name: text for name, (text, _expected) in TEXTS.items()}),
        env={"PATH": os.defpath, "HOME": "/nonexistent", "PYTHONPATH": str(INSIDE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    modules = {kind: found.pop("parser") for kind, found in result.items()}
    assert modules == {"vllm": "vllm.parser.abstract_parser", "servekit": "servekit_guard.answers.parsers"}
    return result


def test_streams_say_what_whole_answers_say(read: dict[str, dict[str, Any]]) -> None:
    """Chats and responses, whole and in deltas of one token, of some and of all: every one says what is expected."""
    wrong: dict[str, Any] = {}
    for name, found in read["servekit"].items():
        expected = vars(TEXTS[name][1])
        ways = {"whole": found["whole"], "response": found["response"], **found["streams"]}
        wrong |= {f"{name}, {way}": said for way, said in ways.items() if said != expected}
    assert wrong == {}


def test_vllms_own_parsers_are_still_wrong(read: dict[str, dict[str, Any]]) -> None:
    """vLLM's own parsers fail on these answers: when they no longer do, servekit's can go."""
    differ = {
        name
        for name, found in read["vllm"].items()
        if any(said != found["whole"] for said in found["streams"].values())
    }
    assert {"call", "text around calls", "thinking twice"} <= differ
