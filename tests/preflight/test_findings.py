"""Findings: their order, their text, their lines, and skipping."""

import ast
import io
import json
from pathlib import Path

import click
import pytest

from servekit.errors import in_order, render
from servekit.preflight.catalogue import CATALOGUE
from servekit.preflight.checkpoint.architectures import KNOWN_ARCHITECTURES, MULTIMODAL_ARCHITECTURES
from servekit.preflight.examine import examine
from servekit.preflight.findings import error, has_errors, line_of, located, note, warning
from servekit.preflight.start import Start
from servekit.profile import resolve
from servekit.settings import Target

MIXED = (
    note("hub-download", "will be downloaded"),
    warning("gpu-processes", "two others", subject="NVIDIA L4"),
    error("port-taken", "8000 is taken", remedy="choose another", subject="--port"),
    error("token-ids", "is 9", file="/m/config.json", line=3, key="eoi_token_id", got="9"),
    error("config-invalid", "is not JSON", file="/m/config.json"),
)


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def test_errors_come_first() -> None:
    """Findings are sorted by severity, then by file and line; those without a file come last."""
    assert [finding.name for finding in in_order(MIXED)] == [
        *("token-ids", "config-invalid", "port-taken", "gpu-processes", "hub-download"),
    ]


def test_text_names_everything() -> None:
    """A line has the place, the severity, the key or subject, the message, the value, the remedy and the name."""
    assert render(MIXED).splitlines() == [
        "note: will be downloaded  [hub-download]",
        "warning: NVIDIA L4: two others  [gpu-processes]",
        "error: --port: 8000 is taken; choose another  [port-taken]",
        "/m/config.json:3: error: eoi_token_id: is 9 (got 9)  [token-ids]",
        "/m/config.json: error: is not JSON  [config-invalid]",
    ]
    assert str(MIXED[2]) == "error: --port: 8000 is taken; choose another  [port-taken]"


def test_terminal_gets_groups_and_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets a line per remedy, a group per severity and the totals; NO_COLOR removes only the colours."""
    monkeypatch.setenv("NO_COLOR", "1")
    plain = render(in_order(MIXED[1:3]), Terminal())
    assert plain.splitlines() == [
        "error: --port: 8000 is taken  [port-taken]",
        "    choose another",
        "",
        "warning: NVIDIA L4: two others  [gpu-processes]",
        "",
        "1 error, 1 warning",
    ]
    monkeypatch.delenv("NO_COLOR")
    coloured = render(in_order(MIXED[1:3]), Terminal())
    assert coloured.startswith("\x1b[1;31merror\x1b[0m: --port")
    assert click.unstyle(coloured) == plain
    assert render((), Terminal()) == ""


def test_json_has_plain_values() -> None:
    """A finding becomes a JSON object; the file's name replaces a missing subject."""
    given = {"name": "port-taken", "severity": "error", "message": "8000 is taken", "remedy": "choose another"}
    empty = {"got": "", "file": "", "line": 0, "key": ""}
    assert json.loads(json.dumps(MIXED[2].as_dict())) == {**given, **empty, "subject": "--port"}
    assert (MIXED[3].as_dict()["subject"], MIXED[3].as_dict()["line"]) == ("config.json", 3)


def test_skipping_splits_and_keeps(tmp_path: Path) -> None:
    """Skipped findings do not count, but the caller gets them for its log."""
    start = Start(
        target=Target.CPU,
        profile=tmp_path / "profile.yaml",
        model="/no/such",
        values={},
        arguments=resolve({}, target=Target.CPU),
        addresses={},
        cache_dir=tmp_path,
        skip=("model-missing", "cpu-memory", "cpu-library"),
    )
    found = examine(start)
    assert not has_errors(found.findings)
    assert "model-missing" in [finding.name for finding in found.skipped]


@pytest.mark.parametrize(
    ("key", "line"), [("a", 2), ("a.b", 3), ("a.b_c", 4), ("a.none", 2), ("none", 0), ("", 0), ("a.b.c", 3)]
)
def test_line_of_a_key(tmp_path: Path, key: str, line: int) -> None:
    """The line is that of the key, or of the innermost part of it that exists, in JSON and in YAML."""
    path = tmp_path / "file"
    for text in ('{\n"a": {\n"b": 1,\n"b-c": 2}}', "# text\na:\n  b: 1\n  b-c: 2\n"):
        path.write_text(text)
        assert line_of(path, key) == line
    assert located(error("token-ids", "x", key="a.b"), path).line == line_of(path, "a.b")


def test_file_that_cannot_be_read_has_no_line(tmp_path: Path) -> None:
    """A file that is missing, or is neither JSON nor YAML, gives no line and no traceback."""
    path = tmp_path / "file"
    assert line_of(path, "a") == 0
    path.write_text("{{{")
    assert line_of(path, "a") == 0


def test_findings_outside_the_catalogue_cannot_be_made() -> None:
    """A name must be in CATALOGUE, so that users can look it up."""
    with pytest.raises(ValueError, match="not a finding of the catalogue"):
        error("gpu-smoke", "it smokes")


def test_every_name_of_the_catalogue_is_used(root: Path) -> None:
    """CATALOGUE has no name that no code uses."""
    sources = [path for path in (root / "src/servekit/preflight").rglob("*.py") if path.name != "catalogue.py"]
    code = "".join(path.read_text() for path in sources)
    assert [name for name in CATALOGUE if f'"{name}"' not in code] == []


def test_architectures_are_those_of_the_installed_engine(root: Path) -> None:
    """The list of known architectures equals vLLM 0.20.2's registry."""
    registry = next(
        (root / ".venv-engine").glob("lib/python3*/site-packages/vllm/model_executor/models/registry.py"), None
    )
    if registry is None:
        pytest.skip("needs .venv-engine")
    names: dict[str, set[object]] = {"_TEXT_GENERATION_MODELS": set(), "_MULTIMODAL_MODELS": set()}
    for statement in ast.parse(registry.read_text()).body:
        if isinstance(statement, ast.Assign) and (name := getattr(statement.targets[0], "id", "")) in names:
            assert isinstance(statement.value, ast.Dict)
            names[name].update(key.value for key in statement.value.keys if isinstance(key, ast.Constant))
    assert set().union(*names.values()) == KNOWN_ARCHITECTURES
    assert names["_MULTIMODAL_MODELS"] == MULTIMODAL_ARCHITECTURES
