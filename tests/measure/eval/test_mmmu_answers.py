"""The rule by which answers are scored, and the scores."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from string import ascii_uppercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servekit.measure.eval.mmmu_answers import QUESTIONS, Answer, benchmark_rule, mmmu_rule, score
from tests.measure.eval.lmms import OPTIONS, PYTHON, needs_lmms_eval

PARSER = """
import importlib.util, json, pathlib, sys, types
package = importlib.util.find_spec("lmms_eval").submodule_search_locations[0]
spec = importlib.util.spec_from_file_location("rule", pathlib.Path(package, "tasks/_task_utils/mmmu_mcq_utils.py"))
rule = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rule)
rule.random = types.SimpleNamespace(choice=lambda _letters: None)
for line in sys.stdin:
    text, options = json.loads(line)
    texts, letters = rule.get_multi_choice_info(options)
    print(json.dumps(rule.parse_mmmu_multi_choice_response(text, letters, texts)), flush=True)
"""
"""lmms-eval's own parser, line by line; None where it would draw a letter."""

LETTERS = st.sampled_from("ABCDEFGHIJ")
PIECES = st.one_of(
    LETTERS,
    st.builds("({})".format, LETTERS),
    st.builds("{}.".format, LETTERS),
    st.builds("Answer: {}".format, LETTERS),
    st.sampled_from(
        [*OPTIONS, "OPTION C", "the answer is", "A cat", "I think", "Answer:", "", "\n", "**", "'", "...", "?!"]
    ),
    st.text(max_size=6),
)
TEXTS = st.builds(
    lambda pieces, glue: glue.join(pieces), st.lists(PIECES, max_size=12), st.sampled_from([" ", "", "\n"])
)
CHOICES = st.lists(st.one_of(st.sampled_from(OPTIONS), st.text(max_size=8)), min_size=2, max_size=10)


@pytest.fixture(scope="module")
def parser() -> "Iterator[subprocess.Popen[str]]":
    """A process with lmms-eval's parser."""
    with subprocess.Popen(
        [PYTHON, "-I", "-c", PARSER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@needs_lmms_eval
@pytest.mark.timeout(300)
@settings(max_examples=300, deadline=None)
@given(TEXTS, CHOICES)
def test_agrees_with_lmms_eval(parser: "subprocess.Popen[str]", text: str, options: Sequence[str]) -> None:
    """MMMU's rule reads every answer as lmms-eval does, and reads nothing where lmms-eval draws a letter."""
    assert parser.stdin is not None
    assert parser.stdout is not None
    parser.stdin.write(json.dumps([text, options]) + "\n")
    parser.stdin.flush()
    assert mmmu_rule(text, options) == json.loads(parser.stdout.readline())


@pytest.mark.parametrize(
    ("text", "letter", "by_mmmu"),
    [
        ("B", "B", "B"),
        ("B.", "B", "B"),
        ("Answer: B", "B", "B"),
        ("(C) or (D)", "D", "D"),
        ("(A) and (B) are wrong.\nAnswer: D", "D", "B"),
        ("Answer: A. No, wait.\nAnswer: **D**", "D", "A"),
        ("Answer: A or C", "C", "C"),
        ("It must be what is called option d here", "D", "D"),
        ("option d", None, None),
        ("", None, None),
        ("none of these", None, None),
    ],
)
def test_rules(text: str, letter: str | None, by_mmmu: str | None) -> None:
    """The letter after the last "Answer:" comes first; MMMU's rule does not know it, and prefers brackets."""
    assert benchmark_rule(text, OPTIONS) == letter
    assert mmmu_rule(text, OPTIONS) == by_mmmu


@given(TEXTS, CHOICES)
def test_an_answer_names_one_of_the_options_or_none(text: str, options: Sequence[str]) -> None:
    """Whatever a model writes, the rule returns a letter of the options or None, and the same one each time."""
    found = benchmark_rule(text, options)
    assert found is None or found in ascii_uppercase[: len(options)]
    assert found == benchmark_rule(text, options)


def answer(text: str = "", *, correct: str = "B", subset: str = "standard", **more: object) -> Answer:
    """Return an answer to a question with ten options."""
    fields = {"prompt": "direct", "images": 1, "outcome": "answered", "output_tokens": 4} | more
    return Answer(subset=subset, id="test_Art_1", subject="Art", options=OPTIONS, correct=correct, text=text, **fields)  # type: ignore[arg-type]


def test_refused_and_failed_questions_are_wrong_and_counted() -> None:
    """Both halves are read alike; questions without an answer count as wrong, apart, and never by chance."""
    given = [
        answer("B"),
        answer("(C)"),
        answer("no idea", finish="length", output_tokens=256),
        answer(outcome="refused", why="400", images=4, output_tokens=0),
        answer(outcome="failed", why="APITimeoutError", output_tokens=0),
        answer("Answer: B.", subset="vision"),
        answer("It is B", subset="vision"),
    ]
    assert score(given) == {
        "MMMU-Pro (7 of 3,460)": pytest.approx(300 / 7),
        "MMMU-Pro (7 of 3,460) by lmms-eval's parser": pytest.approx(300 / 7),
        "MMMU-Pro standard (5 of 1,730)": 20,
        "MMMU-Pro standard (5 of 1,730) by lmms-eval's parser": 20,
        "MMMU-Pro vision (2 of 1,730)": 100,
        "MMMU-Pro vision (2 of 1,730) by lmms-eval's parser": 100,
        "MMMU-Pro standard: questions": 5,
        "MMMU-Pro standard: refused": 1,
        "MMMU-Pro standard: failed": 1,
        "MMMU-Pro standard: without an option": 1,
        "MMMU-Pro standard: cut off": 1,
        "MMMU-Pro standard: output tokens per question": 88,
        "MMMU-Pro vision: questions": 2,
        "MMMU-Pro vision: refused": 0,
        "MMMU-Pro vision: failed": 0,
        "MMMU-Pro vision: without an option": 0,
        "MMMU-Pro vision: cut off": 0,
        "MMMU-Pro vision: output tokens per question": 4,
    }
    assert score([]) == {}


def test_a_whole_half_has_the_benchmarks_name() -> None:
    """The score of all 1,730 questions has no number in its name; CoT has a name of its own."""
    assert next(iter(score([answer("B")] * QUESTIONS))) == "MMMU-Pro standard"
    assert next(iter(score([answer("B", prompt="cot")] * QUESTIONS))) == "MMMU-Pro standard CoT"


@given(st.builds(answer, st.text(), why=st.text(max_size=5)))
def test_answers_are_lines(given: Answer) -> None:
    """What is written is read; a last line that was cut off is left out."""
    line = given.line()
    assert Answer.read([line, line[:-1]]) == [given]
