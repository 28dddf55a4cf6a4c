"""The arguments of a call as Gemma 4 writes them, turned into JSON while they arrive.

    {city:<|"|>Paris<|"|>,days:3,hourly:false}    ->    {"city": "Paris", "days": 3, "hourly": false}

Keys are bare, `<|"|>` quotes strings, and nothing inside a string is escaped. Each character is read once and the JSON
does not depend on where the text was cut. (vLLM 0.20.2 reads all arguments again after each token and compares the
results: quadratic, and wrong where a value was complete only for a moment.)
"""

import json
import re

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null", "nil": "null"}
_CLOSING = {"{": "}", "[": "]"}


class Arguments:
    """The state between two pieces of one call's arguments."""

    def __init__(self) -> None:
        self.complete = False
        """Whether the outermost brace is closed."""
        self._open: list[str] = []
        """The closing characters still owed, the innermost last."""
        self._at = "value"
        """`key` or `value` is expected, or the value was `given`."""
        self._comma = ""
        self._word = ""
        """A bare key or value, as far as it has arrived."""
        self._quoted = False
        self._out: list[str] = []

    def read(self, text: str) -> str:
        """Return the JSON that `text` adds. Text after the outermost closing brace is dropped."""
        if self._quoted:
            if self._at != "given":
                self._out.append(_escaped(text))
        else:
            for character in text:
                if not self.complete:
                    self._take(character)
        return self._taken()

    def quote(self) -> str:
        """Return the JSON that one `<|"|>` adds. A second string for the same value is dropped."""
        if not self._quoted:
            self._word = ""  # nothing stands between a colon and a quote
            if self._at != "given":
                self._put('"')
        elif self._at != "given":
            self._out.append('"')
            self._at = "colon" if self._at == "key" else "given"
        self._quoted = not self._quoted
        return self._taken()

    def close(self) -> str:
        """Return what completes the JSON, where the call ends before its arguments do."""
        end = self.quote() if self._quoted else ""
        while self._open:
            self._take(self._open[-1])
        return end + self._taken()

    def _take(self, character: str) -> None:
        if character in _CLOSING and not self._word and self._at == "value":
            self._put(character)
            self._open.append(_CLOSING[character])
            self._expect()
        elif character == ":" and self._at in {"key", "colon"}:
            self._put(": " if self._at == "colon" else _quoted(self._word) + ": ")
            self._word, self._at = "", "value"
        elif character == ",":
            self._end_value()
            self._comma = ", "
            self._expect()
        elif character in self._open:
            while self._open:
                self._end_value()
                self._comma = ""
                self._out.append(closed := self._open.pop())
                self._word, self._at = "", "given"
                if closed == character:
                    break
            self.complete = not self._open
        elif character not in "}]" and (self._word or not character.isspace()):
            self._word += character

    def _expect(self) -> None:
        self._word, self._at = "", "key" if self._open[-1:] == ["}"] else "value"

    def _end_value(self) -> None:
        """Write a bare value: in an object also an empty one, for its key is written already."""
        if self._at == "colon":
            self._out.append(": null")
        elif self._at == "value" and (self._word.strip() or self._open[-1:] == ["}"]):
            self._put(_value(self._word.strip()))

    def _put(self, text: str) -> None:
        self._out.append(self._comma + text)
        self._comma = ""

    def _taken(self) -> str:
        taken, self._out = "".join(self._out), []
        return taken


def _value(word: str) -> str:
    """Return a bare value as JSON: what is no number, boolean or null becomes a string."""
    return _WORDS.get(word.lower()) or (word if _NUMBER.fullmatch(word) else _quoted(word))


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
