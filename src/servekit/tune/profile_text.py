"""The profile file of a candidate: the operator's own file with its comments, and the changed keys explained."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from servekit.errors import ConfigurationError
from servekit.preflight.findings import line_of
from servekit.profile import Profile, Value, load_profile

_WIDTH: Final = 118


def write_candidate(
    path: Path,
    base: Profile,
    changes: Mapping[str, Value],
    *,
    heading: Sequence[str] = (),
    why: Sequence[str] = (),
    deviate: Collection[str] = (),
) -> Profile:
    """Write the profile of `base` with `changes`, and return it as servekit reads it.

    `heading`: paragraphs of a comment at the top; `why`: those above each changed key. Raises ConfigurationError where
    the changed profile is not valid.
    """
    text = base.path.read_text(encoding="utf-8")
    wanted = {**base.arguments, **changes}
    whole = _changed(text, base.path, changes, why)
    path.write_text(_comment(heading) + whole, encoding="utf-8")
    try:
        if (found := load_profile(path, deviate=deviate)).arguments == wanted:
            return found
    except ConfigurationError:
        pass
    # A file of another form, such as one mapping in braces, or a value of several lines: without its comments, then.
    whole = "\n".join((_comment(why), yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)))
    path.write_text(_comment(heading) + whole, encoding="utf-8")
    return load_profile(path, deviate=deviate)


def _changed(text: str, base: Path, changes: Mapping[str, Value], why: Sequence[str]) -> str:
    lines = text.rstrip("\n").split("\n")
    places = {key: line_of(base, key) for key in changes}
    new = {
        key: f"{_comment(why)}{yaml.safe_dump({key: value}, sort_keys=False)}".rstrip()
        for key, value in changes.items()
    }
    for key, line in places.items():
        if line:
            lines[line - 1] = new[key]
    return "\n".join([*lines, *(f"\n{new[key]}" for key, line in places.items() if not line), ""])


def _comment(paragraphs: Sequence[str]) -> str:
    lines = [line for each in paragraphs for line in textwrap.wrap(each, _WIDTH, break_on_hyphens=False) or [""]]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)
