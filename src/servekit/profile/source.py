"""A YAML file as values that know their lines, read more strictly than PyYAML reads it.

PyYAML keeps the last of two equal keys, turns `key:` into None and forgets the lines. Here it only composes its graph
of nodes; a walk over the nodes gives them their meaning and finds every mistake.
"""

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from servekit.file_trouble import explain
from servekit.profile.mistakes import WHOLE_FILE, Mistakes, UnreadableError
from servekit.profile.scalars import ScalarTrapError, plain_value
from servekit.profile.values import KeyPath, Lines, Value

LARGEST_BYTES = 1024 * 1024
LARGEST_WITHOUT_COMMENTS = 64 * 1024
DEEPEST = 20
TEMPLATE = "start from the vllm_config.yaml that comes with servekit"
UNSAYABLE = re.compile("[\0\ud800-\udfff]")
NOT_ALLOWED = "contains a character that YAML does not allow"
BYTES_FROM = 0xDC00  # where Python's `surrogateescape` puts a byte that it cannot decode

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
    """The contents of the file: values by key in file order, and the line of each key, nested ones too."""

    values: dict[str, Value] = field(default_factory=dict)
    lines: Lines = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    """Keys with a mistake in their value, which therefore need no further checks."""


def read_source(path: Path, mistakes: Mistakes) -> Source:
    """Read the YAML mapping in the file `path`, and add every mistake to `mistakes`.

    A wrong suffix does not keep it from reading on. Raises UnreadableError where a mistake hides the rest of the file.
    """
    if path.suffix not in (".yaml", ".yml") and not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir may raise
        mistakes.add(
            WHOLE_FILE,
            "does not end in .yaml or .yml",
            got=path.suffix,
            remedy=f"rename it to {path.stem or 'profile'}.yaml: vLLM takes no other ending",
        )
    text = _contents(path, mistakes).decode(errors="surrogateescape")
    if not text.strip():
        raise mistakes.unreadable(WHOLE_FILE, "is empty", remedy=TEMPLATE)
    size = sum(len(line) for line in text.splitlines() if not line.lstrip().startswith("#"))
    if size > LARGEST_WITHOUT_COMMENTS:
        raise _too_large(f"{size} characters beside comments", LARGEST_WITHOUT_COMMENTS, mistakes)
    if refused := re.search("\0", text) or yaml.reader.Reader.NON_PRINTABLE.search(text):
        raise _refused_character(text[: refused.start()].count("\n") + 1, ord(refused[0]), mistakes)
    loader = _Loader(text, mistakes)
    walk = _Walk(mistakes, loader.graph)
    try:
        if not loader.check_node():
            raise mistakes.unreadable(WHOLE_FILE, "contains only comments", remedy=TEMPLATE)
        loader.get_node()
        if loader.check_node():
            raise mistakes.unreadable(
                _line(loader.peek_event()), "a second document begins here", remedy="keep one document in the file"
            )
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, mistakes) from error
    except (ValueError, OverflowError) as error:  # PyYAML's scanner passes `"\UFFFFFFFF"` to chr()
        raise mistakes.unreadable(loader.line + 1, NOT_ALLOWED, remedy="take it out") from error
    finally:
        if loader.root:
            loader.complete()
            walk.mapping(loader.root, ())
    return walk.source


def _contents(path: Path, mistakes: Mistakes) -> bytes:
    try:
        status = path.stat()
        checks = (
            (stat.S_ISDIR(status.st_mode), "is a directory", "name the file in it"),
            (not stat.S_ISREG(status.st_mode), "is not a regular file", "give the path of a YAML file"),
        )
        for wrong, message, remedy in checks:
            if wrong:
                raise mistakes.unreadable(WHOLE_FILE, message, remedy=remedy)
        if status.st_size > LARGEST_BYTES:
            raise _too_large(f"{status.st_size} bytes", LARGEST_BYTES, mistakes)
        with path.open("rb") as file:
            return file.read(LARGEST_BYTES)
    except FileNotFoundError as error:
        raise mistakes.unreadable(WHOLE_FILE, "does not exist", remedy="name the profile with --config FILE") from error
    except OSError as error:
        raise mistakes.unreadable(WHOLE_FILE, **explain(error, path)) from error
    except ValueError as error:
        raise mistakes.unreadable(WHOLE_FILE, f"cannot be read: {error}", remedy="check the path") from error


def _too_large(got: str, most: int, mistakes: Mistakes) -> UnreadableError:
    remedy = f"a profile has at most {most}; is this the right file?"
    return mistakes.unreadable(WHOLE_FILE, "is too large for a profile", got=got, remedy=remedy)


def _refused_character(line: int, code: int, mistakes: Mistakes) -> UnreadableError:
    """Return the error for a character that YAML does not allow; bytes that are not UTF-8 begin at U+DC80 here."""
    if code == 0:
        return mistakes.unreadable(line, "contains a NUL byte", remedy="save the file as UTF-8 text")
    if BYTES_FROM < code <= BYTES_FROM + 0xFF:
        got = f"byte 0x{code - BYTES_FROM:02x}"
        return mistakes.unreadable(line, "is not UTF-8", got=got, remedy="save the file as UTF-8 text")
    return mistakes.unreadable(line, NOT_ALLOWED, got=f"U+{code:04X}", remedy="take it out")


def _syntax_error(error: yaml.MarkedYAMLError, mistakes: Mistakes) -> UnreadableError:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else WHOLE_FILE
    problem = error.problem or "cannot be understood"
    if error.context_mark and error.context_mark.line + 1 != line:
        problem += f" {error.context}, which begins in line {error.context_mark.line + 1}"
    remedy = next((remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, problem)), "")
    return mistakes.unreadable(line, f"not YAML: {problem}", remedy=remedy)


class _Loader(yaml.SafeLoader):
    """PyYAML's loader, for files that a profile can be.

    It keeps the nodes that are incomplete, so that a syntax error hides no mistake before it, and what the nodes
    themselves forget: anchors, aliases and tags, as message, remedy and text.
    """

    peek_event: Any
    get_event: Any

    def __init__(self, text: str, mistakes: Mistakes) -> None:
        super().__init__(text)
        self.mistakes = mistakes
        self.depth = 0
        self.root: Any = None
        self.trail: list[tuple[Any, Any]] = []
        """The node that is being composed and those around it: for each its parent and its index."""
        self.graph: dict[Any, list[tuple[str, str, str]]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, as PyYAML does; `index` is the key's node of a value, None for a key."""
        self.trail[self.depth :] = [(parent, index)]
        event: Any = self.peek_event()
        self.root = self.root or parent
        is_key, nested = parent is not None and index is None, isinstance(event, yaml.CollectionStartEvent)
        checks = (
            (
                parent is None and not isinstance(event, yaml.MappingStartEvent),
                "is not a mapping",
                "write `key: value` lines",
            ),
            (is_key and not isinstance(event, yaml.ScalarEvent), "a key must be a word", "write `key: value`"),
            (nested and self.depth > DEEPEST, f"is nested more than {DEEPEST} levels deep", "check the brackets"),
        )
        for wrong, message, remedy in checks:
            if wrong:
                line = _line(index if isinstance(index, yaml.Node) else event)
                raise self.mistakes.unreadable(line, message, remedy=remedy)
        if isinstance(event, yaml.AliasEvent):
            alias = yaml.ScalarNode("", "", self.get_event().start_mark, style="'")
            self.graph[alias] = [("aliases are not allowed", "write the value out", f"*{event.anchor}")]
            return alias
        refused = []
        if event.anchor is not None:
            refused.append(("anchors are not allowed", "take it out", f"&{event.anchor}"))
        if event.tag is not None:
            refused.append(("tags are not allowed", "write the value without it", event.tag))
            event.style = "'"  # so that a tagged word counts as text
        event.anchor = event.tag = None
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        self.graph[node] = refused
        return node

    def complete(self) -> None:
        """Put each node that an error cut short into its parent, which it would have joined when complete."""
        node: Any = None
        for parent, index in reversed(self.trail[1:]):
            if isinstance(index, yaml.Node) and index not in (key for key, _ in parent.value):
                parent.value.append((index, node or yaml.ScalarNode("", "", index.start_mark, style="'")))
            elif isinstance(index, int) and node and node not in parent.value:
                parent.value.append(node)
            node = parent


class _Walk:
    """One pass over the nodes of the document."""

    def __init__(self, mistakes: Mistakes, graph: dict[Any, list[tuple[str, str, str]]]) -> None:
        self.source = Source()
        self.mistakes = mistakes
        self.graph = graph

    def mapping(self, node: Any, path: KeyPath) -> dict[str, Value]:
        """Return the values of a mapping; those of the root go into the source."""
        self._refuse_graph(node, path)
        values: dict[str, Value] = {} if path else self.source.values
        for key, value in node.value:
            inner = (*path, key.value)
            if self._is_key(key, inner):
                self.source.lines[inner] = _line(key)
                values[key.value] = self._value(value, inner)
            else:
                self._value(value, inner)  # for its mistakes
        return values

    def _value(self, node: Any, path: KeyPath) -> Value:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        self._refuse_graph(node, path)
        if isinstance(node, yaml.SequenceNode):
            items = {(*path, f"[{index}]"): item for index, item in enumerate(node.value)}
            self.source.lines.update({inner: _line(item) for inner, item in items.items()})
            return [self._value(item, inner) for inner, item in items.items()]
        if node.style is None:
            try:
                return plain_value(node.value, node.tag)
            except ScalarTrapError as trap:
                message, remedy = trap.args
                key, _, rest = path[-1].partition(":")
                if key and rest and not node.value:
                    remedy = f"write `{key}: {rest}`, with a space after the colon"
                self._note(node, path, message, remedy, node.value)
        elif UNSAYABLE.search(node.value):
            self._note(node, path, "contains a character that no program argument can hold", "take it out")
        return str(node.value)

    def _is_key(self, node: Any, path: KeyPath) -> bool:
        """Whether the word means itself and comes for the first time; if not, add the mistake."""
        self._refuse_graph(node, path)
        problem: tuple[str, str] | None = None
        try:
            if node.style is None and node.value == "<<":
                problem = "merge keys are not allowed", "write the keys out"
            elif node.style is None:
                plain_value(node.value, node.tag)
        except ScalarTrapError as trap:
            problem = trap.args[0], "put the key in quotes" if node.value else "begin the line with a key"
        if not problem and path in self.source.lines:
            problem = f"is given twice, first in line {self.source.lines[path]}", "keep one of them"
        if problem:
            self._note(node, path, *problem)
        return not problem

    def _refuse_graph(self, node: Any, path: KeyPath) -> None:
        for problem in self.graph.get(node, ()):  # a node that a syntax error cut short is not there
            self._note(node, path, *problem)

    def _note(self, node: Any, path: KeyPath, message: str, remedy: str, got: str = "") -> None:
        self.source.broken.update(path[:1])
        self.mistakes.add(_line(node), message, key=".".join(path).replace(".[", "["), got=got, remedy=remedy)


def _line(place: Any) -> int:
    return int(place.start_mark.line) + 1
