"""vLLM's own verdict on checkpoints; runs under the engine's Python, and `benchmarks/verdicts` feeds it.

Reads a JSON object per line: `argv`, the words after `vllm serve`, and `requests`, chat requests by name. For each line
it forks a child, which does in one process what the server and its engine do in three: configuration, weights,
tokenizer, processor, KV cache, serving objects, then the requests. Writes a JSON object per line: the `stage` that
failed (empty: every request was answered), its `error`, the `empty` parameters, and the `logits` of each
answer's first token.
"""

import asyncio
import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

LIMIT_S = 600
"""A child that takes longer is killed."""


def main() -> None:
    """Judge each line; import what a child imported, so that the next one need not."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to stdout
    for line in sys.stdin:
        began_s = time.monotonic()
        verdict = in_child(json.loads(line))
        for module in verdict.pop("modules", ()):
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        seconds = round(time.monotonic() - began_s, 1)
        print(json.dumps(verdict | {"seconds": seconds}), file=answers, flush=True)


def in_child(task: dict[str, Any]) -> dict[str, Any]:
    """Judge in a forked process, which may crash or hang; its output goes to stderr."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        with os.fdopen(writer, "w") as pipe:
            known = set(sys.modules)
            json.dump(judge(**task) | {"modules": [name for name in sys.modules if name not in known]}, pipe)
        os._exit(0)
    os.close(writer)
    text, end_s = b"", time.monotonic() + LIMIT_S
    while select.select([reader], [], [], max(0, end_s - time.monotonic()))[0]:
        piece = os.read(reader, 1 << 20)
        if not piece:
            break
        text += piece
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if text:
        answer: dict[str, Any] = json.loads(text)
        return answer
    return {"stage": "process", "error": f"exit code {os.waitstatus_to_exitcode(status)}"}


def judge(argv: list[str], requests: dict[str, Any]) -> dict[str, Any]:
    """Start the engine of `vllm serve ARGV` in this process and send it the requests."""
    stage = ["start"]
    seen: list[list[float]] = []
    empty = record_empty()
    try:
        asyncio.run(serve(argv, requests, stage, seen))
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the verdict
        traceback.print_exc()
        text = " ".join(str(error).split())
        return {"stage": stage[-1], "error": f"{type(error).__name__}: {text[:300]}", "logits": seen}
    return {"stage": "", "error": "", "logits": seen, "empty": empty}


async def serve(argv: list[str], requests: dict[str, Any], stage: list[str], seen: list[list[float]]) -> None:
    """Append each stage before it begins, and the logits of each answer's first token."""
    server: Any = importlib.import_module("vllm.entrypoints.openai.api_server")
    cli: Any = importlib.import_module("vllm.entrypoints.openai.cli_args")
    parser: Any = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
    args = cli.make_arg_parser(parser).parse_args(argv)
    args.model = getattr(args, "model_tag", None) or args.model
    cli.validate_parsed_serve_args(args)
    config = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs.from_cli_args(args).create_engine_config()
    uniproc: Any = importlib.import_module("vllm.v1.executor.uniproc_executor")
    engine = importlib.import_module("vllm.v1.engine.llm_engine").LLMEngine(
        config, uniproc.UniProcExecutor, log_stats=False, multiprocess_mode=False
    )
    record_logits(engine.model_executor.driver_worker.worker.model_runner.model, seen)
    state = SimpleNamespace()
    await server.init_app_state(Client(engine), state, args, engine.get_supported_tasks())
    protocol: Any = importlib.import_module("vllm.entrypoints.openai.chat_completion.protocol")
    completions: Any = importlib.import_module("vllm.entrypoints.openai.completion.protocol")
    last = max(engine.get_tokenizer().get_vocab().values())
    asked = {name: protocol.ChatCompletionRequest(**request) for name, request in requests.items()}
    asked["last token"] = completions.CompletionRequest(model="demo", prompt=[last], max_tokens=2)
    for number, (name, request) in enumerate(asked.items()):
        stage.append(name)
        del seen[number:]  # of warming up, and of the second token
        if name in requests:
            answer = await state.openai_serving_chat.create_chat_completion(request)
        else:
            answer = await state.openai_serving_completion.create_completion(request)
        if not hasattr(answer, "choices"):
            raise ValueError(answer.error.message)
    del seen[len(asked) :]


class Client:
    """An engine client as the server's, around an engine in the same process."""

    errored = False

    def __init__(self, engine: Any) -> None:
        """Take an LLMEngine."""
        self._engine = engine
        self.vllm_config, self.model_config = engine.vllm_config, engine.model_config
        self.renderer, self.input_processor = engine.renderer, engine.input_processor

    async def is_tracing_enabled(self) -> bool:
        """Nothing is traced."""
        return False

    async def generate(self, prompt: Any, params: Any, request_id: str, **_named: Any) -> AsyncIterator[Any]:
        """Run one request to its end."""
        self._engine.add_request(request_id, prompt, params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                yield output


def record_empty() -> list[str]:
    """Return a list that gets the names of the parameters into which no weights are loaded."""
    model: Any = importlib.import_module("vllm.model_executor.models.gemma4_mm").Gemma4ForConditionalGeneration
    load, empty = model.load_weights, []

    def and_record(self: Any, *arguments: Any, **named: Any) -> Any:
        loaded = load(self, *arguments, **named)
        empty.extend(sorted({name for name, _ in self.named_parameters()} - loaded))
        return loaded

    model.load_weights = and_record
    return empty


def record_logits(model: Any, seen: list[list[float]]) -> None:
    """Append the last row of logits of every step to `seen`."""
    compute = model.compute_logits

    def and_record(*arguments: Any, **named: Any) -> Any:
        logits = compute(*arguments, **named)
        seen.append([round(float(value), 3) for value in logits[-1]])
        return logits

    model.compute_logits = and_record


if __name__ == "__main__":
    main()
