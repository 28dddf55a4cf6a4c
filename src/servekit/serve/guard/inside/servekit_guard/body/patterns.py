"""The size of a regular expression with its repetitions written out: what a backend must work with."""

import re

HEAVY_CLASS = 32
"""What `\\p{L}` counts for: its thousands of code points take a millisecond to compile, a letter a microsecond."""

_REPETITION = r"[?*+]|\{(?P<least>\d*)(?:,(?P<most>\d*))?\}"
_REPETITIONS = re.compile(_REPETITION)
_TOKEN = re.compile(
    rf"""
      (?P<heavy> \\[pP](?:\{{[^}}]*\}})? )
    | (?P<escape> \\[xu]\{{[^}}]*\}} | \\.? )
    | (?P<set> \[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\] )
    | (?P<flags> \(\?[a-zA-Z-]*\) )
    | (?P<open> \((?:\?(?:P?<\w+>|[a-zA-Z-]*:|[=!]|<[=!]))? )
    | (?P<close> \) )
    | (?P<either> \| )
    | (?P<repetition> {_REPETITION} )
    | (?P<character> . )
    """,
    re.DOTALL | re.VERBOSE,
)
_CLASSES = re.compile(r"\\[pP]")
_EXTENDED_FLAG = re.compile(r"\(\?[a-zA-Z]*x")


def pattern_size(pattern: str) -> int | None:
    """Return how many atoms `pattern` has with every `{n,m}` written out m times; None when it cannot be read.

    `(a{10}b){20}` has 220. A repetition without an end counts by its minimum. With the flag `x`, a blank may stand
    between a group and its repetition, so such a pattern is not read; nor is one whose parentheses do not match.
    """
    if _EXTENDED_FLAG.search(pattern):
        return None
    totals, last = [0], 0
    for token in _TOKEN.finditer(pattern):
        kind = token.lastgroup
        if kind == "open":
            totals.append(0)
            last = 0
        elif kind == "close":
            if len(totals) == 1:
                return None
            last = totals.pop()
            totals[-1] += last
        elif kind == "repetition":
            added = last * (_times(token) - 1)
            totals[-1] += added
            last += added
        elif kind not in ("flags", "either"):
            classes = len(_CLASSES.findall(token.group())) if kind == "set" else 0
            last = HEAVY_CLASS if kind == "heavy" else 1 + HEAVY_CLASS * classes
            totals[-1] += last
    return totals[0] if len(totals) == 1 else None


def repetitions(text: str) -> int:
    """Return the product of all repetition counts in a text: no expansion of it is longer by a larger factor."""
    product = 1
    for repetition in _REPETITIONS.finditer(text):
        product = min(product * _times(repetition), 10**9)
    return product


def _times(repetition: re.Match[str]) -> int:
    """Return the maximum of a repetition, at least 1; `{n,}` and `*` count by their minimum."""
    return max(1, int((repetition["most"] or repetition["least"] or "1")[:9]))
