"""From the file to the frozen profile, or to all of its mistakes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from servekit import ENGINE_VERSION
from servekit.errors import ConfigurationError, Finding, Severity, in_order
from servekit.profile.argument_table import engine_arguments, nearest
from servekit.profile.contract import Deviation, deviations, note_broken_contract, unknown_deviations
from servekit.profile.files.named_files import note_broken_files
from servekit.profile.former import advice
from servekit.profile.mistakes import Mistakes, UnreadableError, shown
from servekit.profile.reserved import RESERVED, WITHOUT_EFFECT
from servekit.profile.rules import note_broken_rules
from servekit.profile.schema import checked_values
from servekit.profile.source import Source, read_source
from servekit.profile.values import Value


@dataclass(frozen=True)
class Profile:
    """What the user wrote, validated."""

    path: Path
    arguments: Mapping[str, Value]
    """vLLM's arguments by their names without dashes, in file order, as `render` takes them."""
    deviations: tuple[Deviation, ...] = ()
    notes: tuple[Finding, ...] = ()
    """What the file says without effect behind the guard."""


def load_profile(path: Path, *, deviate: Collection[str] = ()) -> Profile:
    """Read and validate the profile in the YAML file `path`.

    `deviate` names keys of the contract that may differ or be missing. Raises ConfigurationError with every
    mistake, each at its `file:line`.
    """
    mistakes = Mistakes(path)
    mistakes.found += unknown_deviations(deviate)
    try:
        source = _named(read_source(path, mistakes), mistakes)
    except UnreadableError:
        raise ConfigurationError(mistakes.found) from None
    arguments = checked_values(source, mistakes)
    note_broken_rules(arguments, source.lines, mistakes, deviate=deviate)
    note_broken_files(arguments, source.lines, mistakes)
    note_broken_contract(arguments, source.lines, mistakes, skip={*deviate, *(source.values.keys() - arguments)})
    if mistakes.found:
        raise ConfigurationError(mistakes.found)
    notes = (
        Finding(f"has no effect: {why}", file=str(path), line=source.lines[key,], key=key, severity=Severity.NOTE)
        for key, why in WITHOUT_EFFECT.items()
        if arguments.get(key) not in (None, False)
    )
    return Profile(path, arguments, deviations(arguments, deviate), in_order(notes))


def _named(source: Source, mistakes: Mistakes) -> Source:
    """Return `source` with vLLM's own spelling of every key; a key that cannot be in a profile is a mistake.

    vLLM takes `max_num_seqs` for `max-num-seqs`, and `no-enable-x: true` for `enable-x: false`.
    """
    named = Source()
    table = engine_arguments()
    known = {name: row for name, row in table.items() if name not in RESERVED}
    for key, value in source.values.items():
        line, name = source.lines[key,], key.replace("_", "-")
        negated = name.removeprefix("no-")
        if negated != name and name not in table and negated in table and table[negated].kind == "bool":
            if value is not True and key not in source.broken and negated in known:
                mistakes.add(
                    line,
                    "must be true, or not be there",
                    key=key,
                    got=shown(value),
                    remedy=f"write `{negated}: true` or `{negated}: false`",
                )
                named.broken.add(negated)
            name, value = negated, False  # noqa: PLW2901  the same setting in its plain form
        if name in named.values:
            message = f"is given twice, as another spelling of {name} in line {named.lines[name,]}"
            mistakes.add(line, message, key=key, remedy="keep one of them")
        elif name in RESERVED:
            why, remedy = RESERVED[name]
            mistakes.add(line, f"cannot be set in a profile: {why}", key=key, remedy=remedy)
        elif name not in known:
            guess = nearest(key, known)
            remedy = advice(name) or (f"did you mean {guess}?" if guess else "take it out")
            if "." in key:
                remedy = f"nest the keys under `{guess}:`" if guess else "nest the keys"
            mistakes.add(line, f"is not a vLLM {ENGINE_VERSION} argument", key=key, remedy=remedy)
        else:
            named.values[name] = value
            named.lines.update({(name, *inner[1:]): at for inner, at in source.lines.items() if inner[0] == key})
            if key in source.broken:
                named.broken.add(name)
    return named
