"""What an unquoted word of YAML means, and the words that do not mean what they seem to.

vLLM reads its file with PyYAML, that is YAML 1.1: `on` is true, `0777` is 511, `1:30` is 90, and `1e-5` is text.
A word that means the same to a person, to YAML 1.1 and to YAML 1.2 is taken; the others are refused with the
spelling to use instead.
"""

import math
import re

from servekit.profile.values import Value

DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
EXPONENT = re.compile(r"([-+]?[0-9]+)(\.[0-9]*)?[eE]([-+]?)([0-9]+)")
LONGEST_WHOLE, LONGEST_FRACTION = 18, 40  # the first fits 64 bits
TAG = "tag:yaml.org,2002:"


class ScalarTrapError(ValueError):
    """A word that YAML 1.1 reads in another way than people do: `message` and `remedy`."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


def plain_value(word: str, tag: str) -> Value:
    """Give the value of the unquoted `word`, to which PyYAML's resolver gave `tag`.

    Raises ScalarTrapError where the word is ambiguous.
    """
    match tag.removeprefix(TAG):
        case "null":
            raise ScalarTrapError("has no value", "give it one, or leave the key out for vLLM's default")
        case "bool":
            return _boolean(word)
        case "int":
            return _whole(word)
        case "float":
            return _fraction(word)
        case "str":
            return _text(word)
        case "timestamp":
            raise ScalarTrapError("YAML reads this as a date", f'write "{word}" in quotes for the text')
        case _:
            raise ScalarTrapError("YAML gives this sign a meaning of its own", f'write "{word}" in quotes')


def _boolean(word: str) -> bool:
    lowered = word.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    meant = "true" if lowered in ("yes", "on") else "false"
    raise ScalarTrapError(f"YAML 1.1 reads {word} as {meant}", f'write {meant}, or "{word}" in quotes for the text')


def _whole(word: str) -> int:
    if len(word) > LONGEST_WHOLE:
        raise ScalarTrapError(f"is a number of {len(word)} digits", "check it")
    if DECIMAL.fullmatch(word):
        return int(word)
    if ":" in word:
        raise _sexagesimal(word)
    digits = word.replace("_", "").lower()
    if DECIMAL.fullmatch(digits):
        raise ScalarTrapError(
            "not every YAML reader takes _ inside a number", f'write {int(digits)}, or "{word}" for the text'
        )
    value = int(digits, 0) if digits.lstrip("+-")[1:2] in ("x", "b") else int(digits, 8)
    raise ScalarTrapError(
        f"YAML 1.1 reads {word} as {value}",
        f'write {value} if you mean that, {digits.lstrip("+-0xb") or 0} if not, or "{word}" for the text',
    )


def _fraction(word: str) -> float:
    if len(word) > LONGEST_FRACTION:
        raise ScalarTrapError(f"is a number of {len(word)} digits", "check it")
    if ":" in word:
        raise _sexagesimal(word)
    lowered = word.lower().lstrip("+-")
    value = math.inf if lowered in (".inf", ".nan") else float(word.replace("_", ""))
    if not math.isfinite(value):
        raise ScalarTrapError("is not a finite number", "give a number")
    if "_" in word:
        raise ScalarTrapError(
            "not every YAML reader takes _ inside a number", f'write {value}, or "{word}" for the text'
        )
    return value


def _text(word: str) -> str:
    if number := EXPONENT.fullmatch(word):
        whole, fraction, sign, exponent = number.groups()
        fraction = fraction if fraction and fraction != "." else ".0"
        spelling = f"{whole}{fraction}e{sign or '+'}{exponent}"
        if not math.isfinite(float(spelling)):
            raise ScalarTrapError("could be a number or a text", f'write "{word}" in quotes for the text')
        raise ScalarTrapError(
            f"YAML 1.1 reads {word} as text, not as a number", f'write {spelling}, or "{word}" for the text'
        )
    return word


def _sexagesimal(word: str) -> ScalarTrapError:
    return ScalarTrapError(
        "YAML 1.1 reads this as a number of base 60", f'write "{word}" in quotes for the text, or the number'
    )
