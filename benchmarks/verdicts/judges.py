"""The judges of a mutated checkpoint: `servekit check`, the engine in one process, and a whole start."""

import json
import math
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from random import Random
from typing import Any, Self

from benchmarks.verdicts.changes import SHARD, Tensors, apply, read_tensors, write_tensors
from benchmarks.verdicts.mutations import BY_HAND, MORE, OTHER, SAME
from servekit.demo.build import build_demo_model
from servekit.demo.fills import bf16
from servekit.errors import ExitCode, Severity
from servekit.preflight.examine import examine
from servekit.preflight.start import Start, make_start
from servekit.profile import load_profile, render
from servekit.settings import Settings, Target
from tests.conftest import ROOT
from tests.engine.conftest import make_endpoint
from tests.engine.killers.content import picture, png
from tests.harness.server import HarnessError

SERVED, WRONG, REFUSED = "served", "served wrongly", "refused"
LAST = "last token"
"""The stage that a whole start does not have: a prompt of the tokenizer's largest id, which the guard would reject."""
SAME_LOGITS = 0.1
"""Logits that differ by less are the same: those of the demo span 30, and casting weights moves them by 0.05."""
_ENGINE = ROOT / ".venv-engine" / "bin" / "python"
_HOST = (
    "engine-missing",
    "engine-patches",
    "cpu-memory",
    "cpu-library",
    "cpu-features",
    "cache-folder",
    "cache-space",
    "shared-memory",
    "port-taken",
)
"""Findings about this host, not about the checkpoint."""
_TEXT = {"type": "text", "text": "what is there to see zzzz"}
"""With a word that mutations add to the vocabulary."""
_IMAGE = picture(f"data:image/png;base64,{png(768)}")
"""Large enough to need as many tokens as an image may have."""
_REQUESTS = {
    name: {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 2, "min_tokens": 1}
    for name, content in (("text", [_TEXT]), ("image", [_IMAGE, _TEXT]))
}
"""With `min_tokens` vLLM masks the tokens that end an answer, so those of generation_config.json must be ids."""
_OF_THE_ENGINE = (ExitCode.START_FAILED, ExitCode.ENGINE_DIED, ExitCode.CONTRACT_BROKEN)
_SMALL = {"max-num-seqs": 8, "max-num-batched-tokens": 256}
"""For a shorter warm-up; so is a table of 20,000 rotary angles instead of 131,072."""
_CONTRACT = ("max-num-seqs", "quantization")
_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT / ".venv-engine-patches"),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}


class Bench:
    """A folder with both unchanged checkpoints, their profiles, and room for a mutated one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.patient = folder / "checkpoint"
        for base, quantized in (("w4a16", True), ("bf16", False)):
            build_demo_model(folder / base, quantized=quantized)
            _vary(folder / base / SHARD)
            apply(folder / base, [["set", "config.json", ["text_config", "max_position_embeddings"], 20_000]])
            text = (ROOT / "vllm_config.yaml").read_text(encoding="utf-8")
            for key, value in _SMALL.items() if quantized else [*_SMALL.items(), ("quantization", None)]:
                text = re.sub(f"(?m)^{key}: .*", f"{key}: {value}" if value else "", text)
            (folder / f"{base}.yaml").write_text(text, encoding="utf-8")

    def mutate(self, base: str, changes: list[list[Any]]) -> None:
        """Make the mutated checkpoint."""
        shutil.rmtree(self.patient, ignore_errors=True)
        shutil.copytree(self.folder / base, self.patient)
        apply(self.patient, changes)

    def start(self, base: str, model: Path | None = None) -> Start:
        """Return what `servekit check --target cpu` looks at."""
        profile = load_profile(self.folder / f"{base}.yaml", deviate=_CONTRACT)
        settings = Settings(target=Target.CPU, model=str(model or self.patient), cache_dir=self.folder, skip=_HOST)
        return make_start(profile, settings, {})

    def check(self, base: str) -> list[str]:
        """Return the names of the errors that `servekit check` finds."""
        found = examine(self.start(base), {}).findings
        return sorted({each.name for each in found if each.severity is Severity.ERROR})

    def arguments(self, base: str, model: Path | None = None) -> list[str]:
        """Return the words after `vllm serve`."""
        start = self.start(base, model)
        return [start.model, "--served-model-name", "demo", *render(start.values)]


def _vary(path: Path) -> None:
    """Make every tensor matter: norms and factors of 1 differ from vLLM's defaults, and the clipping bounds bite."""
    tensors: Tensors = {}
    for name, (dtype, shape, data) in read_tensors(path).items():
        first = data[:2]
        if dtype == "BF16" and any(first) and data == first * (len(data) // 2):
            (exact,) = memoryview(b"\0\0" + first).cast("f")
            random, value = Random(name), max(-2.0, min(2.0, exact)) if abs(exact) > 1000 else exact  # noqa: PLR2004
            data = b"".join(bf16(value * random.uniform(0.75, 1.25)) for _ in range(len(data) // 2))  # noqa: PLW2901
        tensors[name] = (dtype, shape, data)
    write_tensors(path, tensors)


class Engine:
    """vLLM in a process of its own, which forks a child for each checkpoint (`engine.py`)."""

    def __init__(self, bench: Bench, log: Path) -> None:
        self._bench = bench
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [str(_ENGINE), str(Path(__file__).with_name("engine.py"))],
            env=os.environ | _ENVIRONMENT | {"VLLM_CACHE_ROOT": str(bench.folder / "cache")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._unchanged = {base: self._ask(base, bench.folder / base) for base in ("w4a16", "bf16")}
        if failed := [f"{base}: {each['error']}" for base, each in self._unchanged.items() if each["stage"]]:
            raise RuntimeError(f"the engine does not serve the unchanged checkpoint: {'; '.join(failed)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._log.close()

    def verdict(self, base: str, means: str) -> dict[str, Any]:
        """Return the verdict on the mutated checkpoint, where it failed, and in which words."""
        answer = self._ask(base, self._bench.patient)
        if answer["stage"]:
            words = answer["error"].replace(str(self._bench.patient), "MODEL")[:160]
            return {"engine": REFUSED, "stage": answer["stage"], "words": words}
        unchanged = self._unchanged[base]
        words = wrong_logits(answer["logits"], unchanged["logits"], means)
        if means == OTHER and (empty := set(answer["empty"]) - set(unchanged["empty"])):
            words = f"no weights for {len(empty)} parameters, such as {min(empty)}"
        return {"engine": WRONG, "words": words} if words else {"engine": SERVED}

    def _ask(self, base: str, model: Path) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        task = {"argv": self._bench.arguments(base, model), "requests": _REQUESTS}
        print(json.dumps(task), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def wrong_logits(logits: list[list[float]], known: list[list[float]], means: str) -> str:
    """Say why these logits are wrong; those of the unchanged checkpoint are known."""
    if means == BY_HAND:
        return "what known.yaml says"
    if not all(map(math.isfinite, (value for row in logits for value in row))):
        return "logits that are no numbers"
    distance = max(
        max(map(abs, map(float.__sub__, row, other)), default=0.0) if len(row) == len(other) else math.inf
        for row, other in zip(logits, known, strict=True)
    )
    if means == SAME and distance > SAME_LOGITS:
        return f"logits differ by {distance:.2f}"
    return "what it stores or declares has no effect" if means == MORE and distance <= SAME_LOGITS else ""


def whole_start(bench: Bench, base: str, skip: list[str]) -> str:
    """Start `servekit serve` on the mutated checkpoint without the findings in `skip`; return served or refused."""
    flags = ("--config", str(bench.folder / f"{base}.yaml"), "--deviate", ",".join(_CONTRACT), "--served-name", "demo")
    endpoint = make_endpoint(bench.folder, "--model", str(bench.patient), "--skip", ",".join([*_HOST, *skip]), *flags)
    try:
        endpoint.until_ready()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {endpoint.key}"}
        for body in _REQUESTS.values():
            url, data = f"{endpoint.url}/v1/chat/completions", json.dumps(body).encode()
            urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60).close()
    except urllib.error.HTTPError:
        return REFUSED
    except HarnessError:
        if endpoint.process.poll() not in _OF_THE_ENGINE:
            raise  # servekit did not get as far as the engine: no verdict
        return REFUSED
    finally:
        endpoint.finish()
    return SERVED
