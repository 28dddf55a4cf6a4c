"""Settings as command line options: the model, `--help` and the documentation share one description."""

from collections.abc import Callable
from typing import Any

import click

from servekit.settings import Settings, flag_of, variable_of


def settings_options(fields: tuple[str, ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option to a command for each of the settings `fields`; None means that the option is not set."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(fields):
            field = Settings.model_fields[name]
            default = field.get_default(call_default_factory=True)
            flag = field.annotation is bool
            shown = ", ".join(default) if isinstance(default, tuple) else str(default)
            shown = "" if flag or default is None else shown
            function = click.option(
                flag_of(name),
                name,
                is_flag=flag,
                default=None,
                multiple=name in {"deviate", "skip"},
                metavar=None if flag else _metavar(name),
                help=f"{field.description}  [{variable_of(name)}{f'; default: {shown}' if shown else ''}]",
            )(function)
        return function

    return decorate


def _metavar(name: str) -> str:
    kinds = {
        "port": "PORT",
        "dir": "DIR",
        "host": "ADDRESS",
        "s": "SECONDS",
        "config": "FILE",
        "deviate": "KEY",
        "skip": "NAME",
        "cert": "FILE",
        "key": "FILE",
        "file": "FILE",
        "flight": "NUMBER",
        "domains": "HOSTS",
        "env": "NAMES",
    }
    last = name.rpartition("_")[2]
    return kinds.get(last, last.upper())
