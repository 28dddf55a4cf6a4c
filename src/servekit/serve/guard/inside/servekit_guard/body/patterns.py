"""The size of a regular expression once its repetitions are written out: what a backend must work with."""

import re

HEAVY_CLASS = 32
"""What `\\p{L}` counts for: thousands of code points; compiling it takes a millisecond, a letter a microsecond."""

_QUANTIFIER = re.compile(r"[?*+]|\{(\d*)(?:,(\d*))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]", re.DOTALL)
_EXTENDED_FLAG = re.compile(r"\(\?[a-zA-Z]*x")
_GROUP_START = re.compile(r"\((?:\?(?:P?<\w+>|[a-zA-Z-]*[:)]|[=!]|<[=!]))?")


def pattern_size(pattern: str) -> int | None:
    """Return how many atoms `pattern` has with every `{n,m}` written out m times; None where it cannot be read.

    `(a{10}b){20}` has 220. A repetition without end counts by its least number. The flag `x` lets a blank stand
    between a group and its repetition, so it is not read; neither are parentheses that do not match.
    """
    if _EXTENDED_FLAG.search(pattern):
        return None
    totals, last, place = [0], 0, 0
    while place < len(pattern):
        end, atom = _step(pattern, place)
        if atom is not None:
            last = atom
            totals[-1] += atom
        elif pattern[place] == "(" and pattern[end - 1] != ")":
            totals.append(0)
            last = 0
        elif pattern[place] == ")":
            if len(totals) == 1:
                return None
            last = totals.pop()
            totals[-1] += last
        elif quantifier := _QUANTIFIER.match(pattern, place):
            added = last * (_times(quantifier) - 1)
            totals[-1] += added
            last += added
        place = end
    return totals[0] if len(totals) == 1 else None


def repetitions(text: str) -> int:
    """Return the product of all repetition counts in a text: no expansion of it is longer by a larger factor."""
    product = 1
    for quantifier in _QUANTIFIER.finditer(text):
        product = min(product * _times(quantifier), 10**9)
    return product


def _step(pattern: str, place: int) -> tuple[int, int | None]:
    """Return where the next piece ends, and its atoms; None for a parenthesis, a repetition, or an alternative."""
    character = pattern[place]
    if character == "\\":
        heavy = pattern[place + 1 : place + 2] in ("p", "P")
        named = pattern[place + 1 : place + 3] in ("p{", "P{", "x{", "u{", "U{")
        closing = pattern.find("}", place) + 1 if named else 0
        return max(closing, place + 2), HEAVY_CLASS if heavy else 1
    if character == "[" and (found := _CLASS.match(pattern, place)):
        text = found.group()
        return found.end(), 1 + HEAVY_CLASS * (text.count("\\p") + text.count("\\P"))
    if character == "(" and (group := _GROUP_START.match(pattern, place)):
        return group.end(), None
    if quantifier := _QUANTIFIER.match(pattern, place):
        return quantifier.end(), None
    return place + 1, None if character in ")|" else 1


def _times(quantifier: re.Match[str]) -> int:
    """Return how often at most, and at least once; `{n,}` and `*` count by their least number."""
    least, most = quantifier.groups()
    return max(1, int((most or least or "1")[:9]))
