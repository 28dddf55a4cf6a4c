"""Whatever flags and variables hold: an answer or a mistake of the user's, never exit code 70."""

import contextlib
import io
import os
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from servekit.cli import main as cli
from servekit.settings import Settings, flag_of, variable_of

OTHERS = ("XDG_STATE_HOME", "XDG_CACHE_HOME", "HOME", "HF_HOME", "HF_HUB_CACHE", "VLLM_CPU_KVCACHE_SPACE", "PATH")
ODD = (
    "~nosuchuser/x",
    "~",
    "/",
    ".",
    "..",
    "/dev/null",
    "/proc/self/mem",
    "https://example.org/",
    "a/b",
    "config.json",
    "tcp://10.0.0.1:80",
    "::",
    "0",
    "-1",
    "4.5",
    "1e400",
    "99999999999999999999",
    "nan",
    "true",
    "cpu",
    "cuda",
    "json",
    ",",
    ",,",
    "a,b=c",
    "[1",
    "{}",
    "vllm_config.yaml",
    "pyproject.toml",
    "--help",
    "\udcff",
)
values = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
)
fields = st.sampled_from(sorted(Settings.model_fields))
words = st.lists(st.tuples(fields, values), max_size=3)
variables = st.dictionaries(st.one_of(fields.map(variable_of), st.sampled_from(OTHERS)), values, max_size=3)


@pytest.mark.timeout(300)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(command="check", given_flags=[("state_dir", "~nosuchuser/x")], environ={})
@example(command="check", given_flags=[("model", "~nosuchuser/x")], environ={})
@example(command="plan", given_flags=[], environ={"HF_HOME": "~nosuchuser/x", "XDG_STATE_HOME": "~nosuchuser/x"})
@example(command="plan", given_flags=[("served_name", "\udcff")], environ={})
@example(command="plan", given_flags=[], environ={"VLLM_CPU_KVCACHE_SPACE": "4.5"})
@example(command="check", given_flags=[("host", "a" * 300)], environ={})
@given(command=st.sampled_from(["check", "plan", "key"]), given_flags=words, environ=variables)
def test_no_setting_ends_in_a_bug(
    root: Path, tmp_path: Path, command: str, given_flags: list[tuple[str, str]], environ: dict[str, str]
) -> None:
    """`check`, `plan` and `key` end with 0, 2 or 3 for any flags and variables, and their output can be written."""
    switches = [name for name, field in Settings.model_fields.items() if field.annotation is bool]
    argv = [flag_of(name) if name in switches else f"{flag_of(name)}={value}" for name, value in given_flags]
    own = {"SERVEKIT_TARGET": "cpu", "SERVEKIT_CACHE_DIR": str(tmp_path), "SERVEKIT_STATE_DIR": str(tmp_path / "state")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SERVEKIT_", "HF_", "XDG_"))}
    (tmp_path / "vllm_config.yaml").write_bytes((root / "vllm_config.yaml").read_bytes())
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=how) for how in ("strict", "backslashreplace"))
    with (
        mock.patch.dict(os.environ, kept | {"HF_HUB_OFFLINE": "1"} | own | environ, clear=True),
        mock.patch.object(sys, "argv", ["servekit", command, *argv]),
        mock.patch("servekit.demo.build.ensure_demo_model"),  # it would write wherever the cache folder may be
        contextlib.chdir(tmp_path),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    err.seek(0)
    assert ended.value.code in (0, 2, 3), err.read()
