"""Kinds of verdict on a field: passed, bounded or refused. Each says what is wrong with a value, in words."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

INT64 = 2**63
"""MessagePack, on the way to EngineCore, carries no larger number; vLLM 0.20.2 answers 500 to `top_k: 2**70`."""


class Rule(Protocol):
    """A verdict on one field."""

    @property
    def why(self) -> str:
        """The reason for the verdict."""
        ...

    def complaint(self, value: Any, vocabulary_size: int) -> str | None:
        """Return what is wrong with `value`, which is not null, as the end of "FIELD ..."; None when nothing is."""
        ...


@dataclass(frozen=True, slots=True)
class Passed:
    """vLLM's own checks are enough."""

    why: str

    def complaint(self, value: Any, vocabulary_size: int) -> str | None:
        """Object to numbers that do not fit 64 bits alone."""
        del vocabulary_size
        return "does not fit 64 bits" if type(value) is int and not -INT64 <= value < INT64 else None


@dataclass(frozen=True, slots=True)
class Refused:
    """No value but null, false and the empty one."""

    why: str

    def complaint(self, value: Any, vocabulary_size: int) -> str | None:
        """Object to every value that asks for something."""
        del vocabulary_size
        return f"is not accepted by this server: {self.why}" if value not in (None, False, {}, []) else None


@dataclass(frozen=True, slots=True)
class Number:
    """A number within a range, both ends included."""

    low: float
    high: float
    why: str

    def complaint(self, value: Any, vocabulary_size: int) -> str | None:
        """Object to everything that is no number, and to numbers outside the range."""
        del vocabulary_size
        if not isinstance(value, (int, float)):
            return "must be a number"
        return (
            None
            if self.low <= value <= self.high
            else f"must be from {self.low:g} to {self.high:g} (got {value!r:.40})"
        )


@dataclass(frozen=True, slots=True)
class Text:
    """A string of a length that nobody has to copy for long."""

    max_chars: int
    why: str

    def complaint(self, value: Any, vocabulary_size: int) -> str | None:
        """Object to a string that is too long; another type is left to vLLM."""
        del vocabulary_size
        too_long = isinstance(value, str) and len(value) > self.max_chars
        return f"must have at most {self.max_chars:,} characters (got {len(value):,})" if too_long else None


@dataclass(frozen=True, slots=True)
class Items:
    """A list, or an object, with a bounded number of members, whose strings are bounded too."""

    max_items: int
    why: str
    max_chars: int | None = None
    """Of each string in it; None: the body's size alone bounds them."""
    min_items: int = 0

    def complaint(self, value: Any, vocabulary_size: int) -> str | None:
        """Object to too many members, to too few and to strings that are too long."""
        del vocabulary_size
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, (list, dict)):
            return None
        if not self.min_items <= len(value) <= self.max_items:
            bounds = f"{self.min_items} to {self.max_items:,}" if self.min_items else f"at most {self.max_items:,}"
            return f"must have {bounds} entries (got {len(value):,})"
        if self.max_chars is None:
            return None
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            if isinstance(item, str) and len(item) > self.max_chars:
                return f"has an entry of {len(item):,} characters; at most {self.max_chars:,} are allowed"
        return None


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A list of token ids of this model."""

    max_items: int
    why: str

    def complaint(self, value: Any, vocabulary_size: int) -> str | None:
        """Object to whatever is no such list."""
        if not isinstance(value, list) or not are_token_ids(value, vocabulary_size):
            return f"must be a list of token ids from 0 to {vocabulary_size - 1}"
        return f"must have at most {self.max_items:,} entries" if len(value) > self.max_items else None


@dataclass(frozen=True, slots=True)
class Bias:
    """An object from token ids, written as strings, to numbers."""

    max_items: int
    why: str

    def complaint(self, value: Any, vocabulary_size: int) -> str | None:
        """Object to ids that this model does not have, and to values that are no finite numbers."""
        if not isinstance(value, dict):
            return "must be an object from token ids to numbers"
        if len(value) > self.max_items:
            return f"must have at most {self.max_items:,} entries (got {len(value):,})"
        for token, bias in value.items():
            if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < vocabulary_size):  # noqa: PLR2004
                return f"must name token ids from 0 to {vocabulary_size - 1} (got {token!r:.40})"
            if not isinstance(bias, (int, float)) or not abs(bias) < INT64:  # NaN is not less than anything
                return f"must give each token a number (got {bias!r:.40})"
        return None


@dataclass(frozen=True, slots=True)
class Judged:
    """A field with a rule of its own."""

    judge: Callable[[Any, int], str | None]
    why: str

    def complaint(self, value: Any, vocabulary_size: int) -> str | None:
        """Return what the field's own rule says."""
        return self.judge(value, vocabulary_size)


def are_token_ids(values: list[Any], vocabulary_size: int) -> bool:
    """Tell whether all are token ids of the model. One pass each in C: a prompt may have 20,000 of them."""
    return not values or (set(map(type, values)) == {int} and min(values) >= 0 and max(values) < vocabulary_size)
