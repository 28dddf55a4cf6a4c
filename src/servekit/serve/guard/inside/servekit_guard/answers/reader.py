"""Reads an answer of Gemma 4 in the order in which it arrives, and says what each part of it is.

    <|channel>thought
    ...<channel|>text<|tool_call>call:name{...}<tool_call|>

A tag may be cut anywhere between two texts: its beginning waits for the rest. So the parts, joined by kind, are the
same however the answer was cut, and a streamed answer says what a whole one says.
"""

import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache

from .arguments import Arguments
from .forced_calls import Forced

Part = tuple[str, str]
"""`reasoning`, `content`, `call` (a new call's name) or `arguments` (JSON of the last call), with its text."""

CHANNEL, CHANNEL_END, CALL, CALL_END, QUOTE = "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'
_TAGS = {CHANNEL, CHANNEL_END, CALL, CALL_END, QUOTE}
_MARK = re.compile(r"<\|[^<>]+>|<[^<>]+\|>")
"""Special tokens that are no part of the text. `<pad>` or `<mask>` remain: an answer may speak of them."""
_LABEL = "thought\n"
"""What every channel begins with; not part of the reasoning."""
_HEAD = re.compile(r"(?:call:)?([\w.-]{1,128})")
_LONGEST_HEAD = len("call:") + 128


class Reader:
    """One answer being read.

    special: the tokenizer's special tokens. calls: whether the request has tools.
    forced: reads the content of a request whose `tool_choice` names a function or is `required`.
    """

    def __init__(self, special: Collection[str] = (), *, calls: bool, forced: Forced | None = None) -> None:
        self._names, self._tags = _tags(frozenset(special))
        self._calls = calls
        self._forced = forced
        self._arguments = Arguments()
        self._rest = ""
        self._last = False
        self._state: Callable[[], Iterator[Part]] = self._content

    @property
    def cut(self) -> bool:
        """Whether the text read so far ends inside a call."""
        if self._forced:
            return self._forced.cut
        return self._state == self._head or (self._state == self._call_arguments and not self._arguments.complete)

    def read(self, text: str, *, last: bool = False) -> list[Part]:
        """Return the parts that `text` adds; `last` says that the answer ends with it."""
        self._rest += text
        self._last = last
        parts = []
        while self._rest:
            state, before = self._state, self._rest
            parts += [part for part in state() if part[1] or part[0] == "call"]
            if self._state == state and self._rest == before:
                break
        return parts

    def _content(self) -> Iterator[Part]:
        if self._forced and not CHANNEL.startswith(self._rest[: len(CHANNEL)]):
            self._state = self._forced_calls
            return
        text, tag = self._until_tag()
        yield "content", text
        self._state = self._after(tag) or self._content

    def _forced_calls(self) -> Iterator[Part]:
        """Read JSON to its end: a grammar allows no tags, so what looks like one is part of a string."""
        assert self._forced
        text, self._rest = self._rest, ""
        yield from self._forced.read(text)

    def _after(self, tag: str) -> Callable[[], Iterator[Part]] | None:
        return self._label if tag == CHANNEL else self._head if tag == CALL and self._calls else None

    def _label(self) -> Iterator[Part]:
        if self._rest.startswith(_LABEL) or not _LABEL.startswith(self._rest):
            self._rest = self._rest.removeprefix(_LABEL)
            self._state = self._reasoning
        yield from ()

    def _reasoning(self) -> Iterator[Part]:
        text, tag = self._until_tag()
        yield "reasoning", text
        self._state = self._content if tag == CHANNEL_END else self._after(tag) or self._reasoning

    def _head(self) -> Iterator[Part]:
        """Read a call's name. What does not look like a call remains text, as in vLLM."""
        tag, brace = self._tags.search(self._rest), self._rest.find("{")
        end = tag.start() if tag else len(self._rest)
        if 0 <= brace < end and (name := _HEAD.fullmatch(self._rest[:brace])):
            yield "call", name[1]
            self._rest = self._rest[brace:]
            self._arguments, self._state = Arguments(), self._call_arguments
        elif tag or brace >= 0 or end > _LONGEST_HEAD:
            self._state = self._content

    def _call_arguments(self) -> Iterator[Part]:
        """Read a call until its end tag, or the next call's begin: what follows its last brace is dropped."""
        text, tag = self._until_tag()
        yield "arguments", self._arguments.read(text)
        if tag in {CALL, CALL_END} or (tag == CHANNEL and self._arguments.complete):
            yield "arguments", self._arguments.close()
            self._state = self._after(tag) or self._content
        else:
            yield "arguments", self._arguments.quote() if tag == QUOTE else self._arguments.read(tag)

    def _until_tag(self) -> tuple[str, str]:
        """Take the text before the next tag, and the tag; without one, all but what may be a tag's beginning."""
        if found := self._tags.search(self._rest):
            text, tag, self._rest = self._rest[: found.start()], found[0], self._rest[found.end() :]
            return text, tag
        begin = self._rest.rfind("<")
        if self._last or begin < 0 or not any(tag.startswith(self._rest[begin:]) for tag in self._names):
            begin = len(self._rest)
        text, self._rest = self._rest[:begin], self._rest[begin:]
        return text, ""


@lru_cache
def _tags(special: frozenset[str]) -> tuple[tuple[str, ...], re.Pattern[str]]:
    names = tuple(sorted(_TAGS | {tag for tag in special if _MARK.fullmatch(tag)}, key=len, reverse=True))
    return names, re.compile("|".join(map(re.escape, names)))
