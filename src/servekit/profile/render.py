"""The command-line words for a profile: what the file says, `false` included, is what vLLM hears.

vLLM's own `--config` drops `key: false` silently (vllm issue 51401), so servekit never passes the file on.
"""

import json
from collections.abc import Iterable, Iterator, Mapping

from servekit.profile.engine_args import Argument, engine_arguments
from servekit.profile.values import Value


def render(arguments: Mapping[str, Value]) -> tuple[str, ...]:
    """Give the words for `vllm serve MODEL ...`, in the order of `arguments`.

    The keys are vLLM's long names without dashes. Put them after the model: an argument with several values
    would swallow a positional one that follows. Raises KeyError for a name that vLLM does not have.
    """
    table = engine_arguments()
    return tuple(word for key, value in arguments.items() for word in _words(table[key], value))


def _words(argument: Argument, value: Value) -> Iterator[str]:
    flag = f"--{argument.name}"
    if isinstance(value, bool) and argument.kind in ("bool", "switch"):
        if value:
            yield flag
        elif argument.kind == "bool":
            yield f"--no-{argument.name}"
        # A switch has no --no- form, and is off unless it is given.
    elif isinstance(value, list) and argument.repeat:
        for item in value:
            yield from _pair(flag, item)
    elif isinstance(value, list) and argument.many:
        yield flag
        yield from _texts(value)
    else:
        yield from _pair(flag, value)


def _pair(flag: str, value: Value) -> Iterator[str]:
    text = _text(value)
    if text.startswith("-"):
        yield f"{flag}={text}"  # alone, vLLM would read `-0.5` or `--x` as another flag
    else:
        yield flag
        yield text


def _texts(values: Iterable[Value]) -> Iterator[str]:
    return (_text(value) for value in values)


def _text(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
