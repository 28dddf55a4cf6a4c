"""From the file to the frozen profile, or to all of its mistakes."""

from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from servekit import ENGINE_VERSION
from servekit.profile.contract import (
    Deviation,
    deviations,
    note_broken_contract,
    note_unknown_deviations,
)
from servekit.profile.engine_args import engine_arguments, nearest
from servekit.profile.mistakes import Mistakes, UnreadableError, shown
from servekit.profile.reserved import RESERVED
from servekit.profile.rules import note_broken_rules
from servekit.profile.schema import checked_values
from servekit.profile.source import Source, read_source
from servekit.profile.values import Value


class Profile(BaseModel):
    """What the user wrote, validated."""

    model_config = ConfigDict(frozen=True)

    path: Path
    arguments: Mapping[str, Value]
    """vLLM's arguments by their names without dashes, in file order, as `render` takes them."""
    lines: Mapping[str, int]
    """The line, from 1, where each of them stands."""
    deviations: tuple[Deviation, ...] = ()

    def get(self, key: str) -> Value:
        """Give the argument `key`, or vLLM's default for it: None where vLLM decides when it starts.

        Raises KeyError for a name that vLLM does not have.
        """
        return self.arguments[key] if key in self.arguments else engine_arguments()[key].default

    def deviating(self, deviation: Deviation) -> "Profile":
        """Give a copy that uses `deviation.used`, which must be a JSON value, and names the deviation."""
        others = tuple(known for known in self.deviations if known.key != deviation.key)
        return Profile(
            path=self.path,
            arguments={**self.arguments, deviation.key: deviation.used},
            lines=self.lines,
            deviations=(*others, deviation),
        )

    @property
    def gpu_memory_utilization(self) -> float:
        """Share of the GPU's memory, above 0 and at most 1."""
        return float(self.get("gpu-memory-utilization"))  # type: ignore[arg-type]  # a float in the table

    @property
    def max_model_len(self) -> int | None:
        """Tokens of prompt and answer together; None where vLLM chooses."""
        return self._tokens("max-model-len")

    @property
    def max_num_seqs(self) -> int | None:
        """Most requests in one step; None where vLLM chooses."""
        return self._tokens("max-num-seqs")

    @property
    def max_num_batched_tokens(self) -> int | None:
        """Most tokens in one step; None where vLLM chooses."""
        return self._tokens("max-num-batched-tokens")

    @property
    def kv_cache_dtype(self) -> str:
        """The type of the attention cache, `auto` for the model's own."""
        return str(self.get("kv-cache-dtype"))

    @property
    def quantization(self) -> str | None:
        """How the weights are compressed; None leaves it to the checkpoint."""
        value = self.get("quantization")
        return value if isinstance(value, str) else None

    def _tokens(self, key: str) -> int | None:
        value = self.get(key)
        return value if isinstance(value, int) else None


def load_profile(path: Path, *, deviate: Collection[str] = ()) -> Profile:
    """Read and validate the profile in the YAML file `path`.

    `deviate` names keys of the contract that may differ or be missing. Raises ConfigurationError with every
    mistake, each at its `file:line`.
    """
    mistakes = Mistakes(path)
    note_unknown_deviations(deviate, mistakes)
    try:
        source = _named(read_source(path, mistakes), mistakes)
    except UnreadableError:
        raise mistakes.error() from None
    arguments = checked_values(source, mistakes)
    note_broken_rules(arguments, source.lines, mistakes, deviate=deviate)
    refused = set(source.values) - set(arguments)
    note_broken_contract(arguments, source.lines, mistakes, skip={*deviate, *refused})
    if mistakes:
        raise mistakes.error()
    return Profile(
        path=path,
        arguments=arguments,
        lines={key: source.lines[key,] for key in arguments},
        deviations=deviations(arguments, deviate, {key: row.default for key, row in engine_arguments().items()}),
    )


def _named(source: Source, mistakes: Mistakes) -> Source:
    """Give `source` with vLLM's own spelling of every key; a key that cannot stand in a profile is noted.

    vLLM takes `max_num_seqs` for `max-num-seqs`, and `no-enable-x: true` for `enable-x: false`.
    """
    named = Source()
    known = {name: row for name, row in engine_arguments().items() if name not in RESERVED}
    for key, value in source.values.items():
        line = source.lines[key,]
        name = key.replace("_", "-")
        negated = name.removeprefix("no-")
        if negated != name and name not in known and negated in known and known[negated].kind == "bool":
            if value is not True and key not in source.broken:
                remedy = f"write `{negated}: true` or `{negated}: false`"
                mistakes.add(line, "must be true, or not be there", key=key, got=shown(value), remedy=remedy)
                named.broken.add(negated)
            name, value = negated, False  # noqa: PLW2901  the same setting in its plain form
        if name in named.values:
            first = named.lines[name,]
            message = f"is given twice, as another spelling of {name} in line {first}"
            mistakes.add(line, message, key=key, remedy="keep one of them")
        elif name in RESERVED:
            why, remedy = RESERVED[name]
            mistakes.add(line, f"cannot be set in a profile: {why}", key=key, remedy=remedy)
        elif name not in known:
            guess = nearest(key, known)
            if "." in key:
                remedy = f"nest the keys under `{guess}:`" if guess else "nest the keys"
            else:
                remedy = f"did you mean {guess}?" if guess else "take it out"
            mistakes.add(line, f"is no argument of vLLM {ENGINE_VERSION}", key=key, remedy=remedy)
        else:
            named.values[name] = value
            named.lines.update({(name, *inner[1:]): at for inner, at in source.lines.items() if inner[0] == key})
            if key in source.broken:
                named.broken.add(name)
    return named
