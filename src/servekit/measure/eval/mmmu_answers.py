"""Answers to MMMU-Pro and their scores. Standard library only: lmms-eval's Python imports this file too.

The benchmark's rule is that of its evaluate.py: the letter after the last "Answer:", otherwise MMMU's older rule
(`parse_multi_choice_response`), which is all that lmms-eval 0.7.3 applies, and only to the standard half. One thing
differs here: an answer that names no option is wrong, where both draw a random one.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from string import ascii_uppercase
from typing import Literal, Self

SUBSETS = {"standard": "MMMU-Pro standard", "vision": "MMMU-Pro vision"}
QUESTIONS = 1730
"""Of each half. The score of another number says of how many."""
_SHORT_WORDS = 5
"""An answer of more words than this may name an option by its text."""


@dataclass(frozen=True)
class Answer:
    """One question and what came back."""

    subset: str
    """A key of SUBSETS."""
    prompt: str
    """`direct` or `cot`."""
    id: str
    subject: str
    options: Sequence[str]
    correct: str
    """The letter."""
    images: int
    outcome: Literal["answered", "refused", "failed"]
    """`refused`: the endpoint does not take such a request, as for too many images. `failed`: no answer came."""
    why: str = ""
    """The HTTP status and the endpoint's code for it, or the name of the exception."""
    text: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0

    def line(self) -> str:
        """Return the answer as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def read(cls, lines: Iterable[str]) -> list[Self]:
        """Return the answers of lines; the last one may be incomplete. Raises ValueError or TypeError."""
        return [cls(**json.loads(line)) for line in lines if line.endswith("\n")]


Rule = Callable[[str, Sequence[str]], str | None]
"""Returns the letter of the option that a text names, out of these options; None if it names none."""


def benchmark_rule(text: str, options: Sequence[str]) -> str | None:
    """Apply MMMU-Pro's rule: the only letter after the last "Answer:", otherwise MMMU's rule."""
    _, found, rest = text.rpartition("Answer:")
    named = [letter for letter in ascii_uppercase[: len(options)] if letter in rest]
    return named[0] if found and len(named) == 1 else mmmu_rule(text, options)


def mmmu_rule(text: str, options: Sequence[str]) -> str | None:
    """Apply MMMU's rule: letters in brackets, before a space, before a full stop, or options quoted in full.

    Of several, the last one counts. (MMMU looks for the last one between spaces, however it found them.)
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    letters = ascii_uppercase[: len(options)]
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if named := [letter for letter in letters if form.format(letter) in text]:
            return max(named, key=lambda letter: text.rfind(place.format(letter)))
    if len(text.split()) <= _SHORT_WORDS:
        return None
    places = [text.lower().rfind(option.lower()) for option in options]
    return letters[places.index(max(places))] if max(places, default=-1) >= 0 else None


def score(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the accuracies of answers to one prompt, in percent, and counts, whose names have a colon."""
    halves = {name: [each for each in answers if each.subset == subset] for subset, name in SUBSETS.items()}
    halves = {name: part for name, part in halves.items() if part}
    whole = {"MMMU-Pro": list(answers)} if len(halves) == len(SUBSETS) else {}
    scores: dict[str, float] = {}
    for name, part in (whole | halves).items():
        full = QUESTIONS * (len(SUBSETS) if name in whole else 1)
        label = name + (" CoT" if part[0].prompt == "cot" else "")
        label += "" if len(part) == full else f" ({len(part):,} of {full:,})"
        scores[label] = _accuracy(part, benchmark_rule)
        scores[f"{label} by lmms-eval's parser"] = _accuracy(part, mmmu_rule)
    for name, part in halves.items():
        scores |= {f"{name}: {what}": count for what, count in _counts(part).items()}
    return scores


def _accuracy(answers: Sequence[Answer], rule: Rule) -> float:
    right = sum(each.outcome == "answered" and rule(each.text, each.options) == each.correct for each in answers)
    return 100 * right / len(answers)


def _counts(answers: Sequence[Answer]) -> dict[str, float]:
    answered = [each for each in answers if each.outcome == "answered"]
    counts: dict[str, float] = {
        "questions": len(answers),
        "refused": sum(each.outcome == "refused" for each in answers),
        "failed": sum(each.outcome == "failed" for each in answers),
        "without an option": sum(benchmark_rule(each.text, each.options) is None for each in answered),
        "cut off": sum(each.finish == "length" for each in answered),
    }
    if answered:
        counts["output tokens per question"] = sum(each.output_tokens for each in answered) / len(answered)
    return counts
