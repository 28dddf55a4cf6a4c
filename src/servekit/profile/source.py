"""A YAML file as values that know their lines, read more strictly than PyYAML reads it.

PyYAML keeps the last of two equal keys, turns `key:` into None and forgets where anything stood. Here PyYAML
only cuts the text into events; this walk gives them their meaning and notes every mistake on its way.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from servekit.profile.contents import TEMPLATE, UnreadableError, read_text
from servekit.profile.mistakes import WHOLE_FILE, Mistakes
from servekit.profile.scalars import ScalarTrapError, plain_value
from servekit.profile.values import KeyPath, Lines, Value

DEEPEST = 20

REMEDIES = {
    r"character '\\t'": "indent with spaces, not with a tab",
    r"cannot start any token": "put the text in quotes",
    r"mapping values are not allowed": "indent the line as its neighbours, and put text with `: ` in quotes",
    r"could not find expected ':'": "write `key: value`",
    r"expected <block end>": "indent the line as its neighbours",
    r"expected ',' or": "close the bracket, and put a comma between the values",
    r"unexpected end of stream": "close the quotes",
    r"undefined alias|found unknown escape": "put the text in single quotes",
}


@dataclass(frozen=True)
class Source:
    """What stands in the file: values by key in file order, and the line of each key, nested ones too."""

    values: dict[str, Value] = field(default_factory=dict)
    lines: Lines = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Keys with a mistake in their value, which therefore need no further checking."""


def read_source(path: Path, mistakes: Mistakes) -> Source:
    """Read the YAML mapping in the file `path`.

    What is wrong is added to `mistakes`. Raises UnreadableError, after adding the mistake, where nothing can
    be said about the rest of the file.
    """
    text = read_text(path, mistakes)
    walk = _Walk(text, mistakes)
    try:
        walk.document()
    except yaml.MarkedYAMLError as error:
        _note_syntax(error, mistakes)
        raise UnreadableError from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # ValueError: PyYAML's scanner hands `"\UFFFFFFFF"` to chr().
        line = walk.loader.line + 1
        mistakes.add(line, "holds a character that YAML does not allow", remedy="take it out")
        raise UnreadableError from error
    return walk.source


def _note_syntax(error: yaml.MarkedYAMLError, mistakes: Mistakes) -> None:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else WHOLE_FILE
    problem = error.problem or "cannot be understood"
    if error.context_mark and error.context_mark.line + 1 != line:
        problem += f" {error.context}, which begins in line {error.context_mark.line + 1}"
    remedy = next((remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, problem)), "")
    mistakes.add(line, f"not YAML: {problem}", remedy=remedy)


class _Walk:
    """One pass over the events of a document."""

    def __init__(self, text: str, mistakes: Mistakes) -> None:
        self.source = Source()
        self.mistakes = mistakes
        try:
            self.loader: Any = yaml.SafeLoader(text)
        except yaml.reader.ReaderError as error:
            line = text[: error.position].count("\n") + 1
            got = f"U+{error.character:04X}"
            mistakes.add(line, "holds a character that YAML does not allow", got=got, remedy="take it out")
            raise UnreadableError from error

    def document(self) -> None:
        """Walk the only document of the file, which must be a mapping."""
        self.loader.get_event()
        if not self.loader.check_event(yaml.DocumentStartEvent):
            self._give_up(WHOLE_FILE, "holds nothing but comments", TEMPLATE)
        self.loader.get_event()
        event = self.loader.get_event()
        if not isinstance(event, yaml.MappingStartEvent):
            self._give_up(self._line(event), "is not a mapping", "write `key: value` lines")
        self._refuse_graph(event, ())
        self._mapping(())
        self.loader.get_event()
        if self.loader.check_event(yaml.DocumentStartEvent):
            line = self._line(self.loader.peek_event())
            self._give_up(line, "a second document begins here", "keep one document in the file")

    def _value(self, event: Any, path: KeyPath) -> Value:
        self._refuse_graph(event, path)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(path)
        return None  # an alias, refused above

    def _mapping(self, path: KeyPath) -> dict[str, Value]:
        values: dict[str, Value] = {} if path else self.source.values
        self._refuse_depth(path)
        while not self.loader.check_event(yaml.MappingEndEvent):
            event = self.loader.get_event()
            key = self._key(event, path)
            if key is None:
                self._value(self.loader.get_event(), (*path, event.value))
                continue
            inner = (*path, key)
            if inner in self.source.lines:
                first = self.source.lines[inner]
                self._note(event, inner, f"is given twice, first in line {first}", "keep one of them")
                self._value(self.loader.get_event(), inner)
                continue
            self.source.lines[inner] = self._line(event)
            values[key] = self._value(self.loader.get_event(), inner)
        self.loader.get_event()
        return values

    def _list(self, path: KeyPath) -> list[Value]:
        values: list[Value] = []
        self._refuse_depth(path)
        while not self.loader.check_event(yaml.SequenceEndEvent):
            event = self.loader.get_event()
            inner = (*path, f"[{len(values)}]")
            self.source.lines[inner] = self._line(event)
            values.append(self._value(event, inner))
        self.loader.get_event()
        return values

    def _key(self, event: Any, path: KeyPath) -> str | None:
        """Give the key, or None, noted as a mistake, where the word does not stand for itself."""
        if not isinstance(event, yaml.ScalarEvent):
            self._give_up(self._line(event), "a key must be a word", "write `key: value`")
        self._refuse_graph(event, (*path, event.value))
        if event.style is None and event.value == "<<":
            self._note(event, (*path, "<<"), "merge keys are not taken", "write the keys out")
            return None
        if event.style is None:
            try:
                plain_value(event.value, self._tag(event))
            except ScalarTrapError as trap:
                remedy = "begin the line with a key" if not event.value else "put the key in quotes"
                self._note(event, (*path, event.value), trap.message, remedy)
                return None
        return str(event.value)

    def _scalar(self, event: Any, path: KeyPath) -> Value:
        if event.style is None and not event.tag:
            try:
                return plain_value(event.value, self._tag(event))
            except ScalarTrapError as trap:
                self._note(event, path, trap.message, trap.remedy, event.value)
                return None
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in event.value):
            self._note(event, path, "holds a character that no program argument can hold", "take it out")
        return str(event.value)

    def _refuse_graph(self, event: Any, path: KeyPath) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._note(event, path, "aliases are not taken", "write the value out", f"*{event.anchor}")
            return
        if event.anchor is not None:
            self._note(event, path, "anchors are not taken", "take it out", f"&{event.anchor}")
        if event.tag is not None:
            self._note(event, path, "tags are not taken", "write the value without it", event.tag)

    def _refuse_depth(self, path: KeyPath) -> None:
        if len(path) > DEEPEST:
            line = self.source.lines[path]
            self._give_up(line, f"is nested more than {DEEPEST} levels deep", "check the brackets")

    def _tag(self, event: Any) -> str:
        return str(self.loader.resolve(yaml.ScalarNode, event.value, (True, False)))

    def _note(self, event: Any, path: KeyPath, message: str, remedy: str, got: str = "") -> None:
        self.source.broken.update(path[:1])
        key = ".".join(path).replace(".[", "[")
        self.mistakes.add(self._line(event), message, key=key, got=got, remedy=remedy)

    def _give_up(self, line: int, message: str, remedy: str) -> NoReturn:
        self.mistakes.add(line, message, remedy=remedy)
        raise UnreadableError

    @staticmethod
    def _line(event: Any) -> int:
        return int(event.start_mark.line) + 1
