"""Which variables reach the engine: a verdict for each one vLLM reads, and those that Python must not get."""

import ast
from pathlib import Path

import pytest

from servekit.serve.engine.environment import TABLE, passing, verdict, withheld
from tests.conftest import ROOT


def known_to_vllm(file: Path) -> list[str]:
    """Return the keys of `environment_variables` in vLLM's envs.py, parsed without executing it."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "environment_variables":
            assert isinstance(node.value, ast.Dict)
            return [
                key.value for key in node.value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            ]
    raise AssertionError(file)


@pytest.mark.engine
def test_every_variable_of_vllm_has_a_verdict() -> None:
    """Each VLLM_ variable of the installed engine has a row with a reason, and each such row has a variable."""
    [envs] = (ROOT / ".venv-engine").glob("lib/python3*/site-packages/vllm/envs.py")
    names = [name for name in known_to_vllm(envs) if name.startswith("VLLM_")]
    assert len(names) > 200
    decided = [verdict(name) for name in names]
    assert [name for name, row in zip(names, decided, strict=True) if row is TABLE[-1]] == []
    rows = [row for row in TABLE[:-1] if row.names.startswith("VLLM_")]
    assert [row.names for row in rows if row not in decided] == []


@pytest.mark.advisory("CVE-2026-41523")
@pytest.mark.parametrize(
    "name",
    [
        *("PYTHONOPTIMIZE", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONHOME", "PYTHONWARNINGS", "PYTHONDEVMODE"),
        *("LD_PRELOAD", "LD_AUDIT", "LD_DEBUG", "FORWARDED_ALLOW_IPS", "PROMETHEUS_MULTIPROC_DIR"),
        *("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        *("VLLM_TRACE_FUNCTION", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "VLLM_LOGGING_LEVEL", "VLLM_NEWER_THAN_THIS"),
        *("VLLM_API_KEY", "VLLM_PORT", "VLLM_MARLIN_INPUT_DTYPE", "SERVEKIT_PORT"),
    ],
)
def test_withheld(name: str) -> None:
    """Variables that change Python, the loader or vLLM's guards are dropped, with a reason."""
    assert passing({name: "1", "PATH": "/bin"}) == {"PATH": "/bin"}
    assert withheld([name, "PATH"])[name]


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "PYTHONUNBUFFERED", "PYTHON_VERSION", "LD_LIBRARY_PATH"),
        *("CUDA_VISIBLE_DEVICES", "HF_TOKEN", "NCCL_DEBUG", "OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE"),
        *("VLLM_USE_FLASHINFER_SAMPLER", "VLLM_MARLIN_USE_ATOMIC_ADD", "VLLM_PLUGINS", "VLLM_CACHE_ROOT"),
    ],
)
def test_passes(name: str) -> None:
    """Variables that the engine needs, or that tune it, pass unchanged."""
    assert passing({name: "1"}) == {name: "1"}
    assert withheld([name]) == {}


def test_the_operator_lets_one_in() -> None:
    """A variable that is named explicitly still passes; servekit's own and the key of vLLM's own guard never do."""
    environ = {"LD_PRELOAD": "libjemalloc.so", "LD_AUDIT": "x", "VLLM_API_KEY": "k", "SERVEKIT_PORT": "1"}
    assert passing(environ, tuple(environ)) == {"LD_PRELOAD": "libjemalloc.so", "LD_AUDIT": "x"}
    assert passing(environ, ("LD_PRELOAD",)) == {"LD_PRELOAD": "libjemalloc.so"}


def test_every_row_has_a_reason_and_only_the_last_is_a_net() -> None:
    """No row is shadowed by an earlier one."""
    assert all(row.why for row in TABLE)
    assert len({row.names for row in TABLE}) == len(TABLE)
