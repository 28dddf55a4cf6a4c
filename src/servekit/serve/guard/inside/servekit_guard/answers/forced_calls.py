"""The JSON that a grammar makes of an answer whose `tool_choice` forces calls, split into calls while it arrives.

A named function is answered with its arguments alone, `required` with `[{"name": ..., "parameters": {...}}, ...]`
(`tool_parsers/utils.py` in vLLM 0.20.2). vLLM counts braces to find the arguments of the latter, those in strings too.
"""

import json
import re

_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"parameters"\s*:\s*(?=\S)')
_BETWEEN = " \t\r\n[]},"
_STEP = {"{": 1, "[": 1, "}": -1, "]": -1}


class Forced:
    """The content of one such answer being read. name: the named function; None reads a list of calls."""

    def __init__(self, name: str | None) -> None:
        self.cut = True
        """Whether the text read so far ends before its calls do."""
        self._name = name
        self._started = False
        self._head = ""
        self._depth = self._in_string = 0
        """Of the current call's arguments: open braces and brackets; in a string 1, after its backslash 2."""

    def read(self, text: str) -> list[tuple[str, str]]:
        """Return the calls and the JSON of arguments that `text` adds."""
        if self._name is not None:
            start = [] if self._started else [("call", self._name)]
            self._started = True
            return [*start, ("arguments", text)]
        parts: list[tuple[str, str]] = []
        while text:
            if self._started:
                taken = self._arguments(text)
                parts.append(("arguments", text[:taken]))
                text = text[taken:]
                continue
            self.cut = self.cut and "]" not in text.partition("{")[0]
            self._head, text = (self._head + text).lstrip(_BETWEEN), ""
            if head := _HEAD.match(self._head):
                parts.append(("call", json.loads(head[1])))
                text, self._head = self._head[head.end() :], ""
                self._started = self.cut = True
        return parts

    def _arguments(self, text: str) -> int:
        """Return how many characters belong to the current call's arguments, which may end here."""
        for index, character in enumerate(text):
            if self._in_string:
                self._in_string = 1 if self._in_string == 2 else {"\\": 2, '"': 0}.get(character, 1)  # noqa: PLR2004
            elif character == '"':
                self._in_string = 1
            elif self._depth == 0 and character in ",}]":
                self._started = False
                return index
            else:
                self._depth += _STEP.get(character, 0)
        return len(text)
