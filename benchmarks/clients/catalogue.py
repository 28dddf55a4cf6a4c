"""The clients: what each needs, and how its documentation's first page is run here."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
Words = list[str]


@dataclass(frozen=True)
class Place:
    """Where a client runs and what it is told.

    bin: the folder of its programs. url: the endpoint's address without `/v1`. model: the checkpoint's folder, whose
    tokenizer some clients want. work: a folder for what the client writes.
    """

    bin: Path
    url: str
    key: str
    name: str
    model: Path
    work: Path

    def page(self, name: str) -> Words:
        """Return the command that runs one of this folder's Python programs."""
        return [str(self.bin / "python"), str(HERE / name)]


@dataclass(frozen=True)
class Client:
    """One client. says: text that its output must have; packages for pip, or for npm if `node` is set."""

    what: str
    argv: Callable[[Place], Words]
    packages: tuple[str, ...] = ()
    node: bool = False
    says: str = ""

    @property
    def package(self) -> str:
        """The package whose version the table shows."""
        return self.packages[0].partition("[")[0] if self.packages else ""


def lm_eval(task: str, kind: str, path: str, *more: str) -> Callable[[Place], Words]:
    """Return the command of lm-eval for one of the tasks that `write_task` has written."""

    def argv(at: Place) -> Words:
        settings = [f"model={at.name}", f"base_url={at.url}{path}", *(each.format(model=at.model) for each in more)]
        command = [str(at.bin / "lm_eval"), "--model", kind, "--model_args", ",".join(settings)]
        chat = ["--apply_chat_template"] if "chat" in kind else []
        return [*command, *chat, "--tasks", write_task(at.work, task), "--include_path", str(at.work)]

    return argv


def write_task(folder: Path, kind: str) -> str:
    """Write a task of three questions and return its name; no data set has to be downloaded."""
    questions = folder / "questions.jsonl"
    questions.write_text("".join(f'{{"question": "Is {n} a number?", "answer": "yes"}}\n' for n in range(3)))
    asks = {
        "generate_until": [
            'doc_to_target: "{{answer}}"',
            'generation_kwargs: {until: ["\\n"], max_gen_toks: 16}',
            "metric_list: [{metric: exact_match}]",
        ],
        "multiple_choice": ['doc_to_choice: ["yes", "no"]', "doc_to_target: 0", "metric_list: [{metric: acc}]"],
    }
    lines = [
        f"task: {kind}_task",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {questions}}}}}",
        "test_split: test",
        f"output_type: {kind}",
        'doc_to_text: "{{question}}"',
        *asks[kind],
    ]
    (folder / f"{kind}.yaml").write_text("\n".join(lines) + "\n")
    return f"{kind}_task"


LOOK = """
from PIL import Image


def visual(_question):
    return [Image.new("RGB", (64, 48), "grey")]


def text(question, *_):
    return question["question"]
"""


def lmms_eval(at: Place) -> Words:
    """Return the command of lmms-eval for the same questions, each with an image.

    The task has a folder of its own: lmms-eval reads every YAML file below it, as a task.
    """
    folder = at.work / "task"
    folder.mkdir()
    write_task(folder, "generate_until")
    task = (folder / "generate_until.yaml").read_text()
    for field, value in ("doc_to_text", "!function look.text"), ("doc_to_target", "answer"):
        task = re.sub(rf"(?m)^{field}: .*", f"{field}: {value}", task)
    (folder / "look.py").write_text(LOOK)
    (folder / "generate_until.yaml").write_text(f"{task}doc_to_visual: !function look.visual\n")
    settings = ",".join([f"model_version={at.name}", f"base_url={at.url}/v1", "num_concurrent=1"])
    command = [str(at.bin / "python"), "-m", "lmms_eval", "--model", "openai", "--model_args", settings]
    return [*command, "--tasks", "generate_until_task", "--include_path", str(folder), "--batch_size", "1"]


def curl(at: Place) -> Words:
    """Return a request whose body is sent in chunks and whose answer is read as it arrives."""
    body = (
        f'{{"model": "{at.name}", "messages": [{{"role": "user", "content": "Hi"}}], "stream": true, "max_tokens": 9}}'
    )
    headers = ["Transfer-Encoding: chunked", "Content-Type: application/json", f"Authorization: Bearer {at.key}"]
    options = [word for header in headers for word in ("-H", header)]
    return ["curl", "-sSNf", *options, "-d", body, f"{at.url}/v1/chat/completions"]


def bench_serve(at: Place) -> Words:
    """Return the command of vLLM's own benchmark, from the engine's environment."""
    where = ["--backend", "openai-chat", "--base-url", at.url, "--endpoint", "/v1/chat/completions"]
    what = ["--model", at.name, "--tokenizer", str(at.model), "--dataset-name", "random", "--num-prompts", "4"]
    return ["vllm", "bench", "serve", *where, *what, "--random-input-len", "16", "--random-output-len", "8"]


def guidellm(at: Place) -> Words:
    """Return four synthetic requests, two at a time."""
    options = {
        "--backend": f"kind=openai_http,target={at.url},model={at.name},api_key={at.key}",
        "--profile": "kind=concurrent,streams=2",
        "--constraint": "kind=max_requests,count=4",
        "--tokenizer": f"kind=huggingface_auto,model={at.model}",
        "--data": "kind=synthetic_text,prompt_tokens=16,output_tokens=8",
        "--output": "kind=console",
    }
    words = [word for option in options.items() for word in option]
    return [str(at.bin / "guidellm"), "run", "--disable-console-interactive", *words]


def aiperf(at: Place) -> Words:
    """Return four streamed chats, two at a time."""
    where = ["--model", at.name, "--url", at.url, "--endpoint-type", "chat", "--streaming", "--api-key", at.key]
    sizes = ["--request-count", "4", "--concurrency", "2", "--isl", "16", "--osl", "8"]
    own = ["--tokenizer", str(at.model), "--ui", "none", "--artifact-dir", str(at.work)]
    return [str(at.bin / "aiperf"), "profile", *where, *sizes, *own]


def node(page: str) -> Callable[[Place], Words]:
    """Return the command of a page for Node, which finds packages only beside the page."""

    def argv(at: Place) -> Words:
        copy = at.bin.parent.parent / page
        copy.write_text((HERE / page).read_text())
        return ["node", str(copy)]

    return argv


CLIENTS = {
    "litellm": Client(
        "completion, stream, forced tools, responses", lambda at: at.page("litellm_page.py"), ("litellm",)
    ),
    "llama-index": Client(
        "OpenAILike: complete, chat, stream, structured output",
        lambda at: at.page("llama_index_page.py"),
        ("llama-index-llms-openai-like",),
    ),
    "openai-node": Client("chat, stream, forced tools, responses", node("openai_node.mjs"), ("openai",), node=True),
    "ai-sdk": Client(
        "generateText, streamText, generateObject, tools",
        node("ai_sdk.mjs"),
        ("ai", "@ai-sdk/openai-compatible", "zod"),
        node=True,
    ),
    "open-webui": Client(
        "its requests replayed, without the package: models, stream with usage, title, image",
        lambda _at: [sys.executable, str(HERE / "open_webui_page.py")],
    ),
    "lm-eval": Client(
        "generate_until on /v1/chat/completions",
        lm_eval("generate_until", "local-chat-completions", "/v1/chat/completions"),
        ("lm-eval[api]",),
        says="exact_match",
    ),
    "lm-eval-choice": Client(
        "multiple_choice on /v1/completions (log probabilities of the prompt)",
        lm_eval(
            "multiple_choice",
            "local-completions",
            "/v1/completions",
            "tokenizer={model}",
            "tokenizer_backend=huggingface",
        ),
        ("lm-eval[api]", "transformers"),
        says="acc",
    ),
    "lmms-eval": Client(
        "generate_until with an image in each question",
        lmms_eval,
        # 0.7.3 imports a module that filelock 4 no longer has; it then prints a traceback and exits with 0.
        ("lmms-eval", "filelock<4"),
        says="|exact_match|",
    ),
    "guidellm": Client("four requests, two at a time", guidellm, ("guidellm",), says="Benchmarking complete"),
    "aiperf": Client("four streamed chats, two at a time", aiperf, ("aiperf",), says="Output Token Throughput"),
    "vllm-bench": Client("four random requests", bench_serve, says="Successful requests:                     4"),
    "curl": Client("a chunked body, a streamed answer", curl, says="data: [DONE]"),
}
