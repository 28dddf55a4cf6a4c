"""Structured output: guidance and xgrammar as vLLM uses them, with 262,144 words: what they support and what it costs.

The words are synthetic: the demo's, with two thirds replaced by other things that a real vocabulary has: runs of
punctuation, blanks and digits, capitalised and unspaced words, and characters of seven scripts.
"""

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.programs import clean_environment, engine_program, timed
from benchmarks.structured_features import BEYOND, OPENAI
from servekit.demo.vocabulary import SPACE, Vocabulary, tokenizer, vocabulary

NAME = "structured"
ROUNDS = 5
ROWS = (1, 64, 512)
WORDS = 262_144
REPLACED = 170_000
SCRIPT = Path(__file__).parent / "inside" / "structured_backends.py"
_MARKS = "{}[]\",:.-_'()/\\<>=*#+!?;&|%$@~^`"
_SCRIPTS = (
    (0x391, 0x3C9),
    (0x410, 0x44F),
    (0x5D0, 0x5EA),
    (0x621, 0x64A),
    (0x905, 0x939),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
)


def run(rounds: int | None) -> dict[str, Any]:
    """Return what each backend supports, and the milliseconds to start, to check, to compile, and per token."""
    python = Path(engine_program()).with_name("python")
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        asked = {
            "tokenizer": folder,
            "features": OPENAI | BEYOND,
            "documents": documents(),
            "rows": ROWS,
            "rounds": rounds or ROUNDS,
        }
        file = Path(folder) / "asked.json"
        file.write_text(json.dumps(asked), encoding="utf-8")
        done = timed([str(python), str(SCRIPT), str(file)], clean_environment())
    if done.code != 0:
        raise SystemExit(f"{SCRIPT.name} ended with {done.code}:\n{done.output[-2000:]}")
    result: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    return result


def documents() -> dict[str, tuple[dict[str, Any], str]]:
    """Return schemas of three sizes, each with a valid text."""
    order = {"id": {"type": "integer"}, "name": {"type": "string"}, "paid": {"type": "boolean"}}
    text = '{"id":17,"name":"the first word of another","paid":true}'
    fields = {f"field_{number}": {"type": ["string", "null"]} for number in range(200)}
    filled = json.dumps(dict.fromkeys(fields, "some word"), separators=(",", ":"))
    words = {"word": {"enum": [f"word {number}" for number in range(1000)]}}
    return {
        "json_object": ({"type": "object"}, text),
        "3 properties": (_closed(order), text),
        "200 properties": (_closed(fields), filled[: len(filled) // 5]),
        "enum of 1,000": (_closed(words), '{"word":"word 777"}'),
    }


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of 262,144 words."""
    words = vocabulary(WORDS)
    known, special = set(words.tokens), set(words.special.values())
    others = itertools.islice((token for token in _other_tokens() if token not in known), REPLACED)
    places = [number for number in range(WORDS) if number not in special][-REPLACED:]
    tokens = dict(enumerate(words.tokens)) | dict(zip(places, dict.fromkeys(others), strict=False))
    made = Vocabulary(tuple(tokens[number] for number in range(WORDS)), words.special)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(made)), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "bos_token": "<bos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _other_tokens() -> Iterator[str]:
    for length in (2, 3):
        yield from ("".join(marks) for marks in itertools.product(_MARKS, repeat=length))
    for number in range(2, 32):
        yield from (SPACE * number, "\n" * number, "\n" + SPACE * number)
    yield from (str(number) for number in range(10, 1000))
    for first, last in _SCRIPTS:
        yield from map(chr, range(first, last + 1))
    for word in (token[1:] for token in vocabulary(WORDS).tokens if token.startswith(SPACE) and token[1:].isalpha()):
        yield from (word, word.capitalize(), '"' + word)


def table(result: dict[str, Any]) -> list[str]:
    """Format the result as lines."""
    rows = [f"{'':<42}" + "".join(f"{name:>26}" for name in result)]
    rows += [_row(each, [found["served"][each] for found in result.values()]) for each in OPENAI | BEYOND]
    rows.append(_row("start, ms", [f"{found['start_ms']:.0f}" for found in result.values()]))
    rows.append(_row("start, MiB", [f"{found['start_bytes'] / 2**20:.0f}" for found in result.values()]))
    for document in documents():
        rows += [
            _row(f"{document}: {name}", [f"{found[document][name]:.2f}" for found in result.values()])
            for name in next(iter(result.values()))[document]
        ]
    return rows


def _row(name: str, cells: list[str]) -> str:
    return f"{name:<42}" + "".join(f"{cell:>26}" for cell in cells)
