"""The command-line words for a profile: what the file says, `false` included, reaches vLLM.

vLLM's own `--config` drops `key: false` silently (vllm issue 51401), so servekit never passes the file on.
"""

import json
from collections.abc import Mapping

from servekit.profile.argument_table import Argument, engine_arguments
from servekit.profile.values import Value


def render(arguments: Mapping[str, Value], *, without: str = "") -> tuple[str, ...]:
    """Return the words for `vllm serve MODEL ...`, in the order of `arguments`, leaving one key out.

    The keys are vLLM's long names without dashes. Put the words after the model: an argument with several values
    would swallow a positional one that follows. Raises KeyError for a name that vLLM does not have.
    """
    table = engine_arguments()
    return tuple(word for key, value in arguments.items() if key != without for word in _words(table[key], value))


def _words(argument: Argument, value: Value) -> tuple[str, ...]:
    flag = f"--{argument.name}"
    if isinstance(value, bool) and argument.kind in ("bool", "switch"):
        # A switch has no --no- form, and is off unless it is given.
        off = (f"--no-{argument.name}",) if argument.kind == "bool" else ()
        return (flag,) if value else off
    if isinstance(value, list) and argument.many:
        return (flag, *map(_text, value))
    items = value if isinstance(value, list) and argument.repeat else [value]
    return tuple(word for item in items for word in _pair(flag, _text(item)))


def _pair(flag: str, text: str) -> tuple[str, ...]:
    # alone, vLLM would read `-0.5` or `--x` as another flag
    return (f"{flag}={text}",) if text.startswith("-") else (flag, text)


def _text(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
