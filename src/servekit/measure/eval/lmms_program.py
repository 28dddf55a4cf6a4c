"""Run MMMU-Pro by lmms-eval 0.7.3 against an endpoint: one program, run by the Python of lmms-eval's environment.

    PYTHON -I lmms_program.py prepare PLAN     load the questions, and ask the endpoint for its model
    PYTHON -I lmms_program.py run PLAN         ask them, write the answers as they come, and the scores at the end

PLAN is a JSON object with the fields of `Plan`; the key is in OPENAI_API_KEY. `prepare` ends with a line on standard
output, MARK and a JSON object: {"questions", "max_model_len"}, or {"problem", "at", "remedy"} with exit code 1. `run`
exits with 1 if no question was answered, and after SIGINT or SIGTERM with 128 and the signal's number; it then keeps
the answers that it has.

lmms-eval chooses the prompts, encodes the images and sends the requests. Only what spoils its scores is replaced: each
answer goes to a file with its outcome, an answer that is final ends the attempts, and mmmu_answers.py scores.
"""

import argparse
import ast
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple, NoReturn

if __name__ == "__main__":  # -I leaves servekit out
    sys.path.append(str(Path(__file__).parents[3]))

from servekit.measure.eval.mmmu_answers import Answer, score
from servekit.measure.eval.mmmu_questions import ProblemError, load, without_images

LMMS_EVAL = "0.7.3"
MARK = "servekit-eval "
FINAL = frozenset({400, 413, 422, 431})
"""The endpoint does not take such a request: another attempt gets the same answer."""
ATTEMPTS = 5
"""The client's own, with pauses, after a lost connection or an answer such as 429 and 503."""
TIMEOUT_S = 3600
"""For one answer: thousands of tokens at the pace of a full batch."""
PROMPT_TOKENS = 4096
"""Room for the prompt where lmms-eval's longest answer would not leave any."""


class Plan(NamedTuple):
    """What to run."""

    url: str
    """The endpoint's, with /v1."""
    model: str
    subsets: Sequence[str]
    prompt: str
    """`direct` or `cot`."""
    data: str
    """A local copy of the data set; empty: the hub's."""
    limit: int | None
    streams: int
    """Requests at once."""
    out: str = ""
    """The file for the answers."""
    max_model_len: int = 0
    """The endpoint's longest prompt and answer; 0: unknown."""


def main(argv: Sequence[str]) -> NoReturn:
    """Run one of the two commands."""
    command, words = argv
    plan = Plan(**json.loads(words))
    if command == "run":
        run(plan)
    try:
        report(**prepare(plan))
    except ProblemError as problem:
        report(problem=str(problem), at=problem.at, remedy=problem.remedy)
        sys.exit(1)
    sys.exit(0)


def prepare(plan: Plan) -> dict[str, Any]:
    """Load the questions, which downloads what the hub's cache lacks, and ask the endpoint. Raises ProblemError."""
    import openai

    try:
        found = version("lmms-eval")
    except PackageNotFoundError:
        found = "none"
    if found != LMMS_EVAL:
        remedy = "run `scripts/install.sh eval`, or give the Python of an environment with requirements/eval.txt"
        raise ProblemError(f"must have lmms-eval {LMMS_EVAL} (got {found})", sys.executable, remedy)
    questions = {subset: len(load(plan.data, subset)) for subset in plan.subsets}
    try:
        models = {model.id: model for model in make_client(plan).models.list()}
    except openai.OpenAIError as error:
        what = f"does not list its models ({type(error).__name__})"
        raise ProblemError(what, plan.url, "check --endpoint and the key: --api-keys-file or --state-dir") from error
    if plan.model not in models:
        raise ProblemError(f"does not have the model {plan.model!r}", plan.url, "check --endpoint")
    return {"questions": questions, "max_model_len": getattr(models[plan.model], "max_model_len", None) or 0}


def make_client(plan: Plan) -> Any:
    """Return OpenAI's client for the endpoint. It ignores proxies, as servekit does, but not SSL_CERT_FILE."""
    import httpx
    import openai

    http = openai.DefaultHttpxClient(trust_env=False, verify=httpx.create_ssl_context())
    return openai.OpenAI(base_url=plan.url, max_retries=ATTEMPTS - 1, timeout=TIMEOUT_S, http_client=http)


def run(plan: Plan) -> NoReturn:
    """Ask every question by lmms-eval, then score."""
    answers = AnswerFile(plan)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, answers.stop)
    from loguru import logger

    logger.remove()  # at lower levels lmms-eval logs prompts, and errors that quote them
    logger.add(sys.stderr, level="ERROR", format="lmms-eval: {message}")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    try:
        simple_evaluate(
            model=make_model(plan, answers),
            tasks=[make_task(plan, subset) for subset in plan.subsets],
            task_manager=TaskManager("ERROR", include_defaults=False),
            limit=plan.limit,
            bootstrap_iters=0,
            log_samples=False,
            cli_args=argparse.Namespace(process_with_media=False),
        )
    finally:
        answers.score()
        answers.close()
    sys.exit(0 if answers.any else 1)


def make_task(plan: Plan, subset: str) -> Any:
    """Return lmms-eval's own task, with these questions and without its scores."""
    import lmms_eval.tasks
    from datasets import DatasetDict
    from lmms_eval.api.task import ConfigurableMessagesTask
    from lmms_eval.utils import load_yaml_config

    class Questions(ConfigurableMessagesTask):  # type: ignore[misc]
        def download(self, _arguments: Any = None) -> None:
            table = load(plan.data, subset)
            self.dataset, self.dataset_no_image = DatasetDict(test=table), DatasetDict(test=without_images(table))

    name = f"mmmu_pro_{subset}{'_cot' if plan.prompt == 'cot' else ''}"
    config = load_yaml_config(str(Path(lmms_eval.tasks.__file__).parent / "mmmu_pro" / f"{name}.yaml"))
    metric = {"metric": "asked", "aggregation": "mean", "higher_is_better": True}
    config |= {"process_results": lambda *_: {"asked": 1}, "metric_list": [metric], "reasoning_tags": "none"}
    return Questions(config=config, model_name="openai")


def make_model(plan: Plan, answers: "AnswerFile") -> Any:
    """Return lmms-eval's own client of OpenAI's API, whose requests go through `answers`."""
    from lmms_eval.models.chat.openai import OpenAICompatible

    class Endpoint(OpenAICompatible):  # type: ignore[misc]
        def generate_until(self, requests: Sequence[Any]) -> Any:
            tables = {name: without_images(splits["test"]) for name, splits in self.task_dict.items()}
            for number, request in enumerate(requests):
                _, _, arguments, row, task, _ = request.args
                arguments["seed"] = number  # lmms-eval passes it on: an answer finds its question by it
                answers.questions.append(describe(task.split("_")[2], plan.prompt, tables[task][row]))
            return super().generate_until(requests)

    # The name is not the endpoint's, because lmms-eval takes one such as "proto3" for OpenAI's own o3.
    model = Endpoint(model="endpoint", base_url=plan.url, num_concurrent=plan.streams, max_retries=1)
    model.client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=answers.ask)))
    return model


def describe(subset: str, prompt: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an Answer says about its question. The data set has options as the text of a Python list."""
    options = ast.literal_eval(row["options"]) if isinstance(row["options"], str) else row["options"]
    told = {"subset": subset, "prompt": prompt, "options": list(map(str, options)), "correct": row["answer"]}
    return {**told, "id": row["id"], "subject": row["subject"]}


class AnswerFile:
    """Sends requests, from any thread, and appends each answer to a file."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.questions: list[dict[str, Any]] = []
        """The question of each request, in lmms-eval's order."""
        self.any = False
        """Whether any question was answered."""
        self._client = make_client(plan)
        self._lock = threading.RLock()  # a signal may arrive while this thread holds it
        self._file = os.fdopen(os.open(plan.out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")

    def ask(self, **payload: Any) -> Any:
        """Send a request and keep its answer; return it to lmms-eval, an empty one in place of an error."""
        import openai

        number = payload.pop("seed")
        payload["model"] = self.plan.model
        if longest := self.plan.max_model_len:
            payload["max_tokens"] = min(payload["max_tokens"], max(longest - PROMPT_TOKENS, longest // 2))
        told: dict[str, Any] = {
            "images": sum(part["type"] == "image_url" for part in payload["messages"][0]["content"])
        }
        try:
            answer = self._client.chat.completions.create(**payload)
            choice, usage = answer.choices[0], answer.usage
            choice.message.content = choice.message.content or ""
            told |= {"outcome": "answered", "text": choice.message.content, "finish": choice.finish_reason or ""}
            if usage:
                told |= {"prompt_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
        except openai.APIStatusError as error:
            outcome = "refused" if error.status_code in FINAL else "failed"
            told |= {"outcome": outcome, "why": f"{error.status_code} {error.code or error.type}"}
        except Exception as error:  # noqa: BLE001 - whatever it is, this question has no answer
            told |= {"outcome": "failed", "why": type(error).__name__}
        self._keep(Answer(**self.questions[number], **told))
        if told["outcome"] == "answered":
            return answer
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=""))], usage=None)

    def _keep(self, answer: Answer) -> None:
        with self._lock:
            self.any |= answer.outcome == "answered"
            self._file.write(answer.line())
            self._file.flush()

    def score(self) -> None:
        """Score what the file has, and leave the scores where `servekit measure` looks for them."""
        with self._lock, Path(self.plan.out).open(encoding="utf-8") as file:
            scores = score(Answer.read(file))
        Path(os.environ["MEASURE_SCORES_FILE"]).write_text(json.dumps(scores), encoding="utf-8")

    def close(self) -> None:
        """Close the file and the connections."""
        self._client.close()
        self._file.close()

    def stop(self, number: int, _: FrameType | None) -> NoReturn:
        """Keep the answers so far and end, without waiting for those on their way."""
        self.score()
        os._exit(128 + number)


def report(**values: Any) -> None:
    """Print one line."""
    sys.stdout.write(f"{MARK}{json.dumps(values)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
