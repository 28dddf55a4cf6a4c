"""What an unquoted word of YAML means, and the words that do not mean what they seem to.

vLLM reads its file with PyYAML, which implements YAML 1.1: `on` is true, `0777` is 511, `1:30` is 90, `1e-5` is text.
servekit takes a word that means the same to a person, to YAML 1.1 and to YAML 1.2. It rejects every other word, and
names the spelling to use instead.
"""

import math
import re
from typing import Final

from servekit.profile.values import Value

DECIMAL: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
EXPONENT: Final = re.compile(r"([-+]?[0-9]+)(\.[0-9]*)?[eE]([-+]?)([0-9]+)")
LONGEST: Final = {"int": 18, "float": 40}
"""The most characters of a number; 18 digits fit into 64 bits."""
TAG: Final = "tag:yaml.org,2002:"
TRAPS: Final = {
    "bool": ("YAML 1.1 reads {word} as {meant}", 'write {meant}, or "{word}" in quotes for the text'),
    "null": ("has no value", "give it one, or leave the key out for vLLM's default"),
    "timestamp": ("YAML reads this as a date", 'write "{word}" in quotes for the text'),
}
SIGN: Final = ("YAML gives this sign a special meaning", 'write "{word}" in quotes')


class ScalarTrapError(ValueError):
    """A word that YAML 1.1 reads in another way than people do: its `args` are the message and the remedy."""


def plain_value(word: str, tag: str) -> Value:
    """Return the value of the unquoted `word`, to which PyYAML's resolver gave `tag`.

    Raises ScalarTrapError where the word is ambiguous.
    """
    kind = tag.removeprefix(TAG)
    if kind == "str":
        return _text(word)
    if kind in LONGEST:
        return _number(word, kind)
    if kind == "bool" and word.lower() in ("true", "false"):
        return word.lower() == "true"
    meant = "true" if word.lower() in ("yes", "on") else "false"
    message, remedy = TRAPS.get(kind, SIGN)
    raise ScalarTrapError(message.format(word=word, meant=meant), remedy.format(word=word, meant=meant))


def _number(word: str, kind: str) -> int | float:
    if len(word) > LONGEST[kind]:
        raise ScalarTrapError(f"is a number of {len(word)} digits", "check it")
    if ":" in word:
        raise ScalarTrapError(
            "YAML 1.1 reads this as a number of base 60", f'write "{word}" in quotes for the text, or the number'
        )
    digits = word.replace("_", "").lower()
    if kind == "int" and not DECIMAL.fullmatch(digits):
        raise _other_base(word, digits)
    # float() takes `inf` and `nan`, without the dot of YAML
    value = int(digits) if kind == "int" else float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    if not math.isfinite(value):
        raise ScalarTrapError("is not a finite number", "give a number")
    if "_" in word:
        raise ScalarTrapError(
            "not every YAML reader takes _ inside a number", f'write {value}, or "{word}" for the text'
        )
    return value


def _other_base(word: str, digits: str) -> ScalarTrapError:
    try:
        value = int(digits, 0) if digits.lstrip("+-")[1:2] in ("x", "b") else int(digits, 8)
    except ValueError:  # YAML 1.1 takes `0x_` for a number, which has no digits
        return ScalarTrapError("could be a number or a text", f'write "{word}" in quotes for the text')
    plain = digits.lstrip("+-0xb") or 0
    return ScalarTrapError(
        f"YAML 1.1 reads {word} as {value}", f'write {value} if you mean that, {plain} if not, or "{word}" for the text'
    )


def _text(word: str) -> str:
    if not (number := EXPONENT.fullmatch(word)):
        return word
    whole, fraction, sign, exponent = number.groups()
    spelling = f"{whole}{fraction if fraction and fraction != '.' else '.0'}e{sign or '+'}{exponent}"
    if math.isfinite(float(spelling)):
        raise ScalarTrapError(
            f"YAML 1.1 reads {word} as text, not as a number", f'write {spelling}, or "{word}" for the text'
        )
    raise ScalarTrapError("could be a number or a text", f'write "{word}" in quotes for the text')
