"""The plan: everything is computed from values, without side effects."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from servekit.errors import ConfigurationError
from servekit.nvml import GpuSurvey
from servekit.preflight.memory.gpu_models import parse_gpu_model
from servekit.preflight.start import find_engine_patches, make_start
from servekit.profile import load_profile
from servekit.serve.engine import early_core
from servekit.serve.guard import INSIDE
from servekit.serve.plan import (
    STOP_MARGIN_S,
    Plan,
    build_plan,
    connectable,
    engine_environment,
)
from servekit.settings import Settings, Target, read_settings


@pytest.fixture
def plan(root: Path) -> "MakePlan":
    """Plan the shipped profile."""
    return MakePlan(root)


class MakePlan:
    """A function that plans a shipped profile."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(
        self, target: Target, file: str = "vllm_config.yaml", environ: Mapping[str, str] | None = None, **flags: object
    ) -> Plan:
        """Return the plan for these flags and variables."""
        settings = read_settings({"target": target, "cache_dir": "/cache"} | flags, environ or {})
        profile = load_profile(self._root / file, deviate=settings.deviate)
        return build_plan(profile, settings, environ or {}, survey=lambda: None)


def test_cuda_renders_the_card(plan: MakePlan) -> None:
    """On the GPU, vLLM gets the profile unchanged, the model is the card's, and there are no deviations."""
    made = plan(Target.CUDA, engine="/opt/vllm", port=8123, drain_s=30)
    assert made.argv[:5] == (
        "/opt/vllm",
        "serve",
        "salve-mundii/gemma4-E4B-opt",
        "--served-model-name",
        "gemma4-E4B-opt",
    )
    text = " ".join(made.argv)
    for part in (
        "--host 127.0.0.1 --port 8123 --shutdown-timeout 30",
        "--max-num-seqs 1024",
        "--kv-cache-dtype fp8_e4m3",
        "--quantization compressed-tensors",
        "--enable-prefix-caching",
        "--gpu-memory-utilization 0.9",
    ):
        assert part in text
    assert "--config" not in made.argv, "vLLM drops false values of a file; servekit renders them itself"
    assert made.deviations == ()
    assert made.adjustments == ()
    assert "HF_HUB_OFFLINE" not in made.environment
    assert "VLLM_CPU_KVCACHE_SPACE" not in made.environment


def flashinfer(made: Plan) -> bool:
    """Return whether FlashInfer draws tokens, in the engine's environment and in the memory plan alike."""
    assert made.flashinfer == (made.environment.get("VLLM_USE_FLASHINFER_SAMPLER") == "1")
    return made.flashinfer


def test_the_sampler_is_what_the_setting_or_the_environment_says(plan: MakePlan) -> None:
    """FlashInfer draws on a GPU where it is asked for; what it compiles goes to the cache folder, which is kept."""
    assert not flashinfer(plan(Target.CUDA))
    assert flashinfer(plan(Target.CUDA, sampler="flashinfer"))
    assert not flashinfer(plan(Target.CPU, sampler="flashinfer"))
    assert plan(Target.CUDA).environment["FLASHINFER_WORKSPACE_BASE"] == "/cache"
    assert flashinfer(plan(Target.CUDA, environ={"VLLM_USE_FLASHINFER_SAMPLER": "1"}))
    assert not flashinfer(plan(Target.CUDA, sampler="flashinfer", environ={"VLLM_USE_FLASHINFER_SAMPLER": "0"}))


def test_an_engine_in_the_root_folder(plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper such as `/vllm` in a container has no folder above its own, for kernels or newer packages."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/vllm")
    made = plan(Target.CUDA)
    assert (made.flashinfer, made.engine_patches) == (False, None)


@pytest.mark.parametrize(
    "kernels",
    [
        "env/lib/python3.12/dist-packages/flashinfer_jit_cache/jit_cache/sampling/sampling.so",
        "cache/.cache/flashinfer/0.6.8.post1/89/cached_ops/sampling/sampling.so",
    ],
)
def test_auto_takes_flashinfer_where_its_kernels_are_compiled(plan: MakePlan, tmp_path: Path, kernels: str) -> None:
    """No start waits for a compiler that nobody asked for: in the image or in the cache, compiled kernels decide."""
    program = tmp_path / "env" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    flags: dict[str, Any] = {"engine": str(program), "cache_dir": str(tmp_path / "cache")}
    assert not flashinfer(plan(Target.CUDA, **flags))
    (tmp_path / kernels).parent.mkdir(parents=True)
    (tmp_path / kernels).touch()
    assert flashinfer(plan(Target.CUDA, **flags))


def test_the_structured_output_backend_is_fixed(plan: MakePlan, tmp_path: Path, root: Path) -> None:
    """vLLM gets the structured output backend in one argument, with the profile's other settings for it."""
    made = plan(Target.CUDA)
    assert made.argv[made.argv.index("--structured-outputs-config") + 1] == '{"backend": "guidance"}'
    file = tmp_path / "p.yaml"
    text = "structured-outputs-config:\n  disable_any_whitespace: true\n"
    file.write_text((root / "vllm_config.yaml").read_text() + text)
    made = plan(Target.CUDA, file=str(file))
    assert made.argv.count("--structured-outputs-config") == 1
    config = json.loads(made.argv[made.argv.index("--structured-outputs-config") + 1])
    assert config == {"disable_any_whitespace": True, "backend": "guidance"}


def test_cpu_deviates_by_name_and_starts_fast(plan: MakePlan) -> None:
    """On the CPU, the cache type is a named deviation, and the adjustments for a quick start are listed."""
    made = plan(Target.CPU)
    assert [(d.key, d.wanted, d.used) for d in made.deviations] == [("kv-cache-dtype", "fp8_e4m3", "auto")]
    assert made.arguments.contract["kv-cache-dtype"] == "auto"
    assert [a.key for a in made.adjustments] == ["enforce-eager", "skip-mm-profiling"]
    assert (made.model, made.demo, made.served_name) == ("/cache/gemma4-tiny-w4a16-seed0", True, "gemma4-demo")
    assert "--kv-cache-dtype auto" in " ".join(made.argv)
    assert made.environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert made.environment["HF_HUB_OFFLINE"] == "1"


def test_cpu_keeps_what_the_user_chose(plan: MakePlan, tmp_path: Path, root: Path) -> None:
    """A value from the profile or the environment is not adjusted."""
    file = tmp_path / "p.yaml"
    file.write_text((root / "vllm_config.yaml").read_text() + "enforce-eager: false\n")
    made = plan(Target.CPU, file=str(file), environ={"VLLM_CPU_KVCACHE_SPACE": "4"})
    assert "--no-enforce-eager" in made.argv
    assert made.environment["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert [a.key for a in made.adjustments] == ["skip-mm-profiling"]


def test_baseline_deviates_where_asked(plan: MakePlan) -> None:
    """The baseline profile runs with its two deviations named."""
    made = plan(Target.CUDA, "profiles/fp16-baseline.yaml", deviate=("quantization", "kv-cache-dtype"))
    assert {d.key for d in made.deviations} == {"quantization", "kv-cache-dtype"}
    assert "--quantization" not in made.argv
    assert made.arguments.contract == {
        "kv-cache-dtype": "auto",
        "quantization": None,
        "limit-mm-per-prompt": {"image": 3, "audio": 0, "video": 0},
        "max-num-seqs": 1024,
    }


def test_model_and_name(plan: MakePlan, tmp_path: Path) -> None:
    """The served name is the last part of the model's name unless it is given; a folder needs no hub."""
    (tmp_path / "my-model").mkdir()
    made = plan(Target.CUDA, model=str(tmp_path / "my-model"))
    assert made.served_name == "my-model"
    assert made.environment["HF_HUB_OFFLINE"] == "1"
    assert plan(Target.CPU, model="org/m", served_name="chat").served_name == "chat"


def test_an_engine_that_is_no_python_program_is_run_as_it_is(plan: MakePlan, tmp_path: Path) -> None:
    """A wrapper in another language starts vLLM in its own way."""
    (tmp_path / "vllm").write_text('#!/bin/bash\nexec vllm "$@"\n')
    (tmp_path / "vllm").chmod(0o755)
    made = plan(Target.CUDA, engine=str(tmp_path / "vllm"))
    assert made.command == made.argv


def test_hub_model_is_pinned_or_downloaded(plan: MakePlan, tmp_path: Path) -> None:
    """A whole cached model starts offline at its commit; before one that is not whole goes the download."""
    engine = tmp_path / "vllm"
    engine.write_text(f"#!{sys.executable}\n")
    engine.chmod(0o755)
    snapshot = tmp_path / "hub" / "models--org--m" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)

    def make() -> Plan:
        environ = {"HF_HUB_CACHE": str(tmp_path / "hub")}
        return plan(Target.CUDA, environ=environ, model="org/m", revision="a" * 40, engine=str(engine))

    made = make()
    assert made.argv[:2] == (sys.executable, "-I")
    assert made.argv[3:9] == ("fetch", "org/m", "a" * 40, "--", str(engine), "serve")
    assert made.command == (*made.argv[:7], sys.executable, early_core.__file__, *made.argv[7:])
    assert "--revision" not in made.argv
    assert "HF_HUB_OFFLINE" not in made.environment
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).touch()
    made = make()
    assert made.command[:3] == (sys.executable, early_core.__file__, str(engine))
    assert made.argv[0] == str(engine)
    assert made.argv[made.argv.index("--revision") + 1] == "a" * 40
    assert made.environment["HF_HUB_OFFLINE"] == "1"


def test_profile_that_names_another_hub_model(plan: MakePlan, tmp_path: Path, root: Path) -> None:
    """The engine may download what the profile names besides the model, unless the operator forbids it."""
    file = tmp_path / "p.yaml"
    file.write_text((root / "vllm_config.yaml").read_text() + "tokenizer: org/other\n")
    assert plan(Target.CPU, file=str(file)).environment["HF_HUB_OFFLINE"] == "0"
    offline = plan(Target.CPU, file=str(file), environ={"HF_HUB_OFFLINE": "1"})
    assert offline.environment["HF_HUB_OFFLINE"] == "1"


def test_revision_of_a_folder(plan: MakePlan, tmp_path: Path) -> None:
    """A revision is an error where the model is not the hub's, and where it could be read as a flag."""
    with pytest.raises(ConfigurationError, match="only a model of the hub has revisions"):
        plan(Target.CPU, model=str(tmp_path), revision="v1")
    with pytest.raises(ConfigurationError, match="--revision"):
        plan(Target.CPU, model="org/m", revision="--trust-remote-code")


def test_grace_arithmetic(plan: MakePlan) -> None:
    """servekit waits longer than vLLM drains, and the plan states when it kills."""
    made = plan(Target.CUDA, drain_s=45)
    assert made.argv[made.argv.index("--shutdown-timeout") + 1] == "45"
    assert made.stop_s == 45 + STOP_MARGIN_S


def test_secrets_are_masked_and_keys_stay_out(plan: MakePlan) -> None:
    """The plan shows no secret, and vLLM gets no API key, because it writes it into its cache and its log."""
    environ = {"HF_TOKEN": "hf_secret", "VLLM_API_KEY": "sk-1", "SERVEKIT_PORT": "8009", "CUDA_VISIBLE_DEVICES": "0"}
    made = plan(Target.CUDA, environ=environ)
    shown = json.dumps(made.describe())
    assert "hf_secret" not in shown
    assert "sk-1" not in shown
    assert made.inherited == {"CUDA_VISIBLE_DEVICES": "0", "HF_TOKEN": "***"}
    given = engine_environment(made, environ)
    assert given["HF_TOKEN"] == "hf_secret"
    assert "VLLM_API_KEY" not in given
    assert [name for name in given if name.startswith("SERVEKIT_")] == ["SERVEKIT_GUARD_CONFIG"], "a path, no secret"


def test_what_is_withheld_is_in_the_plan_by_name(plan: MakePlan) -> None:
    """The plan shows which of Python's and the loader's variables pass, and only the names of those that do not."""
    environ = {"PYTHONPATH": "/own", "PYTHONOPTIMIZE": "2", "LD_PRELOAD": "/x.so", "VLLM_SERVER_DEV_MODE": "secret"}
    made = plan(Target.CUDA, environ=environ)
    assert made.inherited == {"PYTHONPATH": "/own"}
    assert sorted(made.withheld) == ["LD_PRELOAD", "PYTHONOPTIMIZE", "VLLM_SERVER_DEV_MODE"]
    assert "secret" not in json.dumps(made.describe())
    given = engine_environment(made, environ)
    assert given["PYTHONPATH"] == f"{made.environment['PYTHONPATH']}:/own"
    assert not set(given) & set(made.withheld)
    made = plan(Target.CUDA, environ=environ, pass_env="LD_PRELOAD")
    assert made.inherited == {"LD_PRELOAD": "/x.so", "PYTHONPATH": "/own"}
    assert engine_environment(made, environ)["LD_PRELOAD"] == "/x.so"


def test_telemetry_is_off_and_redirects_are_not_followed(plan: MakePlan) -> None:
    """vLLM's defaults that an endpoint must not have are turned off."""
    environment = plan(Target.CUDA).environment
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["DO_NOT_TRACK"] == "1"
    assert environment["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_embeddings_and_activations_reach_the_engine(root: Path) -> None:
    """On an L4 the engine moves the embeddings; FP8 activations are a deviation that the engine must report."""
    profile, l4 = load_profile(root / "vllm_config.yaml"), parse_gpu_model("l4")

    def planned(**flags: object) -> Plan:
        given = {"target": "cuda", "cache_dir": "/cache"} | flags
        return build_plan(profile, read_settings(given, {}), {}, gpu=l4, survey=lambda: None)

    plans = [planned(), planned(embeddings="host"), planned(embeddings="gpu")]
    assert [each.environment.get("SERVEKIT_EMBEDDINGS") for each in plans] == ["auto", "host", None]
    assert [each.loaded["per-layer-embeddings"] for each in plans] == ["host or gpu", "host", "gpu"]
    assert "VLLM_MARLIN_INPUT_DTYPE" not in plans[0].environment
    faster = planned(fp8_activations=True)
    inherited = {"VLLM_MARLIN_INPUT_DTYPE": "int8", "SERVEKIT_EMBEDDINGS": "gpu"}
    environment = engine_environment(faster, inherited)
    assert (environment["VLLM_MARLIN_INPUT_DTYPE"], environment["SERVEKIT_EMBEDDINGS"]) == ("fp8", "auto")
    assert faster.loaded["activations"] == "float8_e4m3fn"
    assert [each.key for each in faster.deviations] == ["activations"]


def test_target_is_detected(root: Path) -> None:
    """NVML decides the target unless the operator has chosen one."""
    driver = GpuSurvey("580.95", (13, 0), ())
    profile = load_profile(root / "vllm_config.yaml")

    def target(survey: GpuSurvey | None, **flags: object) -> Target:
        return make_start(profile, read_settings(flags, {}), {}, survey=lambda: survey).target

    assert target(driver) is Target.CUDA, "the missing GPU is for preflight to report"
    assert target(None) is Target.CPU
    assert target(driver, target="cpu") is Target.CPU


@pytest.mark.parametrize(
    ("host", "reached"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("10.1.2.3", "10.1.2.3")],  # noqa: S104 - not bound
)
def test_addresses_to_connect_to(host: str, reached: str) -> None:
    """A wildcard address is reached over loopback, IPv6 in brackets."""
    assert connectable(host) == reached


def test_newer_packages_go_between_the_guard_and_the_operators(plan: MakePlan, tmp_path: Path) -> None:
    """The engine's PYTHONPATH has the guard first, then the newer packages, then the operator's folders."""
    made = plan(Target.CUDA, engine_patches=str(tmp_path))
    path = engine_environment(made, {"PYTHONPATH": "/mine"})["PYTHONPATH"]
    assert path.split(":") == [str(INSIDE), str(tmp_path), "/mine"]
    assert made.environment["PYTHONPATH"].split(":") == [str(INSIDE), str(tmp_path)]


def test_newer_packages_are_found_beside_the_engine(tmp_path: Path) -> None:
    """The patches' folder is the configured one, else the one beside the engine from `make install`, else none."""
    program = tmp_path / ".venv-engine" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_engine_patches(Settings(engine=str(program))) is None
    beside = tmp_path / ".venv-engine-patches"
    beside.mkdir()
    assert find_engine_patches(Settings(engine=str(program))) == beside
    assert find_engine_patches(Settings(engine=str(program), engine_patches=tmp_path)) == tmp_path
    assert find_engine_patches(Settings(engine="/nowhere/vllm")) is None
