"""Settings as command line options, whose description the model, `--help` and the documentation share.

Also what the options of several commands mean.
"""

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import click

from servekit.errors import ConfigurationError, Finding
from servekit.settings import Settings, flag_of, variable_of

if TYPE_CHECKING:
    from servekit.measure.bench.loads import Load

OBSERVE_FIELDS = ("observe_host", "observe_port")
"""The settings that name servekit's own server."""


class Finite(click.FloatRange):
    """A number in a range, not infinity and not NaN, which a range without an end lets pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"must be a number (got {value})", param, ctx)
        return number


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


def observe_url(settings: Settings) -> str:
    """Return the URL of servekit's own server on this host. Raises ConfigurationError for a port that is not known."""
    from servekit.serve.plan import connectable

    if not settings.observe_port:
        raise ConfigurationError(
            [Finding("any port: unknown here", "--observe-port", got="0", remedy="name it by --observe URL")]
        )
    return f"http://{connectable(settings.observe_host)}:{settings.observe_port}"


def pair(option: str, text: str) -> tuple[str, str]:
    """Return both sides of KEY=VALUE. Raises BadParameter."""
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise click.BadParameter(f"must be KEY=VALUE (got {text})", param_hint=option)
    return key, value


def chosen_loads(loads: str, streams: str, sampling: str) -> "list[Load]":
    """Return the loads of `--loads`, `--streams` and `--sampling`, each kind with each of the others."""
    from servekit.measure.bench.loads import SAMPLINGS, SHAPES, Load

    return [
        Load(kind, int(number), how)
        for kind in _listed("--loads", loads, SHAPES)
        for number in _listed("--streams", streams)
        for how in _listed("--sampling", sampling, SAMPLINGS)
    ]


def _listed(option: str, text: str, known: Collection[str] = ()) -> list[str]:
    """Return the parts of a comma-separated list: names that are known, or numbers above zero."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in known if known else not (part.isdecimal() and int(part)):
            wanted = f"one of {', '.join(known)}" if known else "a whole number above zero"
            raise click.BadParameter(f"must be {wanted} (got {part})", param_hint=option)
    if not parts:
        raise click.BadParameter("names nothing", param_hint=option)
    return parts


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
