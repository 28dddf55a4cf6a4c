"""The state that all measurements of one run share: paths of the engine, the checkpoints, the caches, the records."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.endpoint import unguarded, unguarded_environment
from benchmarks.gpu.endpoint import Measured, Served, serve
from benchmarks.gpu.reading import GIB, read_gpu
from servekit.preflight.start import find_engine_patches
from servekit.serve.guard import MIDDLEWARE
from servekit.serve.guard.keys import load_keys, own_key_file
from servekit.settings import Settings
from tests.harness.ports import free_port
from tests.harness.server import ROOT

STAGES = (
    *("start", "load", "load-bare-first", "images", "baseline", "stops", "memory", "memory-full", "memory-bare"),
    "warm-start",
)
BASELINE = ("--deviate", "quantization", "--deviate", "kv-cache-dtype", "--embeddings", "gpu")
INSIDE = Path(__file__).parents[1] / "inside"
"""What runs inside vLLM's server for the sake of a measurement."""


@dataclass
class Setting:
    """One run on one machine."""

    options: argparse.Namespace
    out: Path
    record: dict[str, Any] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)
    endpoints: list[Measured] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def gpu(self) -> bool:
        """Whether this run is on a GPU."""
        return bool(self.options.target == "cuda")

    @property
    def quick(self) -> bool:
        """Whether this is a rehearsal: everything once, as short as possible."""
        return bool(self.options.quick)

    def left_s(self) -> float:
        """Seconds until this stage should be over."""
        return float(self.options.within_s) - (time.monotonic() - self.began_s)

    def note(self, name: str, value: object) -> None:
        """Add to the record and write it: an interrupted stage keeps what it has recorded."""
        with self._lock:
            self.record[name] = value
            self.record["seconds"] = round(time.monotonic() - self.began_s, 1)
            text = json.dumps(self.record, indent=1, default=str)
            (self.out / f"{self.options.stage}.json").write_text(text + "\n")
        print(f"[{self.record['seconds']:6.1f} s] {name}: {json.dumps(value, default=str)[:700]}", flush=True)

    def step(self, name: str, measure: Callable[[], object]) -> None:
        """Record what `measure` returns, or its failure, which does not stop the others."""
        try:
            self.note(name, measure())
        except Exception:  # noqa: BLE001 - the record has any failure
            self.note(name, {"failure": traceback.format_exc()[-1500:]})

    def close(self) -> None:
        """Leave no server of this run behind."""
        for endpoint in self.endpoints:
            if endpoint.process.poll() is None:
                endpoint.close()

    def profile(self, source: str = "vllm_config.yaml", *, budget_gib: float | None = None) -> Path:
        """Write the profile `source`; change only the share of GPU memory, to that of `budget_gib`."""
        text = (ROOT / source).read_text()
        if self.gpu:
            share = (budget_gib or self.options.budget_gib) * GIB / usable_bytes()
            text, count = re.subn(r"(?m)^(gpu-memory-utilization:).*$", rf"\1 {share:.6f}", text)
            assert count == 1, source
        path = self.out / f"{Path(source).stem}-{budget_gib or self.options.budget_gib:g}.yaml"
        path.write_text(text)
        return path

    def environ(self, *, timed: bool = False, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of this run's servekit, with `variables`; `timed`: its guard has a stopwatch."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SERVEKIT_")}
        kept |= variables or {}
        if timed:
            kept["PYTHONPATH"] = before(INSIDE, kept.get("PYTHONPATH"))
        engine = Settings(engine=self.options.engine)  # its folder of newer packages also precedes a wrapper's
        patches = os.environ.get("SERVEKIT_ENGINE_PATCHES") or find_engine_patches(engine) or ""
        return kept | {
            "SERVEKIT_ENGINE_PATCHES": str(patches),
            "SERVEKIT_ENGINE": self._engine_with_stopwatch() if timed else self.options.engine,
            "SERVEKIT_CACHE_DIR": str(self.options.cache),
            "SERVEKIT_STATE_DIR": str(self.options.state),
            "SERVEKIT_DRAIN_S": "30",
            "SERVEKIT_SERVED_NAME": "model",
        }

    def flags(self, profile: Path, model: Path, *more: str) -> list[str]:
        """Return the flags of this run's servekit."""
        flags = ["--target", self.options.target, "--config", str(profile), "--model", str(model)]
        return [*flags, *self.options.flag, *more]

    def serve(
        self,
        name: str,
        profile: Path,
        model: Path,
        *more: str,
        timed: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> Served:
        """Start servekit with `variables` in its environment; `timed`: its guard has a stopwatch."""
        flags, environ = self.flags(profile, model, *more), self.environ(timed=timed, variables=variables)
        server = serve(flags, environ, self.out / f"{name}.log")
        self.endpoints.append(server)
        return server

    def serve_bare(
        self, name: str, profile: Path, model: Path, *, variables: Mapping[str, str] | None = None
    ) -> Measured:
        """Start vLLM alone with servekit's arguments and environment and `variables`, without the guard's."""
        port = free_port()
        plan = self.ask("plan", *self.flags(profile, model), "--port", str(port))
        environ = self.environ(variables=variables)
        kept = {each: value for each, value in environ.items() if not each.startswith("SERVEKIT_")}
        argv = unguarded(plan["argv"])
        self.note("bare_argv", argv)
        environ = kept | unguarded_environment(plan)
        bare = Measured(argv, environ, port, log=self.out / f"{name}.log").start()
        self.endpoints.append(bare)
        return bare

    def _engine_with_stopwatch(self) -> str:
        """Write a program that runs the engine with another class in place of the guard's."""
        program = self.out / "engine-with-stopwatch"
        program.write_text(
            f'#!/bin/bash\nexec {shlex.quote(self.options.engine)} "${{@/{MIDDLEWARE}/guard_timed.Timed}}"\n'
        )
        program.chmod(0o755)
        return str(program)

    def ask(self, *words: str) -> dict[str, Any]:
        """Return the JSON that a servekit command prints, whatever its exit code; `failure` if it is not JSON."""
        command = [sys.executable, "-m", "servekit.cli.main", *words, "--format", "json"]
        answer = subprocess.run(command, env=self.environ(), capture_output=True, check=False, text=True)
        try:
            return dict(json.loads(answer.stdout))
        except ValueError:
            return {"failure": answer.stderr[-800:], "exit_code": answer.returncode}

    def key(self) -> str:
        """Return the clients' key, empty if authentication is off."""
        path = own_key_file(Path(self.options.state))
        return load_keys(path)[0] if path.exists() else ""


def before(folder: Path, path: str | None) -> str:
    """Return a search path with `folder` first."""
    return os.pathsep.join((str(folder), *filter(None, [path])))


def usable_bytes() -> int:
    """Total GPU memory in bytes, as CUDA reports it."""
    from servekit.preflight.host.gpus import survey_gpus  # noqa: PLC0415 - a run on the CPU does not need it

    survey = survey_gpus()
    assert survey, "no GPU"
    return survey.gpus[0].usable_bytes


def machine() -> dict[str, object]:
    """Describe the machine."""
    gpu = read_gpu()
    return {
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "gpu": gpu.name if gpu else None,
        "gpu_total_bytes": gpu.memory_bytes if gpu else None,
        "gpu_used_before_bytes": gpu.memory_bytes - gpu.free_bytes if gpu else None,
    }
