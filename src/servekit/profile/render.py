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
        # a switch has no --no- form, and is off unless it is given
        off = (f"--no-{argument.name}",) if argument.kind == "bool" else ()
        return (flag,) if value else off
    items = value if isinstance(value, list) and (argument.many or argument.repeat) else [value]
    texts = [item if isinstance(item, str) else json.dumps(item) for item in items]
    if argument.many:
        return (flag, *texts)
    # vLLM would read a separate `-0.5` or `--x` as another flag
    pairs = ((f"{flag}={text}",) if text.startswith("-") else (flag, text) for text in texts)
    return tuple(word for pair in pairs for word in pair)
