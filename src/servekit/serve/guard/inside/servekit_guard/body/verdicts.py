"""Kinds of verdict on a field: passed, bounded or refused. Each says in words what is wrong with a value."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

INT64 = 2**63
"""MessagePack carries no larger number to EngineCore; vLLM 0.20.2 answers 500 to `top_k: 2**70`."""


@dataclass(frozen=True, slots=True)
class Rule(ABC):
    """A verdict on one field."""

    why: str
    """The reason for the verdict."""

    @abstractmethod
    def problem(self, value: Any, vocabulary_size: int, /) -> str | None:
        """Return what is wrong with `value`, which is not null, as the end of "FIELD ..."; None when it is fine."""


@dataclass(frozen=True, slots=True)
class Passed(Rule):
    """vLLM's own checks are sufficient."""

    def problem(self, value: Any, _vocabulary_size: int, /) -> str | None:
        """Reject only numbers that do not fit 64 bits."""
        return "does not fit 64 bits" if type(value) is int and not -INT64 <= value < INT64 else None


@dataclass(frozen=True, slots=True)
class Refused(Rule):
    """Only null, false and the empty value are accepted."""

    def problem(self, value: Any, _vocabulary_size: int, /) -> str | None:
        """Reject every value that requests something."""
        return f"is not accepted by this server: {self.why}" if value not in (None, False, {}, []) else None


@dataclass(frozen=True, slots=True)
class Number(Rule):
    """A number within a range, both ends included."""

    low: float
    high: float

    def problem(self, value: Any, _vocabulary_size: int, /) -> str | None:
        """Reject everything that is not a number, and numbers outside the range."""
        if not isinstance(value, (int, float)):
            return "must be a number"
        in_range = self.low <= value <= self.high
        return None if in_range else f"must be from {self.low:,} to {self.high:,} (got {value!r:.40})"


@dataclass(frozen=True, slots=True)
class Text(Rule):
    """A string short enough to be copied quickly."""

    max_chars: int

    def problem(self, value: Any, _vocabulary_size: int, /) -> str | None:
        """Reject a string that is too long; vLLM rejects other types."""
        too_long = isinstance(value, str) and len(value) > self.max_chars
        return f"must have at most {self.max_chars:,} characters (got {len(value):,})" if too_long else None


@dataclass(frozen=True, slots=True)
class Items(Rule):
    """A list or an object with a limited number of members, whose strings are limited too."""

    max_items: int
    max_chars: int | None = None
    """Of each string in it; None: only the size of the body limits them."""
    min_items: int = 0

    def problem(self, value: Any, _vocabulary_size: int, /) -> str | None:
        """Reject too many members, too few, and strings that are too long."""
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, (list, dict)):
            return None
        if not self.min_items <= len(value) <= self.max_items:
            bounds = f"{self.min_items} to {self.max_items:,}" if self.min_items else f"at most {self.max_items:,}"
            return f"must have {bounds} entries (got {len(value):,})"
        if self.max_chars is None:
            return None
        members = (*value, *value.values()) if isinstance(value, dict) else value
        longest = max((len(member) for member in members if isinstance(member, str)), default=0)
        if longest > self.max_chars:
            return f"has an entry of {longest:,} characters; at most {self.max_chars:,} are allowed"
        return None


@dataclass(frozen=True, slots=True)
class TokenIds(Rule):
    """A list of token ids of this model."""

    max_items: int

    def problem(self, value: Any, vocabulary_size: int, /) -> str | None:
        """Reject everything that is not such a list."""
        if not isinstance(value, list) or not are_token_ids(value, vocabulary_size):
            return f"must be a list of token ids from 0 to {vocabulary_size - 1}"
        return f"must have at most {self.max_items:,} entries" if len(value) > self.max_items else None


@dataclass(frozen=True, slots=True)
class Bias(Rule):
    """An object that maps token ids, written as strings, to numbers."""

    max_items: int

    def problem(self, value: Any, vocabulary_size: int, /) -> str | None:
        """Reject ids that this model does not have, and values that are not finite numbers."""
        if not isinstance(value, dict):
            return "must be an object that maps token ids to numbers"
        if len(value) > self.max_items:
            return f"must have at most {self.max_items:,} entries (got {len(value):,})"
        for token, bias in value.items():
            if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < vocabulary_size):  # noqa: PLR2004
                return f"must have token ids from 0 to {vocabulary_size - 1} (got {token!r:.40})"
            if not isinstance(bias, (int, float)) or not abs(bias) < INT64:  # NaN is not less than anything
                return f"must map each token id to a number (got {bias!r:.40})"
        return None


@dataclass(frozen=True, slots=True)
class Special(Rule):
    """A field with its own check."""

    check: Callable[[Any, int], str | None]

    def problem(self, value: Any, vocabulary_size: int, /) -> str | None:
        """Return what the check returns."""
        return self.check(value, vocabulary_size)


def are_token_ids(values: list[Any], vocabulary_size: int) -> bool:
    """Return whether all are token ids of the model. Each pass runs in C: a prompt may have 20,000 of them."""
    return not values or (set(map(type, values)) == {int} and min(values) >= 0 and max(values) < vocabulary_size)
