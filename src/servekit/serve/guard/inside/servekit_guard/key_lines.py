"""The lines of a key file: a key, its options, and its name in the comment.

    sk-servekit-...  expires=2027-01-31 in-flight=8 routes=/v1/chat/completions,/v1/models  # team-a

A comment that is one word of `NAME_WORD` names the key; any other comment means nothing. A word as long as a key could
be an old one, so a long name is an option: `name=WORD`. No message repeats a word of the file: it may be a key.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .routes import CLIENT_ROUTES

MIN_KEY_CHARS = 20
"""Shorter keys can be guessed, or are part of a file that is still being written."""
MAX_KEY_CHARS = 512
NAME_WORD = re.compile(r"[A-Za-z0-9._-]{1,40}")
SHOWN_DIGITS = 8
"""Digits of a key's SHA-256 that name a key without a name."""
ROUTES = tuple(route.path for route in CLIENT_ROUTES if not route.public)


class KeyFileError(ValueError):
    """A key file cannot be used. The messages never repeat the file's content: it may be a key."""

    def __init__(self, problems: dict[int, str]) -> None:
        """`problems`: what is wrong, by line number from 1; 0 for the whole file."""
        texts = (f"line {line}: {message}" if line else message for line, message in problems.items())
        super().__init__("; ".join(texts))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Key:
    """What the file says about one key, without the key."""

    digest: bytes
    """SHA-256 of the key."""
    name: str
    expires_s: float | None = None
    """Seconds since the epoch from which the key is refused; None: never."""
    in_flight: int | None = None
    """Requests of the name that may be in flight; None: no limit beside the endpoint's."""
    routes: tuple[str, ...] = ()
    """The routes that the key may use; empty: all."""

    def expired(self, now_s: float) -> bool:
        """Return whether the key is refused at this second since the epoch."""
        return self.expires_s is not None and now_s >= self.expires_s


def parse_lines(text: str) -> dict[str, Key]:
    """Return each key of a key file with what the file says about it; blank lines and comments are skipped.

    Raises KeyFileError with every mistake, or when there is no key.
    """
    keys: dict[str, Key] = {}
    lines: dict[str, tuple[int, list[str]]] = {}
    problems: dict[int, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        before, _, comment = line.partition("#")
        word, *options = before.split()[:1] + sorted(before.split()[1:]) or [""]
        if not word:
            continue
        first, same = lines.setdefault(word, (number, options))
        found, wrong = _parse_options(options)
        wrong = [problem for problem in (_key_problem(word), *wrong) if problem]
        if same != options:
            wrong.append(f"repeats the key of line {first} with other options; remove one of the two lines")
        if wrong:
            problems[number] = "; ".join(wrong)
        elif word not in keys:
            digest = hashlib.sha256(word.encode("ascii")).digest()
            keys[word] = Key(digest, found.pop("name", None) or _name(comment) or shown(digest), **found)
    if not lines:
        problems[0] = "it contains no key"
    if problems:
        raise KeyFileError(problems)
    return keys


def shown(digest: bytes) -> str:
    """Return what stands for a key without a name."""
    return digest.hex()[:SHOWN_DIGITS]


def parse_time(text: str) -> float:
    """Return the seconds since the epoch of a date or a time in ISO 8601, UTC unless it says otherwise."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("expires= must be a date or a time in UTC, such as 2027-01-31 or 2027-01-31T12:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _parse_name(text: str) -> str:
    if not NAME_WORD.fullmatch(text):
        raise ValueError("name= must have 1 to 40 letters, digits, dots, underscores or dashes")
    return text


def _parse_count(text: str) -> int:
    if not (text.isdecimal() and len(text) < 10 and int(text)):  # noqa: PLR2004 - nine digits are more than enough
        raise ValueError("in-flight= must be a number from 1")
    return int(text)


def _parse_routes(text: str) -> tuple[str, ...]:
    routes = tuple(text.split(","))
    if not set(routes) <= set(ROUTES):
        raise ValueError(f"routes= must list routes with commas and no spaces, of {', '.join(ROUTES)}")
    return routes


_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "name": ("name", _parse_name),
    "expires": ("expires_s", parse_time),
    "in-flight": ("in_flight", _parse_count),
    "routes": ("routes", _parse_routes),
}
"""By its name in the file: the field of `Key`, and the parser of its value."""


def _parse_options(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of `Key` that these words give, and what is wrong with them."""
    found: dict[str, Any] = {}
    wrong = []
    for word in words:
        option, _, value = word.partition("=")
        if option not in _OPTIONS:
            known = ", ".join(f"{name}=" for name in _OPTIONS)
            wrong.append(f"a key must be one word of printable ASCII characters, and after it only {known} may stand")
            break
        name, parse = _OPTIONS[option]
        if name in found:
            wrong.append(f"{option}= stands twice")
        try:
            found[name] = parse(value)
        except ValueError as error:
            wrong.append(str(error))
    return found, wrong


def _key_problem(key: str) -> str | None:
    if not all("!" <= character <= "~" for character in key):
        return "a key must be one word of printable ASCII characters"
    if not MIN_KEY_CHARS <= len(key) <= MAX_KEY_CHARS:
        return f"a key must have {MIN_KEY_CHARS} to {MAX_KEY_CHARS} characters (got {len(key)})"
    return None


def _name(comment: str) -> str | None:
    """Return the name in a comment; None for any other comment, such as a sentence or an old key."""
    word = comment.strip()
    return word if NAME_WORD.fullmatch(word) and len(word) < MIN_KEY_CHARS else None
