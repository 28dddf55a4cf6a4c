"""Gemma 4's parsers under the names that vLLM's have: `--tool-call-parser gemma4`, `--reasoning-parser gemma4`.

vLLM 0.20.2 has four readers of an answer (whole and streamed, reasoning and calls), which disagree; see
`docs/clients.md`. Here all go through `reader.py`. Only import this module in vLLM's processes.
"""

import importlib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextvars import ContextVar
from functools import cache
from typing import Any

from .forced_calls import Forced
from .reader import Part, Reader

_protocol: Any = importlib.import_module("vllm.entrypoints.openai.engine.protocol")
_vllm: Any = importlib.import_module("vllm.parser.abstract_parser")
_reasoning: Any = importlib.import_module("vllm.reasoning.gemma4_reasoning_parser")
_tools: Any = importlib.import_module("vllm.tool_parsers.gemma4_tool_parser")


class Piece(str):
    """A part of a streamed answer on its way through vLLM's server to `Gemma4.parse_delta`, with its kind."""

    __slots__ = ("kind",)
    kind: str


class Whole(str):
    """The content of a whole answer on its way from the reasoning parser to the tool parser, with all its parts."""

    __slots__ = ("parts",)
    parts: list[Part]


cut: ContextVar[bool] = ContextVar("cut", default=False)
"""Whether the answer that this task reads ended inside a call."""


class Reasoning(_reasoning.Gemma4ReasoningParser):  # type: ignore[misc] # vLLM is not installed where this is checked
    """Reads the thinking of requests that ask for it; vLLM's EngineCore uses it too.

    vLLM's own keeps special tokens in every answer, and holds back the grammar of structured output until the model
    has ended its thinking: for ever, in a request that does not ask for any.
    """

    def __init__(self, tokenizer: Any, *arguments: Any, **named: Any) -> None:
        super().__init__(tokenizer, *arguments, **named)
        self._thinks = bool((named.get("chat_template_kwargs") or {}).get("enable_thinking"))

    def adjust_request(self, request: Any) -> Any:
        """Keep the tags of an answer that has thinking."""
        if self._thinks:
            request.skip_special_tokens = False
        return request

    def is_reasoning_end(self, input_ids: Any) -> bool:
        """Return whether the answer that follows these tokens has no more thinking."""
        return not self._thinks or super().is_reasoning_end(input_ids)

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Return the thinking and the rest of a whole answer."""
        content = _read(model_output, request, self.model_tokenizer)
        if content is None:
            return None, model_output
        thoughts = "".join(text for kind, text in content.parts if kind == "reasoning")
        return thoughts or None, content if request.tools else content or None


class Tools(_tools.Gemma4ToolParser):  # type: ignore[misc]
    """Reads a whole answer's calls, forced ones too, and makes the grammar of these."""

    supports_required_and_named = False

    def extract_tool_calls(self, model_output: str, request: Any) -> Any:
        """Return the calls and the rest of a whole answer."""
        content = _read(model_output, request, self.model_tokenizer)
        if content is None:
            return _protocol.ExtractedToolCallInformation(tools_called=False, tool_calls=[], content=model_output)
        calls = [
            _protocol.ToolCall(function=_protocol.FunctionCall(name=name, arguments=arguments))
            for name, arguments in _calls(content.parts, _forced_name(request))
        ]
        return _protocol.ExtractedToolCallInformation(tools_called=True, tool_calls=calls, content=content or None)


class Gemma4(_vllm._WrappedParser):  # type: ignore[misc] # noqa: SLF001 - vLLM makes such a class of two parsers too
    """Both, for streams and for `/v1/responses`."""

    reasoning_parser_cls, tool_parser_cls = Reasoning, Tools
    tool_parser = None
    """vLLM's server would complete the arguments of one itself when a stream ends."""

    def __init__(self, tokenizer: Any, tools: Any = None, **named: Any) -> None:
        super().__init__(tokenizer, tools, **named)
        self._count = 0

    def parse_delta(self, delta_text: str, *_more: Any, **_named: Any) -> Any:
        """Return one piece of a stream that `pieces` has read; all of one that needs no reading is content."""
        kind = getattr(delta_text, "kind", "content")
        if kind in {"content", "reasoning"}:
            return _protocol.DeltaMessage(**{kind: str(delta_text)}) if delta_text else None
        if kind == "call":
            self._count += 1
            named = {"id": _vllm.make_tool_call_id(), "type": "function"}
            function = _protocol.DeltaFunctionCall(name=str(delta_text), arguments="")
        else:
            named, function = {}, _protocol.DeltaFunctionCall(arguments=str(delta_text))
        call = _protocol.DeltaToolCall(index=self._count - 1, function=function, **named)
        return _protocol.DeltaMessage(tool_calls=[call])

    def _parse_tool_calls(self, request: Any, content: str | None, **_named: Any) -> tuple[list[Any], str | None]:
        found = self._tool_parser.extract_tool_calls("" if content is None else content, request)
        return [each.function for each in found.tool_calls], found.content


def read_chat(stream: Any, request: Any, results: Any, *arguments: Any, **named: Any) -> Any:
    """Call `chat_completion_stream_generator` with results whose text is in pieces."""
    return stream(request, _in_pieces(results, request, stream.__self__), *arguments, **named)


def read_responses(stream: Any, request: Any, sampling: Any, results: Any, *arguments: Any, **named: Any) -> Any:
    """Call `_process_simple_streaming_events` with results whose text is in pieces."""
    return stream(request, sampling, _in_pieces(results, request, stream.__self__), *arguments, **named)


def say_length(finish: Any, choice: Any, request: Any) -> Any:
    """Finish a choice with `length`, as OpenAI does, when its last call is cut: vLLM says `tool_calls`.

    finish: `maybe_filter_parallel_tool_calls`, which every choice of a chat passes (`chat_completion/serving.py`).
    """
    choice = finish(choice, request)
    if choice.finish_reason == "tool_calls" and cut.get():
        choice.finish_reason = "length"
    return choice


def _in_pieces(results: AsyncIterator[Any], request: Any, serving: Any) -> AsyncIterator[Any]:
    parser = getattr(serving, "parser_cls", None) or getattr(serving, "parser", None)
    if request.skip_special_tokens or parser is not Gemma4:
        return results
    return _pieces(results, request, serving.renderer.tokenizer)


async def _pieces(results: AsyncIterator[Any], request: Any, tokenizer: Any) -> AsyncIterator[Any]:
    """Yield each of vLLM's outputs once for each part of its text, with nothing else of it repeated."""
    readers: dict[int, Reader] = defaultdict(lambda: _reader(request, tokenizer))
    async for result in results:
        holder = getattr(result, "last_output", result)  # `/v1/responses` keeps the output in its context
        for output in list(holder.outputs) if holder else ():
            holder.outputs, finish = [output], output.finish_reason
            reader = readers[output.index]
            parts = reader.read(output.text, last=finish is not None) or [("content", "")]
            for number, (kind, text) in enumerate(parts, 1):
                output.text, output.finish_reason = Piece(text), finish if number == len(parts) else None
                output.text.kind = kind
                cut.set(reader.cut)
                yield result
                output.token_ids = []


def _read(text: str, request: Any, tokenizer: Any) -> Whole | None:
    """Return the content of a whole answer with its parts; None when vLLM has removed all tags: it is all content."""
    if isinstance(text, Whole) or request.skip_special_tokens:
        return text if isinstance(text, Whole) else None
    reader = _reader(request, tokenizer)
    parts = reader.read(text, last=True)
    cut.set(reader.cut)
    content = Whole("".join(text for kind, text in parts if kind == "content"))
    content.parts = parts
    return content


def _calls(parts: list[Part], forced: str | None) -> list[list[str]]:
    calls: list[list[str]] = []
    for kind, text in parts:
        if kind == "call":
            calls.append([text, ""])
        elif kind == "arguments":
            calls[-1][1] += text
    return calls or ([[forced, ""]] if forced else [])


def _reader(request: Any, tokenizer: Any) -> Reader:
    name, tools = _forced_name(request), bool(request.tools) and request.tool_choice != "none"
    forced = Forced(name) if name or request.tool_choice == "required" else None
    return Reader(_special(tokenizer), calls=tools, forced=forced)


def _forced_name(request: Any) -> str | None:
    """Return the function that must be called: Responses name it in `tool_choice`, chats one level deeper."""
    choice = request.tool_choice
    return getattr(getattr(choice, "function", choice), "name", None) if not isinstance(choice, str) else None


@cache
def _special(tokenizer: Any) -> frozenset[str]:
    return frozenset(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
