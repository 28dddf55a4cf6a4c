"""Read answers with vLLM's own parsers and with servekit's, whole and streamed. Run it with the engine's Python.

stdin: {name: text}. stdout: for `vllm` and `servekit`, what each whole answer says, and what each stream says.
"""

import asyncio
import importlib
import json
import sys
from types import SimpleNamespace
from typing import Any, ClassVar

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.engine.serving import OpenAIServing
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.parser import ParserManager

TAGS = {
    "<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<|tool_call>": 48, "<tool_call|>": 49,
    "<|tool_response>": 50, '<|"|>': 52,
}  # fmt: skip
TOOL = {"name": "weather", "parameters": {"type": "object"}}


class Tokenizer:
    """What the parsers need of one: the special tokens."""

    added_tokens_decoder: ClassVar = {
        number: type("Token", (str,), {"special": True})(tag) for tag, number in TAGS.items()
    }

    def get_vocab(self) -> dict[str, int]:
        return TAGS


def tokens(text: str) -> list[str]:
    """Cut a text as the model writes it: each tag is a token, and each other character."""
    found = []
    while text:
        tag = next((tag for tag in TAGS if text.startswith(tag)), text[0])
        found.append(tag)
        text = text[len(tag) :]
    return found


def output(pieces: list[str], *, last: bool) -> CompletionOutput:
    """Return what EngineCore's output becomes in the server: the text of some tokens."""
    ids = [TAGS.get(piece, 1000) for piece in pieces]
    return CompletionOutput(0, "".join(pieces), ids, None, None, finish_reason="stop" if last else None)


def whole(text: str, request: Any, parser: Any) -> dict[str, Any]:
    """Do what vLLM's server does with a whole chat answer."""
    tokenizer = Tokenizer()
    reasoning, content = parser.reasoning_parser_cls(tokenizer).extract_reasoning(text, request)
    calls, content = OpenAIServing._parse_tool_calls_from_content(
        request, tokenizer, enable_auto_tools=True, tool_parser_cls=parser.tool_parser_cls, content=content
    )
    return said(reasoning, content, [[call.name, call.arguments] for call in calls or []])


def whole_response(text: str, request: Any, parser: Any) -> dict[str, Any]:
    """Do what vLLM's server does with a whole answer of `/v1/responses`."""
    items = parser(Tokenizer(), request.tools).extract_response_outputs(
        model_output=text, model_output_token_ids=[], request=request, enable_auto_tools=True
    )
    by_type: dict[str, list[Any]] = {"reasoning": [], "message": [], "function_call": []}
    for item in items:
        by_type[item.type].append(item)
    reasoning, content = (
        "".join(part.text for item in by_type[kind] for part in item.content) for kind in ("reasoning", "message")
    )
    return said(reasoning, content, [[item.name, item.arguments] for item in by_type["function_call"]])


async def streamed(chunks: list[list[str]], request: Any, parser: Any) -> dict[str, Any]:
    """Do what vLLM's server does with a streamed answer, and what its client does with the deltas."""
    reader = parser(Tokenizer(), request.tools)

    async def results() -> Any:
        for number, chunk in enumerate(chunks, 1):
            outputs = [output(chunk, last=number == len(chunks))]
            yield RequestOutput("r", None, [2, 105], None, outputs, number == len(chunks))

    source: Any = results()
    if parser.__module__.startswith("servekit_guard"):
        parsers: Any = importlib.import_module("servekit_guard.answers.parsers")

        serving = SimpleNamespace(parser_cls=parser, renderer=SimpleNamespace(tokenizer=Tokenizer()))
        source = parsers._in_pieces(source, request, serving)
    got: dict[str, Any] = {"content": "", "reasoning": "", "calls": []}
    async for result in source:
        for each in result.outputs:
            delta = reader.parse_delta(each.text, list(each.token_ids), request, result.prompt_token_ids)
            if delta is None:
                continue
            got["content"] += delta.content or ""
            got["reasoning"] += delta.reasoning or ""
            for call in delta.tool_calls:
                while call.index >= len(got["calls"]):
                    got["calls"].append(["", ""])
                got["calls"][call.index][0] += call.function.name or ""
                got["calls"][call.index][1] += call.function.arguments or ""
    return said(got["reasoning"], got["content"], got["calls"])


def said(reasoning: str | None, content: str | None, calls: list[list[str]]) -> dict[str, Any]:
    """Return an answer in a form that can be compared."""
    return {"reasoning": str(reasoning or ""), "content": str(content or ""), "calls": calls}


async def read_all(answers: dict[str, str]) -> dict[str, Any]:
    """Read each answer whole and in chunks of 1, 2, 3, 7 tokens and all at once."""
    parser: Any = ParserManager.get_parser("gemma4", "gemma4", enable_auto_tools=True)
    messages = [{"role": "user", "content": "x"}]
    chat: Any = ChatCompletionRequest(messages=messages, tools=[{"type": "function", "function": TOOL}])
    response: Any = ResponsesRequest(input="x", tools=[{"type": "function", "strict": None, **TOOL}])
    chat.skip_special_tokens = response.skip_special_tokens = False
    found: dict[str, Any] = {"parser": parser.__module__}
    for name, text in answers.items():
        pieces = tokens(text)
        streams = {}
        for size in (1, 2, 3, 7, len(pieces)):
            chunks = [pieces[at : at + size] for at in range(0, len(pieces), size)]
            streams[size] = await streamed(chunks, chat, parser)
        found[name] = {
            "whole": whole(text, chat, parser),
            "response": whole_response(text, response, parser),
            "streams": streams,
        }
    return found


def main() -> None:
    """Read the answers with vLLM's own parsers, then with those that the plugin registers."""
    answers = json.load(sys.stdin)
    vllm = asyncio.run(read_all(answers))
    importlib.import_module("servekit_guard.core.worker").register()
    print(json.dumps({"vllm": vllm, "servekit": asyncio.run(read_all(answers))}))


main()
