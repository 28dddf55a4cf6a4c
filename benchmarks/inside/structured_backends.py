"""Runs under the engine's Python: what vLLM's backends for structured output support and cost, with one tokenizer.

Its only argument is a JSON file: `tokenizer` (a folder), `features` (name: schema, right, wrong), `documents` (name:
schema, text), `rows`, `rounds`. The last line of its output is the result, as JSON; times are milliseconds, the best
of the rounds.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sampling: Any = importlib.import_module("vllm.sampling_params")
structured: Any = importlib.import_module("vllm.v1.structured_output")
guidance: Any = importlib.import_module("vllm.v1.structured_output.backend_guidance")
xgrammar: Any = importlib.import_module("vllm.v1.structured_output.backend_xgrammar")

BACKENDS = {
    "guidance": (guidance.GuidanceBackend, guidance.validate_guidance_grammar),
    "xgrammar": (xgrammar.XgrammarBackend, xgrammar.validate_xgrammar_grammar),
}
JSON = importlib.import_module("vllm.v1.structured_output.backend_types").StructuredOutputOptions.JSON


def main() -> None:
    """Measure both backends, one after the other."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(asked["tokenizer"])
    print(json.dumps({name: measure(name, tokenizer, asked) for name in BACKENDS}))


def measure(name: str, tokenizer: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the results of one backend."""
    make, validate = BACKENDS[name]
    config = configuration(max(asked["rows"]))
    before_bytes, began_s = resident_bytes(), time.perf_counter()
    backend = make(vllm_config=config, tokenizer=tokenizer, vocab_size=len(tokenizer))
    result: dict[str, Any] = {
        "start_ms": (time.perf_counter() - began_s) * 1000,
        "start_bytes": resident_bytes() - before_bytes,
        "served": {each: serves(backend, validate, tokenizer, *found) for each, found in asked["features"].items()},
    }
    for document, (schema, text) in asked["documents"].items():
        times = [compile_times(backend, validate, schema, number) for number in range(asked["rounds"])]
        result[document] = {"validate_ms": min(one for one, _ in times), "compile_ms": min(two for _, two in times)}
        for rows in asked["rows"]:
            passes = [token_ms(backend, config, tokenizer, schema, text, rows) for _ in range(asked["rounds"])]
            result[document][f"token_ms_{rows}"] = min(passes)
    return result


def serves(backend: Any, validate: Any, tokenizer: Any, schema: dict[str, Any], right: str, wrong: str) -> str:
    """Return `yes`, or the mistake: refused, refuses a right answer, takes a wrong answer."""
    try:
        validate(sampling.SamplingParams(structured_outputs=sampling.StructuredOutputsParams(json=schema)))
        takes_right = takes(backend, tokenizer, schema, right)
        takes_wrong = takes(backend, tokenizer, schema, wrong)
    except Exception:  # noqa: BLE001 - whatever vLLM raises is a refusal
        return "refused"
    if not takes_right:
        return "refuses a right answer"
    return "takes a wrong answer" if takes_wrong else "yes"


def takes(backend: Any, tokenizer: Any, schema: dict[str, Any], text: str) -> bool:
    """Return whether a grammar accepts a complete text and its end."""
    grammar = backend.compile_grammar(JSON, json.dumps(schema))
    tokens = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    return len(grammar.validate_tokens(tokens)) == len(tokens)


def compile_times(backend: Any, validate: Any, schema: dict[str, Any], number: int) -> tuple[float, float]:
    """Return the milliseconds of the server's check and of EngineCore's compilation.

    Each number makes a different schema: xgrammar caches what it has compiled.
    """
    fresh = schema | {"title": f"round {number}"}
    if isinstance(fresh.get("properties"), dict):
        fresh["properties"] = fresh["properties"] | {f"z{number}": {"type": "null"}}
    began_s = time.perf_counter()
    validate(sampling.SamplingParams(structured_outputs=sampling.StructuredOutputsParams(json=fresh)))
    checked_s = time.perf_counter()
    backend.compile_grammar(JSON, json.dumps(fresh))
    return (checked_s - began_s) * 1000, (time.perf_counter() - checked_s) * 1000


def token_ms(backend: Any, config: Any, tokenizer: Any, schema: dict[str, Any], text: str, rows: int) -> float:
    """Return the milliseconds that a step of `rows` structured requests adds in EngineCore, the mean over a text.

    vLLM's own manager fills the masks (`grammar_bitmask`: on threads for more than 128 rows) and the scheduler then
    lets every grammar accept its token (`update_from_output`).
    """
    manager = structured.StructuredOutputManager(config)
    manager.backend = backend
    grammars = [backend.compile_grammar(JSON, json.dumps(schema)) for _ in range(rows)]
    requests: Any = {
        str(number): SimpleNamespace(structured_output_request=SimpleNamespace(grammar=grammar, reasoner=None))
        for number, grammar in enumerate(grammars)
    }
    tokens = tokenizer.encode(text, add_special_tokens=False)
    began_s = time.perf_counter()
    for token in tokens:
        manager.grammar_bitmask(requests, list(requests), {})
        for name, grammar in enumerate(grammars):
            if not grammar.accept_tokens(str(name), [token]):
                raise SystemExit(f"the grammar rejects the text at token {token}")
    return (time.perf_counter() - began_s) * 1000 / len(tokens)


def configuration(rows: int) -> Any:
    """Return the part of vLLM's configuration that the manager and the backends read."""
    return SimpleNamespace(
        structured_outputs_config=SimpleNamespace(
            disable_any_whitespace=False,
            disable_additional_properties=False,
            enable_in_reasoning=False,
            reasoning_parser="",
            reasoning_parser_plugin="",
        ),
        parallel_config=SimpleNamespace(distributed_executor_backend="mp"),
        scheduler_config=SimpleNamespace(max_num_seqs=rows),
        model_config=SimpleNamespace(skip_tokenizer_init=True),
        speculative_config=None,
    )


def resident_bytes() -> int:
    """Return this process's resident memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


if __name__ == "__main__":
    main()
